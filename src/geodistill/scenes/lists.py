"""Lists of labelled files: CSV, or JSON lines as in the metadata.jsonl of an image folder on the hub."""

import csv
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from geodistill.errors import SceneError

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


def read_list(path: Path) -> list[Entry]:
    """Return the entries of the list at `path`; files are relative to its folder.

    A list has a column for the file, one for the class, and perhaps one for the part: train, test or val. Their names
    are path, file, file_name, filename, image or image_path; label, class, class_name or category; split, set, subset
    or partition.
    Raises SceneError if the list cannot be read, lacks a column, or names files that do not exist.
    """
    try:
        rows = list(_rows(path))
    except (OSError, UnicodeDecodeError, ValueError, csv.Error) as error:
        raise SceneError(f"{path}: not a list of labelled files ({error})") from error
    if not rows:
        raise SceneError(f"{path}: the list has no entries")
    columns = [_column(path, rows[0], names, needed) for names, needed in ((_PATH, 1), (_LABEL, 1), (_SPLIT, 0))]
    file, label, split = columns
    entries = [
        Entry(path.parent / str(row[file]), str(row[label]), str(row.get(split) or "") if split else "") for row in rows
    ]
    missing = [entry.path for entry in entries if not entry.path.is_file()]
    if missing:
        raise SceneError(f"{path}: {len(missing)} of {len(entries)} listed files do not exist, {missing[0]} first")
    return entries


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
