"""Files that are either complete or absent, and file-system errors in plain words."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from geodistill.errors import RunError


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
    """Write `tensors` to the safetensors file `path`; the file gets this name only when it is complete and on disk."""
    aside = path.with_name(f".{path.name}.tmp")
    save_file({name: value.contiguous() for name, value in tensors.items()}, aside, metadata)
    fsync(aside)
    aside.replace(path)


def flush_folder(folder: Path, recursive: bool = True) -> None:
    """Flush files and folder entries to disk, so that a rename never reaches the disk before the content."""
    if recursive:
        for path in sorted(folder.rglob("*")):
            fsync(path)
    fsync(folder)


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
        if code in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise RunError(f"cannot write to {folder}: make it writable or choose another --out") from error
        raise


def _os_code(error: OSError | SafetensorError) -> int | None:
    if isinstance(error, OSError):
        return error.errno
    # safetensors gives the system's code only in its message.
    found = re.search(r"os error (\d+)", str(error))
    return int(found[1]) if found else None
