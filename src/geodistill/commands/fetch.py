"""`geodistill fetch`: public archives from their pinned addresses, checked and unpacked."""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download

from geodistill.errors import SceneError, did_you_mean
from geodistill.run import explain_os_errors, write_atomic
from geodistill.scenes.archives import extract, opened_archive
from geodistill.scenes.fetched import data_home, remember


@dataclass(frozen=True)
class PublicArchive:
    """A public archive: what it is, its terms, and the file on the hub that torchgeo 0.10 pins, with its MD5."""

    what: str
    terms: str
    repository: str
    file: str
    revision: str
    md5: str


ARCHIVES = {
    "ucmerced": PublicArchive(
        "UC Merced Land Use: 21 classes of 100 aerial images, 256 px, 0.3 m",
        "public domain (USGS)",
        "torchgeo/ucmerced",
        "UCMerced_LandUse.zip",
        "7c5ef3454d9b1cccfa7ccde0c01fc8f00a45909a",
        "5b7ec56793786b6dc8a908e8854ac0e4",
    ),
    "resisc45": PublicArchive(
        "NWPU-RESISC45: 45 classes of 700 images, 256 px",
        "not stated by its publishers: ask them before you share what is made from it",
        "isaaccorley/resisc45",
        "NWPU-RESISC45.zip",
        "883edc0eee77b2c84225472f10f126e3ed83fa6e",
        "75206b2e16446591afa88e2628744886",
    ),
    "eurosat-ms": PublicArchive(
        "EuroSAT: 10 classes, 27,000 Sentinel-2 tiles of 13 bands, 64 px, 10 m",
        "MIT; contains modified Copernicus Sentinel data",
        "torchgeo/eurosat",
        "EuroSATallBands.zip",
        "1ce6f1bfb56db63fd91b6ecc466ea67f2509774c",
        "5ac12b3b2557aa56e1826e981e8e200e",
    ),
    "patternnet": PublicArchive(
        "PatternNet: 38 classes of 800 images, 256 px",
        "not stated by its publishers: ask them before you share what is made from it",
        "torchgeo/PatternNet",
        "PatternNet.zip",
        "2dbd901b00e301967a5c5146b25454f5d3455ad0",
        "96d54b3224c5350a98d55d5a7e6984ad",
    ),
}
# File in the folder of a complete archive: the MD5 of what was unpacked.
_MARK = ".geodistill-fetched"
# Archives that people ask for, and why they are not here.
_NOT_PINNED = {
    "aid": "its public copy has no pinned address yet: fetch it from its publishers, and give its folder as DATA",
    "eurosat": "use eurosat-ms, which has the same tiles: its bands 4, 3 and 2 are read as RGB",
}


def fetch(name: str, out: Path, *, endpoint: str | None = None) -> Path:
    """Download the public archive `name` into `out` and return its folder of classes, which `name` then stands for.

    A download that stopped is resumed. An archive that is complete is not downloaded again.

    Args:
        name: one of ARCHIVES.
        out: the archive is unpacked to `out`/`name`.
        endpoint: address of a mirror of the hub; https://huggingface.co by default.

    Raises:
        SceneError: the name is unknown, `out`/`name` is something else, the hub cannot be reached, or the file is not
            the pinned one.
        RunError: `out` or the user's data folder cannot be written, or the disk is full.
    """
    if name not in ARCHIVES:
        reason = _NOT_PINNED.get(name) or f"{did_you_mean(name, ARCHIVES)}known: {', '.join(ARCHIVES)}"
        raise SceneError(f"no archive {name!r} to fetch: {reason}")
    archive, target = ARCHIVES[name], out / name
    with explain_os_errors(out):
        out.mkdir(parents=True, exist_ok=True)
        if target.exists():
            _check_fetched(target, archive)
        else:
            _unpack(_downloaded(archive, out, endpoint), target, archive)
        folder = _folder_of_classes(target)
    with explain_os_errors(data_home()):
        remember(name, folder)
    return folder


def _check_fetched(target: Path, archive: PublicArchive) -> None:
    """Raise SceneError if `target` is not the complete archive that an earlier call unpacked."""
    mark = target / _MARK
    if not mark.is_file() or mark.read_text(encoding="utf-8").strip() != archive.md5:
        raise SceneError(
            f"{target} is there already, and `geodistill fetch` did not complete it: remove it, or choose another --out"
        )


def _downloaded(archive: PublicArchive, out: Path, endpoint: str | None) -> Path:
    """Return the downloaded file, with the MD5 that it must have."""
    try:
        found = hf_hub_download(
            archive.repository,
            archive.file,
            repo_type="dataset",
            revision=archive.revision,
            local_dir=out,
            endpoint=endpoint,
        )
    except OSError as error:
        if getattr(error, "errno", None) is not None and error.filename is not None:
            raise
        raise SceneError(_unreachable(archive, error)) from error
    except Exception as error:  # whichever HTTP library the hub's client is built on
        raise SceneError(_unreachable(archive, error)) from error
    path = Path(found)
    md5 = _md5(path)
    if md5 != archive.md5:
        path.unlink()
        raise SceneError(
            f"{archive.file} has MD5 {md5}, expected {archive.md5}: it is removed. The same command downloads it "
            "again; if that does not help, the copy on the hub has changed"
        )
    return path


def _unreachable(archive: PublicArchive, error: Exception) -> str:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return (
        f"{archive.file} could not be downloaded from {archive.repository} ({reason}): the same command goes on from "
        "what is there"
    )


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        # To know the file again, not for security.
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _unpack(path: Path, target: Path, archive: PublicArchive) -> None:
    """Unpack the zip file at `path` to `target`, completely or not at all, and remove it."""
    aside = target.with_name(f".{target.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    with opened_archive(path) as members:
        extract(members, aside)
    write_atomic(aside / _MARK, f"{archive.md5}\n")
    aside.replace(target)
    path.unlink()


def _folder_of_classes(folder: Path) -> Path:
    """Return the folder below `folder` that holds the class folders: the first with more than one visible folder."""
    while True:
        folders = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))]
        if len(folders) != 1:
            return folder
        folder = folders[0]
