"""The run folder: stages, fingerprints, atomic writes, resume.

A run is a folder. Each stage is a sub-folder that appears only when it is whole: the stage is written aside in
`.<stage>.partial`, its files are flushed to disk, and the folder is renamed. Long stages keep their own checkpoints
in the partial folder, so that a run killed at any moment goes on where it stopped.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import platform
import re
import resource
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from geodistill.errors import RunError
from geodistill.processes import processes
from geodistill.progress import progress
from geodistill.provenance import Made, Stage, building, fingerprint, inputs_of
from geodistill.seeding import SECRET_BYTES

log = logging.getLogger("geodistill")
T = TypeVar("T")

_FORMAT = 1
_SECRET = "secret"
_WITHOUT_SECRET = (
    "the images of this run were drawn from it, and cannot be drawn again. Put it back, or choose another --out"
)
_MARK = ".fingerprint"
_HEARTBEAT_SECONDS = 30.0


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write `content` to `path` so that a reader sees the old file or the new one, never a part."""
    data = content.encode() if isinstance(content, str) else content
    aside = path.with_name(f".{path.name}.tmp")
    with aside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write `tensors` to the safetensors file `path`, on disk and whole before it gets that name."""
    aside = path.with_name(f".{path.name}.tmp")
    save_file({name: value.contiguous() for name, value in tensors.items()}, aside, metadata)
    _fsync(aside)
    aside.replace(path)


def kept_parts(title: str, parts: Iterable[slice], make: Callable[[slice], Tensor], folder: Path) -> Tensor:
    """Return `make(part)` of all `parts`, joined along the first axis; see `make_parts`."""
    whole = torch.cat([load_file(path)["part"] for path in make_parts(title, parts, make, folder)])
    # The main process may go on to remove the files that another is still reading.
    processes().wait()
    return whole


def make_parts(title: str, parts: Iterable[slice], make: Callable[[slice], Tensor], folder: Path) -> list[Path]:
    """Return files with `make(part)` of all `parts`, made with a progress bar titled `title`.

    Each is kept in `folder` once it is made: called again after an interruption, none is made a second time. Parts
    follow on each other, the last one's stop is the number of items. When the whole is saved, `forget_parts` removes
    what was kept. Several processes make every one of their number each, and all get all of them.
    """
    slices, crew = list(parts), processes()
    paths = [folder / f".part-{index:05d}.safetensors" for index in range(len(slices))]
    with progress(title, slices[-1].stop) as advance:
        for index, (path, which) in enumerate(zip(paths, slices, strict=True)):
            if index % crew.count == crew.rank and not path.exists():
                save_tensors({"part": make(which)}, path)
            advance(which.stop)
    crew.wait()
    return paths


def join_parts(paths: Sequence[Path], name: str, target: Path) -> None:
    """Write tensor `name` to the safetensors file `target`: what is in `paths`, joined along the first axis.

    One part at a time is in memory, however many there are. The format: a header in JSON, its length before it, and
    then the numbers row after row (https://huggingface.co/docs/safetensors).
    """
    shapes = [_shape_of(path) for path in paths]
    kind, (_, *rest) = shapes[0]
    shape = [sum(rows for _, (rows, *_) in shapes), *rest]
    aside = target.with_name(f".{target.name}.tmp")
    with aside.open("wb") as file:
        size = math.prod(shape) * load_file(paths[0])["part"].element_size()
        header = json.dumps({name: {"dtype": kind, "shape": shape, "data_offsets": [0, size]}}).encode()
        # The numbers begin at a multiple of eight bytes.
        header += b" " * (-len(header) % 8)
        file.write(len(header).to_bytes(8, "little") + header)
        for path in paths:
            part = load_file(path)["part"].contiguous()
            file.write(part.view(torch.uint8).numpy().tobytes())
    _fsync(aside)
    aside.replace(target)


def _shape_of(path: Path) -> tuple[str, list[int]]:
    with safe_open(path, "pt") as tensors:
        found = tensors.get_slice("part")
        return str(found.get_dtype()), list(found.get_shape())


def forget_parts(folder: Path) -> None:
    """Remove what `kept_parts` kept in `folder`."""
    for path in folder.glob(".part-*.safetensors"):
        path.unlink()


def versions() -> dict[str, str]:
    """Return the versions that a figure depends on, of what is installed: geodistill may run from its source."""
    from importlib.metadata import PackageNotFoundError, version

    libraries = ("torch", "diffusers", "transformers", "peft", "scikit-learn", "scipy", "numpy", "pillow", "pytorchcv")
    names = ("geodistill", *libraries)
    found = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@contextlib.contextmanager
def explain_os_errors(folder: Path) -> Iterator[None]:
    """Turn a full disk or a folder that cannot be written into a RunError that says what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        code = _os_code(error)
        if code in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(
                f"the disk that holds {folder} is full: free some space and run the same command again; "
                "what was finished is kept"
            ) from error
        if code in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise RunError(f"cannot write to {folder}: make it writable or choose another --out") from error
        raise


def _os_code(error: OSError | SafetensorError) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    # safetensors gives the system's code in its message alone.
    found = re.search(r"os error (\d+)", str(error))
    return int(found[1]) if found else None


class Run:
    """One run folder, locked while open; use as a context manager.

    Args:
        folder: where everything goes; created when absent.
        settings: what the result depends on (resolved config and data fingerprint), representable in JSON.
        command: the command line that made the run, kept for the reader.
        lender: an open run that makes and keeps the stages that all methods share in this one's stead.

    Attributes:
        used: the stages asked for so far, in that order, whether they were there or had to be built.
        new: whether nothing of the run was there before; False in all processes but the main one.

    Raises:
        RunError: the folder holds another run's results, is in use by another process, or cannot be written.
    """

    def __init__(
        self, folder: Path, settings: dict[str, Any], command: str = "", *, lender: "Run | None" = None
    ) -> None:
        self.folder = folder
        self.used: list[Stage] = []
        self.new = False
        self._secret: bytes | None = None
        self._lender = lender
        self._crew = processes()
        if self._crew.main:
            self._open(settings, command)
        self._crew.wait()

    def _open(self, settings: dict[str, Any], command: str) -> None:
        folder = self.folder
        with explain_os_errors(folder):
            if folder.exists() and not folder.is_dir():
                raise RunError(f"{folder} is a file, not a folder: choose another --out")
            folder.mkdir(parents=True, exist_ok=True)
            self._refuse_foreign_folder()
            self._lock = (folder / ".lock").open("w")
            try:
                self._take_lock()
                self._check_settings(json.loads(json.dumps(settings, default=str)), command)
            except BaseException:
                self._lock.close()
                raise

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        if self._crew.main:
            self._lock.close()

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"another geodistill process is working in {self.folder}: wait for it or choose another --out"
            ) from None

    def _check_settings(self, settings: dict[str, Any], command: str) -> None:
        path = self.folder / "run.json"
        self.new = not path.exists() or not self._begun()
        if self.new:
            about = {"format": _FORMAT, "settings": settings, "command": command, "versions": versions()}
            write_atomic(path, json.dumps(about, indent=2, sort_keys=True))
            return
        before = _read_about(path)
        if before.get("format") != _FORMAT:
            raise RunError(f"{self.folder} was made by another version of geodistill: choose another --out")
        changed = _differences(before["settings"], settings)
        if changed:
            raise RunError(
                f"{self.folder} was made with other settings ({'; '.join(changed[:5])}): "
                "choose another --out, or repeat the settings it was made with"
            )

    def secret(self) -> bytes:
        """Return the run's secret, 32 bytes that the operating system drew when they were first asked for.

        They are kept in `RUN/secret`, which its owner alone may read, so that a run that stopped ends with the same
        bytes. All processes get the same.

        Raises RunError: the secret is gone, or is not the one that the run was begun with.
        """
        if self._secret is None:
            if self._crew.main:
                with explain_os_errors(self.folder):
                    _make_secret(self.folder)
            self._crew.wait()
            self._secret = read_secret(self.folder)
        return self._secret

    def _refuse_foreign_folder(self) -> None:
        # Stages copied from another run are welcome: their fingerprints tell whether they fit.
        if (self.folder / "stages").is_dir():
            return
        others = self._content()
        if others and not (self.folder / "run.json").exists():
            raise RunError(
                f"{self.folder} is not empty and is not a geodistill run (it holds {sorted(others)[0]!r}): "
                "choose another --out"
            )

    def _begun(self) -> bool:
        """Whether a stage was ever begun; before that, settings that turned out wrong may still be changed."""
        return bool(self._content() - {"run.json", "config.toml", _SECRET})

    def _content(self) -> set[str]:
        ours = {".lock", ".run.json.tmp", ".config.toml.tmp", f".{_SECRET}.tmp", "report.html"}
        return {path.name for path in self.folder.iterdir()} - ours

    def make(
        self,
        stage: Stage,
        build: Callable[[Path], dict[str, Any] | None],
        load: Callable[[Path], T],
        *,
        given: Sequence[Any],
    ) -> Made[T]:
        """Return what `load` reads from the folder of `stage`, which is built first unless it is there and whole.

        Args:
            stage: what to make.
            build: fills the folder it is given and may return facts to record. Called again after an interruption
                with the same folder, it must go on from what it finds there. Where the stage is shared, every process
                calls it and leaves writing to the main one.
            load: reads what is returned from the finished folder.
            given: all that the stage depends on: results of other stages, and values that JSON can represent.

        Raises:
            RunError: the folder cannot be written or the disk is full.
            RuntimeError: `build` reads the result of a stage that is not in `given`.
        """
        self.used.append(stage)
        if self._lender and stage.lent:
            return self._lender.make(stage, build, load, given=given)
        folder = self._folder_of(stage, build, given)
        loaded = load(folder)
        return Made(lambda: loaded, (_fingerprint_of(stage, given),), given)

    def _folder_of(self, stage: Stage, build: Callable[[Path], dict[str, Any] | None], given: Sequence[Any]) -> Path:
        """Return the folder of `stage`, built first unless it is there and whole."""
        name, mark = stage.name, _fingerprint_of(stage, given)
        target, partial = self.folder / name, self.folder / f".{name}.partial"
        if _mark_of(target) == mark:
            return target
        # None may look for what another is about to make.
        self._crew.wait()
        if not self._crew.main:
            self._crew.wait()
            if stage.shared:
                with building(stage, given):
                    build(partial)
            self._crew.wait()
            return target
        with explain_os_errors(self.folder):
            shutil.rmtree(target, ignore_errors=True)
            _prepare_partial(partial, mark)
            self._crew.wait()
            with _Clock(self._record_path(stage), name, mark) as clock, building(stage, given):
                facts = build(partial)
            clock.record(facts or {})
            _flush_folder(partial)
            partial.replace(target)
            _flush_folder(self.folder, recursive=False)
        self._crew.wait()
        return target

    def record_of(self, stage: Stage) -> dict[str, Any]:
        """Return what `stage` recorded: fingerprint, facts, wall_seconds, cpu_seconds, peak_memory_mib."""
        if self._lender and stage.lent:
            return self._lender.record_of(stage)
        record: dict[str, Any] = json.loads(self._record_path(stage).read_text())
        return record

    def _record_path(self, stage: Stage) -> Path:
        # Beside the stage rather than in it: times differ between runs, a stage's bytes do not.
        return self.folder / "stages" / f"{stage.name}.json"


def stage_of(folder: Path, stage: Stage, *, given: Sequence[Any]) -> Path | None:
    """Return the folder of `stage` of the run in `folder`; None unless it is whole and was `given` the same.

    The run is only read, and may be in use.
    """
    target = folder / stage.name
    return target if _mark_of(target) == _fingerprint_of(stage, given) else None


def _fingerprint_of(stage: Stage, given: Sequence[Any]) -> str:
    return fingerprint(stage.name, stage.version, inputs_of(given))


class _Clock:
    """Wall time, processor time and peak memory of a stage, over all the times it was gone on with.

    Time spent before an interruption counts. It is written down every half minute: a killed process writes nothing.
    """

    def __init__(self, path: Path, stage: str, mark: str) -> None:
        self._path, self._stage, self._mark = path, stage, mark
        self._before = _read_record(path, mark)
        # Linux resets the high-water mark on this write; elsewhere the peak is the process's own so far.
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
        self._wall, self._cpu = time.monotonic(), time.process_time()
        self._over = threading.Event()
        self._beat = threading.Thread(target=self._keep_recording, daemon=True)

    def __enter__(self) -> "_Clock":
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

    def record(self, facts: dict[str, Any] | None = None) -> None:
        """Write the cost so far; with `facts` the stage counts as finished."""
        record = {
            "stage": self._stage,
            "fingerprint": self._mark,
            "facts": facts,
            "wall_seconds": round(self._before.get("wall_seconds", 0) + time.monotonic() - self._wall, 2),
            "cpu_seconds": round(self._before.get("cpu_seconds", 0) + time.process_time() - self._cpu, 2),
            "peak_memory_mib": max(self._before.get("peak_memory_mib", 0), peak_memory_mib()),
        }
        self._path.parent.mkdir(exist_ok=True)
        write_atomic(self._path, json.dumps(record, indent=2, sort_keys=True))


def _read_record(path: Path, mark: str) -> dict[str, Any]:
    """Return the record at `path` if it is of an unfinished stage of fingerprint `mark`."""
    try:
        record: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return record if record.get("fingerprint") == mark and record.get("facts") is None else {}


def records(folder: Path) -> list[dict[str, Any]]:
    """Return what the finished stages of the run in `folder` recorded, in the order in which they were done."""
    paths = sorted((folder / "stages").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    found = [json.loads(path.read_text()) for path in paths]
    return [record for record in found if record["facts"] is not None]


def peak_memory_mib() -> int:
    """Return this process's peak resident memory in MiB, since the last reset where the system can reset it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) // 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (1024 * 1024 if sys.platform == "darwin" else 1024)


def _mark_of(folder: Path) -> str | None:
    try:
        return (folder / _MARK).read_text()
    except OSError:
        return None


def _read_about(path: Path) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads(path.read_text())
        about["settings"]
    except (ValueError, KeyError, TypeError):
        raise RunError(f"{path} is not the record of a geodistill run: choose another --out") from None
    return about


def _prepare_partial(partial: Path, mark: str) -> None:
    """Keep what an interrupted stage left if it was the same stage, but for files that were being written."""
    if _mark_of(partial) == mark:
        for path in partial.rglob(".tmp*"):  # what safetensors writes before it gives a file its name
            path.unlink()
    else:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_atomic(partial / _MARK, mark)


def _flush_folder(folder: Path, recursive: bool = True) -> None:
    """Ask the system to put files and folder entries on disk, so that a rename never outruns its content."""
    if recursive:
        for path in sorted(folder.rglob("*")):
            _fsync(path)
    _fsync(folder)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_secret(folder: Path) -> bytes:
    """Return the secret of the run in `folder`; raises RunError where it is gone or another run's."""
    path = folder / _SECRET
    known = _read_about(folder / "run.json").get("secret_sha256")
    try:
        secret = bytes.fromhex(path.read_text(encoding="ascii"))
    except (OSError, ValueError) as error:
        what = "is gone" if isinstance(error, FileNotFoundError) else "cannot be read"
        raise RunError(f"{path} {what}: {_WITHOUT_SECRET}") from None
    if len(secret) != SECRET_BYTES or hashlib.sha256(secret).hexdigest() != known:
        raise RunError(f"{path} is not the secret that this run was begun with: {_WITHOUT_SECRET}")
    if path.stat().st_mode & 0o077:
        log.warning("%s can be read by others, who can tell which scenes the images began as: chmod 600 it", path)
    return secret


def _make_secret(folder: Path) -> None:
    """Draw the secret of the run in `folder` unless it has one, or had one: its SHA-256 is in run.json."""
    path, record = folder / _SECRET, folder / "run.json"
    about = _read_about(record)
    if "secret_sha256" in about:
        return
    if not path.exists():
        aside = path.with_name(f".{_SECRET}.tmp")
        aside.unlink(missing_ok=True)
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(os.urandom(SECRET_BYTES).hex())
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    with contextlib.suppress(ValueError):
        # A damaged one is told by whoever reads it.
        about["secret_sha256"] = hashlib.sha256(bytes.fromhex(path.read_text(encoding="ascii"))).hexdigest()
    write_atomic(record, json.dumps(about, indent=2, sort_keys=True))


def _differences(before: Any, now: Any, where: str = "") -> list[str]:
    """Return one line for each setting that differs, such as 'sampling.steps: 50 -> 25'."""
    if isinstance(before, dict) and isinstance(now, dict):
        lines = []
        for key in sorted(before.keys() | now.keys()):
            lines += _differences(before.get(key), now.get(key), f"{where}.{key}" if where else key)
        return lines
    return [] if before == now else [f"{where}: {before} -> {now}"]
