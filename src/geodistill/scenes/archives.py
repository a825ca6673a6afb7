"""Archives of scenes, ZIP and TAR, unpacked once.

They are not read in place. A compressed TAR can be read from its beginning only, and scenes are read several times in
any order. Lists, VRT files and files beside an image (world files, masks) need a file system. So one way serves all.
"""

import errno
import io
import logging
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from geodistill.errors import SceneError
from geodistill.progress import progress
from geodistill.scenes.readers import SUFFIXES as IMAGES
from geodistill.scenes.unpacked import check_space, told_size, unpacked

log = logging.getLogger("geodistill")

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
_SHOW_PROGRESS_FROM = 500
_ENCRYPTED = 1
# Errors of the place that is written to, not of the archive.
_OF_THE_PLACE = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM, errno.ENAMETOOLONG})


@dataclass(frozen=True)
class _Member:
    """A member of an archive: its name, its size in bytes, and why it cannot be unpacked, "" if it can."""

    name: str
    size: int
    refused: str
    open: Callable[[], IO[bytes]]


def is_archive(path: Path) -> bool:
    """Return whether `path` is a file with the suffix of an archive."""
    return path.name.lower().endswith(SUFFIXES) and path.is_file()


def unpacked_archive(path: Path) -> Path:
    """Return the folder that the archive at `path` is unpacked to, now or by an earlier command.

    Raises SceneError if the archive is damaged, encrypted, without images, too large for the disk, or has links or
    members that lead out of it.
    """
    return unpacked(path, lambda folder: _unpack(path, folder))


def _unpack(path: Path, folder: Path) -> None:
    with opened_archive(path) as members:
        if not any(PurePosixPath(one.name).suffix.lower() in IMAGES for one in members):
            raise SceneError(f"{path}: no image in the archive: expected <class>/<image> or <split>/<class>/<image>")
        size = sum(one.size for one in members)
        check_space(path, folder, size)
        log.warning("unpacking %s once: %s to %s", path, told_size(size), folder.parent)
        extract(members, folder)


def extract(members: Sequence[_Member], folder: Path) -> None:
    """Write the members of an archive from `opened_archive` into `folder`."""
    with progress("unpacking", len(members), least=_SHOW_PROGRESS_FROM) as advance:
        for done, one in enumerate(members, start=1):
            target = folder / one.name
            target.parent.mkdir(parents=True, exist_ok=True)
            with one.open() as content, target.open("wb") as file:
                shutil.copyfileobj(content, file)
            advance(done)


@contextmanager
def opened_archive(path: Path) -> Iterator[Sequence[_Member]]:
    """Open the archive at `path` and yield its files; errors within the block become SceneErrors that name it.

    Raises SceneError if a member cannot be unpacked safely.
    """
    try:
        if path.suffix.lower() == ".zip":
            with zipfile.ZipFile(path) as zipped:
                yield _safe(path, [_of_zip(zipped, one) for one in zipped.infolist() if not one.is_dir()])
        else:
            with tarfile.open(path) as tarred:
                yield _safe(path, [_of_tar(tarred, one) for one in _complete(tarred) if not one.isdir()])
    except SceneError:
        raise
    except Exception as error:  # damaged archives make the libraries raise almost anything
        if isinstance(error, OSError) and error.errno in _OF_THE_PLACE:
            raise
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise SceneError(f"{path}: the archive is damaged or cut short ({reason}): fetch it again") from error


def _complete(tarred: tarfile.TarFile) -> Sequence[tarfile.TarInfo]:
    """Return the members of `tarred`; raise ReadError if it ends without the empty block that ends every TAR."""
    members = tarred.getmembers()
    # A compressed file has an end of its own. To go back in it would mean to read it again.
    if isinstance(tarred.fileobj, io.BufferedReader):
        tarred.fileobj.seek(tarred.offset)
        if len(tarred.fileobj.read(tarfile.BLOCKSIZE)) < tarfile.BLOCKSIZE:
            raise tarfile.ReadError("its end is missing")
    return members


def _of_zip(zipped: zipfile.ZipFile, one: zipfile.ZipInfo) -> _Member:
    kind = stat.S_IFMT(one.external_attr >> 16)
    refused = "is encrypted: unpack it with its password" if one.flag_bits & _ENCRYPTED else _outside(one.filename)
    if kind not in (0, stat.S_IFREG):
        refused = "is a link or a device: unpack it yourself, if you trust it"
    return _Member(one.filename, one.file_size, refused, lambda: zipped.open(one))


def _of_tar(tarred: tarfile.TarFile, one: tarfile.TarInfo) -> _Member:
    refused = _outside(one.name) if one.isfile() else "is a link or a device: unpack it yourself, if you trust it"

    def content() -> IO[bytes]:
        found = tarred.extractfile(one)
        assert found is not None
        return found

    return _Member(one.name, one.size, refused, content)


def _outside(name: str) -> str:
    """Return why the file of this name is not unpacked, "" if it would lie in the folder of the archive."""
    places = (PurePosixPath(name), PureWindowsPath(name))
    if any(place.is_absolute() or place.drive or place.root or ".." in place.parts for place in places):
        return "leads out of the archive: unpack it yourself, if you trust it"
    return ""


def _safe(path: Path, members: Sequence[_Member]) -> Sequence[_Member]:
    for one in members:
        if one.refused:
            raise SceneError(f"{path}: member {one.name!r} {one.refused}")
    return members
