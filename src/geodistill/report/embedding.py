"""Real and distilled images as points, to show where the distilled set lies among the real scenes."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from geodistill.distilled import DistilledSet
from geodistill.errors import RunError
from geodistill.networks import backbone_features
from geodistill.scenes.scenes import Scenes
from geodistill.seeding import derive_seed, generator

# Enough to show where a class lies; features of more images take minutes on a CPU.
MOST_REAL = 1000
_COMPONENTS = 50
_PERPLEXITY = 30.0


@dataclass(frozen=True)
class Embedding:
    """Points [n, 2], labels [n] and a flag for real images [n]; `agreement`: see `nearest_agreement`."""

    points: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]
    real: npt.NDArray[np.bool_]
    agreement: list[float]


def embed(distilled: DistilledSet, scenes: Scenes) -> Embedding:
    """Return the map of `distilled` and at most 1000 of `scenes`, equally many of each class where possible.

    Backbone features are reduced to 50 principal components, then embedded by t-SNE (van der Maaten and Hinton, 2008);
    the result is the same each time. Raises RunError if the two have different classes.
    """
    if scenes.classes != distilled.classes:
        raise RunError("the scenes have other classes than the run: give the data that it was made from")
    chosen = _evenly(scenes.labels, max(1, MOST_REAL // len(scenes.classes)))
    real = backbone_features(scenes.pixels(chosen, size=distilled.size))
    made = backbone_features(distilled.images)
    labels = torch.cat([scenes.labels[chosen], distilled.labels])
    agreement = nearest_agreement(made, distilled.labels, real, scenes.labels[chosen], len(scenes.classes))
    is_real = np.arange(len(labels)) < len(chosen)
    return Embedding(_flatten(torch.cat([real, made])), labels.numpy(), is_real, agreement)


def nearest_agreement(
    made: torch.Tensor, made_labels: torch.Tensor, real: torch.Tensor, real_labels: torch.Tensor, classes: int
) -> list[float]:
    """Return for each class the share of its distilled images whose nearest real image is of that class.

    Features are [n, D] and [m, D], of unit length; the nearest image is the one with the largest cosine similarity.
    """
    agree = (real_labels[(made @ real.T).argmax(dim=1)] == made_labels).double()
    return [float(agree[made_labels == label].mean()) for label in range(classes)]


def _evenly(labels: torch.Tensor, per_class: int) -> torch.Tensor:
    """Return indices of at most `per_class` images of each class, drawn at random."""
    chosen = []
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator(0, "embedding map", label))
        chosen.append(members[order[:per_class]])
    return torch.cat(chosen)


def _flatten(features: torch.Tensor) -> npt.NDArray[np.float64]:
    """Return t-SNE coordinates [n, 2] of `features`."""
    seed = derive_seed(0, "embedding map") % 2**32
    matrix = features.double().numpy()
    reduced = PCA(min(_COMPONENTS, *matrix.shape), random_state=seed).fit_transform(matrix)
    perplexity = min(_PERPLEXITY, (len(matrix) - 1) / 3)
    points = TSNE(2, init="pca", perplexity=perplexity, random_state=seed).fit_transform(reduced)
    return np.asarray(points, dtype=np.float64)
