"""A set is put in its place completely or not at all, also by a process that is killed."""

import os
import shutil
from pathlib import Path

from geodistill.distilled.folder import MANIFEST
from geodistill.errors import DistilledSetError


def check_target(target: Path) -> None:
    """Raise DistilledSetError if `target` holds something other than a set."""
    if target.exists() and not target.is_dir():
        raise DistilledSetError(f"{target} is a file: choose a folder for the distilled set")
    if target.is_dir() and any(target.iterdir()) and not (target / MANIFEST).is_file():
        raise DistilledSetError(f"{target} is not empty and holds no distilled set: choose another folder")


def flush(folder: Path) -> None:
    """Flush the files in `folder` to disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def ready(target: Path) -> Path:
    """Return where a complete set waits that is to replace the set at `target`."""
    return target.with_name(f".{target.name}.ready")


def complete(target: Path) -> None:
    """Put the set that waits for the place of `target` there, if there is one; an earlier set is removed."""
    waiting, old = ready(target), target.with_name(f".{target.name}.old")
    if not waiting.is_dir():
        return
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    waiting.rename(target)
    shutil.rmtree(old, ignore_errors=True)
