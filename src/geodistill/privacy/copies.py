"""Copies: is an image a training image again, turned by any angle, mirrored, cropped, recoloured, noisy or blurred?

Two images are compared over a disc, which a rotation leaves in its place, by the normalised cross-correlation of their
pixels: each channel less its mean, over its length, so that no gain or offset of a channel counts. A first pass
compares every image in 48 orientations, coarsely, with 30 windows of every training image. A second one improves
position, side and angle of the window of the few most alike. A window has at least 70 % of the training image's side.

A smooth image is much like many others. What tells a copy is that one training image is much more like it than any
other: the ratio of 1 - correlation with the nearest to that with the second nearest, as Lowe (IJCV 2004) tells right
matches of image features from chance ones. Which changes are found how often, and how many held-out images are taken
for copies, is measured in benchmarks/copies.py. Where training images have near twins, such as tiles that overlap
almost wholly, a copy of one that is not exact is as like the other and is not told by this; the audit's readings still
say that it is nearer than held-out images are.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from geodistill.errors import ConfigError
from geodistill.privacy.neighbours import TOO_FEW, Neighbours

# Sides in pixels at which the two passes compare, and at which images are read.
_COARSE, _FINE, _READ = 12, 24, 48
# Training images that the second pass looks at for each image, and windows of each from which it starts.
_LOOKED_AT, _STARTS = 6, 3
# Windows of a training image: (side as a share of the image's, number of places along each axis).
_WINDOWS = ((1.0, 1), (0.88, 2), (0.8, 3), (0.7, 4))
_LEAST_SIDE = 0.7
# Rotations of an image in the first pass, each as it is and mirrored.
_ANGLES = 24
# The second pass's first steps of place and side (in half sides of the image) and of angle, halved in each round.
_STEP, _TURN, _ROUNDS = 0.06, math.pi / _ANGLES, 5
_BLOCK, _TOGETHER = 256, 32
# The weights along an axis of the least low-pass filter.
BINOMIAL = torch.tensor([0.25, 0.5, 0.25])
# The ratio under which an image is a copy, and the distance under which it is one whatever else there is.
COPY, _SAME = 0.5, 2e-3


def are_copies(found: Neighbours) -> Tensor:
    """Return which images are copies, bool [n]: those whose distance ratio, by `find_copies`, is under COPY."""
    return found.ratio < COPY


def find_copies(images: Tensor, train: Tensor) -> Neighbours:
    """Return for each of `images` uint8 [n, 3, s, s] the most alike of `train` uint8 [m, 3, s, s], in 1 - correlation.

    A distance of 0 is the same image but for its orientation, its channels' gains and offsets, and its margins; of
    unlike ones it is about 1.

    Raises ConfigError when there is nothing to compare, or only one training image.
    """
    return CopySearch(train)(images)


class CopySearch:
    """`find_copies` among the same training images, uint8 [m, 3, s, s], more than once.

    It holds 70 kB for each training image of 48 px or more.
    """

    def __init__(self, train: Tensor) -> None:
        if len(train) < 2:
            raise ConfigError(TOO_FEW)
        self._train = _read(train)
        self._windows = _coarse_windows(self._train)

    def __call__(self, images: Tensor) -> Neighbours:
        """Return the neighbours of `images`; see `find_copies`."""
        if not len(images):
            raise ConfigError(TOO_FEW)
        parts = [_compared(_read(some), self._train, self._windows) for some in images.split(_TOGETHER)]
        return Neighbours(*(torch.cat(values) for values in zip(*parts, strict=True)))


@dataclass(frozen=True)
class _Places:
    """Windows of n training images: `values` float32 [n, 4] has centre x, y, half side (the image reaches from -1 to 1
    along each axis) and angle, `mirrored` float32 [n] -1 for a mirrored image and else 1."""

    values: Tensor
    mirrored: Tensor

    def maps(self) -> Tensor:
        """Return float32 [n, 2, 3]: from where a pixel of the image is to where it comes from in the training image."""
        x, y, side, angle = self.values.unbind(1)
        c, s = angle.cos() * side, angle.sin() * side
        rows = [torch.stack([c * self.mirrored, s, x], 1), torch.stack([-s * self.mirrored, c, y], 1)]
        return torch.stack(rows, 1)


def _compared(images: Tensor, train: Tensor, windows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    turned = torch.stack([_signatures(view, _COARSE) for view in _orientations(images)])  # [2 * angles, n, d]
    few = _most_alike(turned, windows)
    found = _closely(images, train[few.flatten()], _places(turned, windows, few)).view(few.shape)
    alike, ranks = found.topk(2, dim=1)
    distance = (1 - alike).clamp(min=0)
    # Of two equal training images both are the nearest: what is a copy of one is one of the other.
    ratio = distance[:, 0] / distance[:, 1].clamp(min=1e-6)
    ratio = torch.where(distance[:, 0] < _SAME, torch.zeros_like(ratio), ratio)
    return few.gather(1, ranks[:, :1])[:, 0], distance[:, 0], ratio


def _most_alike(turned: Tensor, windows: Tensor) -> Tensor:
    """Return int64 [n, k]: which training images, by their `windows`, are most like images `turned`, coarsely."""
    orientations, images = turned.shape[:2]
    count = min(_LOOKED_AT, len(windows))
    kept, which = turned.new_full((images, count), -torch.inf), torch.zeros(images, count, dtype=torch.int64)
    for start in range(0, len(windows), _BLOCK):
        block = windows[start : start + _BLOCK]
        alike = (turned.flatten(0, 1) @ block.flatten(0, 1).T).view(orientations, images, len(block), -1)
        best = torch.cat([kept, alike.amax(dim=(0, 3))], dim=1)
        rows = torch.cat([which, (start + torch.arange(len(block))).expand(images, -1)], dim=1)
        kept, order = best.topk(count, dim=1)
        which = rows.gather(1, order)
    return which


def _places(turned: Tensor, windows: Tensor, few: Tensor) -> tuple[_Places, ...]:
    """Return where in training images `few`, int64 [n, k], are the windows most like images `turned`.

    _STARTS places for each image and training image, the best first.
    """
    alike = torch.einsum("and,nkwd->nkaw", turned, windows[few])
    pairs = alike.flatten(0, 1).flatten(1).topk(_STARTS, dim=1).indices  # [n * k, starts]
    orientations, chosen = pairs // len(_CENTRES), pairs % len(_CENTRES)
    # The image was turned; the window is turned back in its place.
    angles = (orientations % _ANGLES) * (2 * math.pi / _ANGLES)
    values = torch.cat([torch.tensor(_CENTRES)[chosen], angles[..., None]], dim=2)
    mirrored = 1.0 - 2.0 * (orientations // _ANGLES)
    return tuple(_Places(values[:, rank], mirrored[:, rank]) for rank in range(_STARTS))


def _closely(images: Tensor, candidates: Tensor, starts: tuple[_Places, ...]) -> Tensor:
    """Return float32 [n * k]: the correlation of images [n, 3, s, s] with the best windows near one of `starts`.

    `candidates` [n * k, 3, s, s] are k training images for each image.
    """
    whole = _Places(torch.tensor([[0.0, 0.0, 1.0, 0.0]]).expand(len(images), 4), torch.ones(len(images)))
    own = _windows(images, whole).repeat_interleave(len(candidates) // len(images), dim=0)
    best, places = own.new_full((len(own),), -torch.inf), starts[0]
    for start in starts:
        best, places = _best_of(_tried(start, 0), own, candidates, best, places)
    for number in range(1, _ROUNDS):
        best, places = _best_of(_tried(places, number), own, candidates, best, places)
    return best


def _best_of(
    tried: Iterator[_Places], own: Tensor, candidates: Tensor, best: Tensor, places: _Places
) -> tuple[Tensor, _Places]:
    """Return the best correlation float32 [n] of `own` [n, d] with windows at those `tried`, and with which.

    `best` and `places` are what is to be bettered.
    """
    for one in tried:
        found = (own * _windows(candidates, one)).sum(1)
        better = found > best
        best = torch.where(better, found, best)
        values = torch.where(better[:, None], one.values, places.values)
        places = _Places(values, torch.where(better, one.mirrored, places.mirrored))
    return best, places


def _tried(places: _Places, number: int) -> Iterator[_Places]:
    """Yield the places near `places` that are tried in round `number`: every one of the four values a step up or down.

    Fine structure matches only if place, side and angle are all right.
    """
    steps = torch.tensor([_STEP, _STEP, _STEP, _TURN]) / 2**number
    for move in product((0.0, -1.0, 1.0), repeat=4):
        # After the first round the place itself is known, and only two values are moved together.
        if number == 0 or 0 < sum(map(abs, move)) <= 2:
            yield _Places(_inside(places.values + steps * torch.tensor(move)), places.mirrored)


def _inside(values: Tensor) -> Tensor:
    """Return places float32 [n, 4] whose windows are as large as they may be and lie inside the image."""
    side = values[:, 2:3].clamp(_LEAST_SIDE, 1)
    return torch.cat([torch.minimum(torch.maximum(values[:, :2], side - 1), 1 - side), side, values[:, 3:]], dim=1)


def _windows(images: Tensor, places: _Places) -> Tensor:
    """Return the signatures float32 [n, d] of the windows of images [n, 3, s, s] at `places`."""
    grid = F.affine_grid(places.maps(), [len(images), 3, _FINE, _FINE], align_corners=False)
    return _standard(F.grid_sample(images, grid, padding_mode="border", align_corners=False))


def _coarse_windows(train: Tensor) -> Tensor:
    """Return float32 [m, windows, d]: signatures of all windows of training images [m, 3, s, s]."""
    parts = []
    for block in train.split(_BLOCK):
        maps = torch.tensor([[[side, 0, x], [0, side, y]] for x, y, side in _CENTRES])
        views = []
        for one in maps:
            # Read at twice the side and averaged, so that nothing is aliased.
            grid = F.affine_grid(one.expand(len(block), 2, 3), [len(block), 3, 2 * _COARSE, 2 * _COARSE], False)
            views.append(_signatures(F.grid_sample(block, grid, align_corners=False), _COARSE))
        parts.append(torch.stack(views, dim=1))
    return torch.cat(parts)


def _centres() -> Iterator[tuple[float, float, float]]:
    for share, places in _WINDOWS:
        offsets = torch.linspace(share - 1, 1 - share, places).tolist() if places > 1 else [0.0]
        yield from ((x, y, share) for y in offsets for x in offsets)


_CENTRES = tuple(_centres())


def _orientations(images: Tensor) -> Iterator[Tensor]:
    """Yield images [n, 3, s, s] turned by each angle, then their mirror images."""
    for mirrored in (1.0, -1.0):
        for k in range(_ANGLES):
            angle = 2 * math.pi * k / _ANGLES
            c, s = math.cos(angle), math.sin(angle)
            turn = torch.tensor([[mirrored * c, -mirrored * s, 0], [s, c, 0]])
            grid = F.affine_grid(turn.expand(len(images), 2, 3), list(images.shape), align_corners=False)
            yield F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _read(images: Tensor) -> Tensor:
    """Return float32 [n, 3, s, s] of uint8 images, of a side of at most _READ pixels, without what would be aliased."""
    side = min(_READ, images.shape[-1])
    small = (F.interpolate(part.float(), (side, side), mode="area") for part in images.split(_BLOCK))
    return torch.cat([filtered(part, BINOMIAL) for part in small])


def filtered(images: Tensor, weights: Tensor) -> Tensor:
    """Return float images [n, 3, s, s] filtered by `weights` [2r + 1] along both axes, mirrored at the margins."""
    reach, channels = len(weights) // 2, images.shape[1]
    padded = F.pad(images, (reach,) * 4, mode="reflect")
    rows = F.conv2d(padded, weights.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
    return F.conv2d(rows, weights.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)


def _signatures(images: Tensor, side: int) -> Tensor:
    """Return float32 [n, d] of images [n, 3, s, s] at `side` pixels; see `_standard`."""
    return _standard(F.interpolate(images, (side, side), mode="bilinear", antialias=True, align_corners=False))


def _standard(images: Tensor) -> Tensor:
    """Return float32 [n, d], of length 1: the pixels of a disc, each channel less its mean and over its length."""
    inside = images.flatten(2)[:, :, _disc(images.shape[-1])]
    return F.normalize(F.normalize(inside - inside.mean(dim=2, keepdim=True), dim=2).flatten(1), dim=1)


def _disc(side: int) -> Tensor:
    """Return bool [side * side]: which pixels lie in the largest disc inside a square."""
    places = (torch.arange(side) + 0.5) / side * 2 - 1
    return (places[:, None].square() + places.square() <= 1).flatten()
