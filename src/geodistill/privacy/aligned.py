"""Aligned nearness: are distilled images more like real training images than fresh real images of equal sharpness are?

The distance of an image to its nearest training image is that of `copies`: 1 - correlation after any rotation, a mirror
image and a crop to 70 % are allowed for. A blurred image is nearer to everything. So the sharper of the two groups,
distilled images and held-out ones, is blurred until both are equally sharp.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from geodistill.errors import ConfigError
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

    here, there = known[0], distances(held_out) if known[1] is None else known[1]
    if float(there.median()) <= _SAME:
        raise ConfigError("half of the held-out images are copies of training images: remove the copies")
    own, fresh = sharpness(images), sharpness(held_out)
    if own > fresh * (1 + _EQUAL):
        here = distances(blurred_to(images, fresh))
    elif own < fresh / (1 + _EQUAL):
        there = distances(blurred_to(held_out, own))
    here = distances(images) if here is None else here
    low, high = _interval(here, there, seed)
    return AlignedNearness(_ratio(here, there), low, high, own / max(fresh, _SAME))


def sharpness(images: Tensor) -> float:
    """Return the median share of the variance of uint8 images [n, 3, s, s] that a 3x3 binomial filter removes."""
    whole = images.float()
    kept = _separable(whole, torch.tensor([0.25, 0.5, 0.25])).var(dim=(1, 2, 3))
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
    return _separable(images.float(), weights / weights.sum()).round().clamp(0, 255).to(torch.uint8)


def _separable(images: Tensor, weights: Tensor) -> Tensor:
    """Return float images [n, 3, s, s] filtered by `weights` [2r + 1] along both axes, mirrored at the margins."""
    reach, channels = len(weights) // 2, images.shape[1]
    padded = F.pad(images, (reach,) * 4, mode="reflect")
    rows = F.conv2d(padded, weights.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return F.conv2d(rows, weights.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)


def _ratio(own: Tensor, fresh: Tensor) -> float:
    return float(own.median() / fresh.median().clamp(min=_SAME))


def _interval(own: Tensor, fresh: Tensor, seed: int) -> tuple[float, float]:
    """Return the 2.5th and 97.5th percentiles of the ratio over resampled images of both groups."""
    random = generator(seed, "aligned nearness")
    drawn = [_ratio(*(_resampled(values, random) for values in (own, fresh))) for _ in range(_RESAMPLES)]
    low, high = torch.tensor(drawn).quantile(torch.tensor([0.025, 0.975])).tolist()
    return low, high


def _resampled(values: Tensor, random: torch.Generator) -> Tensor:
    return values[torch.randint(len(values), (len(values),), generator=random)]
