"""The cost of a stage (wall time, processor time, peak memory) and the versions of what is installed."""

import contextlib
import json
import os
import platform
import threading
import time
from pathlib import Path
from typing import Any

from geodistill.memory import peak_memory_mib
from geodistill.run.files import write_atomic

_HEARTBEAT_SECONDS = 30.0


class Clock:
    """Wall time, processor time and peak memory of a stage, including its interrupted attempts.

    Processor time includes that of worker processes that have ended; memory is that of the process itself.

    The cost is written down every half minute, because a killed process writes nothing.
    """

    def __init__(self, path: Path, stage: str, mark: str) -> None:
        self._path, self._stage, self._mark = path, stage, mark
        self._before = _read_record(path, mark)
        # Linux resets the high-water mark on this write; elsewhere the peak covers the whole process so far.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self._wall, self._cpu = time.monotonic(), _processor_seconds()
        self._over = threading.Event()
        self._beat = threading.Thread(target=self._keep_recording, daemon=True)

    def __enter__(self) -> "Clock":
        self._beat.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._beat.join()
        self.record()

    def _keep_recording(self) -> None:
        while not self._over.wait(_HEARTBEAT_SECONDS):
            # A full disk stops the stage itself, with a message of its own.
            with contextlib.suppress(OSError):
                self.record()

    def record(self, facts: dict[str, Any] | None = None, files: dict[str, list[int]] | None = None) -> None:
        """Write the cost so far; with `facts` the stage counts as finished, and `files` are its `checksums`."""
        record = {
            "stage": self._stage,
            "fingerprint": self._mark,
            "facts": facts,
            **({} if files is None else {"files": files}),
            "wall_seconds": round(self._before.get("wall_seconds", 0) + time.monotonic() - self._wall, 2),
            "cpu_seconds": round(self._before.get("cpu_seconds", 0) + _processor_seconds() - self._cpu, 2),
            "peak_memory_mib": max(self._before.get("peak_memory_mib", 0), peak_memory_mib()),
        }
        self._path.parent.mkdir(exist_ok=True)
        write_atomic(self._path, json.dumps(record, indent=2, sort_keys=True))


def _processor_seconds() -> float:
    """Return the processor time in seconds of this process and of its child processes that have ended."""
    return sum(os.times()[:4])


def _read_record(path: Path, mark: str) -> dict[str, Any]:
    """Return the record at `path` if it is of an unfinished stage with fingerprint `mark`, otherwise {}."""
    record = read_record(path)
    return record if record.get("fingerprint") == mark and record.get("facts") is None else {}


def records(folder: Path) -> list[dict[str, Any]]:
    """Return the records of the finished stages of the run in `folder`, in the order in which they were finished."""
    paths = sorted((folder / "stages").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    found = [read_record(path) for path in paths]
    return [record for record in found if record.get("facts") is not None]


def read_record(path: Path) -> dict[str, Any]:
    """Return the record of a stage at `path`; {} if it is missing or damaged."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) and {"stage", "facts"} <= record.keys() else {}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that results depend on."""
    from importlib.metadata import PackageNotFoundError, version

    libraries = ("torch", "diffusers", "transformers", "peft", "scikit-learn", "scipy", "numpy", "pillow", "pytorchcv")
    names = ("geodistill", *libraries)
    found = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
