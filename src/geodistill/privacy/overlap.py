"""Was a base trained on these very images? Then no noise hides what it knows of them.

Of a base that was made here, by `geodistill pretrain` or in a run, there is a footprint of its training images: of many
bits, the one that each image's file hashes to is set. One image in sixteen or so meets a set bit by chance; of a data
set that was trained on, all do. The same image in another file is not known again.

Whoever has a file and the footprint learns a lot about whether the file was trained on. So the footprint lies in the
run folder, beside the base, and is not handed out with it. `pretrain --footprint` puts it into the base, for public
data.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod, sqrt
from pathlib import Path

from geodistill.errors import PriorError
from geodistill.pipeline import BASE

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
    """Write footprints of `archives`, (name, keys) each, into `folder`, after those of the base in `earlier`."""
    path = None if earlier is None else footprint_of(earlier)
    lines = [] if path is None else path.read_text(encoding="utf-8").splitlines(keepends=True)
    own = [footprint(keys, name) for name, keys in archives]
    (folder / FOOTPRINT).write_text("".join([*(line for line in own if line not in lines), *lines]), encoding="utf-8")


def footprint_of(folder: Path) -> Path | None:
    """Return the file of the footprints of the base in `folder`: in it, or beside it where a run made it."""
    beside = [folder.parent / FOOTPRINT] if folder.name == BASE.name else []
    return next((path for path in (folder / FOOTPRINT, *beside) if path.is_file()), None)


def fewest_noticed(count: int, folder: Path) -> int | None:
    """Return how many of `count` images the base in `folder` must have seen to be noticed; None if it does not tell.

    >>> fewest_noticed(6000, Path("no such folder")) is None
    True
    """
    filled = max((_filled(bits) for _, bits in _footprints(folder)), default=None)
    if filled is None:
        return None
    return min(count, ceil(_SURE * sqrt(count * filled * (1 - filled)) / (1 - filled)) + 1)


@dataclass(frozen=True)
class Known:
    """Images that a base was trained on: about how many, of which of its archives ("" where it has no name)."""

    archive: str
    count: int


def known_archives(keys: Sequence[str], folder: Path) -> list[Known]:
    """Return for each archive of the base in `folder` how many of the images with `keys`, about, are from it.

    Archives of which chance could give as many are left out; a base that does not say has none.
    """
    found = [Known(archive, _known(keys, [bits])) for archive, bits in _footprints(folder)]
    return [one for one in found if one.count]


def known(keys: Sequence[str], folder: Path) -> int:
    """Return how many of the images with `keys`, about, the base in `folder` was trained on, all archives together.

    An image of several archives counts once. 0 where the base does not say, or chance could give as many.
    """
    found = [bits for _, bits in _footprints(folder) if _known(keys, [bits])]
    return min(_known(keys, _merged(found)), len(keys)) if found else 0


def told_overlap(keys: Sequence[str], folder: Path, *, images: str = "training images", base: str = "the base") -> str:
    """Return the sentence, without its stop, that says how many of the images with `keys` the base was trained on.

    It names their archives. "" where none are known. `images` and `base` are what the sentence calls them.
    """
    count = known(keys, folder)
    if not count:
        return ""
    archives = ", ".join(dict.fromkeys(one.archive for one in known_archives(keys, folder) if one.archive))
    named = f" ({archives})" if archives else ""
    return f"about {count:,} of the {len(keys):,} {images} are among those that {base} was trained on{named}"


def _footprints(folder: Path) -> list[tuple[str, bytes]]:
    """Return (name, bits) of each archive that the base in `folder` was trained on."""
    path = footprint_of(folder)
    if path is None:
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    try:
        parsed = [json.loads(line) for line in lines]
        return [(one.get("archive", ""), base64.b64decode(one["bits"])) for one in parsed]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PriorError(
            f"{path} cannot be read ({type(error).__name__}: {error}): copy the base again; without this file nobody "
            "can tell which images it was trained on"
        ) from error


def _merged(footprints: Sequence[bytes]) -> list[bytes]:
    """Return `footprints` with those of one size in one: an image has the same place in them, so chance counts once."""
    merged: dict[int, int] = {}
    for bits in footprints:
        merged[len(bits)] = merged.get(len(bits), 0) | int.from_bytes(bits)
    return [bits.to_bytes(size) for size, bits in merged.items()]


def _known(keys: Sequence[str], footprints: Sequence[bytes]) -> int:
    """Return how many images with `keys` are in any of `footprints`, less those that chance puts there."""
    filled = 1 - prod(1 - _filled(bits) for bits in footprints)
    hits = sum(any(_has(bits, key) for bits in footprints) for key in keys)
    chance = filled * len(keys)
    if hits <= chance + _SURE * sqrt(chance * (1 - filled)):
        return 0
    return round((hits - chance) / (1 - filled))


def _filled(bits: bytes) -> float:
    return sum(byte.bit_count() for byte in bits) / (8 * len(bits))


def _has(bits: bytes, key: str) -> bool:
    place = _place(key, 8 * len(bits))
    return bool(bits[place // 8] >> place % 8 & 1)


def _place(key: str, size: int) -> int:
    return int(hashlib.sha256(f"trained on\x1f{key}".encode()).hexdigest(), 16) % size
