"""Lists of labelled files: CSV, or JSON lines as in the metadata.jsonl of an image folder on the hub."""

import csv
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import overload

from geodistill.errors import SceneError
from geodistill.scenes.packed import Paths, Texts

SUFFIXES = frozenset({".csv", ".jsonl"})
# Names that the columns go by.
_PATH = ("path", "file", "file_name", "filename", "image", "image_path")
_LABEL = ("label", "class", "class_name", "category")
_SPLIT = ("split", "set", "subset", "partition")


@dataclass(frozen=True)
class Entry:
    """A line of a list: the file, its class, and the part of the data that it belongs to, "" if the list has none."""

    path: Path
    label: str
    split: str


class Entries(Sequence[Entry]):
    """The lines of a list, each made when it is asked for."""

    def __init__(self, paths: Paths, labels: list[str], splits: list[str]) -> None:
        self._paths, self.labels, self.splits = paths, labels, splits

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Entry, ...]: ...
    def __getitem__(self, index: int | slice) -> Entry | tuple[Entry, ...]:
        if isinstance(index, slice):
            return tuple(self[k] for k in range(*index.indices(len(self))))
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
    columns = [_column(path, first, names, needed) for names, needed in ((_PATH, 1), (_LABEL, 1), (_SPLIT, 0))]
    file, label, split = columns
    labels: list[str] = []
    splits: list[str] = []

    def paths() -> Iterator[str]:
        for row in chain([first], rows):
            # Interned: a few names stand in all lines.
            labels.append(sys.intern(str(row[label])))
            splits.append(sys.intern(str(row.get(split) or "") if split else ""))
            yield str(path.parent / str(row[file]))

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


def _column(path: Path, row: Mapping[str, object], names: tuple[str, ...], needed: int) -> str:
    """Return the name of the column that goes by one of `names`; "" if there is none and it is not needed."""
    by_lower = {str(name).strip().lower(): str(name) for name in row}
    found = next((by_lower[name] for name in names if name in by_lower), "")
    if needed and not found:
        raise SceneError(f"{path}: no column {' or '.join(names)}: the columns are {', '.join(map(str, row))}")
    return found
