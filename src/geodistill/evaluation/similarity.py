"""Nearest similarity: whether every real training image has a similar distilled image."""

import torch
import torch.nn.functional as F

from geodistill.errors import ConfigError

BLOCK = 2048


def nearest_similarity(
    features: torch.Tensor, labels: torch.Tensor, real_features: torch.Tensor, real_labels: torch.Tensor
) -> float:
    """Return the mean, over the real training images, of the largest cosine to a distilled image of the same class.

    `features` [n, d] and `labels` int64 [n] are those of the distilled images, `real_features` [m, d] and `real_labels`
    int64 [m] those of the real training images; features are from `backbone_features`. 1 means that every real image
    has a distilled image with equal features.
    Raises ConfigError if there are no real images, or if one of their classes has no distilled image.
    """
    if not len(real_labels):
        raise ConfigError("no real training images: nearest similarity is a mean over them")
    features, total = F.normalize(features, dim=1), 0.0
    for label in real_labels.unique().tolist():
        ours, theirs = features[labels == label], real_features[real_labels == label]
        if not len(ours):
            raise ConfigError(
                f"class {label} has {len(theirs)} real training images and no distilled one: nearest similarity "
                "needs one"
            )
        total += sum(float(_largest(block, ours).double().sum()) for block in theirs.split(BLOCK))
    return total / len(real_labels)


def _largest(queries: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Return the largest cosine [n] of each query [n, d] to the rows, of norm 1, of `known` [m, d]."""
    queries = F.normalize(queries, dim=1)
    return torch.stack([(queries @ block.T).amax(1) for block in known.split(BLOCK)]).amax(0)
