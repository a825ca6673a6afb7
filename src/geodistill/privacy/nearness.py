"""Nearness: how close distilled images are to the training images, compared with held-out images."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from geodistill.errors import ConfigError
from geodistill.networks import backbone_features
from geodistill.scenes.views import dihedral
from geodistill.seeding import generator

SIDE = 32
MAX_HELD_OUT = 500
BLOCK = 2048


@dataclass(frozen=True)
class Nearness:
    """Ratios of median distances, distilled to held-out: 1 means no nearer than held-out images, 0 means copies.

    `pixel`: L2 at 32 px. `feature`: 1 - cosine in the pretrained backbone. `ratio`: the smaller of the two.
    """

    pixel: float
    feature: float
    ratio: float


@dataclass(frozen=True)
class RealDistances:
    """The reference for distances of distilled images.

    `pixels`: float32 [m, 3 * 32 * 32] and `features`: float32 [m, 1280] of the training images. `pixel`, `feature`:
    median distances of held-out images to them.
    """

    pixels: torch.Tensor
    features: torch.Tensor
    pixel: float
    feature: float


def real_distances(
    train: torch.Tensor, held_out: torch.Tensor, *, seed: int = 0, features: torch.Tensor | None = None
) -> RealDistances:
    """Return how far held-out images are from the training images; both uint8 [n, 3, s, s].

    At most 500 of `held_out` (real images that are not in `train`) are used, drawn by `seed`. `features`: the
    backbone's features of `train`, if they are already computed.
    Raises ConfigError if a set is empty, or if half of the held-out images are copies of training images.
    """
    _refuse_empty("training", train)
    _refuse_empty("held-out", held_out)
    if len(held_out) > MAX_HELD_OUT:
        chosen = torch.randperm(len(held_out), generator=generator(seed, "nearness"))[:MAX_HELD_OUT]
        held_out = held_out[chosen]
    pixels, features = pixel_vectors(train), backbone_features(train) if features is None else features
    pixel = _reference(pixel_distances(held_out, pixels), "pixels")
    return RealDistances(pixels, features, pixel, _reference(feature_distances(held_out, features), "features"))


def nearness_ratio(distilled: torch.Tensor, real: RealDistances) -> Nearness:
    """Return the nearness ratio of uint8 images [n, 3, s, s].

    The distance of an image is that to its nearest training image, the smallest over the eight flips and right-angle
    rotations. Raises ConfigError without images.
    """
    _refuse_empty("distilled", distilled)
    pixel = float(pixel_distances(distilled, real.pixels).median()) / real.pixel
    feature = float(feature_distances(distilled, real.features).median()) / real.feature
    return Nearness(pixel, feature, min(pixel, feature))


def symmetries(images: torch.Tensor) -> list[torch.Tensor]:
    """Return the eight flips and right-angle rotations of square images [n, c, s, s]."""
    return [dihedral(images, view) for view in range(8)]


def pixel_distances(queries: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Return float32 [n]: smallest L2 of uint8 queries, in any orientation, to rows of `real` [m, 3 * 32 * 32]."""
    turned = symmetries(_shrink(queries))
    return torch.stack([_least_l2(image.flatten(1), real) for image in turned]).amin(0)


def feature_distances(queries: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Return float32 [n]: smallest 1 - cosine of uint8 queries, in any orientation, to features `real` [m, 1280]."""
    best = torch.full((len(queries),), -1.0)
    for turned in symmetries(queries):
        features = backbone_features(turned)
        for block in real.split(BLOCK):
            best = torch.maximum(best, (features @ block.T).amax(1))
    return (1 - best).clamp(min=0)


def _refuse_empty(name: str, images: torch.Tensor) -> None:
    if not len(images):
        raise ConfigError(f"no {name} images: the nearness ratio needs distilled, training and held-out images")


def _shrink(images: torch.Tensor) -> torch.Tensor:
    """Return images in [0, 1] at 32 px, area-averaged so that noise and compression artefacts do not hide a copy."""
    return F.interpolate(images.float() / 255, size=(SIDE, SIDE), mode="area")


def pixel_vectors(images: torch.Tensor) -> torch.Tensor:
    """Return float32 [n, 3 * 32 * 32] in [0, 1]: uint8 images [n, 3, s, s] at 32 px."""
    return torch.cat([_shrink(block).flatten(1) for block in images.split(BLOCK)])


def _least_l2(queries: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Return the exact distance [n] to the nearest row, which is found by matrix products.

    The distance itself is then computed directly, because the products lose precision near 0, where copies are.
    """
    least, nearest = torch.full((len(queries),), torch.inf), torch.zeros(len(queries), dtype=torch.int64)
    for start in range(0, len(real), BLOCK):
        block = real[start : start + BLOCK]
        values, indices = (block.square().sum(1) - 2 * queries @ block.T).min(1)  # ||q||² is the same for all
        nearest = torch.where(values < least, indices + start, nearest)
        least = torch.minimum(values, least)
    distances: torch.Tensor = torch.linalg.vector_norm(queries - real[nearest], dim=1)
    return distances


def _reference(held_out: torch.Tensor, what: str) -> float:
    reference = float(held_out.median())
    # 1e-6: rounding error of the distance between two equal images.
    if reference <= 1e-6:
        raise ConfigError(f"half of the held-out images are copies of training images (in {what}): remove the copies")
    return reference
