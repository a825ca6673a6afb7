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
from geodistill.privacy.shortlist import Best
from geodistill.processes import processes
from geodistill.scenes.pixels import Images, blocks_of
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


class Search:
    """The two training images most similar to each of some images; training images are given block by block.

    Several processes may each give other blocks.

    Args:
        own: the images in their eight orientations, [8, n, ...], as `similarity` takes them.
        similarity: maps images [n, ...] and training images [m, ...] to float32 [n, m]; the best orientation counts.
    """

    def __init__(self, own: Sequence[Tensor], similarity: Callable[[Tensor, Tensor], Tensor]) -> None:
        self._own, self._similarity, self._best = own, similarity, Best(len(own[0]), 2)

    def add(self, real: Tensor, first: int = 0) -> None:
        """Compare the images with training images [m, ...], number `first` and those after it."""
        for block in real.split(_BLOCK):
            parts = [self._alike(chosen, block) for chosen in torch.arange(len(self._own[0])).split(_TOGETHER)]
            self._best.add(torch.cat(parts), first)
            first += len(block)

    def _alike(self, chosen: Tensor, block: Tensor) -> Tensor:
        return torch.stack([self._similarity(view[chosen], block) for view in self._own]).amax(0)

    def found(self) -> Neighbours:
        """Return the neighbours among all training images so far; raise ConfigError if they are fewer than two.

        Several processes must all call this.
        """
        Best.gather([self._best])
        if not len(self._best.values) or not self._best.full:
            raise ConfigError(TOO_FEW)
        distances = (1 - self._best.values).clamp(min=0)
        return Neighbours(self._best.places[:, 0], distances[:, 0], distances[:, 0] / distances[:, 1].clamp(min=1e-6))


def by_structure(images: Tensor, train: Images) -> Neighbours:
    """Return the neighbours of uint8 images [n, 3, s, s] by 1 - SSIM.

    SSIM (Wang et al., IEEE TIP 2004) of grey images at 32 px, over 8x8 windows with stride 4. The best of the eight
    flips and right-angle rotations counts. `train` may be in files.
    """
    if not len(images):
        raise ConfigError(TOO_FEW)
    search = structure_search(images)
    for block in processes().own(blocks_of(len(train), _BLOCK)):
        search.add(grey(train[block]), block.start)
    return search.found()


def structure_search(images: Tensor) -> Search:
    """Return the search of `by_structure`; it takes training images as `grey` returns them."""
    return Search([grey(view) for view in symmetries(images)], ssim)


def by_embedding(images: Tensor, real: Tensor, embed: Callable[[Tensor], Tensor]) -> Neighbours:
    """Return the neighbours of uint8 images [n, 3, s, s] by 1 - cosine, the best of the eight flips and rotations.

    `embed` maps images to vectors [n, d] of norm 1, for example `backbone_features` or a `Copyprint`. `real` float32
    [m, d] holds the vectors of the training images.
    """
    search = embedding_search(images, embed)
    for block in processes().own(blocks_of(len(real), _BLOCK)):
        search.add(real[block], block.start)
    return search.found()


def embedding_search(images: Tensor, embed: Callable[[Tensor], Tensor]) -> Search:
    """Return the search of `by_embedding`; it takes the vectors of training images."""
    return Search([embed(view) for view in symmetries(images)], lambda own, real: own @ real.T)


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
