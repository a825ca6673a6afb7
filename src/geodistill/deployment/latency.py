"""What a model costs on this machine: latency and memory in a process of its own, which does nothing else.

    python -m geodistill.deployment.latency FILE THREADS RUNS CHANNELS SIDE INPUT

prints JSON. The process of an ONNX file loads ONNX Runtime and no torch, so that its memory is that of the runtime.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from geodistill.errors import ExportError
from geodistill.memory import peak_memory_mib

# Runs before the clock starts: a runtime prepares its memory and its threads in the first ones.
_WARM_UP = 10
RUNS = 200


@dataclass(frozen=True)
class Latency:
    """Milliseconds for one image (median, and what 95 % of the runs stay below), and MiB of peak memory."""

    median: float
    high: float
    memory: int


def measure_latency(path: Path, threads: int, side: int, takes: str, *, runs: int = RUNS, channels: int = 3) -> Latency:
    """Return what the model at `path` costs for one image of `side` pixels at a time, with `threads` threads.

    `takes`: "float" or "uint8", the graph's input. Loading is not counted in the latency; the memory is that of the
    whole process, with Python and the runtime.

    Raises:
        ExportError: the process failed.
    """
    command = [sys.executable, "-m", __name__, *map(str, (path, threads, runs, channels, side, takes))]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        reason = next(iter(done.stderr.strip().splitlines()[-1:]), f"exit code {done.returncode}")
        raise ExportError(f"{path} cannot be measured ({reason}): export it again")
    return Latency(**json.loads(done.stdout.splitlines()[-1]))


def _main(path: str, threads: str, runs: str, channels: str, side: str, takes: str) -> None:
    run, shape = _runner(Path(path), int(threads)), [1, int(channels), int(side), int(side)]
    random = np.random.default_rng(0)
    image = (
        random.integers(0, 256, [1, int(side), int(side), int(channels)], np.uint8)
        if takes == "uint8"
        else random.standard_normal(shape, np.float32)
    )
    times = []
    for _ in range(_WARM_UP + int(runs)):
        start = time.perf_counter()
        run(image)
        times.append(1000 * (time.perf_counter() - start))
    median, high = np.percentile(times[_WARM_UP:], (50, 95))
    print(json.dumps({"median": float(median), "high": float(high), "memory": peak_memory_mib()}))


def _runner(path: Path, threads: int) -> Callable[[NDArray[Any]], object]:
    """Return what runs the model at `path` on an image."""
    if path.suffix == ".onnx":
        return _onnx(path, threads)
    return _litert(path, threads) if path.suffix == ".tflite" else _torch(path, threads)


def _onnx(path: Path, threads: int) -> Callable[[NDArray[Any]], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda image: session.run(None, {name: image})


def _litert(path: Path, threads: int) -> Callable[[NDArray[Any]], object]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(path), num_threads=threads)
    interpreter.allocate_tensors()
    entry = interpreter.get_input_details()[0]["index"]

    def run(image: NDArray[Any]) -> None:
        interpreter.set_tensor(entry, image)
        interpreter.invoke()

    return run


def _torch(path: Path, threads: int) -> Callable[[NDArray[Any]], object]:
    import torch

    torch.set_num_threads(threads)
    if path.is_dir():
        from geodistill.evaluation.classifier import Classifier

        model: Any = Classifier.load(path).model
    else:
        model = torch.jit.load(path, "cpu")

    def run(image: NDArray[Any]) -> object:
        with torch.inference_mode():
            return model(torch.from_numpy(image))

    return run


if __name__ == "__main__":
    _main(*sys.argv[1:])
