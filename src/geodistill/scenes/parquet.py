"""Parquet files of labelled images, as Hugging Face `datasets` writes them: paths, or the images themselves."""

import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from PIL import Image

from geodistill.errors import SceneError
from geodistill.lazy import optional
from geodistill.scenes.images import FORMATS
from geodistill.scenes.readers import SUFFIXES as IMAGES
from geodistill.scenes.splits import PARTS

SUFFIX = ".parquet"
_ROWS = 256
_SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "TIFF": ".tif", "WEBP": ".webp", "BMP": ".bmp"}


def shards(place: Path) -> list[Path]:
    """Return the Parquet files that `place` is; if it is a folder, those of parts in it or in `place`/data."""
    if place.is_file():
        return [place] if place.suffix.lower() == SUFFIX else []
    for folder in (place, place / "data"):
        found = [path for path in sorted(folder.glob(f"*{SUFFIX}")) if part_named(path)]
        if found:
            return found
    return []


def part_named(shard: Path) -> str:
    """Return the part that the name of a shard begins with, such as "test" for test-00000-of-00001.parquet; else ""."""
    return PARTS.get(re.split(r"[^a-zA-Z]", shard.stem)[0].lower(), "")


def columns_of(path: Path) -> Mapping[str, bool]:
    """Return the names of the columns, and whether each has images in it ({"bytes", "path"}).

    Raises SceneError without pyarrow, ValueError if `path` is no Parquet file.
    """
    fields = _opened(path).schema_arrow
    return {one.name: hasattr(one.type, "get_field_index") and one.type.get_field_index("bytes") >= 0 for one in fields}


def rows_of(path: Path, columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of some columns of the Parquet file at `path`; numbers of named classes become their names.

    Raises SceneError without pyarrow, ValueError if `path` cannot be read.
    """
    file = _opened(path)
    names = {name: given for name, given in _class_names(file.schema_arrow.metadata).items() if name in columns}
    try:
        for batch in file.iter_batches(batch_size=_ROWS, columns=list(columns)):
            for row in batch.to_pylist():
                yield row | {name: _named(row[name], given) for name, given in names.items()}
    except Exception as error:  # damaged files make Arrow raise almost anything
        raise ValueError(_reason(error)) from error


def _opened(path: Path) -> Any:
    parquet = optional("pyarrow.parquet", f"{path}: Parquet", "parquet", SceneError)
    try:
        return parquet.ParquetFile(path)
    except Exception as error:
        raise ValueError(_reason(error)) from error


def _reason(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _class_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, list[str]]:
    """Return the names of the classes of each ClassLabel column, which `datasets` keeps in the file's metadata."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {name: list(one["names"]) for name, one in features.items() if one.get("_type") == "ClassLabel"}
    except (KeyError, ValueError, TypeError, AttributeError):
        return {}


def _named(value: Any, names: Sequence[str]) -> Any:
    """Return the name of class `value`; None for -1, by which `datasets` marks what has no class."""
    if not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None


def name_of(image: Mapping[str, Any], row: int) -> str:
    """Return a file name for an embedded image: the last part of its own path, if that is one, else its row.

    The suffix says what the content is, because readers are chosen by it.
    """
    own = PurePosixPath(str(image.get("path") or "").replace("\\", "/"))
    stem = own.stem if re.fullmatch(r"\w[\w.\- ]*", own.stem) else f"{row:07d}"
    return stem + (_sniffed(image.get("bytes") or b"") or (own.suffix if own.suffix.lower() in IMAGES else ".png"))


def _sniffed(content: bytes) -> str:
    """Return the suffix for the format of `content`, "" for one that Pillow does not know."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return _SUFFIXES[image.format or ""]
    except Exception:  # what cannot be read is named when the file is
        return ""
