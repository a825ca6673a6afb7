"""Screening: reject images that are too similar to a single training image to be handed out.

An image is compared with the training images of its class in structure (SSIM), by two values: the distance to the
nearest one, and its ratio to the distance to the second nearest. A small ratio means that only one training image is
similar. An image fails if either value is below that of 99 % of the held-out images. The held-out images are training
scenes set apart for this purpose, each compared with the remaining training scenes of its class.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from geodistill.errors import PrivacyError
from geodistill.privacy.neighbours import Neighbours, by_structure
from geodistill.scenes.pixels import Images, some_of
from geodistill.seeding import generator

# Share of the held-out images that is nearer than the limit, for each of the two limits.
STRICT = 0.01
# Number of images set apart in all, but at most one in _PART of a class, so that most remain for comparison.
_SET_APART, _PART = 500, 5
LEAST = 3


@dataclass(frozen=True)
class Screen:
    """Training images uint8 [m, 3, s, s] of classes int64 [m], and the smallest `distance` and `ratio` that pass."""

    train: Images
    labels: Tensor
    distance: float
    ratio: float

    def passes(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return bool [n]: which uint8 images [n, 3, s, s] are far enough from the training images of their class."""
        found = _of_class(images, labels, self.train, self.labels)
        return (found.distance >= self.distance) & (found.ratio >= self.ratio)


def make_screen(train: Images, labels: Tensor, *, seed: int) -> Screen:
    """Return the screen for training images uint8 [m, 3, s, s] of classes int64 [m]; `seed` chooses those set apart.

    Training images may be in files.
    Raises PrivacyError if a class is too small: two of its images must remain when one is set apart.
    """
    least = int(torch.bincount(labels).min())
    if least < LEAST:
        raise PrivacyError(
            f"the smallest class has {least} training images: screening needs {LEAST} or more a class, "
            "add images or leave the class out"
        )
    apart = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        own = (labels == label).nonzero()[:, 0]
        count = max(1, min(len(own) // _PART, _SET_APART * len(own) // len(labels)))
        apart[own[torch.randperm(len(own), generator=generator(seed, "screen", int(label)))[:count]]] = True
    found = _of_class(train[apart], labels[apart], some_of(train, ~apart), labels[~apart])
    return Screen(train, labels, float(found.distance.quantile(STRICT)), float(found.ratio.quantile(STRICT)))


def _of_class(images: Tensor, labels: Tensor, train: Images, of: Tensor) -> Neighbours:
    """Return the neighbours of `images` among training images of their class; `nearest` is an index in the class."""
    nearest = torch.empty(len(images), dtype=torch.int64)
    distance, ratio = torch.empty(len(images)), torch.empty(len(images))
    for label in labels.unique():
        mask = labels == label
        found = by_structure(images[mask], some_of(train, of == label))
        nearest[mask], distance[mask], ratio[mask] = found.nearest, found.distance, found.ratio
    return Neighbours(nearest, distance, ratio)
