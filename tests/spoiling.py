"""Kills and full disks at random moments of whole runs of the command line.

A `Bench` runs a command again and again, interrupts most of its attempts, and says whether what the last attempt leaves
is what an undisturbed run leaves, byte for byte. `tests/test_faults.py` does a little of this, `benchmarks/faults.py`
much.
"""

import hashlib
import json
import multiprocessing
import os
import random
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

# Attempts start from a process that has imported what commands need: importing takes longer than a tiny run.
_PROCESSES = multiprocessing.get_context("forkserver")
_PRELOADED = (
    "geodistill.cli",
    "geodistill.commands.distill",
    "geodistill.commands.compare",
    "geodistill.commands.audit",
    "geodistill.commands.pretrain",
)
_TINY = ("--config", "tiny")
# Files and fields that hold times and costs, which no two runs have in common.
_TIMED = ("stages/*.json", "compare.csv", "compare.json", "run.json", "*.html")
# Seconds after which an attempt counts as hung.
_HUNG = 900


@dataclass(frozen=True)
class Command:
    """A command line: its arguments, given the folder of scenes, a finished run and the folder to write.

    processes: how many of them torchrun starts; 1 is without it.
    """

    name: str
    arguments: Callable[[Path, Path, Path], list[str]]
    processes: int = 1


def _distill(scenes: Path, run: Path, out: Path) -> list[str]:
    return ["distill", str(scenes), *_TINY, "--reproducible", "--ipc", "2", "--out", str(out)]


def _compare(scenes: Path, run: Path, out: Path) -> list[str]:
    what = ["--ipc", "1", "--methods", "random", "kmeans", "dpd", "--protocols", "probe", "scratch", "--seeds", "1"]
    return ["compare", str(scenes), *_TINY, *what, "--networks", "convnet3", "--out", str(out)]


def _audit(scenes: Path, run: Path, out: Path) -> list[str]:
    return ["audit", str(run), "--data", str(scenes), "--out", str(out)]


def _pretrain(scenes: Path, run: Path, out: Path) -> list[str]:
    return ["pretrain", str(scenes), *_TINY, "--data-note", "drawn by geodistill", "--out", str(out)]


COMMANDS = {
    one.name: one
    for one in (
        Command("distill", _distill),
        Command("compare", _compare),
        Command("audit", _audit),
        Command("pretrain", _pretrain),
        Command("distill, 2 processes", _distill, processes=2),
        Command("audit, 2 processes", _audit, processes=2),
    )
}


@dataclass
class Outcome:
    """What came of a command that was interrupted `faults` times, in `runs` runs.

    different: files that are not what an undisturbed run leaves. failures: the ends of the logs of attempts that ended
    with an error, or with a traceback where an error was due.
    """

    faults: int = 0
    runs: int = 0
    different: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Return whether every run ended as an undisturbed one does."""
        return not self.different and not self.failures


class Bench:
    """Scenes, a finished run, and what undisturbed runs of commands leave; all in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scenes, self.run = folder / "scenes", folder / "run"
        self._wanted: dict[str, tuple[dict[str, str], float]] = {}
        _PROCESSES.set_forkserver_preload(list(_PRELOADED))

    def prepare(self, *, run: bool = True) -> None:
        """Make the scenes, and with `run` the run that other commands than distill need."""
        if not self.scenes.is_dir():
            _finished(
                self._start(["scenes", str(self.scenes), "--train", "12", "--test", "4", "--size", "32"], "scenes")
            )
        if run and not (self.run / "distilled").is_dir():
            # Not a reproducible one: `audit` ends with exit code 3 on it.
            asked = [one for one in _distill(self.scenes, self.run, self.run) if one != "--reproducible"]
            _finished(self._start(asked, "run"))

    def spoil_by_kills(self, command: Command, kills: int, random_: random.Random) -> Outcome:
        """Kill `kills` attempts at random moments, over as many runs as they take."""
        wanted, seconds = self.wanted(command)
        # All runs have the same folder name: a base is named after it.
        outcome, out = Outcome(), self.folder / "killed" / "run"
        while outcome.faults < kills and not outcome.failures:
            shutil.rmtree(out, ignore_errors=True)
            killed = 0
            # Each attempt lives up to half as long as a whole run, so that a run is killed some times and then ends.
            while outcome.faults < kills and killed < 8:
                ended = self._attempt(command, out, random_.uniform(0.05, 0.5) * seconds)
                if ended is not None:
                    break
                killed, outcome.faults = killed + 1, outcome.faults + 1
            outcome.runs += 1
            self._end(command, out, wanted, outcome)
        return outcome

    def spoil_by_full_disk(self, command: Command, times: int, random_: random.Random) -> Outcome:
        """Let `times` runs meet a full disk at a random size of it, then give them more. Needs the right to mount."""
        wanted, _ = self.wanted(command)
        size = sum(path.stat().st_size for path in (self.folder / "wanted").rglob("*") if path.is_file())
        outcome = Outcome()
        for _ in range(times):
            with small_disk(self.folder / "disk", round(size * random_.uniform(0.02, 0.95))) as resize:
                out = self.folder / "disk" / "run"
                ended = self._attempt(command, out, _HUNG)
                log = self._log(command.name)
                outcome.faults += ended != 0
                outcome.runs += 1
                if ended not in (0, 2) or "Traceback" in log:
                    outcome.failures.append(log[-2000:])
                resize(4 * size + 2**26)
                self._end(command, out, wanted, outcome)
        return outcome

    def wanted(self, command: Command) -> tuple[dict[str, str], float]:
        """Return the digests of the files that an undisturbed run leaves, and its seconds."""
        if command.name not in self._wanted:
            out = self.folder / "wanted" / "run"
            shutil.rmtree(out, ignore_errors=True)
            start = time.monotonic()
            ended = self._attempt(command, out, _HUNG)
            if ended != 0:
                raise RuntimeError(f"{command.name} fails undisturbed ({ended}): {self._log(command.name)[-2000:]}")
            self._wanted = {command.name: (digests(out), time.monotonic() - start)}
        return self._wanted[command.name]

    def _end(self, command: Command, out: Path, wanted: dict[str, str], outcome: Outcome) -> None:
        """Run `command` to its end and note what differs from `wanted`."""
        ended = self._attempt(command, out, _HUNG)
        if ended != 0:
            outcome.failures.append(f"{ended}: {self._log(command.name)[-2000:]}")
            return
        found = digests(out)
        outcome.different += sorted(
            f"{path}: {'missing' if path not in found else 'left over' if path not in wanted else 'other bytes'}"
            for path in found.keys() | wanted.keys()
            if found.get(path) != wanted.get(path)
        )

    def _attempt(self, command: Command, out: Path, seconds: float) -> int | None:
        """Run `command` and kill it after `seconds`; return its exit code, None if it was killed."""
        arguments = command.arguments(self.scenes, self.run, out)
        if command.processes > 1:
            return self._launched(command, arguments, seconds)
        process = self._start(arguments, command.name)
        process.join(seconds)
        if process.exitcode is None:
            process.kill()
            process.join()
            return None
        return process.exitcode

    def _start(self, arguments: list[str], name: str) -> BaseProcess:
        process = _PROCESSES.Process(target=_call, args=(arguments, str(self._log_file(name))))
        process.start()
        return process

    def _launched(self, command: Command, arguments: list[str], seconds: float) -> int | None:
        """Do what `_attempt` does with several processes; each of them is killed."""
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        launcher += ["--nproc_per_node", str(command.processes), "-m", "geodistill"]
        with self._log_file(command.name).open("wb") as log:
            process = subprocess.Popen(
                [*launcher, *arguments],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            try:
                return process.wait(seconds)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()
                return None

    def _log_file(self, name: str) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / f"{name.split(',')[0]}.log"

    def _log(self, name: str) -> str:
        return self._log_file(name).read_text(encoding="utf-8", errors="replace")


def _call(arguments: list[str], log: str) -> None:
    """Run the command line in this process; what it prints goes to the file `log`."""
    with Path(log).open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    sys.argv = ["geodistill", *arguments]
    from geodistill.cli import app

    app(arguments)


def _finished(process: BaseProcess) -> None:
    process.join()
    if process.exitcode:
        raise RuntimeError(f"a command that the others need failed with exit code {process.exitcode}")


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file below `folder`; times and costs in records do not count."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = str(path.relative_to(folder))
            found[name] = "" if _timed(path.relative_to(folder)) else _digest(path)
    return found


def _timed(path: Path) -> bool:
    return any(path.match(pattern) for pattern in _TIMED)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[int], None]]:
    """Mount a file system of `size` bytes in memory at `folder`; the function that is yielded changes its size.

    Raises OSError without the right to mount.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _mount(f"mount -t tmpfs -o size={max(size, 2**16)} tmpfs {shlex.quote(str(folder))}")
    try:
        yield lambda bytes_: _mount(f"mount -o remount,size={bytes_} {shlex.quote(str(folder))}")
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def _mount(command: str) -> None:
    made = subprocess.run(shlex.split(command), capture_output=True, text=True, check=False)
    if made.returncode:
        raise OSError(made.stderr.strip() or f"{command}: exit code {made.returncode}")


def told(outcome: Outcome) -> str:
    """Return what an outcome says, for a message."""
    return json.dumps({"different": outcome.different, "failures": outcome.failures}, indent=1)
