"""Screening: which images are so like one training image that they should not be handed out?

An image passes unless it is nearer to a training image of its class, in structure (SSIM), than all but one in a hundred
held-out real images are: in distance, or in distance over that to the second nearest, which tells that one image alone
is like it. The held-out images are training scenes set apart for this, each compared with all the rest of its class.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from geodistill.errors import PrivacyError
from geodistill.privacy.neighbours import Neighbours, by_structure
from geodistill.seeding import generator

# Of held-out images, this share is nearer than the limits.
STRICT = 0.01
# Set apart: so many in all, and no more than a fifth of a class, most of which must be there to be compared with.
_SET_APART, _PART = 500, 5
_LEAST = 3


@dataclass(frozen=True)
class Screen:
    """Training images uint8 [m, 3, s, s] of classes int64 [m], and the least `distance` and `ratio` that pass."""

    train: Tensor
    labels: Tensor
    distance: float
    ratio: float

    def passes(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return bool [n]: which of uint8 images [n, 3, s, s] keep away from the training images of their class."""
        found = _of_class(images, labels, self.train, self.labels)
        return (found.distance >= self.distance) & (found.ratio >= self.ratio)


def make_screen(train: Tensor, labels: Tensor, *, seed: int) -> Screen:
    """Return the screen for training images uint8 [m, 3, s, s] of classes int64 [m]; `seed` sets some apart.

    Raises PrivacyError where a class is too small: two of its images must be left when one is set apart.
    """
    least = int(torch.bincount(labels).min())
    if least < _LEAST:
        raise PrivacyError(
            f"the smallest class has {least} training images: screening needs {_LEAST} or more a class, "
            "add images or leave the class out"
        )
    apart = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        own = (labels == label).nonzero()[:, 0]
        count = max(1, min(len(own) // _PART, _SET_APART * len(own) // len(labels)))
        apart[own[torch.randperm(len(own), generator=generator(seed, "screen", int(label)))[:count]]] = True
    found = _of_class(train[apart], labels[apart], train[~apart], labels[~apart])
    return Screen(train, labels, float(found.distance.quantile(STRICT)), float(found.ratio.quantile(STRICT)))


def _of_class(images: Tensor, labels: Tensor, train: Tensor, of: Tensor) -> Neighbours:
    """Return the neighbours of `images` among the training images of their own class; `nearest` counts in the class."""
    nearest = torch.empty(len(images), dtype=torch.int64)
    distance, ratio = torch.empty(len(images)), torch.empty(len(images))
    for label in labels.unique():
        mask = labels == label
        found = by_structure(images[mask], train[of == label])
        nearest[mask], distance[mask], ratio[mask] = found.nearest, found.distance, found.ratio
    return Neighbours(nearest, distance, ratio)
