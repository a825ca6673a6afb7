"""The run: a folder, locked while it is open, in which each stage is made once."""

import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from geodistill.config import defaults_like
from geodistill.errors import RunError
from geodistill.pipeline import ADDS_TO
from geodistill.processes import alone, processes
from geodistill.provenance import Made, Stage, building, fingerprint, inputs_of
from geodistill.run.cost import Clock, read_record, versions
from geodistill.run.files import (
    checksums,
    damaged_file,
    explain_os_errors,
    flush_folder,
    open_to_others,
    write_atomic,
)
from geodistill.run.secret import SECRET, make_secret, read_about, read_secret

log = logging.getLogger("geodistill")
T = TypeVar("T")
_FORMAT = 1
_MARK = ".fingerprint"
_FINGERPRINT = re.compile("[0-9a-f]{64}")


class Run:
    """One run folder, locked while open; use as a context manager.

    Args:
        folder: where everything is written; created if missing.
        settings: what the result depends on (resolved config and data fingerprint), representable in JSON.
        command: the command line that made the run, kept for the reader.
        lender: an open run that makes and keeps the `lent` stages, which all methods share, in place of this one.

    Attributes:
        used: the stages asked for so far, in that order, whether they were reused or built.
        new: whether the run had no results before; False in all processes but the main one.

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
        # Fingerprints of stages whose files were checked by this process.
        self._whole: set[str] = set()
        self._lender = lender
        self._lock = FileLock(folder / ".lock")
        self._group = processes()
        if self._group.main:
            self._open(settings, command)
        self._group.wait()

    def _open(self, settings: dict[str, Any], command: str) -> None:
        folder = self.folder
        with explain_os_errors(folder):
            if folder.exists() and not folder.is_dir():
                raise RunError(f"{folder} is a file, not a folder: choose another --out")
            folder.mkdir(parents=True, exist_ok=True)
            self._refuse_foreign_folder()
            try:
                self._take_lock()
                self._check_settings(json.loads(json.dumps(settings, default=str)), command)
            except BaseException:
                self._lock.release()
                raise

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        if self._group.main:
            self._lock.release()

    def _take_lock(self) -> None:
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
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
        before = self._record()
        if before.get("format") != _FORMAT:
            raise RunError(f"{self.folder} was made by another version of geodistill: choose another --out")
        known = {"config": defaults_like(before["settings"].get("config", {}))}
        # Older records of updates do not say what they add to.
        known |= {ADDS_TO: settings[ADDS_TO]} if ADDS_TO in settings else {}
        changed = list(_differences(before["settings"], settings, known))
        if changed:
            raise RunError(
                f"{self.folder} was made with other settings ({'; '.join(changed[:5])}): "
                "choose another --out, or repeat the settings it was made with"
            )

    def _record(self) -> dict[str, Any]:
        """Return run.json; raise RunError if it is damaged, or another program's."""
        path = self.folder / "run.json"
        try:
            return read_about(path)
        except RunError:
            if not (self.folder / "stages").is_dir():
                raise
            raise RunError(
                f"{path} is damaged: put a copy back, or delete it. The same command then uses the stages that were "
                "made with its settings again, and makes the others"
            ) from None

    def secret(self) -> bytes:
        """Return the run's secret: 32 bytes that the operating system drew when they were first asked for.

        They are kept in `RUN/secret`, which only its owner can read, so a resumed run uses the same bytes. All
        processes get the same ones.

        Raises RunError if the secret is gone, or is not the one that the run began with.
        """
        if self._secret is None:
            if self._group.main:
                with explain_os_errors(self.folder):
                    make_secret(self.folder)
            self._group.wait()
            self._secret = read_secret(self.folder)
        return self._secret

    def _refuse_foreign_folder(self) -> None:
        # Stages copied from another run are allowed: their fingerprints show whether they fit.
        if (self.folder / "stages").is_dir():
            return
        others = self._content()
        if others and not (self.folder / "run.json").exists():
            raise RunError(
                f"{self.folder} is not empty and is not a geodistill run (it holds {sorted(others)[0]!r}): "
                "choose another --out"
            )

    def _begun(self) -> bool:
        """Return whether a stage was ever begun; before that, settings that turned out wrong may still be changed."""
        return bool(self._content() - {"run.json", "config.toml", SECRET})

    def _content(self) -> set[str]:
        ours = {".lock", ".run.json.tmp", ".config.toml.tmp", f".{SECRET}.tmp", "report.html", "report-owner.html"}
        return {path.name for path in self.folder.iterdir()} - ours

    def make(
        self,
        stage: Stage,
        build: Callable[[Path], dict[str, Any] | None],
        load: Callable[[Path], T],
        *,
        given: Sequence[Any],
    ) -> Made[T]:
        """Return what `load` reads from the folder of `stage`, which is built first unless it is already complete.

        Args:
            stage: what to make.
            build: fills the folder it is given and may return facts to record. Called again after an interruption with
                the same folder, it must continue from what it finds there. If the stage is shared, every process calls
                it, and only the main one writes the result.
            load: reads what is returned from the finished folder.
            given: everything that the stage depends on: results of other stages, and values that JSON can represent.

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
        """Return the folder of `stage`, which is built first unless it is already complete."""
        name, mark = stage.name, _fingerprint_of(stage, given)
        target, partial = self.folder / name, self.folder / f".{name}.partial"
        if _may_be(self._record_path(stage), target, mark) and self._is_whole(stage, target, mark):
            log.info("stage %s of %s is used again", name, self.folder)
            self._forget_mark(target)
            return target
        # Every process must have looked for the stage before one begins to make it.
        self._group.wait()
        if not self._group.main:
            self._group.wait()
            if stage.shared:
                with building(stage, given):
                    build(partial)
            self._group.wait()
            return target
        log.info("stage %s of %s is made", name, self.folder)
        with explain_os_errors(self.folder):
            shutil.rmtree(target, ignore_errors=True)
            _prepare_partial(partial, mark)
            self._group.wait()
            company = nullcontext() if stage.shared else alone()
            with Clock(self._record_path(stage), name, mark) as clock, building(stage, given), company:
                facts = build(partial)
            open_to_others(partial)
            clock.record(facts or {}, checksums(partial))
            self._whole.add(mark)
            flush_folder(partial)
            partial.replace(target)
            self._forget_mark(target)
            flush_folder(self.folder, recursive=False)
        self._group.wait()
        return target

    def _forget_mark(self, folder: Path) -> None:
        """Remove the fingerprint from a finished stage; earlier releases left it there.

        It is a hash of what the stage was made from. A set is shared, and whoever guesses all training images can check
        the guess by it.
        """
        if self._group.main:
            with suppress(OSError):
                (folder / _MARK).unlink(missing_ok=True)

    def _is_whole(self, stage: Stage, target: Path, mark: str) -> bool:
        """Return whether the files of a finished stage are as they were written; log which one is not."""
        if mark not in self._whole:
            damaged = _damaged(self._record_path(stage), target)
            if damaged:
                log.warning("stage %s of %s is damaged (%s): it is made again", stage.name, self.folder, damaged)
                return False
            self._whole.add(mark)
        return True

    def record_of(self, stage: Stage) -> dict[str, Any]:
        """Return the record of `stage`: fingerprint, facts, wall_seconds, cpu_seconds, peak_memory_mib."""
        if self._lender and stage.lent:
            return self._lender.record_of(stage)
        record: dict[str, Any] = json.loads(self._record_path(stage).read_text())
        return record

    def _record_path(self, stage: Stage) -> Path:
        # Beside the stage rather than in it: times differ between runs, a stage's bytes do not.
        return self.folder / "stages" / f"{stage.name}.json"


def stage_of(folder: Path, stage: Stage, *, given: Sequence[Any]) -> Path | None:
    """Return the folder of `stage` of the run in `folder`; None unless it is complete and made from the same `given`.

    The run is only read, and may be in use.
    """
    target = folder / stage.name
    record = folder / "stages" / f"{stage.name}.json"
    fits = _may_be(record, target, _fingerprint_of(stage, given))
    return target if fits and not _damaged(record, target) else None


def _may_be(record: Path, target: Path, mark: str) -> bool:
    """Return whether `target` is a finished stage with fingerprint `mark` by its `record`, unless that is damaged.

    The record is complete before the folder gets its name, and a folder of other content is gone by then.
    """
    found = read_record(record)
    return target.is_dir() and (not found or (found["facts"] is not None and found.get("fingerprint") == mark))


def _damaged(record: Path, target: Path) -> str:
    """Return which file of the stage in `target`, or its `record`, is damaged or missing; "" if none is."""
    found = read_record(record)
    # Records of earlier releases have no checksums.
    return damaged_file(target, found.get("files", {})) if found else f"{record.parent.name}/{record.name}"


def _fingerprint_of(stage: Stage, given: Sequence[Any]) -> str:
    return fingerprint(stage.name, stage.version, inputs_of(given))


def _mark_of(folder: Path) -> str | None:
    try:
        return (folder / _MARK).read_text()
    except OSError:
        return None


def _prepare_partial(partial: Path, mark: str) -> None:
    """Keep what an interrupted stage left if it has fingerprint `mark`, without half-written files; or start anew."""
    if _mark_of(partial) == mark:
        for path in partial.rglob(".tmp*"):  # files that safetensors has not yet renamed
            path.unlink()
    else:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write_atomic(partial / _MARK, mark)


def _differences(before: Any, now: Any, known: Any, where: str = "") -> Iterator[str]:
    """Yield one line for each setting that differs, for example 'sampling.steps: 50 -> 25' or 'other scenes'.

    `known`: the defaults of this release. A setting that `before` lacks counts as different unless it has its default.
    One that this release no longer has is ignored.
    """
    if not (isinstance(before, dict) and isinstance(now, dict)):
        if before != now:
            # A fingerprint stands for scenes and the like, and tells a user nothing.
            hashed = _FINGERPRINT.search(f"{before} {now}")
            yield f"other {where}" if hashed else f"{where}: {before} -> {now}"
        return
    known = known if isinstance(known, dict) else {}
    for key in sorted(before.keys() | now.keys()):
        is_new = key not in before and key in known and now[key] == known[key]
        is_gone = where and key not in now and key not in known
        if not (is_new or is_gone):
            path = f"{where}.{key}" if where else key
            # A new section is compared setting by setting, each with its default.
            earlier = before.get(key, {} if isinstance(known.get(key), dict) else None)
            yield from _differences(earlier, now.get(key), known.get(key), path)
