"""The null distribution of the membership attacks: what they find if the set does not depend on the training images.

Held-out images replace the set's images, as many of each class, and the attacks run on them as on the set. A class with
few held-out images takes part with fewer images of the set, drawn at random, so that both cases are alike. The best of
all attacks counts in both cases, so having many attacks gives no advantage. The p-value is the share of these sets,
including the set itself, that reveal at least as much as the set (Phipson and Smyth 2010). It is exact if the set's
images relate to the training images as held-out images do.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from geodistill.distilled import DistilledSet
from geodistill.privacy.membership import (
    LEAK,
    RATES,
    USUAL,
    Seen,
    distances_to,
    found_at,
    nearest_other,
    rate_of,
    scores_of,
    width_of,
)
from geodistill.processes import processes
from geodistill.progress import progress
from geodistill.scenes.pixels import Images
from geodistill.seeding import generator

# Accepted rate of false alarms: a set leaks if its p-value is not larger.
ALARM = 0.01
_SETS = 199
# Number of held-out images of a class that sets are drawn from, for each image of the set; more if they are too few for
# the smallest of the false positive rates.
_POOL = 10
# A class has at least this many held-out images for each that replaces one of the set. Sets drawn from fewer are too
# alike: where nothing leaked, 13 to 23 % of p-values were below 0.05 with two, 5 to 10 % with four (60 runs each).
_SHARE = 4


@dataclass(frozen=True)
class Null:
    """The share of training images that the best attack finds with the set, and with sets of held-out images instead.

    `rates`: false positive rates. `observed`: the share found at each rate with the set. `drawn`: the same for each set
    of held-out images. `p`: the p-value over all rates together. `images`: the number of the set's images used.
    `train`: the number of training images that can be found.
    """

    rates: tuple[float, ...]
    observed: tuple[float, ...]
    drawn: tuple[tuple[float, ...], ...]
    p: float
    images: int
    train: int

    @property
    def leaks(self) -> bool:
        """Whether the set reveals significantly more of its training images than sets of held-out images do."""
        return self.p <= ALARM

    @property
    def mean(self) -> tuple[float, ...]:
        """The mean share found with sets of held-out images, at each rate."""
        return tuple(sum(column) / len(column) for column in zip(*self.drawn, strict=True))

    @property
    def exposed(self) -> tuple[float, float, float]:
        """Estimated number of the set's images that expose a training image, at most one each, with a 95 % interval.

        The estimate assumes that at the largest rate the attack finds all exposed training images, and the same share
        of the others as under the null. The interval is that of the null distribution.
        """
        own = sorted(one[0] for one in self.drawn)
        low, high = own[math.floor(0.025 * len(own))], own[math.ceil(0.975 * len(own)) - 1]
        shares = [(self.observed[0] - chance) / (1 - chance) for chance in (self.mean[0], high, low)]
        value, least, most = (min(max(self.train * share, 0.0), float(self.images)) for share in shares)
        return value, least, most


@dataclass(frozen=True)
class _Class:
    """Distances, in each space, from the n real images of a class; the first `members` of these are training images.

    `own` [n, k]: to the set's images. `among` [k, k]: from each of the set's images to each. `pool` [n, m]: to held-out
    images, which are the real images after the first `members`.
    """

    members: int
    own: tuple[Tensor, ...]
    among: tuple[Tensor, ...]
    pool: tuple[Tensor, ...]

    @property
    def taken(self) -> int:
        """The number of the set's images used, and of held-out images that replace them."""
        held = len(self.own[0]) - self.members
        return min(self.own[0].shape[1], held // _SHARE)


def null_of(
    distilled: DistilledSet, classes: tuple[str, ...], known: Seen, others: Seen, held_out: Images, *, seed: int = 0
) -> Null | None:
    """Return the null distribution of the attacks on `distilled`; None with too few held-out images.

    known, others: the training images and the held-out images as attacks see them; labels are indices into `classes`.
    held_out: the pixels of the held-out images, uint8 [n, 3, s, s], perhaps in files.
    """
    found = processes().shared(
        range(len(distilled.classes)), lambda label: _part(distilled, label, classes, known, others, held_out, seed)
    )
    parts = [part for part in found if part is not None]
    left = sum(len(part.own[0]) - part.members - part.taken for part in parts)
    most = rate_of(left)
    if most >= 1 / LEAK:
        return None
    rates = tuple(rate for rate in dict.fromkeys((most, *RATES)) if 1 / left <= rate + 1e-9 and rate <= most)
    observed = _best(parts, None, generator(seed, "null of the set"), rates)
    with progress("null", _SETS) as advance:

        def of_set(index: int) -> tuple[float, ...]:
            random = generator(seed, "null", index)
            best = _best(parts, random, random, rates)
            advance(index + 1)
            return best

        drawn = processes().shared(range(_SETS), of_set)
    members = sum(part.members for part in parts)
    used = sum(part.taken for part in parts)
    return Null(rates, observed, tuple(drawn), _p_value(observed, drawn), used, members)


def _part(
    distilled: DistilledSet,
    label: int,
    classes: tuple[str, ...],
    known: Seen,
    others: Seen,
    held_out: Images,
    seed: int,
) -> _Class | None:
    """Return the distances of class `label` of the set; None if it has too few held-out images."""
    place = classes.index(distilled.classes[label])
    train, held = ((some.labels == place).nonzero()[:, 0] for some in (known, others))
    own = distilled.images[distilled.labels == label]
    order = torch.randperm(len(held), generator=generator(seed, "null pool", place))
    enough = len(own) + math.ceil(1 / min(RATES) / len(distilled.classes))
    held = held[order][: max(enough, _POOL * max(2, len(own)))]
    if len(held) < _SHARE:
        return None
    targets = {
        kind: [space.drawn(images) for space in known.spaces]
        for kind, images in (("own", own), ("pool", held_out[held]))
    }
    real = [torch.cat([a[train], b[held]]) for a, b in zip(known.vectors, others.vectors, strict=True)]
    found = {
        kind: tuple(distances_to(queries, views[k]) for k, queries in enumerate(real))
        for kind, views in targets.items()
    }
    among = tuple(distances_to(views[0], views) for views in targets["own"])
    return _Class(len(train), found["own"], among, found["pool"])


def _best(
    parts: Sequence[_Class], drawn: torch.Generator | None, left_out: torch.Generator, rates: Sequence[float]
) -> tuple[float, ...]:
    """Return the share of training images that the best attack finds at each of `rates`.

    If `drawn` is None, the attack is on the set itself, otherwise on a set of held-out images that `drawn` draws. In
    the first case, as many held-out images are drawn by `left_out` and not queried, so that both cases are comparable.
    """
    orders = [torch.randperm(part.pool[0].shape[1], generator=drawn or left_out) for part in parts]
    taken = [order[: part.taken] for order, part in zip(orders, parts, strict=True)]
    # As many of the set's images as of those that replace them: the best of more attacks would find more by chance.
    used = [torch.randperm(part.own[0].shape[1], generator=left_out)[: part.taken].sort().values for part in parts]
    best = [0.0] * len(rates)
    for space in range(len(parts[0].own)):
        if drawn is None:
            columns = [part.own[space][:, own] for part, own in zip(parts, used, strict=True)]
            among = [nearest_other(part.among[space][own][:, own]) for part, own in zip(parts, used, strict=True)]
        else:
            columns = [part.pool[space][:, own] for part, own in zip(parts, taken, strict=True)]
            among = [
                nearest_other(part.pool[space][part.members + own][:, own])
                for part, own in zip(parts, taken, strict=True)
            ]
        for values, members in _scored(parts, columns, torch.cat(among), taken):
            ranked = values[~members].sort().values
            shares = [found_at(values[members], ranked, rate) or 0.0 for rate in rates]
            best = [max(pair) for pair in zip(best, shares, strict=True)]
    return tuple(best)


def _scored(
    parts: Sequence[_Class], columns: Sequence[Tensor], among: Tensor, taken: Sequence[Tensor]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield for each kind of attack the scores [n] of all real images that are queried, and the mask of members [n]."""
    width = width_of(among)
    asked, members = [], []
    for part, own in zip(parts, taken, strict=True):
        stays = torch.ones(len(part.own[0]), dtype=torch.bool)
        stays[part.members + own] = False
        asked.append(stays)
        members.append(torch.arange(len(stays))[stays] < part.members)
    few = min(distances.shape[1] for distances in columns) < USUAL
    kinds = [scores_of(distances[stays], width) for distances, stays in zip(columns, asked, strict=True)]
    for kind in kinds[0]:
        # Fewer images do not show what distance is usual.
        if not (few and kind == "relative"):
            yield torch.cat([one[kind] for one in kinds]), torch.cat(members)


def _p_value(observed: Sequence[float], drawn: Sequence[Sequence[float]]) -> float:
    """Return the p-value of `observed` among itself and `drawn`; each set counts at the rate where it is most extreme.

    >>> _p_value((0.5, 0.1), [(0.1, 0.2), (0.2, 0.1), (0.3, 0.3)])
    0.5
    """
    table = torch.tensor([observed, *drawn], dtype=torch.float64)  # [1 + sets, rates]
    ranks = (table[None] >= table[:, None]).sum(1)  # how many sets reveal at least as much, at each rate
    least = ranks.amin(1)
    return int((least <= least[0]).sum()) / len(least)
