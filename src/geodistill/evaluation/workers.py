"""Classifiers trained side by side, each in a process with one thread.

A small network keeps one core busy and the others idle. So several trainings at once finish sooner than one after the
other with all threads (benchmarks/harness.py). With one thread each, the results are also the same on any number of
cores.
"""

import ctypes
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import joblib
import numpy as np
import torch
from numpy.typing import NDArray

from geodistill.devices import accelerator
from geodistill.evaluation.protocols import recipe_steps, train_and_predict

# Each process takes up to a gigabyte with the largest networks.
MOST_WORKERS = 8
_POLL_SECONDS = 1.0
# Parameters of mallopt, from glibc's malloc.h: largest number of arrays with a memory mapping of their own, and amount
# of free memory above which some is returned to the system.
_M_MMAP_MAX, _M_TRIM_THRESHOLD, _NEVER = -4, -1, 2**31 - 1


@dataclass(frozen=True)
class Job:
    """Arguments of one call of `train_and_predict`, as NumPy arrays, which can be passed between processes."""

    protocol: str
    network: str
    images: NDArray[np.uint8]
    labels: NDArray[np.int64 | np.float32]
    test: NDArray[np.uint8]
    classes: int
    seed: int
    steps: int | None = None


def train_side_by_side(
    jobs: Sequence[Job], progress: Callable[[int, int], None] | None = None
) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (index of the job, logits float32 [n_test, classes]) as the jobs finish.

    `progress(done, steps)` is called about once a second with the number of finished training steps of all jobs. Raises
    the errors of `train_and_predict`.
    """
    steps = sum(recipe_steps(job.protocol, len(job.images), job.steps) for job in jobs)
    # Several processes should not share one GPU, so trainings on a GPU run one after the other in this process.
    workers = 1 if accelerator().type == "cuda" else min(len(jobs), joblib.cpu_count(), MOST_WORKERS)
    with tempfile.TemporaryDirectory(prefix="geodistill-") as folder, _told(Path(folder), steps, progress):
        parallel = joblib.Parallel(n_jobs=workers, return_as="generator_unordered", temp_folder=folder)
        yield from parallel(
            joblib.delayed(_train)(index, job, Path(folder) / f"{index}.steps", os.getpid())
            for index, job in enumerate(jobs)
        )


def _train(index: int, job: Job, told: Path, parent: int) -> tuple[int, torch.Tensor]:
    """Train in a worker process, or in this one if one is enough; the file `told` grows by one byte with each step."""
    images, labels, test = (torch.from_numpy(np.array(part)) for part in (job.images, job.labels, job.test))
    with _one_thread(), kept_memory(), told.open("wb", buffering=0) as file:

        def tell(done: int, of: int) -> None:
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
            progress=tell,
        )
    return index, logits


@contextmanager
def kept_memory() -> Iterator[None]:
    """Make glibc reuse freed memory, and return it only when the block ends; other C libraries stay as they are.

    By default glibc returns every freed array above 32 MiB to the system. A training that allocates the same arrays at
    each step then waits for their pages to be cleared, which takes a third of ConvNet-3's time.
    """
    libc = _glibc()
    if libc:
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        if libc:
            libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    with suppress(OSError, TypeError):
        library = ctypes.CDLL(None)
        if hasattr(library, "mallopt") and hasattr(library, "malloc_trim"):
            return library
    return None


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _told(folder: Path, steps: int, progress: Callable[[int, int], None] | None) -> Iterator[None]:
    """Report the total bytes (one per step) in the files that `_train` writes to `progress`, until the block ends."""
    if progress is None:
        yield
        return
    ended = threading.Event()

    def tell() -> None:
        with suppress(FileNotFoundError):
            progress(sum(path.stat().st_size for path in folder.glob("*.steps")), steps)

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
