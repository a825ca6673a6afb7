"""Lists of labelled files: CSV, Parquet, or JSON lines as in the metadata.jsonl of an image folder on the hub."""

import csv
import json
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from geodistill.errors import SceneError
from geodistill.scenes.packed import OnDemand, Paths, Texts
from geodistill.scenes.parquet import SUFFIX, columns_of, name_of, part_named, rows_of, shards
from geodistill.scenes.scenes import check_class_name
from geodistill.scenes.unpacked import check_space, told_size, unpacked

log = logging.getLogger("geodistill")

SUFFIXES = frozenset({".csv", ".jsonl", SUFFIX})
# Names that the columns go by.
_PATH = ("path", "file", "file_name", "filename", "image", "image_path")
LABELS = ("label", "class", "class_name", "category")
SPLITS = ("split", "set", "subset", "partition")


@dataclass(frozen=True)
class Entry:
    """A line of a list: the file, its class, and the part of the data that it belongs to, "" if the list has none."""

    path: Path
    label: str
    split: str


class Entries(OnDemand[Entry]):
    """The lines of a list, each made when it is asked for."""

    def __init__(self, paths: Paths, labels: list[str], splits: list[str]) -> None:
        self._paths, self.labels, self.splits = paths, labels, splits

    def __len__(self) -> int:
        return len(self._paths)

    def _at(self, index: int) -> Entry:
        return Entry(self._paths[index], self.labels[index], self.splits[index])


def read_list(path: Path) -> Entries:
    """Return the entries of the list at `path`; files are relative to its folder.

    A list has a column for the file, one for the class, and perhaps one for the part: train, test or val. Their names
    are path, file, file_name, filename, image or image_path; label, class, class_name or category; split, set, subset
    or partition.
    Raises SceneError if the list cannot be read, lacks a column, or names files that do not exist.
    """
    rows = _checked_rows(path)
    first = next(rows, None)
    if first is None:
        raise SceneError(f"{path}: the list has no entries")
    file, label = (column_named(path, first, names, needed=True) for names in (_PATH, LABELS))
    split = column_named(path, first, SPLITS, needed=False)
    labels: list[str] = []
    splits: list[str] = []

    def paths() -> Iterator[str]:
        for k, row in enumerate(chain([first], rows)):
            # Interned: a few names stand in all lines.
            labels.append(sys.intern(_label(path, row[label], k)))
            splits.append(sys.intern(str(row.get(split) or "").strip() if split else ""))
            yield str(path.parent / str(row[file]).strip())

    entries = Entries(Paths(Texts.of(paths())), labels, splits)
    missing = [entry.path for entry in entries if not entry.path.is_file()]
    if missing:
        raise SceneError(f"{path}: {len(missing)} of {len(entries)} listed files do not exist, {missing[0]} first")
    return entries


def _checked_rows(path: Path) -> Iterator[Mapping[str, object]]:
    """Yield the rows of the list; raise SceneError where it is no list."""
    try:
        yield from _rows(path)
    except (OSError, UnicodeDecodeError, ValueError, csv.Error) as error:
        raise SceneError(f"{path}: not a list of labelled files ({error})") from error


def _rows(path: Path) -> Iterable[Mapping[str, object]]:
    if path.suffix.lower() == SUFFIX:
        yield from rows_of(path, list(columns_of(path)))
        return
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix.lower() == ".csv":
            yield from csv.DictReader(file)
            return
        for line in file:
            if line.strip():
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"a line is no object: {line.strip()[:40]}")
                yield row


def column_named(path: Path, row: Iterable[str], names: tuple[str, ...], *, needed: bool) -> str:
    """Return the name of the column that goes by one of `names`; "" if there is none and it is not needed.

    Raises SceneError if it is needed and not there.
    """
    by_lower = {str(name).strip().lower(): str(name) for name in row}
    found = next((by_lower[name] for name in names if name in by_lower), "")
    if needed and not found:
        raise SceneError(f"{path}: no column {' or '.join(names)}: the columns are {', '.join(map(str, row))}")
    return found


def list_with_images(place: Path) -> Path | None:
    """Return the list in the folder that the images in Parquet files are written to; None if there are none in them.

    place: a Parquet file, or a folder of them (or with them in its folder data) whose names begin with their parts, as
    test-00000-of-00001.parquet does. The images are written once (`unpacked`).
    Raises SceneError if a file cannot be read or lacks a column, and without pyarrow.
    """
    files = shards(place)
    try:
        if not any(any(columns_of(path).values()) for path in files):
            return None
        states = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        return unpacked(place, lambda folder: _write_images(place, files, folder), states) / "metadata.jsonl"
    except ValueError as error:
        raise SceneError(f"{place}: not a list of labelled files ({error})") from error


def _write_images(place: Path, files: Sequence[Path], folder: Path) -> None:
    size = sum(path.stat().st_size for path in files)
    check_space(place, folder, size)
    log.warning("unpacking the images in %s once: about %s to %s", place, told_size(size), folder.parent)
    with (folder / "metadata.jsonl").open("w", encoding="utf-8") as lines:
        for path in files:
            lines.writelines(json.dumps(line) + "\n" for line in _written(path, folder))


def _written(path: Path, folder: Path) -> Iterator[Mapping[str, str]]:
    """Write the images of a Parquet file into `folder`, and yield their entries in the list."""
    columns = columns_of(path)
    image = next((name for name, embedded in columns.items() if embedded), "")
    label, split = column_named(path, columns, LABELS, needed=True), column_named(path, columns, SPLITS, needed=False)
    for number, row in enumerate(rows_of(path, [name for name in (image, label, split) if name])):
        name = _write_image(folder, number, _content(path, row[image]), _label(path, row[label], number))
        part = str(row[split] or "") if split else part_named(path)
        yield {"file_name": name, "label": str(row[label]).strip(), "split": part.strip()}


def _label(path: Path, value: object, number: int) -> str:
    if value is None or not str(value).strip():
        raise SceneError(f"{path}: row {number + 1} has no class: remove the rows without one")
    return str(value).strip()


def _content(path: Path, image: object) -> Mapping[str, Any]:
    """Return an image, {"bytes", "path"}; one that the Parquet file at `path` only names is read from its own file."""
    one: Mapping[str, Any] = image if isinstance(image, Mapping) else {}
    if not one.get("bytes") and one.get("path") and (path.parent / one["path"]).is_file():
        return {**one, "bytes": (path.parent / one["path"]).read_bytes()}
    return one


def _write_image(folder: Path, number: int, one: Mapping[str, Any], label: str) -> str:
    """Write an image, {"bytes", "path"}, into `folder`/<label> and return its path in `folder`; it may be empty."""
    check_class_name(label)
    target = folder / label / name_of(one, number)
    again = 1
    while target.exists():
        again += 1
        target = target.with_name(f"{Path(name_of(one, number)).stem}-{again}{target.suffix}")
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(one.get("bytes") or b"")
    return target.relative_to(folder).as_posix()
