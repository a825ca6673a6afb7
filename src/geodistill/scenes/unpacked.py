"""Folders that are made once from a file, such as an archive, and used again as long as the file stays as it is.

They lie beside the list of fetched archives, in the user's folder for application data. Each can be deleted: the next
command makes it again.
"""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from geodistill.errors import SceneError
from geodistill.scenes.fetched import data_home

# What is left free on the disk.
_SPARE = 100 * 2**20
_NAME = 40


def unpacked(source: Path, fill: Callable[[Path], None], *settings: object) -> Path:
    """Return the folder that `fill` fills from the file `source`; it is called if there is no such folder yet.

    The folder depends on the place, size and time of change of `source`, and on `settings`. It is filled completely or
    not at all, by one process at a time.
    Raises SceneError if `source` or the folder cannot be used.
    """
    try:
        about = source.stat()
        home = data_home() / "unpacked"
        identity = repr((str(source.resolve()), about.st_size, about.st_mtime_ns, *map(str, settings)))
        folder = home / f"{source.name[:_NAME]}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(home / f".{folder.name}.lock"):
            if not folder.is_dir():
                _fill(folder, fill)
    except OSError as error:
        raise SceneError(
            f"{source}: cannot be unpacked to {data_home() / 'unpacked'} ({error.strerror or error}): make room there, "
            "or set XDG_DATA_HOME to another folder"
        ) from error
    return folder


def _fill(folder: Path, fill: Callable[[Path], None]) -> None:
    aside = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        fill(aside)
        if hasattr(os, "sync"):
            os.sync()
        aside.replace(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def check_space(source: Path, folder: Path, size: int) -> None:
    """Raise SceneError unless `size` bytes from `source` fit on the disk of `folder`."""
    free = shutil.disk_usage(folder).free - _SPARE
    if size > free:
        raise SceneError(
            f"{source}: takes {told_size(size)} in {folder.parent}, where {told_size(max(free, 0))} are free: make "
            "room there, or set XDG_DATA_HOME to a folder on another disk"
        )


def told_size(size: int) -> str:
    """Return a number of bytes in words.

    >>> told_size(1_234_567), told_size(2_500_000_000)
    ('1.2 MB', '2.5 GB')
    """
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
