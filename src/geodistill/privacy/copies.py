"""Copies: find images that are a training image, rotated by any angle, mirrored, cropped, recoloured, noisy or blurred.

Two images are compared by the normalised cross-correlation of their pixels inside a disc, which a rotation maps to
itself. Each channel is centred and divided by its norm, so that its gain and offset do not count. A first, coarse pass
compares every image in 48 orientations with 30 windows of every training image. A second pass refines position, side
and angle of the windows of the few most similar training images. A window has at least 70 % of the training image's
side.

A smooth image is similar to many others. A copy is much more similar to one training image than to any other. The test
is therefore the ratio of 1 - correlation with the nearest training image to that with the second nearest. Lowe (IJCV
2004) separates right matches of image features from chance matches with this ratio. benchmarks/copies.py measures how
often each change is found, and how many held-out images are taken for copies. If training images have near twins, for
example tiles that overlap almost wholly, an inexact copy of one is as similar to the other, and this test misses it.
The audit's readings still show that it is nearer than held-out images are.
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
from geodistill.privacy.shortlist import Bound, Shortlist
from geodistill.processes import processes
from geodistill.scenes.pixels import Images, blocks_of

# Image sides in pixels: in the first pass, in the second pass, and the largest side of the images they sample from.
_COARSE, _FINE, _READ = 12, 24, 48
# Training images that the second pass compares with each image, and starting windows in each of them.
_LOOKED_AT, _STARTS = 6, 3
# Windows of a training image: (side as a share of the image's, number of places along each axis).
_WINDOWS = ((1.0, 1), (0.88, 2), (0.8, 3), (0.7, 4))
_LEAST_SIDE = 0.7
# Rotations of an image in the first pass, each with and without mirroring.
_ANGLES = 24
# Initial steps of the second pass for position and side (in half image sides) and for angle. Each round halves them.
_STEP, _TURN, _ROUNDS = 0.06, math.pi / _ANGLES, 5
_BLOCK, _TOGETHER = 256, 32
# Training images whose windows are in memory together, 290 MB, and images that are searched for in one pass over them.
_PREPARED, _ASKED = 4096, 1024
# Weights along one axis of the smallest low-pass filter.
BINOMIAL = torch.tensor([0.25, 0.5, 0.25])
# An image is a copy if its distance ratio is below COPY, or if its distance is below _SAME, whatever the ratio.
COPY, _SAME = 0.5, 2e-3


def are_copies(found: Neighbours) -> Tensor:
    """Return which images are copies, bool [n]: those whose distance ratio from `find_copies` is below COPY."""
    return found.ratio < COPY


def find_copies(images: Tensor, train: Images) -> Neighbours:
    """Return the nearest of `train` uint8 [m, 3, s, s] to each of `images` uint8 [n, 3, s, s], by 1 - correlation.

    A distance of 0 means the same image up to orientation, channel gains and offsets, and margins. Unrelated images
    have a distance of about 1.

    Raises ConfigError without images, or with fewer than two training images.
    """
    return CopySearch(train)(images)


class CopySearch:
    """`find_copies` for several queries against the same training images, uint8 [m, 3, s, s], perhaps in files.

    Each query reads all training images once. At most _PREPARED of them are in memory, with 70 kB for each; if there
    are no more, they stay there for the next query. Several processes share the work, and must all ask.
    """

    def __init__(self, train: Images) -> None:
        if len(train) < 2:
            raise ConfigError(TOO_FEW)
        self._train, self._kept = train, list[tuple[Tensor, Tensor, int]]()
        some = train[torch.linspace(0, len(train) - 1, min(len(train), _BLOCK)).long()]
        self._bound = Bound(_coarse_windows(_read(some)).flatten(0, 1))

    def __call__(self, images: Tensor) -> Neighbours:
        """Return the neighbours of `images`; see `find_copies`."""
        if not len(images):
            raise ConfigError(TOO_FEW)
        parts = [self._neighbours(_read(some)) for some in images.split(_ASKED)]
        return Neighbours(*(torch.cat(values) for values in zip(*parts, strict=True)))

    def _neighbours(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        groups = images.split(_TOGETHER)
        turned = [torch.stack([_signatures(view, _COARSE) for view in _orientations(some)]) for some in groups]
        lists = [Shortlist(own, self._bound, _LOOKED_AT) for own in turned]
        for block in self._blocks():
            for one in lists:
                one.add(*block)
        asked = list(zip(groups, turned, Shortlist.found(lists), strict=True))
        parts = processes().shared(asked, lambda one: _compared(*one, self._train))
        nearest, distance, ratio = (torch.cat(values) for values in zip(*parts, strict=True))
        return nearest, distance, ratio

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Yield the windows of this process's blocks of training images, their bound, and the index of the first."""
        group = processes()
        size = min(_PREPARED, -(-len(self._train) // group.count))
        own = list(group.own(blocks_of(len(self._train), size)))
        if len(own) > 1:
            yield from map(self._prepared, own)
            return
        self._kept = self._kept or [self._prepared(block) for block in own]
        yield from self._kept

    def _prepared(self, block: slice) -> tuple[Tensor, Tensor, int]:
        windows = _coarse_windows(_read(self._train[block]))
        return windows, self._bound(windows), block.start


@dataclass(frozen=True)
class _Places:
    """Windows of n training images.

    `values` float32 [n, 4]: centre x, centre y, half side and angle; the image reaches from -1 to 1 along each axis.
    `mirrored` float32 [n]: -1 for a mirrored image, else 1.
    """

    values: Tensor
    mirrored: Tensor

    def maps(self) -> Tensor:
        """Return affine maps float32 [n, 2, 3] from positions in the image to positions in the training image."""
        x, y, side, angle = self.values.unbind(1)
        c, s = angle.cos() * side, angle.sin() * side
        rows = [torch.stack([c * self.mirrored, s, x], 1), torch.stack([-s * self.mirrored, c, y], 1)]
        return torch.stack(rows, 1)


def _compared(images: Tensor, turned: Tensor, few: Tensor, train: Images) -> tuple[Tensor, Tensor, Tensor]:
    """Return the nearest, its distance and the ratio for images [n, 3, s, s] in orientations [2 * angles, n, d].

    few: int64 [n, k], the training images that are compared closely.
    """
    rows, places = few.unique(return_inverse=True)
    real = _read(train[rows])
    windows = _coarse_windows(real)
    found = _closely(images, real[places.flatten()], _places(turned, windows, places)).view(few.shape)
    alike, ranks = found.topk(2, dim=1)
    distance = (1 - alike).clamp(min=0)
    # With two equal training images the ratio of a copy is near 1, so a tiny distance alone must make it a copy.
    ratio = distance[:, 0] / distance[:, 1].clamp(min=1e-6)
    ratio = torch.where(distance[:, 0] < _SAME, torch.zeros_like(ratio), ratio)
    return few.gather(1, ranks[:, :1])[:, 0], distance[:, 0], ratio


def _places(turned: Tensor, windows: Tensor, few: Tensor) -> tuple[_Places, ...]:
    """Return the windows of training images `few`, int64 [n, k], that are most similar to the images `turned`.

    There are _STARTS windows for each image and training image, the best first.
    """
    alike = torch.einsum("and,nkwd->nkaw", turned, windows[few])
    pairs = alike.flatten(0, 1).flatten(1).topk(_STARTS, dim=1).indices  # [n * k, starts]
    orientations, chosen = pairs // len(_CENTRES), pairs % len(_CENTRES)
    # The first pass rotates the image. From here on the window is rotated instead.
    angles = (orientations % _ANGLES) * (2 * math.pi / _ANGLES)
    values = torch.cat([torch.tensor(_CENTRES)[chosen], angles[..., None]], dim=2)
    mirrored = 1.0 - 2.0 * (orientations // _ANGLES)
    return tuple(_Places(values[:, rank], mirrored[:, rank]) for rank in range(_STARTS))


def _closely(images: Tensor, candidates: Tensor, starts: tuple[_Places, ...]) -> Tensor:
    """Return float32 [n * k]: the highest correlation of images [n, 3, s, s] with windows near one of `starts`.

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
    """Return the best correlation float32 [n] of `own` [n, d] with the windows `tried`, and the windows that give it.

    `best` and `places` are the best correlations and windows so far; they stay where no tried window is better.
    """
    for one in tried:
        found = (own * _windows(candidates, one)).sum(1)
        better = found > best
        best = torch.where(better, found, best)
        values = torch.where(better[:, None], one.values, places.values)
        places = _Places(values, torch.where(better, one.mirrored, places.mirrored))
    return best, places


def _tried(places: _Places, number: int) -> Iterator[_Places]:
    """Yield the windows near `places` to try in round `number`: each of the four values stays or moves by one step.

    Several values move at once, because fine structure matches only if position, side and angle are all right.
    """
    steps = torch.tensor([_STEP, _STEP, _STEP, _TURN]) / 2**number
    for move in product((0.0, -1.0, 1.0), repeat=4):
        # Later rounds already know the result of `places` itself, and move at most two values together to save time.
        if number == 0 or 0 < sum(map(abs, move)) <= 2:
            yield _Places(_inside(places.values + steps * torch.tensor(move)), places.mirrored)


def _inside(values: Tensor) -> Tensor:
    """Return places float32 [n, 4] with sides clamped to the allowed range and windows moved inside the image."""
    side = values[:, 2:3].clamp(_LEAST_SIDE, 1)
    return torch.cat([torch.minimum(torch.maximum(values[:, :2], side - 1), 1 - side), side, values[:, 3:]], dim=1)


def _windows(images: Tensor, places: _Places) -> Tensor:
    """Return the signatures float32 [n, d] (see `_standard`) of the windows of images [n, 3, s, s] at `places`."""
    grid = F.affine_grid(places.maps(), [len(images), 3, _FINE, _FINE], align_corners=False)
    return _standard(F.grid_sample(images, grid, padding_mode="border", align_corners=False))


def _coarse_windows(train: Tensor) -> Tensor:
    """Return float32 [m, windows, d]: signatures of all windows of training images [m, 3, s, s]."""
    parts = []
    for block in train.split(_BLOCK):
        maps = torch.tensor([[[side, 0, x], [0, side, y]] for x, y, side in _CENTRES])
        views = []
        for one in maps:
            # Sampled at twice the side and averaged, to avoid aliasing.
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
    """Yield images [n, 3, s, s] rotated by each angle, then their mirror images."""
    for mirrored in (1.0, -1.0):
        for k in range(_ANGLES):
            angle = 2 * math.pi * k / _ANGLES
            c, s = math.cos(angle), math.sin(angle)
            turn = torch.tensor([[mirrored * c, -mirrored * s, 0], [s, c, 0]])
            grid = F.affine_grid(turn.expand(len(images), 2, 3), list(images.shape), align_corners=False)
            yield F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _read(images: Tensor) -> Tensor:
    """Return uint8 images as float32 [n, 3, s, s], s at most _READ pixels, low-pass filtered against aliasing."""
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
    """Return the signatures float32 [n, d] (see `_standard`) of images [n, 3, s, s] at `side` pixels."""
    return _standard(F.interpolate(images, (side, side), mode="bilinear", antialias=True, align_corners=False))


def _standard(images: Tensor) -> Tensor:
    """Return float32 [n, d] of norm 1: the pixels inside a disc, each channel centred and divided by its norm."""
    inside = images.flatten(2)[:, :, _disc(images.shape[-1])]
    return F.normalize(F.normalize(inside - inside.mean(dim=2, keepdim=True), dim=2).flatten(1), dim=1)


def _disc(side: int) -> Tensor:
    """Return bool [side * side]: which pixels lie in the largest disc inside a square."""
    places = (torch.arange(side) + 0.5) / side * 2 - 1
    return (places[:, None].square() + places.square() <= 1).flatten()
