"""Attribution: how much of the real scene that it began as survives in a distilled image.

An image of the project's own method is drawn from the noised latent of one training scene, its start.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from geodistill.privacy.neighbours import grey, ssim


@dataclass(frozen=True)
class Attribution:
    """How alike images and their starts are, in SSIM of grey images at 32 px, as means over the images.

    `own`: with its start. `others`: with the other training scenes of its class. `recognised`: the share of images that
    are more like their start than like any other training scene of the class; `chance`: the share that guessing gives.
    """

    own: float
    others: float
    recognised: float
    chance: float


def attribute(images: Tensor, starts: Tensor, train: Tensor, labels: Tensor) -> Attribution:
    """Return how much of their starts, int64 [n], survives in `images` uint8 [n, 3, s, s].

    `train` uint8 [m, 3, s, s] and `labels` int64 [m] are all training scenes; an image is of the class of its start.
    """
    own, others, recognised, chance = [], [], [], []
    for label in labels[starts].unique():
        members = (labels == label).nonzero()[:, 0]
        mine = (labels[starts] == label).nonzero()[:, 0]
        alike = ssim(grey(images[mine]), grey(train[members]))
        place = torch.searchsorted(members, starts[mine])[:, None]
        with_start = alike.gather(1, place)[:, 0]
        own.append(with_start)
        others.append((alike.sum(1) - with_start) / max(len(members) - 1, 1))
        recognised.append((alike.argmax(1) == place[:, 0]).float())
        chance.append(torch.full((len(mine),), 1 / len(members)))
    return Attribution(*(float(torch.cat(values).mean()) for values in (own, others, recognised, chance)))
