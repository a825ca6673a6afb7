"""Attribution: how much of its start survives in a distilled image.

The project's own method samples each image from the noised latent of one training scene. This scene is its start.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from geodistill.privacy.neighbours import grey, ssim
from geodistill.processes import processes
from geodistill.scenes.pixels import Images, in_blocks, some_of


@dataclass(frozen=True)
class Attribution:
    """How similar images are to their starts: means over the images of the SSIM of grey images at 32 px.

    `own`: similarity to the start. `others`: similarity to the other training scenes of the class. `recognised`: the
    share of images that are more similar to their start than to any other training scene of the class. `chance`: the
    share that guessing gives.
    """

    own: float
    others: float
    recognised: float
    chance: float


def attribute(images: Tensor, starts: Tensor, train: Images, labels: Tensor) -> Attribution:
    """Return how much of their `starts`, indices int64 [n] into `train`, survives in `images` uint8 [n, 3, s, s].

    `train` uint8 [m, 3, s, s], perhaps in files, and `labels` int64 [m] are all training scenes. An image has the class
    of its start.
    """
    kinds = labels[starts].unique().tolist()
    found = processes().shared(kinds, lambda label: _of_class(images, starts, train, labels, label))
    return Attribution(*(float(torch.cat(values).mean()) for values in zip(*found, strict=True)))


def _of_class(images: Tensor, starts: Tensor, train: Images, labels: Tensor, label: int) -> tuple[Tensor, ...]:
    """Return the figures of an Attribution for each image that started from a scene of class `label`."""
    members = (labels == label).nonzero()[:, 0]
    mine = (labels[starts] == label).nonzero()[:, 0]
    known, real = grey(images[mine]), some_of(train, members)
    alike = torch.cat([ssim(known, grey(block)) for block in in_blocks(real)], dim=1)
    place = torch.searchsorted(members, starts[mine])[:, None]
    own = alike.gather(1, place)[:, 0]
    others = (alike.sum(1) - own) / max(len(members) - 1, 1)
    recognised = (alike.argmax(1) == place[:, 0]).float()
    return own, others, recognised, torch.full((len(mine),), 1 / len(members))
