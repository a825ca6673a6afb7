"""Sums and clusters under differential privacy: all that leaves here is a noisy sum, or follows from noisy sums."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# Rounds of k-means, each a sum of its own.
ROUNDS = 2
# A noisy count of fewer members than this counts as so many: a mean over none would be noise without end.
_FEWEST = 1.0
# Weight of the count beside a row of length 1: more of it makes the count surer and the sum noisier.
_COUNTED = 0.5
# Normal numbers that are added up to one.
_ADDED = 4


class SecretNoise:
    """Random numbers that the operating system draws: nobody can draw them again.

    source: returns a number of random bytes; `os.urandom`, the system's cryptographic generator, outside of tests.

    >>> SecretNoise().gaussian(2, 3).shape
    torch.Size([2, 3])
    """

    def __init__(self, source: Callable[[int], bytes] = os.urandom) -> None:
        self._source = source

    def uniform(self, *shape: int) -> Tensor:
        """Return float64 of `shape`, each one of the 2^53 evenly spaced values in (0, 1]."""
        words = torch.frombuffer(bytearray(self._source(8 * math.prod(shape))), dtype=torch.int64)
        values: Tensor = (((words >> 11) & (2**53 - 1)).double() + 1) * 2.0**-53
        return values.view(shape)

    def gaussian(self, *shape: int) -> Tensor:
        """Return standard normal numbers, float64 of `shape`.

        Each is half the sum of four by Box and Muller (1958). What is lost to rounding in a single one can betray the
        sum under it (Mironov, CCS 2012); in the sum of four it is out of reach (Holohan and Braghin, ESORICS 2021).
        """
        summands = torch.stack([self._box_muller(*shape) for _ in range(_ADDED)])
        return summands.sum(dim=0) / math.sqrt(_ADDED)

    def _box_muller(self, *shape: int) -> Tensor:
        length, angle = self.uniform(2, *shape)
        values: Tensor = (-2 * length.log()).sqrt() * (2 * math.pi * angle).cos()
        return values


def clipped(values: Tensor, norm: float = 1.0) -> Tensor:
    """Return `values` [n, D], each row no longer than `norm`; what is no number in them counts as 0."""
    values = values.nan_to_num(0.0, 0.0, 0.0)
    rows: Tensor = values * (norm / values.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp(max=1)
    return rows


def noisy_sums(values: Tensor, groups: Tensor, count: int, *, norm: float, noise: float, by: SecretNoise) -> Tensor:
    """Return float64 [count, D]: the sums of `values` [n, D] in each of `groups` int64 [n], with Gaussian noise.

    Rows are clipped to `norm`. An image is in one group alone, so that its presence changes all sums together by at
    most `norm`: the Gaussian mechanism of multiplier `noise`.
    """
    sums = torch.zeros(count, values.shape[1], dtype=torch.float64)
    sums.index_add_(0, groups, clipped(values.double(), norm))
    return sums + noise * norm * by.gaussian(*sums.shape)


def noisy_means(
    values: Tensor, groups: Tensor, count: int, *, norm: float, noise: float, by: SecretNoise
) -> tuple[Tensor, Tensor]:
    """Return the means float64 [count, D] of `groups`, and the deviation [count] of the noise in each of their values.

    Sums and counts are one mechanism of multiplier `noise`: each row, clipped to `norm`, carries _COUNTED `norm` beside
    it for the count.
    """
    longest = norm * (1 + _COUNTED**2) ** 0.5
    rows = _counted(clipped(values.double(), norm), norm)
    sums = noisy_sums(rows, groups, count, norm=longest, noise=noise, by=by)
    counts = (sums[:, -1] / (_COUNTED * norm)).clamp_min(_FEWEST)
    return sums[:, :-1] / counts[:, None], longest * noise / counts


def _counted(rows: Tensor, norm: float) -> Tensor:
    """Return float64 `rows` [n, D], none longer than `norm`, with a column beside them by which they are counted."""
    return torch.cat([rows, torch.full((len(rows), 1), _COUNTED * norm, dtype=torch.float64)], dim=1)


@dataclass(frozen=True)
class Moments:
    """What sums tell of vectors of length 1 in classes: their second moment, and the sum and number of each class.

    second: float64 [D, D], the sum of outer products. sums: [classes, D]. counts: [classes]. deviation: of the noise in
    each of their values, 0 where there is none.
    """

    second: Tensor
    sums: Tensor
    counts: Tensor
    deviation: float


def noisy_moments(values: Tensor, groups: Tensor, count: int, *, noise: float, by: SecretNoise) -> Moments:
    """Return the moments of `values` [n, D], clipped to 1, of `count` classes `groups` int64 [n], with Gaussian noise.

    One mechanism of multiplier `noise`: an image changes the upper triangle of the second moment by at most 1 ("Analyze
    Gauss": Dwork, Talwar, Thakurta, Zhang, STOC 2014), its class's sum by 1, and the count, weighted, by _COUNTED.
    """
    rows = clipped(values.double())
    deviation = noise * (1 + 1 + _COUNTED**2) ** 0.5
    size, longest = rows.shape[1], (1 + _COUNTED**2) ** 0.5
    sums = noisy_sums(_counted(rows, 1.0), groups, count, norm=longest, noise=deviation / longest, by=by)
    upper = deviation * by.gaussian(size, size).triu()
    second = rows.T @ rows + upper + upper.triu(1).T
    return Moments(second, sums[:, :-1], (sums[:, -1] / _COUNTED).clamp_min(_FEWEST), deviation)


def private_clusters(
    points: Tensor, labels: Tensor, classes: int, per_class: int, *, noise: float, by: SecretNoise
) -> Tensor:
    """Return int64 [n]: the cluster of each of `points` [n, D], `per_class` of each class side by side.

    Spherical k-means (Dhillon and Modha 2001) with noisy sums, from directions drawn at random: ROUNDS sums of points
    clipped to 1, of multiplier `noise`. Only directions count, so that noise turns a cluster and cannot empty it as it
    does with Lloyd's means (DPLloyd: Su et al., CODASPY 2016). The sums are private, what is returned is not: it must
    go into noisy sums.
    """
    points, count = points.double(), classes * per_class
    directions = F.normalize(by.gaussian(count, points.shape[1]), dim=1)
    for _ in range(ROUNDS):
        assigned = _alike(points, labels, directions, per_class)
        sums = noisy_sums(points, assigned, count, norm=1.0, noise=noise, by=by)
        directions = F.normalize(sums, dim=1)
    return _alike(points, labels, directions, per_class)


def _alike(points: Tensor, labels: Tensor, directions: Tensor, per_class: int) -> Tensor:
    """Return int64 [n]: of the directions [P, D] of each point's own class, the one that it is most alike."""
    own = directions.view(-1, per_class, directions.shape[1])
    alike = torch.stack([(points * own[labels, k]).sum(dim=1) for k in range(per_class)], dim=1)  # [n, K]
    return labels * per_class + alike.argmax(dim=1)
