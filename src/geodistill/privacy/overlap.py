"""Was a base trained on these very images? Then no noise hides what it knows of them.

A base that was made here, by `geodistill pretrain` or in a run, carries a footprint of its training images: of many
bits, the one that each image's file hashes to is set. One image in sixteen or so meets a set bit by chance, so that no
image is given away by it; of a data set that was trained on, all do. The same image in another file is not known again.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

# Beside the pipeline's own files; not one of those that tell a base from another.
FOOTPRINT = "trained_on.jsonl"
# Of the footprint, for each image.
_BYTES_EACH = 2
# Standard deviations of what chance gives, above which images are known to the base.
_SURE = 4.0


def footprint(keys: Sequence[str], name: str = "") -> str:
    """Return a line of JSON for the images of archive `name`, whose contents have `keys`."""
    bits = bytearray(_BYTES_EACH * len(keys))
    for key in keys:
        place = _place(key, 8 * len(bits))
        bits[place // 8] |= 1 << place % 8
    named = {"archive": name} if name else {}
    return json.dumps(named | {"bits": base64.b64encode(bits).decode()}) + "\n"


def sign(folder: Path, archives: Sequence[tuple[str, Sequence[str]]], earlier: Path | None = None) -> None:
    """Write footprints of `archives`, (name, keys) each, into base `folder`, after those of the base `earlier`."""
    path = None if earlier is None else earlier / FOOTPRINT
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path is not None and path.is_file() else []
    own = [footprint(keys, name) for name, keys in archives]
    (folder / FOOTPRINT).write_text("".join([*(line for line in own if line not in lines), *lines]), encoding="utf-8")


@dataclass(frozen=True)
class Known:
    """Images that a base was trained on: about how many, of which of its archives ("" where it has no name)."""

    archive: str
    count: int


def known_archives(keys: Sequence[str], folder: Path) -> list[Known]:
    """Return for each archive of the base in `folder` how many of the images with `keys`, about, are from it.

    Archives of which chance could give as many are left out; a base that does not say has none.
    """
    path = folder / FOOTPRINT
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    parsed = [json.loads(line) for line in lines]
    found = [Known(one.get("archive", ""), _known(keys, base64.b64decode(one["bits"]))) for one in parsed]
    return [one for one in found if one.count]


def known(keys: Sequence[str], folder: Path) -> int:
    """Return how many of the images with `keys`, about, the base in `folder` was trained on; 0 where it does not say.

    0 too where chance could give as many.
    """
    return max((one.count for one in known_archives(keys, folder)), default=0)


def _known(keys: Sequence[str], bits: bytes) -> int:
    size = 8 * len(bits)
    filled = sum(byte.bit_count() for byte in bits) / size
    places = [_place(key, size) for key in keys]
    hits = sum(bits[place // 8] >> place % 8 & 1 for place in places)
    chance = filled * len(keys)
    if hits <= chance + _SURE * sqrt(chance * (1 - filled)):
        return 0
    return round((hits - chance) / (1 - filled))


def _place(key: str, size: int) -> int:
    return int(hashlib.sha256(f"trained on\x1f{key}".encode()).hexdigest(), 16) % size
