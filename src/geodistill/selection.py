"""Selection among candidates: one per slot (the prototype that a candidate followed), or a number per class.

By margin: the candidate that the teacher is surest of (DPD, arXiv 2601.15829), which favours easy images.
By coverage: the set whose members are nearest to all real scenes of the class, found greedily (facility location;
within 1/2 of the best set if one is taken per slot: Fisher, Nemhauser, Wolsey, 1978).
By herding: the set whose mean features match those of the class (Welling, ICML 2009), regardless of slots.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from geodistill.errors import TrainingError


def by_margin(logits: Tensor, label: int, slots: Tensor) -> Tensor:
    """Return int64 [slots]: for each slot, ascending, the candidate with the largest margin, ties to the first.

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
    """Return int64 [slots]: for each slot, ascending, a candidate; together they cover the real scenes.

    `features` float [n, D] of the candidates, `real` float [m, D] of the real scenes of the class, `slots` int64 [n].
    Greedily maximises the mean, over the real scenes, of the largest cosine similarity to a chosen candidate. Each step
    takes the candidate with the largest gain among the slots not yet filled. Ties (often gains of zero, late in the
    selection) go to the largest mean similarity, then to the first.
    Raises TrainingError if a feature is not finite.
    """
    _require_finite(features, "candidate features")
    _require_finite(real, "real features")
    similarity = F.normalize(real.double(), dim=1) @ F.normalize(features.double(), dim=1).T  # [m, n]
    typical = similarity.mean(dim=0)  # [n]
    covered = similarity.new_full((len(real), 1), -1.0)  # the smallest possible cosine
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
    """Return int64 [count]: the rows of `features` [n, D] that herding towards `mean` [D] selects, in that order.

    Weights start as w_0 = `mean`, by default that of `features`. Each step takes the row with the largest ⟨w, φ⟩ among
    those not yet taken, ties to the first, and sets w to w + mean - φ. For features of equal length, this row brings
    the mean of the selected rows nearest to `mean`.
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


def _require_finite(values: Tensor, what: str) -> None:
    wrong = (~torch.isfinite(values).all(dim=1)).nonzero().flatten()
    if len(wrong):
        raise TrainingError(
            f"{what}: {len(wrong)} of {len(values)} rows hold NaN or infinity, the first is row {int(wrong[0])}: "
            "look at the sampled images and at the teacher's training log"
        )
