"""Splits of scenes: by the content of the files, by place on the ground, or by published lists of names."""

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import torch

from geodistill.errors import SceneError
from geodistill.scenes.scenes import SceneFile, Scenes
from geodistill.seeding import generator

log = logging.getLogger("geodistill")

# Parts of a data set, and the names that their folders and lists go by.
PARTS = {"train": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}
# Side of a block of a spatial split, in metres.
BLOCK = 10_000.0
_METRES_PER_DEGREE = 111_320.0


def hold_out(scenes: Scenes, fraction: float, salt: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (kept, held): sorted int64 indices; about `fraction` of each class is held.

    An image's part depends only on its content and `salt`: adding, removing or renaming files moves no other image,
    and copies of an image fall into the same part.
    """
    _check_fraction(fraction)
    held = torch.tensor([_position(salt, key) < fraction for key in scenes.keys], dtype=torch.bool)
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def spare(scenes: Scenes, fraction: float, salt: str, *, leave: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (kept, held) like `hold_out`, with at least one held image in each class of more than `leave` images.

    A class keeps at least `leave` images, or all if it has no more than that. An image with a copy among the kept
    is never held, even if no other image of its class is. Adding or removing a file can move another image only at
    these limits.
    Raises SceneError for a fraction that is not between 0 and 1.
    """
    _check_fraction(fraction)
    positions = torch.tensor([_position(salt, key) for key in scenes.keys], dtype=torch.float64)
    held = torch.zeros(len(scenes), dtype=torch.bool)
    for label in range(len(scenes.classes)):
        own = (scenes.labels == label).nonzero()[:, 0]
        wanted = max(1, int((positions[own] < fraction).sum()))
        order = own[positions[own].argsort(stable=True)]
        held[order[: max(0, min(wanted, len(own) - leave))]] = True
    same = torch.from_numpy(scenes.keys.first_equal())  # the first of the copies of each image
    has_kept = torch.zeros(len(scenes), dtype=torch.bool).index_fill(0, same[~held], True)
    held &= ~has_kept[same]
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def fair_share(labels: torch.Tensor, most: int, seed: int) -> torch.Tensor:
    """Return int64 [k], sorted: all indices of `labels` int64 [N] if they are at most `most`; otherwise some of them.

    Each class then has the same number of indices, drawn by `seed`; a class with fewer keeps all. There are at most
    `most` indices in all, or one of each class if the classes are more.

    >>> fair_share(torch.tensor([0, 0, 0, 0, 1, 2, 2, 2]), 5, seed=0).tolist()
    [0, 2, 4, 5, 7]
    """
    if len(labels) <= most:
        return torch.arange(len(labels))
    counts = torch.bincount(labels)
    each = max(1, _largest_share(counts[counts > 0], most))
    kept = []
    for label in range(len(counts)):
        own = (labels == label).nonzero()[:, 0]
        kept.append(own[torch.randperm(len(own), generator=generator(seed, "fair share", label))[:each]])
    return torch.cat(kept).sort().values


def _largest_share(counts: torch.Tensor, most: int) -> int:
    """Return the largest number that each class can give, or all that it has if it has fewer, for `most` in all."""
    low, high = 0, int(counts.max())
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if int(counts.clamp(max=middle).sum()) <= most else (low, middle - 1)
    return low


def spatial_hold_out(
    files: Sequence[SceneFile], fraction: float, salt: str, block: float = BLOCK
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (kept, held) like `hold_out`, where all files whose centres lie in one square of the ground stay together.

    The squares have sides of `block` metres and lie on the grid of each coordinate system. About `fraction` of the
    squares is held; neighbours across the border of two squares, or of two coordinate systems, can still be parted.
    Raises SceneError if a file has no georeference.
    """
    _check_fraction(fraction)
    squares = [_square(file, block) for file in files]
    held = torch.tensor([_position(salt, square) < fraction for square in squares], dtype=torch.bool)
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def _square(file: SceneFile, block: float) -> str:
    info = file.info
    if info is None or info.bounds is None or info.crs is None:
        raise SceneError(f"{file.path} has no georeference: --split spatial needs one in every file")
    left, bottom, right, top = info.bounds
    x, y = (left + right) / 2, (bottom + top) / 2
    metres = _METRES_PER_DEGREE if info.degrees else info.metres
    row = math.floor(y * metres / block)
    if info.degrees:
        # A degree of longitude is as long as in the middle of the row of squares: with the length at each file's own
        # latitude, squares would lean the more the farther they are from Greenwich.
        metres *= math.cos(math.radians((row + 0.5) * block / _METRES_PER_DEGREE))
    return f"{info.crs} {math.floor(x * metres / block)} {row}"


def listed(files: Sequence[SceneFile], lists: Path) -> dict[str, torch.Tensor]:
    """Return the indices, int64, of the files of each part by published lists of names, such as those of torchgeo.

    `lists` is a folder of text files, a name on each line; a part is known by the last word of a list's name:
    `uc_merced-train.txt`. Names count without suffix, so lists serve converted images too. A name with a folder,
    `beach/001.png`, stands for the file of that class; one without stands for the only file of that name.
    Raises SceneError if there are no such lists, two of them have the same name, or a name stands for several files.
    """
    parts = {part: names for part, names in _lists(lists).items() if names}
    if "train" not in parts:
        raise SceneError(f"{lists}: no list of training images: expected files such as NAME-train.txt, NAME-test.txt")
    indices = _indices(files)
    part_of: dict[int, str] = {}
    found: dict[str, list[int]] = {part: [] for part in parts}
    unknown: list[str] = []
    for part, names in parts.items():
        for name in names:
            own = indices.get(_plain(name), indices.get(_without_suffix(name), []))
            if len(own) > 1:
                classes = ", ".join(sorted({files[index].path.parent.name for index in own}))
                raise SceneError(f"{lists}: {name!r} is the name of files in {classes}: write <class>/{name}")
            if own and part_of.setdefault(own[0], part) != part:
                raise SceneError(f"{lists}: {name!r} is in the lists of {part_of[own[0]]} and {part}")
            found[part] += own
            unknown += [] if own else [name]
    if unknown:
        log.warning("%d names of the lists in %s have no file, %r first", len(unknown), lists, unknown[0])
    return {part: torch.tensor(sorted({*own}), dtype=torch.int64) for part, own in found.items()}


def _indices(files: Sequence[SceneFile]) -> dict[str, list[int]]:
    """Return the indices of files by their names without suffix, alone and with their class folder."""
    found: dict[str, list[int]] = {}
    for index, file in enumerate(files):
        for name in (file.path.stem, f"{file.path.parent.name}/{file.path.stem}"):
            found.setdefault(name, []).append(index)
    return found


def _plain(name: str) -> str:
    """Return the last folder and the name of a listed name, or the name alone if it has no folder."""
    return "/".join(PurePosixPath(name.replace("\\", "/")).parts[-2:])


def _without_suffix(name: str) -> str:
    """Return `_plain` of a listed name without its suffix; a name may have a dot and no suffix."""
    path = PurePosixPath(_plain(name))
    return path.stem if len(path.parts) == 1 else f"{path.parent.name}/{path.stem}"


def _lists(folder: Path) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.txt")):
        part = PARTS.get(path.stem.replace("_", "-").rsplit("-", 1)[-1].lower())
        if part:
            try:
                lines = path.read_text(encoding="utf-8-sig").splitlines()
            except UnicodeDecodeError:
                raise SceneError(f"{path}: not a text in UTF-8: save it as UTF-8") from None
            found.setdefault(part, []).extend(line.strip() for line in lines if line.strip())
    return found


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction < 1:
        raise SceneError(f"cannot hold out a fraction of {fraction}: choose one between 0 and 1")


def _position(salt: str, key: str) -> float:
    """Return this image's position in [0, 1): 52 bits of a hash, exact in floating point."""
    return int(hashlib.sha256(f"{salt}\x1f{key}".encode()).hexdigest()[:13], 16) / 2**52
