"""Overlap: estimate how many of the given images a base was trained on. No noise hides what the base knows of them.

A base that was made here, by `geodistill pretrain` or in a run, has a footprint of its training images. This is an
array of bits in which the bit that each image's file hashes to is set. About one image in sixteen meets a set bit by
chance, but all images of a training set do.

The same image in another file, such as a published TIFF of what the base was trained on as JPEG, has another hash. A
base of public data has its pictures' perceptual hashes as well (`scenes.looks`): the signs of a few frequencies, which
survive compression, resizing, turns and mirrors. If no file is known, a sample of the images is looked up among these.

A file and the footprint together reveal a lot about whether the base was trained on the file. So the footprint lies in
the run folder, beside the base, and is not handed out with it. `pretrain --footprint` puts it into the base, with the
perceptual hashes, for public data.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from geodistill.errors import PriorError
from geodistill.pipeline import BASE
from geodistill.progress import progress
from geodistill.run import write_atomic
from geodistill.scenes.looks import LENGTH, SIGNS, found_by_hashes, hashes_of, looks_of
from geodistill.scenes.scenes import Scenes
from geodistill.scenes.views import as_rgb

# Lies beside the pipeline's own files and does not count for the identity of a base.
FOOTPRINT = "trained_on.jsonl"
# Perceptual hashes of the training images, in the base itself.
PICTURES = "trained_on_pictures.jsonl"
# Largest number of images that are looked up among them, side in pixels at which they are, and pictures read at a time.
_LOOKED_UP, _SIDE, _TOGETHER = 512, 64, 512
# Share of the sample that has to be found for any to count, and the least number. Of different scenes one in a thousand
# is found, or one in ten where all have the same label or mask.
_FOUND, _FEWEST_FOUND = 0.2, 3
_NO_MEAN = bytes(4 * LENGTH)
# Size of the footprint for each image.
_BYTES_EACH = 2
# Images count as known to the base if hits exceed those expected by chance by this many standard deviations.
_SURE = 4.0


def footprint(keys: Sequence[str], name: str = "") -> str:
    """Return the footprint of archive `name` as a line of JSON; `keys` identify the contents of its images."""
    bits = bytearray(_BYTES_EACH * len(keys))
    for key in keys:
        place = _place(key, 8 * len(bits))
        bits[place // 8] |= 1 << place % 8
    named = {"archive": name} if name else {}
    return json.dumps(named | {"bits": base64.b64encode(bits).decode()}) + "\n"


def sign(folder: Path, archives: Sequence[tuple[str, Sequence[str]]], earlier: Path | None = None) -> None:
    """Write footprints of `archives`, each (name, keys), into `folder`, followed by those of the base in `earlier`."""
    path = None if earlier is None else footprint_of(earlier)
    lines = [] if path is None else path.read_text(encoding="utf-8").splitlines(keepends=True)
    own = [footprint(keys, name) for name, keys in archives]
    (folder / FOOTPRINT).write_text("".join([*(line for line in own if line not in lines), *lines]), encoding="utf-8")


def sign_pictures(folder: Path, archives: Sequence[tuple[str, Scenes]], earlier: Path | None = None) -> None:
    """Write the perceptual hashes of `archives`, each (name, scenes), into `folder`, then those of base `earlier`."""
    path = None if earlier is None else earlier / PICTURES
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path and path.is_file() else []
    own = [_hashed(name, scenes) for name, scenes in archives]
    write_atomic(folder / PICTURES, "".join([*(line for line in own if line not in lines), *lines]))


def _hashed(name: str, scenes: Scenes) -> str:
    """Return the perceptual hashes of archive `name` as a line of JSON."""
    looks = []
    with progress("perceptual hashes", len(scenes)) as advance:
        for part in torch.arange(len(scenes)).split(_TOGETHER):
            looks.append(_looks(scenes, part))
            advance(int(part[-1]) + 1)
    hashes, mean = hashes_of(np.concatenate(looks))
    kept = {"mean": mean.astype("<f4").tobytes(), "hashes": hashes.tobytes()}
    return json.dumps({"archive": name} | {key: base64.b64encode(value).decode() for key, value in kept.items()}) + "\n"


def _looks(scenes: Scenes, indices: torch.Tensor) -> NDArray[np.int8]:
    return looks_of(as_rgb(scenes.pixels(indices, size=_SIDE)).numpy())


def footprint_of(folder: Path) -> Path | None:
    """Return the footprint file of the base in `folder`, or None: inside it, or beside it if a run made the base."""
    folder = folder.resolve()  # a link, or ".", has another name
    beside = [folder.parent / FOOTPRINT] if folder.name == BASE.name else []
    return next((path for path in (folder / FOOTPRINT, *beside) if path.is_file()), None)


def fewest_noticed(count: int, folder: Path) -> int | None:
    """Return how many of `count` images the base in `folder` must know to be noticed; None without a footprint.

    >>> fewest_noticed(6000, Path("no such folder")) is None
    True
    """
    filled = max((_filled(bits) for _, bits in _footprints(folder)), default=None)
    if filled is None:
        return None
    return min(count, ceil(_SURE * sqrt(count * filled * (1 - filled)) / (1 - filled)) + 1)


@dataclass(frozen=True)
class Known:
    """The approximate number of images of one archive that a base was trained on; an archive without a name is ""."""

    archive: str
    count: int


def known_archives(keys: Sequence[str], folder: Path) -> list[Known]:
    """Return, for each archive that the base in `folder` was trained on, about how many images with `keys` it holds.

    Archives whose hits chance could explain are left out. A base without a footprint has none.
    """
    found = [Known(archive, _known(keys, [bits])) for archive, bits in _footprints(folder)]
    return [one for one in found if one.count]


def known(keys: Sequence[str], folder: Path) -> int:
    """Return about how many of the images with `keys` the base in `folder` was trained on, over all archives.

    An image of several archives counts once. 0 if the base has no footprint, or if chance could explain the hits.
    """
    found = [bits for _, bits in _footprints(folder) if _known(keys, [bits])]
    return min(_known(keys, _merged(found)), len(keys)) if found else 0


def known_pictures(scenes: Scenes, folder: Path) -> list[Known]:
    """Return, for each archive that the base in `folder` has perceptual hashes of, about how many `scenes` it holds.

    A sample of the scenes is looked up. Archives of which less than a fifth of it is found are left out.
    """
    lines = _lines(folder / PICTURES, "hashes", "mean")
    if not lines or not len(scenes):
        return []
    step = -(-len(scenes) // _LOOKED_UP)
    looks = _looks(scenes, torch.arange(0, len(scenes), step))
    found = []
    for line in lines:
        hashes = np.frombuffer(line["hashes"], np.uint8).reshape(-1, SIGNS)
        hits = int(found_by_hashes(looks, hashes, np.frombuffer(line["mean"], "<f4")).sum())
        if hits >= max(_FEWEST_FOUND, _FOUND * len(looks)):
            found.append(Known(line["archive"], min(len(scenes), len(hashes), hits * step)))
    return found


def count_known(scenes: Scenes, folder: Path) -> int:
    """Return about how many of `scenes` the base in `folder` was trained on, as the same files or in other ones."""
    return _overlap(scenes, folder)[0]


def told_overlap(scenes: Scenes, folder: Path, *, images: str = "training images", base: str = "the base") -> str:
    """Return a sentence, without its full stop, on how many of `scenes` the base was trained on.

    It names their archives. It is "" if none are known. `images` and `base` are the words for them in the sentence.
    """
    count, found, other = _overlap(scenes, folder)
    if not found:
        return ""
    archives = ", ".join(dict.fromkeys(one.archive for one in found if one.archive))
    named = f" ({archives})" if archives else ""
    return f"about {count:,} of the {len(scenes):,} {images} are among those that {base} was trained on{other}{named}"


def _overlap(scenes: Scenes, folder: Path) -> tuple[int, list[Known], str]:
    """Return about how many of `scenes` the base was trained on, in which archives, and how if not as the same files.

    Pictures are looked up only if no file is known.
    """
    if found := known_archives(scenes.keys, folder):
        return known(scenes.keys, folder), found, ""
    found = known_pictures(scenes, folder)
    return min(len(scenes), sum(one.count for one in found)), found, ", in other files"


def _footprints(folder: Path) -> list[tuple[str, bytes]]:
    """Return (name, bits) of each archive that the base in `folder` was trained on."""
    path = footprint_of(folder)
    lines = [] if path is None else _lines(path, "bits")
    return [(one["archive"], one["bits"]) for one in lines]


def _lines(path: Path, *fields: str) -> list[dict[str, Any]]:
    """Return the archive and the bytes of `fields` of each line of a file of a base; none if there is no such file."""
    if not path.is_file():
        return []
    try:
        parsed = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        found = [
            {"archive": one.get("archive", "")} | {field: base64.b64decode(one[field]) for field in fields}
            for one in parsed
        ]
        if any(len(one.get("hashes", b"")) % SIGNS or len(one.get("mean", _NO_MEAN)) != len(_NO_MEAN) for one in found):
            raise ValueError("hashes of another length")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PriorError(
            f"{path} cannot be read ({type(error).__name__}: {error}): copy the base again; without this file nobody "
            "can tell which images it was trained on"
        ) from error
    return found


def _merged(footprints: Sequence[bytes]) -> list[bytes]:
    """Return `footprints` with those of equal size merged: an image has the same bit in them, so chance counts once."""
    merged: dict[int, int] = {}
    for bits in footprints:
        merged[len(bits)] = merged.get(len(bits), 0) | int.from_bytes(bits)
    return [bits.to_bytes(size) for size, bits in merged.items()]


def _known(keys: Sequence[str], footprints: Sequence[bytes]) -> int:
    """Return how many images with `keys` are in any of `footprints`, minus those expected by chance."""
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
