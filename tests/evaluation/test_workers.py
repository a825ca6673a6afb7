import errno
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch

from geodistill.errors import ConfigError, RunError
from geodistill.evaluation.protocols import train_and_predict
from geodistill.evaluation.workers import Job, train_side_by_side
from geodistill.progress import reported_to


def job(seed: int, steps: int = 3, network: str = "convnet3") -> Job:
    random = np.random.default_rng(0)
    images, test = (random.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8) for count in (8, 5))
    return Job("scratch", network, images, np.arange(8) % 2, test, 2, seed, steps)


def alone(one: Job) -> torch.Tensor:
    images, labels, test = map(torch.from_numpy, (one.images, one.labels, one.test))
    options = {"classes": one.classes, "seed": one.seed, "steps": one.steps}
    return train_and_predict(one.protocol, one.network, images, labels, test, **options)


@pytest.fixture
def two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geodistill.evaluation.workers.MOST_WORKERS", 2)


@pytest.mark.usefixtures("two_processes")
@pytest.mark.slow
def test_processes_give_what_one_gives() -> None:
    jobs, told = [job(0), job(1), job(2, steps=4)], []
    with reported_to(lambda what, done, of: told.append((done, of))):
        found = dict(train_side_by_side(jobs))
    assert sorted(found) == [0, 1, 2]
    for index, one in enumerate(jobs):
        torch.testing.assert_close(found[index], alone(one), rtol=1e-3, atol=1e-3)
    assert told[-1] == (10, 10)
    assert told == sorted(told)
    assert next(iter(train_side_by_side(jobs[:1])))[1].equal(found[0])


@pytest.mark.usefixtures("two_processes")
def test_errors_come_through() -> None:
    wrong = replace(job(1), network="convnet33")
    with pytest.raises(ConfigError, match="unknown network 'convnet33'"):
        list(train_side_by_side([job(0), wrong]))


def test_threads_are_as_before() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        list(train_side_by_side([job(0)]))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_full_temporary_folder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("geodistill.evaluation.workers.tempfile.TemporaryDirectory", full)
    with pytest.raises(
        RunError, match=f"^the disk that holds {re.escape(tempfile.gettempdir())} is full: free some space"
    ):
        list(train_side_by_side([job(0)]))


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from test_workers import job
from geodistill.evaluation.workers import train_side_by_side
from geodistill.progress import reported_to
# As many steps as are not compiled, which takes long, of a network whose steps take long.
with reported_to(lambda what, done, of: print(done, flush=True)):
    list(train_side_by_side([job(0, 99, "vgg16"), job(1, 99, "vgg16")]))
"""


@pytest.mark.skipif(joblib.cpu_count() < 2, reason="with one core nothing is started")
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="lists processes by /proc")
@pytest.mark.slow
def test_workers_stop_when_the_command_is_killed() -> None:
    script = KILLED.format(tests=str(Path(__file__).parent))
    command = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert command.stdout is not None
    while command.stdout.readline().strip() in ("0", ""):
        assert command.poll() is None
    workers = _children(command.pid)
    assert len(workers) >= 2
    os.kill(command.pid, signal.SIGKILL)
    command.wait()
    ends = time.monotonic() + 60
    while any(_lives(worker) for worker in workers) and time.monotonic() < ends:
        time.sleep(0.1)
    assert not any(_lives(worker) for worker in workers)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
