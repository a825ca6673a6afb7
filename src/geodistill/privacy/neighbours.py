"""Nearest training images under several measures, each exact: every image is compared with every training image.

`copies` decides what is a copy. These measures show how near the other images are, in structure and network features.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from geodistill.errors import ConfigError
from geodistill.privacy.nearness import symmetries
from geodistill.scenes.views import as_rgb

_SIDE, _WINDOW, _STRIDE = 32, 8, 4
# Wang et al.'s constants, for values in [0, 1].
_C1, _C2 = 0.01**2, 0.03**2
_BLOCK, _TOGETHER = 512, 256
TOO_FEW = "too few images to compare: an audit needs distilled images and two training images or more"


@dataclass(frozen=True)
class Neighbours:
    """The index `nearest` int64 [n] of the training image nearest to each of n images, and its `distance` float32 [n].

    `ratio` float32 [n]: that distance divided by the distance to the second nearest training image.
    """

    nearest: Tensor
    distance: Tensor
    ratio: Tensor

    def split(self, sizes: list[int]) -> list["Neighbours"]:
        """Return the neighbours of the first `sizes[0]` images, of the next `sizes[1]`, and so on."""
        parts = (values.split(sizes) for values in (self.nearest, self.distance, self.ratio))
        return [Neighbours(*part) for part in zip(*parts, strict=True)]


def by_structure(images: Tensor, train: Tensor) -> Neighbours:
    """Return the neighbours of uint8 images [n, 3, s, s] by 1 - SSIM.

    SSIM (Wang et al., IEEE TIP 2004) of grey images at 32 px, over 8x8 windows with stride 4. The best of the eight
    flips and right-angle rotations counts.
    """
    own = [grey(view) for view in symmetries(images)]
    real = grey(train)

    def similarity(chosen: slice, block: slice) -> Tensor:
        return torch.stack([ssim(view[chosen], real[block]) for view in own]).amax(0)

    return _nearest_two(similarity, len(images), len(train))


def by_embedding(images: Tensor, real: Tensor, embed: Callable[[Tensor], Tensor]) -> Neighbours:
    """Return the neighbours of uint8 images [n, 3, s, s] by 1 - cosine, the best of the eight flips and rotations.

    `embed` maps images to vectors [n, d] of norm 1, for example `backbone_features` or a `Copyprint`. `real` float32
    [m, d] holds the vectors of the training images.
    """
    own = [embed(view) for view in symmetries(images)]

    def similarity(chosen: slice, block: slice) -> Tensor:
        return torch.stack([view[chosen] @ real[block].T for view in own]).amax(0)

    return _nearest_two(similarity, len(images), len(real))


def ssim(images: Tensor, others: Tensor) -> Tensor:
    """Return the mean SSIM, float32 [n, m], of each of grey images [n, 1, s, s] in [0, 1] with each of [m, 1, s, s]."""
    own, real = (F.unfold(some, _WINDOW, stride=_STRIDE) for some in (images, others))  # [n, 64, windows]
    total = torch.zeros(len(images), len(others))
    for a, b in zip(own.unbind(2), real.unbind(2), strict=True):
        mean_a, mean_b = a.mean(1, keepdim=True), b.mean(1, keepdim=True)
        a, b = a - mean_a, b - mean_b
        covariance = a @ b.T / a.shape[1]
        spread = a.square().mean(1)[:, None] + b.square().mean(1)
        light = (2 * mean_a @ mean_b.T + _C1) / (mean_a.square() + mean_b.square().T + _C1)
        total += light * (2 * covariance + _C2) / (spread + _C2)
    return total / own.shape[2]


def grey(images: Tensor) -> Tensor:
    """Return grey images [n, 1, 32, 32] in [0, 1], by the weights of ITU-R BT.601."""
    small = F.interpolate(as_rgb(images).float() / 255, (_SIDE, _SIDE), mode="area")
    return torch.einsum("nchw,c->nhw", small, torch.tensor([0.299, 0.587, 0.114]))[:, None]


def _nearest_two(similarity: Callable[[slice, slice], Tensor], count: int, real: int) -> Neighbours:
    """Return the neighbours of `count` images among `real` ones; `similarity` gives the similarities of a block."""
    if not count or real < 2:
        raise ConfigError(TOO_FEW)
    parts = [_of_some(similarity, slice(at, at + _TOGETHER), real) for at in range(0, count, _TOGETHER)]
    values, places = (torch.cat(side)[:count] for side in zip(*parts, strict=True))
    distances = (1 - values).clamp(min=0)
    return Neighbours(places[:, 0], distances[:, 0], distances[:, 0] / distances[:, 1].clamp(min=1e-6))


def _of_some(similarity: Callable[[slice, slice], Tensor], chosen: slice, real: int) -> Sequence[Tensor]:
    """Return the two largest similarities [n, 2] of the `chosen` images, and their training images int64 [n, 2]."""
    best, places = [], []
    for start in range(0, real, _BLOCK):
        values = similarity(chosen, slice(start, min(start + _BLOCK, real)))
        found = values.topk(min(2, values.shape[1]), dim=1)
        best.append(found.values)
        places.append(found.indices + start)
    values, order = torch.cat(best, dim=1).topk(2, dim=1)
    return values, torch.cat(places, dim=1).gather(1, order)
