"""Files that are either complete or absent, and file-system errors in plain words."""

import contextlib
import errno
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from geodistill.errors import RunError

# Bytes of a file that are read at a time.
_BLOCK = 2**20


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write `content` to `path` so that a reader sees the old file or the new one, never a part."""
    data = content.encode() if isinstance(content, str) else content
    aside = path.with_name(f".{path.name}.tmp")
    with aside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a file beside `path` to write to: it becomes `path` when the block ends, and is removed if the block fails.

    The folder is created. Raises RunError as `explain_os_errors` does.
    """
    aside = path.with_name(f".{path.stem}.tmp{path.suffix}")
    with explain_os_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield aside
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write `tensors` to the safetensors file `path`; the file gets this name only when it is complete and on disk."""
    aside = path.with_name(f".{path.name}.tmp")
    save_file({name: value.contiguous() for name, value in tensors.items()}, aside, metadata)
    # safetensors writes for the owner alone.
    aside.chmod(0o666 & ~_masked())
    fsync(aside)
    aside.replace(path)


def flush_folder(folder: Path, recursive: bool = True) -> None:
    """Flush files and folder entries to disk, so that a rename never reaches the disk before the content."""
    if recursive:
        for path in sorted(folder.rglob("*")):
            fsync(path)
    fsync(folder)


def checksums(folder: Path) -> dict[str, list[int]]:
    """Return the size and the CRC-32 of each file in `folder`, by its path in it; hidden files and cards are left out.

    The data card of a set, README.md, is written again by an audit.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path: path.relative_to(folder).as_posix() for path in files}
    kept = {path: name for path, name in names.items() if not name.startswith(".") and name != "README.md"}
    return {name: [path.stat().st_size, _crc(path)] for path, name in kept.items()}


def damaged_file(folder: Path, files: dict[str, list[int]]) -> str:
    """Return the first of `files`, as `checksums` gave them, that is missing or differs; "" if none does."""
    for name, (size, crc) in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size or _crc(path) != crc:
            return name
    return ""


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            crc = zlib.crc32(block, crc)
    return crc


def open_to_others(folder: Path) -> None:
    """Give the files in `folder` the permissions of any new file: some libraries write theirs for the owner alone."""
    mask = _masked()
    for path in folder.rglob("*"):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)


def _masked() -> int:
    """Return the permissions that new files do not get."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def fsync(path: Path) -> None:
    """Flush a file, or the entries of a folder, to disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open folders, and its file system keeps the order of renames itself
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def explain_os_errors(folder: Path) -> Iterator[None]:
    """Turn the errors of a full disk or of a folder that cannot be written into a RunError that says what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        code = _os_code(error)
        if code in (errno.ENOSPC, errno.EDQUOT):
            raise RunError(
                f"the disk that holds {folder} is full: free some space and run the same command again; "
                "what was finished is kept"
            ) from error
        if code in (errno.ENOTDIR, errno.EEXIST):
            raise RunError(f"{folder} cannot be a folder, a file is in its place: choose another --out") from error
        if code == errno.EISDIR:
            raise RunError(f"{folder} cannot be a file, a folder is in its place: choose another --out") from error
        if code in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise RunError(f"cannot write to {folder}: make it writable or choose another --out") from error
        raise


def _os_code(error: OSError | SafetensorError) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    # safetensors gives the system's code only in its message.
    found = re.search(r"os error (\d+)", str(error))
    return int(found[1]) if found else None
