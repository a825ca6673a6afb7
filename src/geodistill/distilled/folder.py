"""The folder of a set: names of its files, what else lies in it, and the run that it belongs to."""

import json
from collections.abc import Sequence
from pathlib import Path

from geodistill.errors import DistilledSetError
from geodistill.pipeline import ADDS_TO, DISTILLED
from geodistill.scenes.readers import SUFFIXES
from geodistill.scenes.splits import PARTS

MANIFEST, CLASS_MAP, PREVIEW = "manifest.json", "class_map.txt", "preview.png"
# The set in the folder of a run that updated another set.
UPDATED = "updated"
# The sentence on every page that must not be shared, and names of other files that must not be shared.
FOR_THE_OWNER = "It is for the owner of the data; do not share it with the set."
_OWNERS = frozenset({"audit.json", "run.json", "secret"})
# Files of every set besides its images; names in lower case.
FILES = frozenset({MANIFEST, CLASS_MAP, PREVIEW, "readme.md", "croissant.json"})
# What may lie beside the images without being looked at: texts and what GDAL notes about an image.
_TEXTS = frozenset({"", ".cff", ".html", ".md", ".txt", ".xml"})
_PICTURES = SUFFIXES | {".gif"}


def run_of(what: Path) -> Path | None:
    """Return the folder of the run that made a set, or None if the set has no run.

    `what` is the run, or the folder of the set. An updated set has no run: its run made only the new images.
    """
    folder = set_folder(what)
    place = folder.resolve()
    if place.name != DISTILLED.name or not (place.parent / "run.json").is_file():
        return None
    return place.parent if folder == what else what


def set_folder(what: Path) -> Path:
    """Return the folder of the set of the run in `what`, or `what` itself if it is no run.

    The set of a run that updated another one is the updated set.
    Raises DistilledSetError if a run that updates a set has not finished it.
    """
    if not (what / "run.json").is_file():
        return what
    found = set_in(what)
    if found.name == UPDATED and not found.is_dir():
        raise DistilledSetError(f"{what} has not finished the update of its set: the same `distill --add` goes on")
    return found


def set_in(run: Path) -> Path:
    """Return the folder of the set of a run, whether it is there yet or not: the updated set of one that updates."""
    return run / UPDATED if (run / UPDATED).is_dir() or _updates(run) else run / DISTILLED.name


def _updates(run: Path) -> bool:
    """Return whether a run updates another set; runs of before 30 November 2026 do not say so."""
    try:
        return ADDS_TO in json.loads((run / "run.json").read_text(encoding="utf-8")).get("settings", {})
    except (OSError, ValueError, AttributeError):
        return False


def owner_files(folder: Path) -> list[str]:
    """Return the names of files in the set's `folder` that are for the owner of the data only.

    These are pages that show training images or say how to repeat a run, the records of an audit and of a run, and a
    run's secret.
    """

    def private(path: Path) -> bool:
        if path.suffix == ".html":
            return FOR_THE_OWNER in path.read_text(encoding="utf-8", errors="replace")
        return path.name in _OWNERS

    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and private(path))


def strays(folder: Path) -> list[str]:
    """Return the names of the files in `folder`, a set, that are neither of the set nor named by `owner_files`.

    Whoever gets the folder reads them as well, but nothing here does. Texts (.txt, .md) and hidden files that are no
    images do not count; in a plain image folder <class>/<image>, neither does any other file than an image.
    """
    own = (folder / MANIFEST).is_file()
    if own:
        entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["images"]
        known = {*FILES, *(entry["file"] for entry in entries)}
    else:
        known = {path.relative_to(folder).as_posix() for path, _ in list_plain(folder)[1]}
    known |= set(owner_files(folder))
    names = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}

    def counts(path: Path) -> bool:
        suffix = path.suffix.lower()
        if suffix in _PICTURES:
            return not path.name.startswith("._")  # notes of macOS about a file
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        return own and not hidden and suffix not in _TEXTS

    return sorted({name for name, path in names.items() if counts(path)} - known)


def told_strays(names: Sequence[str]) -> str:
    """Return in words which files are no images of a set; the first is named."""
    return f"{len(names):,} file(s) that are not of the set, {names[0]} first"


def list_plain(root: Path) -> tuple[tuple[str, ...], list[tuple[Path, int]]]:
    """Return the classes of a plain image folder <class>/<image> and its files, each with its label.

    Raises DistilledSetError if it has no classes, or a class has no image.
    """
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    classes = tuple(path.name for path in folders)
    if not classes:
        raise DistilledSetError(f"{root}: no class folders in it: expected <class>/<image>")
    if {name.lower() for name in classes} <= PARTS.keys():
        raise DistilledSetError(
            f"{root}: an archive with the parts {', '.join(classes)}, no set: give a run, or the folder of a set"
        )
    files = []
    for label, folder in enumerate(folders):
        images = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
        if not images:
            raise DistilledSetError(f"{folder}: no images in this class folder: expected <class>/<image>")
        files += [(path, label) for path in images]
    return classes, files
