"""Leaks: test or validation scenes that are also in another part, as the same file, picture or ground."""

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import product

import numpy as np
from numpy.typing import NDArray

from geodistill.errors import SceneError
from geodistill.scenes.looks import LENGTH, SAME, alike_besides, most_alike
from geodistill.scenes.packed import OnDemand
from geodistill.scenes.scenes import FILE, GROUND, PICTURE, Leak, SceneFile

log = logging.getLogger("geodistill")

# Scenes overlap if they share more than this part of the smaller one. Less can come from rounded coordinates.
_OVERLAP = 0.01
# Cells of the grid that one scene may lie in, on average.
_CELLS = 16
# Leaks that an error names.
_NAMED = 50
_NEIGHBOURS = " Unless the data has parts of its own, --split spatial keeps neighbours together."
_BORDERS = " They lie on both sides of a border of two squares: larger squares (--split spatial:METRES) have fewer."
_PARTS = {"test": "test", "val": "validation"}


def find_leaks(parts: Mapping[str, Sequence[SceneFile]]) -> tuple[Leak, ...]:
    """Return the scenes of each part that are also in a part before it, one leak for each scene.

    parts: the files of each part, training scenes first. The same file counts before the same ground, and that before
    the same picture. Scenes of different coordinate systems are not compared on the ground. Scenes without texture have
    no look, and are compared as files alone.
    """
    found: list[Leak] = []
    earlier: list[tuple[str, Sequence[SceneFile]]] = []
    for part, files in parts.items():
        if earlier:
            own, before = _Named([(part, files)]), _Named(earlier)
            leaks = _same_pictures(own, before) | _same_ground(own, before) | _same_files(own, before)
            found += [leaks[index] for index in sorted(leaks)]
        earlier.append((part, files))
    return tuple(found)


class _Named(OnDemand[tuple[str, SceneFile]]):
    """The files of some parts, each with its name; a million of them are not in memory together."""

    def __init__(self, parts: Sequence[tuple[str, Sequence[SceneFile]]]) -> None:
        self._parts = tuple(parts)
        self._starts = np.cumsum([0, *(len(files) for _, files in parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __iter__(self) -> Iterator[tuple[str, SceneFile]]:
        return ((f"{part}/{file.name}", file) for part, files in self._parts for file in files)

    def _at(self, index: int) -> tuple[str, SceneFile]:
        rank = int(np.searchsorted(self._starts, index, side="right")) - 1
        part, files = self._parts[rank]
        file = files[int(index - self._starts[rank])]
        return f"{part}/{file.name}", file


def _same_files(files: _Named, others: _Named) -> dict[int, Leak]:
    first: dict[str, int] = {}
    for place, (_, other) in enumerate(others):
        first.setdefault(other.key, place)
    known = ((index, name, first.get(file.key)) for index, (name, file) in enumerate(files))
    return {index: Leak(name, others[place][0], FILE, 1.0) for index, name, place in known if place is not None}


def _same_pictures(files: _Named, others: _Named) -> dict[int, Leak]:
    own, looks = _looks(files)
    there, known = _looks(others)
    best, alike = most_alike(looks, known)
    hits = np.flatnonzero(alike >= SAME)
    hits = hits[alike_besides(looks[hits], known[best[hits]], known)]
    return {int(own[k]): Leak(files[own[k]][0], others[there[best[k]]][0], PICTURE, float(alike[k])) for k in hits}


def _looks(files: _Named) -> tuple[NDArray[np.int64], NDArray[np.int8]]:
    """Return which files have a look, and the looks, int8 [n, LENGTH]."""
    looks = [file.look for _, file in files]
    joined = b"".join(looks)
    own = np.flatnonzero([bool(look) for look in looks]).astype(np.int64)
    return own, np.frombuffer(joined, np.int8).reshape(-1, LENGTH)


def _same_ground(files: _Named, others: _Named) -> dict[int, Leak]:
    """Return the files that overlap one of `others`, each with the one that it shares most with."""
    systems: dict[str, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for side, named in enumerate((files, others)):
        for index, (_, file) in enumerate(named):
            if file.info is not None and file.info.bounds is not None and file.info.crs is not None:
                systems[file.info.crs][side].append(index)
    found: dict[int, Leak] = {}
    for own, there in systems.values():
        # Many files can have one place, such as images of several dates: each place is compared once.
        boxes, rows = np.unique(_boxes(files, own), axis=0, return_inverse=True)
        known, first = _first_of_each(_boxes(others, there))
        best: dict[int, tuple[int, float]] = {}
        for row, near in _near(boxes, known):
            shares = _shared(boxes[row], known[near])
            most = int(shares.argmax())
            if shares[most] > _OVERLAP:
                best[row] = int(first[near[most]]), float(shares[most])
        for index, row in zip(own, rows.reshape(-1).tolist(), strict=True):
            if row in best:
                place, share = best[row]
                found[index] = Leak(files[index][0], others[there[place]][0], GROUND, share)
    return found


def _first_of_each(boxes: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the different boxes, [k, 4], in the order in which they first occur, and where each does, int64 [k]."""
    _, first = np.unique(boxes, axis=0, return_index=True)
    first.sort()
    return boxes[first], first.astype(np.int64)


def _boxes(files: _Named, chosen: Sequence[int]) -> NDArray[np.float64]:
    """Return left, bottom, right, top of the chosen files, [n, 4]; files may have their first row in the south."""
    infos = (files[index][1].info for index in chosen)
    corners = np.array([info.bounds for info in infos if info is not None], np.float64).reshape(-1, 2, 2)
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)


def _near(boxes: NDArray[np.float64], others: NDArray[np.float64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield the row of each of `boxes`, and which of `others` lie in a cell of the ground that it lies in."""
    if not len(boxes) or not len(others):
        return
    side = _side_of_cells(np.concatenate([boxes, others]))
    cells: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, box in enumerate(others):
        for cell in _cells(box, side):
            cells[cell].append(index)
    for row, box in enumerate(boxes):
        near = sorted({index for cell in _cells(box, side) for index in cells.get(cell, ())})
        if near:
            yield row, np.array(near, np.int64)


def _side_of_cells(boxes: NDArray[np.float64]) -> float:
    """Return the median side of `boxes`, or more if the largest would lie in very many cells."""
    sides = boxes[:, 2:] - boxes[:, :2]
    side = max(float(np.median(sides)), np.finfo(np.float64).tiny)
    while float(np.prod(sides / side + 2, axis=1).sum()) > _CELLS * len(boxes):
        side *= 2
    return side


def _cells(box: NDArray[np.float64], side: float) -> Iterator[tuple[int, int]]:
    (left, bottom), (right, top) = np.floor(box[:2] / side).astype(int), np.floor(box[2:] / side).astype(int)
    return product(range(left, right + 1), range(bottom, top + 1))


def _shared(box: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the area that `box` [4] shares with each of `others` [n, 4], as part of the smaller one."""
    both = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    smaller = np.minimum(np.prod(box[2:] - box[:2]), np.prod(others[:, 2:] - others[:, :2], axis=1))
    shared: NDArray[np.float64] = np.prod(both.clip(0), axis=1) / np.maximum(smaller, np.finfo(np.float64).tiny)
    return shared


def tell_of_leaks(leaks: Sequence[Leak], *, strict: bool, spatial: bool = False) -> None:
    """Log how many scenes of a part are also in another one, with the first; raise SceneError instead if `strict`.

    spatial: whether neighbours were kept together, as far as a grid of squares does.
    """
    if leaks and strict:
        named = "".join(f"\n  {leak}" for leak in leaks[:_NAMED])
        rest = f"\n  and {len(leaks) - _NAMED} more" if len(leaks) > _NAMED else ""
        raise SceneError(
            f"{len(leaks)} scene(s) are in two parts of the data: remove one of each pair, or leave --strict out"
            f"{named}{rest}"
        )
    for part, told in _PARTS.items():
        own = [leak for leak in leaks if leak.scene.startswith(f"{part}/")]
        if own:
            split = (_BORDERS if spatial else _NEIGHBOURS) if own[0].why == GROUND else ""
            log.warning(
                "%d %s scene(s) are also in another part, the first is %s: results are too optimistic.%s `geodistill "
                "inspect` names them, and --strict stops here",
                *(len(own), told, own[0], split),
            )
