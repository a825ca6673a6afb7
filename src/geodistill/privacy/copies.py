"""Copies: is an image a training image again, turned, cropped, recompressed, brighter or darker?

Two images are compared by their normalised cross-correlation: of the pixels less their mean, over their lengths, which
no change of brightness or contrast touches. A first pass compares every image, in all eight orientations and coarsely,
with windows of every training image; a second one looks closely at the few most alike.

A smooth image is much like many others. What tells a copy is that one training image is much more like it than any
other: the ratio of 1 - correlation with the nearest to that with the second nearest, as Lowe (IJCV 2004) tells right
matches of image features from chance ones. By hand on AID, ratios of exact, turned, recompressed (JPEG quality 30),
cropped (to 90 %) and brighter copies were at most 0.31, those of 294 real images outside the training set above 0.65.
Where training images have near twins, such as tiles that overlap almost wholly, a copy of one that is not exact is as
like the other and is not told by this; the audit's readings still say that it is nearer than held-out images are.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from geodistill.errors import ConfigError
from geodistill.privacy.nearness import symmetries
from geodistill.privacy.neighbours import TOO_FEW, Neighbours

# Sides in pixels at which the two passes compare, and training images that the second one looks at for each image.
_COARSE, _FINE, _LOOKED_AT = 16, 32, 4
# Windows of a training image: (side as a share of the image's, number of places along each axis).
_COARSE_WINDOWS = ((1.0, 1), (0.92, 2), (0.84, 3))
_FINE_WINDOWS = ((1.0, 1), (0.97, 3), (0.94, 3), (0.91, 5), (0.88, 5), (0.85, 5), (0.82, 7), (0.8, 7))
_BLOCK, _TOGETHER = 256, 1024
# The ratio under which an image is a copy, and the distance under which it is one whatever else there is.
COPY, _SAME = 0.5, 2e-3


def are_copies(found: Neighbours) -> Tensor:
    """Return which images are copies, bool [n]: those whose distance ratio, by `find_copies`, is under COPY."""
    return found.ratio < COPY


def find_copies(images: Tensor, train: Tensor) -> Neighbours:
    """Return for each of `images` uint8 [n, 3, s, s] the most alike of `train` uint8 [m, 3, s, s], in 1 - correlation.

    A distance of 0 is the same image but for its orientation, brightness, contrast and margins; of unlike ones it is
    about 1.

    Exact over the windows that are compared; memory grows neither with n nor with m.
    Raises ConfigError when there is nothing to compare, or only one training image.
    """
    if not len(images) or len(train) < 2:
        raise ConfigError(TOO_FEW)
    parts = [_compared(some, train) for some in images.split(_TOGETHER)]
    return Neighbours(*(torch.cat(values) for values in zip(*parts, strict=True)))


def _compared(images: Tensor, train: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    turned = torch.stack(symmetries(images), dim=1)  # [n, 8, 3, s, s]
    coarse = _signatures(turned.flatten(0, 1), _COARSE).unflatten(0, turned.shape[:2])
    few = _most_alike(coarse, train)
    found = _closely(turned, train[few])  # [n, k]
    alike, ranks = found.topk(2, dim=1)
    distance = (1 - alike).clamp(min=0)
    # Of two equal training images both are the nearest: what is a copy of one is one of the other.
    ratio = distance[:, 0] / distance[:, 1].clamp(min=1e-6)
    ratio = torch.where(distance[:, 0] < _SAME, torch.zeros_like(ratio), ratio)
    return few.gather(1, ranks[:, :1])[:, 0], distance[:, 0], ratio


def _most_alike(queries: Tensor, train: Tensor) -> Tensor:
    """Return int64 [n, k]: the training images that look most like queries [n, 8, d], coarsely."""
    count = min(_LOOKED_AT, len(train))
    kept = queries.new_full((len(queries), count), -torch.inf)
    where = torch.zeros(len(queries), count, dtype=torch.int64)
    for start in range(0, len(train), _BLOCK):
        block = train[start : start + _BLOCK]
        windows = torch.stack([_signatures(window, _COARSE) for window in _windows(block, _COARSE_WINDOWS)], dim=1)
        alike = (queries.flatten(0, 1) @ windows.flatten(0, 1).T).view(len(queries), -1, len(block), windows.shape[1])
        found = torch.cat([kept, alike.amax(dim=(1, 3))], dim=1)
        places = torch.cat([where, (start + torch.arange(len(block))).expand(len(queries), -1)], dim=1)
        kept, order = found.topk(count, dim=1)
        where = places.gather(1, order)
    return where


def _closely(turned: Tensor, candidates: Tensor) -> Tensor:
    """Return float32 [n, k]: the largest correlation of views [n, 8, 3, s, s] with windows of [n, k, 3, s, s]."""
    count, few = candidates.shape[:2]
    own = _signatures(turned.flatten(0, 1), _FINE).unflatten(0, turned.shape[:2])  # [n, 8, d]
    best = torch.full((count, few), -torch.inf)
    for window in _windows(candidates.flatten(0, 1), _FINE_WINDOWS):
        signatures = _signatures(window, _FINE).unflatten(0, (count, few))  # [n, k, d]
        best = torch.maximum(best, (signatures @ own.mT).amax(2))
    return best


def _windows(images: Tensor, kinds: tuple[tuple[float, int], ...]) -> Iterator[Tensor]:
    """Yield windows [n, 3, w, w] of images [n, 3, s, s], which overlap evenly over each image."""
    whole = images.shape[-1]
    for share, places in kinds:
        length = round(share * whole)
        starts = torch.linspace(0, whole - length, places).round().long().tolist()
        yield from (images[..., top : top + length, left : left + length] for top in starts for left in starts)


def _signatures(images: Tensor, side: int) -> Tensor:
    """Return float32 [n, 3 * side * side] of uint8 images: the pixels less their mean, of length 1."""
    small = F.interpolate(images.float(), (side, side), mode="bilinear", antialias=True, align_corners=False).flatten(1)
    return F.normalize(small - small.mean(dim=1, keepdim=True), dim=1)
