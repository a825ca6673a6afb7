"""Figures from predictions: accuracy, kappa, and how much of the full data's accuracy a distilled set keeps."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from geodistill.errors import ConfigError


@dataclass(frozen=True)
class Measures:
    """Accuracies as fractions. `oa`: overall accuracy. `aa`: mean of the class accuracies. `kappa`: Cohen's kappa.

    `per_class`: accuracy of each class, NaN if it has no test image. `confusion`: counts; rows are true classes.
    """

    oa: float
    aa: float
    kappa: float
    per_class: tuple[float, ...]
    confusion: tuple[tuple[int, ...], ...]


def measure(predicted: torch.Tensor, labels: torch.Tensor, classes: int) -> Measures:
    """Return the measures of predicted int64 [n] against true labels int64 [n], both in [0, classes).

    Classes without a test image are left out of `aa`. Raises ConfigError if the shapes differ or there are no labels.
    """
    if predicted.shape != labels.shape or not len(labels):
        raise ConfigError(f"{len(predicted)} predictions for {len(labels)} test images: give one for each, at least 1")
    confusion = torch.bincount(labels * classes + predicted, minlength=classes**2).view(classes, classes)
    per_class = confusion.diag().double() / confusion.sum(1)
    return Measures(
        oa=float(confusion.diag().sum() / confusion.sum()),
        aa=float(per_class.nanmean()),
        kappa=_kappa(confusion.double()),
        per_class=tuple(per_class.tolist()),
        confusion=tuple(tuple(row) for row in confusion.tolist()),
    )


def _kappa(confusion: torch.Tensor) -> float:
    """Return (agreement - chance) / (1 - chance); 0 if the agreement by chance is complete."""
    total = confusion.sum()
    agreement = confusion.diag().sum() / total
    chance = (confusion.sum(0) * confusion.sum(1)).sum() / total**2
    return float((agreement - chance) / (1 - chance)) if chance < 1 else 0.0


def hlr(oa_full: float, oa_distilled: float) -> float:
    """Return the hard-label recovery OA(real) - OA(distilled) (DD-Ranking, 2025); smaller is better."""
    return oa_full - oa_distilled


def ior(oa_distilled: float, oa_random: float) -> float:
    """Return the improvement over random real images, OA(distilled) - OA(random) (DD-Ranking, 2025)."""
    return oa_distilled - oa_random


def share(oa_full: float, oa_distilled: float) -> float:
    """Return OA(distilled) / OA(full data); NaN if the full data gives 0."""
    return oa_distilled / oa_full if oa_full else float("nan")


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the sample standard deviation (0 for one value)."""
    numbers = torch.tensor(values, dtype=torch.float64)
    return float(numbers.mean()), float(numbers.std()) if len(values) > 1 else 0.0
