"""Aligned nearness: how near distilled images are to the training images, compared with equally sharp held-out images.

The distance of an image to its nearest training image is that of `copies`: 1 - correlation, the smallest over
rotations, mirror images and crops down to 70 % of the side. A blurred image is nearer to every other image. So the
sharper of the two groups, distilled and held-out images, is blurred until both are equally sharp.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from geodistill.errors import ConfigError
from geodistill.privacy.copies import BINOMIAL, filtered
from geodistill.privacy.membership import interval, resampled
from geodistill.privacy.neighbours import Neighbours
from geodistill.seeding import generator

_RESAMPLES = 1000
# Largest standard deviation of the blur in pixels, and number of bisection steps that search for the right one.
_WIDEST, _HALVINGS = 4.0, 10
# Rounding error of the distance between two equal images.
_SAME = 1e-5
# Groups whose sharpness differs by at most this share count as equally sharp.
_EQUAL = 0.01


@dataclass(frozen=True)
class AlignedNearness:
    """How near a set is to the training images: 1 means no nearer than held-out images, 0 means copies.

    `ratio`: the median aligned distance of the set divided by that of equally sharp held-out images. `low`, `high`: its
    95 % bootstrap interval over the images of both groups. `sharpness`: the sharpness of the set divided by that of
    the held-out images, before either is blurred.
    """

    ratio: float
    low: float
    high: float
    sharpness: float


def aligned_nearness(
    images: Tensor,
    held_out: Tensor,
    search: Callable[[Tensor], Neighbours],
    known: tuple[Tensor | None, Tensor | None] = (None, None),
    *,
    seed: int = 0,
) -> AlignedNearness:
    """Return the aligned nearness of uint8 `images` [n, 3, s, s] to the training images of `search`, a CopySearch.

    `held_out`: real images of the same size that are not training images. `known`: the distances float32 [n] that
    `search` gives for `images` and for `held_out`, each None if not computed yet.
    Raises ConfigError if a group is empty, or if half of the held-out images are copies of training images.

    >>> from geodistill.privacy.copies import CopySearch
    >>> from geodistill.scenes import builtin_scenes
    >>> data = builtin_scenes(train_per_class=4, test_per_class=2, size=32)
    >>> train, fresh = data.train.pixels(size=32), data.test.pixels(size=32)
    >>> aligned_nearness(train[:6].rot90(1, (2, 3)), fresh, CopySearch(train)).ratio < 0.2
    True
    """

    def distances(group: Tensor) -> Tensor:
        return search(group).distance

    own, fresh = known
    if fresh is None:
        fresh = distances(held_out)
    if float(fresh.median()) <= _SAME:
        raise ConfigError("half of the held-out images are copies of training images: remove the copies")
    own_sharpness, fresh_sharpness = sharpness(images), sharpness(held_out)
    if own_sharpness > fresh_sharpness * (1 + _EQUAL):
        own = distances(blurred_to(images, fresh_sharpness))
    elif own_sharpness < fresh_sharpness / (1 + _EQUAL):
        fresh = distances(blurred_to(held_out, own_sharpness))
    if own is None:
        own = distances(images)
    random = generator(seed, "aligned nearness")
    drawn = [_ratio(*(resampled(values, random) for values in (own, fresh))) for _ in range(_RESAMPLES)]
    found = interval(_ratio(own, fresh), drawn)
    return AlignedNearness(found.value, found.low, found.high, own_sharpness / max(fresh_sharpness, _SAME))


def sharpness(images: Tensor) -> float:
    """Return the share of variance that a 3x3 binomial filter removes, the median over uint8 images [n, 3, s, s]."""
    whole = images.float()
    kept = filtered(whole, BINOMIAL).var(dim=(1, 2, 3))
    return float((1 - kept / whole.var(dim=(1, 2, 3)).clamp(min=1e-6)).median())


def blurred_to(images: Tensor, wanted: float) -> Tensor:
    """Return uint8 `images` [n, 3, s, s] after the Gaussian blur that reduces their `sharpness` to `wanted`."""
    low, high = 0.0, _WIDEST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if sharpness(_gaussian(images, middle)) > wanted else (low, middle)
    return _gaussian(images, high)


def _gaussian(images: Tensor, deviation: float) -> Tensor:
    reach = max(1, min(round(3 * deviation), images.shape[-1] - 1))
    weights = (-(torch.arange(-reach, reach + 1) ** 2) / (2 * deviation**2)).exp()
    return filtered(images.float(), weights / weights.sum()).round().clamp(0, 255).to(torch.uint8)


def _ratio(own: Tensor, fresh: Tensor) -> float:
    return float(own.median() / fresh.median().clamp(min=_SAME))
