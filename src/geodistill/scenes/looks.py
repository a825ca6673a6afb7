"""Looks: short perceptual hashes of images, which find a picture again after compression, resizing, turns and mirrors.

A look is made of the low frequencies of an image's grey values, as perceptual hashes are (Zauner, 2010): the image is
averaged to 32 x 32 pixels, and the lowest 12 x 12 coefficients of its discrete cosine transform are kept, without the
mean. Coefficients are weighted by their frequency to the power of 1.5: else the broad shading that many scenes share
would decide. Two looks are compared by their cosine. Turns by right angles and mirrors only swap coefficients or change
their signs, so the eight orientations of an image follow from one look.

Looks are found again by their signs, as bits of an address (Charikar, STOC 2002). An image is looked up under its own
address and under those that its weakest coefficients would give if their signs were different (multi-probe: Lv et al.,
VLDB 2007). So the time grows with the number of images, not with its square.

What all images of a data set share, such as a frame, a label or a mask, makes different scenes look alike. It is the
mean of their looks. Two images are the same picture only if they are also alike without it.
"""

from collections.abc import Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn

# Side in pixels to which images are averaged, number of frequencies along each axis, and the power of the weights.
_SIDE, _FREQUENCIES, _POWER = 32, 12, 1.5
# Numbers in a look, and bytes of their signs.
LENGTH = _FREQUENCIES**2 - 1
SIGNS = -(-LENGTH // 8)
# Cosine from which two images are the same picture. Different scenes of EuroSAT and UC Merced reach 0.87.
SAME = 0.9
# The same without what all images share. The mean of the unit looks of UC Merced is 0.06 long, with a black frame of
# 1 % of the side 0.35. The mean of few images says little of what all share.
_SAME_BESIDES, _SHARED, _LEAST = 0.8, 0.2, 30
# Share of equal signs from which two looks are of the same picture if only their signs are known. Of 2,000 EuroSAT
# scenes two are so alike to another one, of 420 scenes of UC Merced none. Of JPEGs of quality 90, 98 % are found.
_SAME_SIGNS = 0.9
# Hashes that are compared at a time.
_HASHES = 8192
# Coefficients whose sign may be wrong, addresses (tables) of each image, and images that are read at one address.
_WEAK, _TABLES, _MOST = 6, 2, 256
_LEAST_BITS, _MOST_BITS = 8, 24
_BLOCK = 256


def look_of(bands: NDArray[np.generic], valid: NDArray[np.bool_]) -> bytes:
    """Return the look of an image, LENGTH bytes (int8); b"" if its pixels are all equal, or fewer than 12 on a side.

    bands: [bands, h, w], any real type; their mean is compared. valid: bool [h, w], which pixels are measurements; the
    others get the mean.
    """
    if min(valid.shape) < _FREQUENCIES:
        return b""
    small = np.asarray(Image.fromarray(_grey(bands, valid)).resize((_SIDE, _SIDE), Image.Resampling.BOX))
    order, weights = _order()
    found = dctn(small - small.mean(), norm="ortho")[:_FREQUENCIES, :_FREQUENCIES].flatten()[order] * weights
    largest = float(np.abs(found).max())
    # Rounding in the transform is no texture.
    if not np.isfinite(largest) or largest <= 1e-4 * max(1.0, float(np.abs(small).max())):
        return b""
    look: bytes = (found / largest * 127).round().astype(np.int8).tobytes()
    return look


def _grey(bands: NDArray[np.generic], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the mean of the bands, of their real parts, float32 [h, w]."""
    grey = np.zeros(bands.shape[1:], np.float32)
    # Pixels that are no measurement may hold anything. One band after the other: five times as fast as `mean`.
    with np.errstate(all="ignore"):
        for band in bands:
            grey += band.real
    if not valid.all():
        grey[~valid] = grey[valid].mean(dtype=np.float64)
    return grey / np.float32(len(bands))


@cache
def _order() -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the places of the coefficients in the flattened square, low frequencies first, and their weights."""
    rows, columns = np.divmod(np.arange(1, _FREQUENCIES**2), _FREQUENCIES)
    squares = rows**2 + columns**2
    order = np.lexsort((rows, np.maximum(rows, columns), squares))
    return order + 1, (squares[order] ** (_POWER / 2)).astype(np.float32)


@cache
def _orientations() -> tuple[tuple[NDArray[np.int64], NDArray[np.float32]], ...]:
    """Return, for each of the eight symmetries of the square, where a look's numbers come from, and their signs."""
    order, _ = _order()
    rows, columns = np.divmod(order, _FREQUENCIES)
    place = np.empty(_FREQUENCIES**2, np.int64)
    place[order] = np.arange(LENGTH)
    found = []
    for view in range(8):
        signs = np.where(view & 1, (-1.0) ** columns, 1.0) * np.where(view & 2, (-1.0) ** rows, 1.0)
        source = place[columns * _FREQUENCIES + rows] if view & 4 else np.arange(LENGTH)
        found.append((source, signs.astype(np.float32)))
    return tuple(found)


def most_alike(looks: NDArray[np.int8], others: NDArray[np.int8]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return which of `others` int8 [m, LENGTH] is most like each of `looks` int8 [n, LENGTH], and their cosine.

    The best of the eight orientations counts. Where none is near, the index is -1 and the cosine 0. Of pictures with a
    cosine above SAME about one in a hundred is missed, and more where over _MOST of `others` share an address.

    >>> few = np.random.default_rng(0).integers(-99, 99, (3, LENGTH)).astype(np.int8)
    >>> most_alike(few[1:2], few)[0].tolist()
    [1]
    """
    best, alike = np.full(len(looks), -1, np.int64), np.zeros(len(looks), np.float32)
    if not len(others):
        return best, alike
    bits = int(np.clip(np.ceil(np.log2(len(others))) + 3, _LEAST_BITS, _MOST_BITS))
    tables = [_Table(others, slice(k * bits, (k + 1) * bits)) for k in range(_TABLES)]
    for start in range(0, len(looks), _BLOCK):
        some = looks[start : start + _BLOCK].astype(np.float32)
        for source, signs in _orientations():
            turned = some[:, source] * signs
            for table in tables:
                for rows, found in table.candidates(turned):
                    cosines = _cosines(turned[rows], others[found])
                    _keep_best(best, alike, (rows + start, found, cosines))
    return best, alike


def alike_besides(looks: NDArray[np.int8], others: NDArray[np.int8], every: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Return which of `looks` [n, LENGTH] are like those of `others` [n, LENGTH] without what all of `every` share.

    `every` int8 [m, LENGTH] are all looks that `others` come from. If they share little, or are few, the answer is yes.
    """
    shared = np.zeros(LENGTH, np.float64)
    for start in range(0, len(every), _BLOCK):
        shared += _unit(every[start : start + _BLOCK]).sum(axis=0)
    length = float(np.linalg.norm(shared)) / max(len(every), 1)
    if len(every) < _LEAST or length < _SHARED:
        return np.ones(len(looks), bool)
    direction = (shared / np.linalg.norm(shared)).astype(np.float32)
    own, there = _without(direction, looks), _without(direction, others)
    cosines = [np.einsum("nd,nd->n", own[:, source] * signs, there) for source, signs in _orientations()]
    found: NDArray[np.bool_] = np.max(cosines, axis=0) >= _SAME_BESIDES
    return found


def looks_of(pixels: NDArray[np.uint8]) -> NDArray[np.int8]:
    """Return the looks of images [n, channels, s, s] that have one, int8 [m, LENGTH]."""
    valid = np.ones(pixels.shape[2:], np.bool_)
    return np.frombuffer(b"".join(look_of(image, valid) for image in pixels), np.int8).reshape(-1, LENGTH)


def hashes_of(looks: NDArray[np.int8]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return perceptual hashes of `looks` [n, LENGTH], uint8 [n, SIGNS], and the mean look, float32 [LENGTH].

    A hash has the signs of a look without the mean of all, as bits. It shows no picture.
    """
    own = _unit(looks)
    mean = own.mean(axis=0) if len(own) else np.zeros(LENGTH, np.float32)
    return np.packbits(own > mean, axis=1), mean


def found_by_hashes(looks: NDArray[np.int8], hashes: NDArray[np.uint8], mean: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return which of `looks` [n, LENGTH] are of a picture of which `hashes_of` made one of `hashes`, with `mean`.

    The eight orientations count, as in `most_alike`. All pairs are compared, so few looks should be asked about.
    """
    turned = [_unit(looks)[:, source] * signs for source, signs in _orientations()]
    views = [np.where(view > mean, 1, -1).astype(np.float32) for view in turned]
    found = np.zeros(len(looks), np.bool_)
    for start in range(0, len(hashes), _HASHES):
        bits = np.unpackbits(hashes[start : start + _HASHES], axis=1)[:, :LENGTH]
        known = np.where(bits, 1, -1).astype(np.float32).T
        # The product of signs is the number of equal ones less that of different ones.
        for view in views:
            found |= (view @ known).max(axis=1, initial=-LENGTH) >= (2 * _SAME_SIGNS - 1) * LENGTH
    return found


def _without(direction: NDArray[np.float32], looks: NDArray[np.int8]) -> NDArray[np.float32]:
    """Return the parts of `looks` [n, LENGTH] across `direction` [LENGTH], of length 1."""
    own = _unit(looks)
    return _unit(own - (own @ direction)[:, None] * direction)


def _unit(looks: NDArray[np.generic]) -> NDArray[np.float32]:
    own = looks.astype(np.float32)
    found: NDArray[np.float32] = own / np.maximum(np.linalg.norm(own, axis=1, keepdims=True), 1e-9)
    return found


def _keep_best(
    best: NDArray[np.int64],
    alike: NDArray[np.float32],
    tried: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]],
) -> None:
    """Write into `best` and `alike` which candidates of `tried`, (rows, candidates, cosines), are better."""
    rows, found, cosines = tried
    order = np.argsort(cosines, kind="stable")
    rows, found, cosines = rows[order], found[order], cosines[order]
    better = cosines > alike[rows]
    # Where a row occurs several times, the last assignment, of the highest cosine, stays.
    best[rows[better]], alike[rows[better]] = found[better], cosines[better]


def _cosines(some: NDArray[np.float32], others: NDArray[np.int8]) -> NDArray[np.float32]:
    real = others.astype(np.float32)
    norms = np.sqrt(np.einsum("nd,nd->n", some, some) * np.einsum("nd,nd->n", real, real))
    found: NDArray[np.float32] = np.einsum("nd,nd->n", some, real) / norms
    return found


class _Table:
    """Images by address: the signs of some of their look's numbers."""

    def __init__(self, looks: NDArray[np.int8], part: slice) -> None:
        self._part, self._powers = part, 1 << np.arange(part.stop - part.start)
        addresses = self._addresses(looks)
        self._images = np.argsort(addresses, kind="stable")
        counts = np.bincount(addresses, minlength=2 ** len(self._powers))
        self._first = np.concatenate([[0], np.cumsum(counts)])

    def _addresses(self, looks: NDArray[np.int8] | NDArray[np.float32]) -> NDArray[np.int64]:
        addresses: NDArray[np.int64] = (looks[:, self._part] > 0) @ self._powers
        return addresses

    def candidates(self, looks: NDArray[np.float32]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Yield (rows of `looks` [n, LENGTH], images that lie at one of their addresses), both int64 [k]."""
        own = self._addresses(looks)
        weak = self._powers[np.abs(looks[:, self._part]).argsort(axis=1)[:, :_WEAK]]  # [n, weak]
        for signs in range(2**_WEAK):
            changed = weak @ np.array([signs >> k & 1 for k in range(_WEAK)])
            address = own ^ changed
            first, count = self._first[address], np.minimum(self._first[address + 1] - self._first[address], _MOST)
            rows = np.repeat(np.arange(len(looks)), count)
            if len(rows):
                place = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
                yield rows, self._images[np.repeat(first, count) + place]
