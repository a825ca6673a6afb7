"""Choosing among candidates: one for each slot (the prototype it followed), those of a class, or all together.

By margin: the candidate the teacher is surest of (DPD, arXiv 2601.15829), which leans towards easy images.
By coverage: the set whose members lie nearest to all real scenes of the class, greedily (facility location;
within 1/2 of the best set when one is taken per slot: Fisher, Nemhauser, Wolsey, 1978).
By herding: the set whose mean features are those of the class (Welling, ICML 2009), whatever slots they come from.
By regression: the set of all classes on which ridge regression of the class on features errs least on the real scenes
(the objective of Nguyen, Chen, Lee, "Dataset Meta-Learning from Kernel Ridge-Regression", ICLR 2021, with a linear
kernel; there images are optimised, here they are chosen).
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from geodistill.errors import TrainingError
from geodistill.seeding import generator

# Passes over the whole set; the third changes one image in ten, and the error by a hundredth.
SWEEPS = 3
# Chosen on a quarter of AID's training scenes held out: docs/experiments.md.
RIDGE = 0.3


def by_margin(logits: Tensor, label: int, slots: Tensor) -> Tensor:
    """Return int64 [slots]: per slot in ascending order, the candidate with the largest margin, ties to the first.

    `logits` float [n, classes] from the teacher, `label` the class of all candidates, `slots` int64 [n].
    The margin is logit[label] minus the largest other logit. Raises TrainingError if a logit is not finite.
    """
    _require_finite(logits, "teacher logits")
    others = logits.clone()
    others[:, label] = -torch.inf
    margins = logits[:, label] - others.max(dim=1).values
    chosen = []
    for slot in slots.unique():
        candidates = (slots == slot).nonzero().flatten()
        chosen.append(candidates[margins[candidates].argmax()])
    return torch.stack(chosen)


def by_coverage(features: Tensor, real: Tensor, slots: Tensor) -> Tensor:
    """Return int64 [slots]: per slot in ascending order, a candidate; together they cover the real scenes.

    `features` float [n, D] of the candidates, `real` float [m, D] of the real scenes of the class, `slots` int64 [n].
    Maximises greedily the mean over the real scenes of the largest cosine similarity to a chosen candidate: each step
    takes the candidate with the largest gain among slots not yet filled; of those that gain the same (often nothing,
    late in the choice) the one with the largest mean similarity, then the first.
    Raises TrainingError if a feature is not finite.
    """
    _require_finite(features, "candidate features")
    _require_finite(real, "real features")
    similarity = F.normalize(real.double(), dim=1) @ F.normalize(features.double(), dim=1).T  # [m, n]
    typical = similarity.mean(dim=0)  # [n]
    covered = similarity.new_full((len(real), 1), -1.0)  # the least a cosine can be
    free = torch.ones(len(slots), dtype=torch.bool)
    chosen: dict[int, int] = {}
    while free.any():
        gains = (similarity - covered).clamp(min=0).mean(dim=0)  # [n]
        gains = gains.masked_fill(~free, -torch.inf)
        best = int(typical.masked_fill(gains < gains.max(), -torch.inf).argmax())
        chosen[int(slots[best])] = best
        covered = torch.maximum(covered, similarity[:, best, None])
        free &= slots != slots[best]
    return torch.tensor([chosen[slot] for slot in sorted(chosen)])


def herd(features: Tensor, count: int, mean: Tensor | None = None) -> Tensor:
    """Return int64 [count]: the rows of `features` [n, D] that herding towards `mean` [D] takes, in that order.

    Weights start as w_0 = `mean`, by default that of `features`; each step takes the row with the largest ⟨w, φ⟩ among
    those not yet taken, ties to the first, and sets w to w + mean - φ. For features of one length that is the row which
    brings the mean of those taken nearest to `mean`.
    Raises TrainingError if a feature is not finite.
    """
    _require_finite(features, "candidate features")
    points = features.double()
    wanted = points.mean(dim=0) if mean is None else mean.double()
    weights, free, taken = wanted, torch.ones(len(points), dtype=torch.bool), []
    for _ in range(count):
        best = int((points @ weights).masked_fill(~free, -torch.inf).argmax())
        taken.append(best)
        free[best] = False
        weights = weights + wanted - points[best]
    return torch.tensor(taken)


def by_regression(
    features: Tensor,
    labels: Tensor,
    real: Tensor,
    real_labels: Tensor,
    start: Tensor,
    progress: Callable[[int], None] | None = None,
) -> Tensor:
    """Return int64 [m]: `start` after one row after the other was exchanged for the best one of its class.

    Features are divided by their length, and the mean of the real ones is taken away. A ridge regression (ridge 0.3)
    from the chosen rows' features to their classes (one-hot, less 1/classes) predicts the classes of the real scenes;
    a row is exchanged for the candidate of its class, not in the set yet, that makes the squared error of those
    predictions smallest, ties to the first. Rows come in a fixed random order, three times or until none changes: the
    error never grows.

    Args:
        features: float [n, D] of the candidates.
        labels: int64 [n], their classes.
        real: float [N, D] of the real scenes.
        real_labels: int64 [N].
        start: int64 [m], rows of `features` without doubles: the set to begin with, which decides how many are of a
            class.
        progress: told after each row how many are done, of `SWEEPS` times m at most.

    Raises TrainingError if a feature is not finite.
    """
    _require_finite(features, "candidate features")
    _require_finite(real, "real features")
    fit = _Regression(features, labels, real, real_labels)
    chosen, classes = start.clone(), labels[start]
    for row in chosen.tolist():
        fit.add(row)
    for sweep in range(SWEEPS):
        before = chosen.clone()
        for done, slot in enumerate(torch.randperm(len(chosen), generator=generator(0, "exchange", sweep)).tolist()):
            taken = chosen[torch.arange(len(chosen)) != slot]
            own = (labels == classes[slot]).nonzero()[:, 0]
            own = own[~torch.isin(own, taken)]
            fit.drop(int(chosen[slot]))
            chosen[slot] = own[fit.errors(own).argmin()]
            fit.add(int(chosen[slot]))
            if progress:
                progress(sweep * len(chosen) + done + 1)
        if torch.equal(chosen, before):
            break
    return chosen


class _Regression:
    """A ridge regression that learns from candidates, one added or dropped at a time, and its error on real scenes.

    Of these only the moments count: in the axes of their spread, X'X is a diagonal. With P, Z the features and targets
    of the candidates in it, the weights are (P'P + ridge)^-1 P'Z, and one more candidate changes the inverse by a
    product of one vector with itself (Sherman and Morrison, 1950).
    """

    def __init__(self, features: Tensor, labels: Tensor, real: Tensor, real_labels: Tensor) -> None:
        known = F.normalize(real.double(), dim=1)
        mean = known.mean(dim=0)
        known = known - mean
        self.spread, axes = torch.linalg.eigh(known.T @ known)  # [D], [D, D]
        self.points = (F.normalize(features.double(), dim=1) - mean) @ axes  # [n, D]
        classes = int(max(labels.max(), real_labels.max())) + 1
        wanted = F.one_hot(real_labels, classes).double() - 1 / classes
        self.targets = F.one_hot(labels, classes).double() - 1 / classes  # [n, classes]
        self.aim, self.constant = axes.T @ (known.T @ wanted), wanted.square().sum()
        self.inverse = torch.eye(len(axes), dtype=axes.dtype) / RIDGE
        self.learned = torch.zeros_like(self.aim)  # P'Z, [D, classes]

    def add(self, row: int) -> None:
        self._change(row, 1)

    def drop(self, row: int) -> None:
        self._change(row, -1)

    def _change(self, row: int, sign: int) -> None:
        point = self.points[row]
        along = self.inverse @ point
        self.inverse -= torch.outer(along, along) * (sign / (1 + sign * (point @ along)))
        self.learned += sign * torch.outer(point, self.targets[row])

    def errors(self, rows: Tensor) -> Tensor:
        """Return float64 [k]: the squared error on all real scenes if one of `rows`, int64 [k], were added."""
        weights, points = self.inverse @ self.learned, self.points[rows]
        rest = self.spread[:, None] * weights - self.aim  # half the error's slope
        error = (weights * (rest - self.aim)).sum() + self.constant
        along = points @ self.inverse  # [k, D]
        steps = (self.targets[rows] - points @ weights) / (1 + (points * along).sum(dim=1, keepdim=True))
        lengths = along.square() @ self.spread  # [k]
        errors: Tensor = error + 2 * ((along @ rest) * steps).sum(dim=1) + lengths * steps.square().sum(dim=1)
        return errors


def _require_finite(values: Tensor, what: str) -> None:
    wrong = (~torch.isfinite(values).all(dim=1)).nonzero().flatten()
    if len(wrong):
        raise TrainingError(
            f"{what}: {len(wrong)} of {len(values)} rows hold NaN or infinity, the first is row {int(wrong[0])}: "
            "look at the sampled images and at the teacher's training log"
        )
