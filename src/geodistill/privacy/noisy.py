"""Sums and clusters under differential privacy.

All results are noisy sums or follow from noisy sums, except the assignments that `private_clusters` returns.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# Rounds of k-means, each with its own noisy sums.
ROUNDS = 2
# Smaller noisy counts are raised to this value, because a mean over no members would be unbounded noise.
_FEWEST = 1.0
# Weight of the count beside a row of norm 1. A larger weight makes the count more precise and the sum noisier.
_COUNTED = 0.5
# Normal variates that are added up to one.
_ADDED = 4


class SecretNoise:
    """Random numbers from the operating system, which nobody can reproduce.

    source: returns a given number of random bytes; `os.urandom`, the system's cryptographic generator, except in tests.

    >>> SecretNoise().gaussian(2, 3).shape
    torch.Size([2, 3])
    """

    def __init__(self, source: Callable[[int], bytes] = os.urandom) -> None:
        self._source = source

    def uniform(self, *shape: int) -> Tensor:
        """Return uniform random numbers, float64 of `shape`, from 2^53 evenly spaced values in (0, 1]."""
        words = torch.frombuffer(bytearray(self._source(8 * math.prod(shape))), dtype=torch.int64)
        values: Tensor = (((words >> 11) & (2**53 - 1)).double() + 1) * 2.0**-53
        return values.view(shape)

    def gaussian(self, *shape: int) -> Tensor:
        """Return standard normal numbers, float64 of `shape`.

        Each is half the sum of four variates by Box and Muller (1958). The rounding of a single variate can reveal the
        value that it is added to (Mironov, CCS 2012). The sum of four makes that attack infeasible (Holohan and
        Braghin, ESORICS 2021).
        """
        summands = torch.stack([self._box_muller(*shape) for _ in range(_ADDED)])
        return summands.sum(dim=0) / math.sqrt(_ADDED)

    def _box_muller(self, *shape: int) -> Tensor:
        length, angle = self.uniform(2, *shape)
        values: Tensor = (-2 * length.log()).sqrt() * (2 * math.pi * angle).cos()
        return values


def clipped(values: Tensor, norm: float = 1.0) -> Tensor:
    """Return `values` [n, D] with each row clipped to `norm`; NaN and infinite values count as 0."""
    values = values.nan_to_num(0.0, 0.0, 0.0)
    rows: Tensor = values * (norm / values.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp(max=1)
    return rows


def noisy_sums(values: Tensor, groups: Tensor, count: int, *, norm: float, noise: float, by: SecretNoise) -> Tensor:
    """Return float64 [count, D]: the sums of `values` [n, D] in each of `groups` int64 [n], with Gaussian noise.

    Rows are clipped to `norm`. An image is in one group only, so its presence changes all sums together by at most
    `norm`. This is a Gaussian mechanism with noise multiplier `noise`.
    """
    sums = torch.zeros(count, values.shape[1], dtype=torch.float64)
    sums.index_add_(0, groups, clipped(values.double(), norm))
    return sums + noise * norm * by.gaussian(*sums.shape)


def noisy_means(
    values: Tensor, groups: Tensor, count: int, *, norm: float, noise: float, by: SecretNoise
) -> tuple[Tensor, Tensor]:
    """Return the means float64 [count, D] of `groups`, and the standard deviation [count] of the noise in their values.

    Sums and counts together are one mechanism with noise multiplier `noise`: each row is clipped to `norm`, and a
    column with the value _COUNTED * `norm` is added for the count.
    """
    longest = norm * (1 + _COUNTED**2) ** 0.5
    rows = _counted(clipped(values.double(), norm), norm)
    sums = noisy_sums(rows, groups, count, norm=longest, noise=noise, by=by)
    counts = (sums[:, -1] / (_COUNTED * norm)).clamp_min(_FEWEST)
    return sums[:, :-1] / counts[:, None], longest * noise / counts


def _counted(rows: Tensor, norm: float) -> Tensor:
    """Return float64 `rows` [n, D], of norm at most `norm`, with an extra column that counts them in a sum."""
    return torch.cat([rows, torch.full((len(rows), 1), _COUNTED * norm, dtype=torch.float64)], dim=1)


@dataclass(frozen=True)
class Moments:
    """Moments of vectors of norm at most 1: the second moment over all classes, and the sum and count of each class.

    second: float64 [D, D], the sum of outer products. sums: [classes, D]. counts: [classes]. deviation: the standard
    deviation of the noise in each value of `second` and `sums`, 0 without noise.
    """

    second: Tensor
    sums: Tensor
    counts: Tensor
    deviation: float


def noisy_moments(values: Tensor, groups: Tensor, count: int, *, noise: float, by: SecretNoise) -> Moments:
    """Return the moments of `values` [n, D], clipped to 1, in `count` classes `groups` int64 [n], with Gaussian noise.

    This is one mechanism with noise multiplier `noise`. An image changes the upper triangle of the second moment by at
    most 1 ("Analyze Gauss": Dwork, Talwar, Thakurta, Zhang, STOC 2014), the sum of its class by at most 1, and the
    weighted count by _COUNTED.
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
    """Return int64 [n]: the cluster of each of `points` [n, D]; class c has clusters from c * `per_class` on.

    Spherical k-means (Dhillon and Modha 2001) with noisy sums, from random directions: ROUNDS sums of points clipped to
    1, each with noise multiplier `noise`. Only directions count, so noise rotates a cluster but cannot empty it, as it
    can with Lloyd's means (DPLloyd: Su et al., CODASPY 2016). The sums are private, but the returned assignment is not:
    use it only for noisy sums.
    """
    points, count = points.double(), classes * per_class
    directions = F.normalize(by.gaussian(count, points.shape[1]), dim=1)
    for _ in range(ROUNDS):
        assigned = _alike(points, labels, directions, per_class)
        sums = noisy_sums(points, assigned, count, norm=1.0, noise=noise, by=by)
        directions = F.normalize(sums, dim=1)
    return _alike(points, labels, directions, per_class)


def _alike(points: Tensor, labels: Tensor, directions: Tensor, per_class: int) -> Tensor:
    """Return int64 [n]: for each point, the most similar of the `directions` [P, D] of its own class."""
    own = directions.view(-1, per_class, directions.shape[1])
    alike = torch.stack([(points * own[labels, k]).sum(dim=1) for k in range(per_class)], dim=1)  # [n, K]
    return labels * per_class + alike.argmax(dim=1)
