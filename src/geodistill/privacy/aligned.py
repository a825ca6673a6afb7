"""Aligned nearness: are distilled images more like real training images than fresh real images of equal sharpness are?

The distance of an image to its nearest training image is that of `copies`: 1 - correlation after any rotation, a mirror
image and a crop to 70 % are allowed for. A blurred image is nearer to everything. So the sharper of the two groups,
distilled images and held-out ones, is blurred until both are equally sharp.
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
# The widest blur, in pixels, and how often the interval that has the right one is halved.
_WIDEST, _HALVINGS = 4.0, 10
# What rounding leaves of the distance between two equal images.
_SAME = 1e-5
# Groups whose sharpness differs by no more than this are equally sharp.
_EQUAL = 0.01


@dataclass(frozen=True)
class AlignedNearness:
    """How near a set is to the training images: 1 is no nearer than fresh real images are, 0 is copies.

    `ratio`: the median aligned distance of the set over that of held-out images that are as sharp, with a 95 %
    bootstrap interval over the images of both (`low`, `high`). `sharpness`: that of the set over that of held-out
    images, before either was blurred.
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

    `held_out`: real images of the same size that are not among these. `known`: the distances float32 [n] of both groups
    by `search`, where they are known.
    Raises ConfigError where a group is empty or half of the held-out images are copies of training images.

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
    """Return the median share of the variance of uint8 images [n, 3, s, s] that a 3x3 binomial filter removes."""
    whole = images.float()
    kept = filtered(whole, BINOMIAL).var(dim=(1, 2, 3))
    return float((1 - kept / whole.var(dim=(1, 2, 3)).clamp(min=1e-6)).median())


def blurred_to(images: Tensor, wanted: float) -> Tensor:
    """Return uint8 `images` [n, 3, s, s] under the Gaussian blur that makes them as sharp as `wanted` (`sharpness`)."""
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
