"""Classifiers trained side by side, each in a process with one thread.

A small network keeps one core busy and the others idle. So several trainings at once finish sooner than one after the
other with all threads (benchmarks/harness.py). With one thread each, the results are also the same on any number of
cores.
"""

import os
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import joblib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from geodistill.devices import accelerator
from geodistill.evaluation.classifier import About, Classifier
from geodistill.evaluation.protocols import recipe_steps, train_and_predict
from geodistill.progress import progress
from geodistill.run import explain_os_errors

# Each process takes up to a gigabyte with the largest networks.
MOST_WORKERS = 8
_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Job:
    """Arguments of one call of `train_and_predict`, as NumPy arrays, which can be passed between processes.

    save: the folder that the trained classifier is written to, and what it says about it; None keeps nothing.
    """

    protocol: str
    network: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64 | np.float32]
    test: NDArray[np.uint8]
    classes: int
    seed: int
    steps: int | None = None
    save: tuple[Path, About] | None = None


def train_side_by_side(jobs: Sequence[Job]) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (index of the job, logits float32 [n_test, classes]) as the jobs finish.

    The progress of all jobs together is shown. Raises the errors of `train_and_predict`.
    """
    steps = sum(recipe_steps(job.protocol, len(job.images), job.steps) for job in jobs)
    # Several processes should not share one GPU, so trainings on a GPU run one after the other in this process.
    workers = 1 if accelerator().type != "cpu" else min(len(jobs), joblib.cpu_count(), MOST_WORKERS)
    room = Path(tempfile.gettempdir())
    with (
        explain_os_errors(room),
        tempfile.TemporaryDirectory(prefix="geodistill-") as folder,
        _shown(Path(folder), steps, len(jobs)),
    ):
        parallel = joblib.Parallel(n_jobs=workers, return_as="generator_unordered", temp_folder=folder)
        yield from parallel(
            joblib.delayed(_train)(index, job, Path(folder) / f"{index}.steps", os.getpid())
            for index, job in enumerate(jobs)
        )


def _train(index: int, job: Job, told: Path, parent: int) -> tuple[int, torch.Tensor]:
    """Train in a worker process, or in this one if one is enough; the file `told` grows by one byte with each step."""
    images, labels, test = (torch.from_numpy(np.array(part)) for part in (job.images, job.labels, job.test))
    with _one_thread(), told.open("wb", buffering=0) as file:

        def tell(done: int) -> None:
            file.write(b".")
            if parent not in (os.getpid(), os.getppid()):
                os._exit(1)  # A command that was killed cannot stop its workers, so they stop by themselves.

        logits = train_and_predict(
            job.protocol,
            job.network,
            images,
            labels,
            test,
            classes=job.classes,
            seed=job.seed,
            steps=job.steps,
            advance=tell,
            keep=None if job.save is None else partial(_save, *job.save),
        )
    return index, logits


def _save(path: Path, about: About, model: nn.Module) -> None:
    with explain_os_errors(path):
        Classifier(model, about).save(path)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _shown(folder: Path, steps: int, count: int) -> Iterator[None]:
    """Show, about once a second until the block ends, how many bytes (one per step) `_train` has written to files."""
    ended = threading.Event()
    with progress(f"training {count} classifier{'s' if count > 1 else ''}", steps) as advance:

        def tell() -> None:
            with suppress(FileNotFoundError):
                advance(sum(path.stat().st_size for path in folder.glob("*.steps")))

        def watch() -> None:
            while not ended.wait(_POLL_SECONDS):
                tell()

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
            tell()
        finally:
            ended.set()
            watcher.join()
