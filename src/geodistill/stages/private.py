"""Stages of differential privacy, and the budget that they share.

Only noisy sums leave the scenes, and all of them draw on one budget: `profiles` (means of classes), `centres` (means of
clusters), `teacher` and `adapter` (trained by DP-SGD), `moments` (of features). Whatever is computed from these sums
costs no further budget.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path

from geodistill.config import Config
from geodistill.errors import PrivacyError
from geodistill.prior.base import source_of
from geodistill.privacy.accounting import Budget, Mechanism, spend
from geodistill.privacy.dpsgd import PrivateTraining
from geodistill.privacy.noisy import ROUNDS
from geodistill.privacy.overlap import told_overlap
from geodistill.processes import processes
from geodistill.scenes.scenes import Scenes
from geodistill.stages.checks import warn_of_unlisted
from geodistill.stages.context import Context

# Noise multipliers relative to that of the starts. Profiles are means over a whole class and tolerate far more noise.
# Clusters only determine which scenes are averaged.
_RATIOS = {"profiles": 4.0, "clusters": 4.0, "starts": 1.0, "teacher": 1.0, "adapter": 1.0, "moments": 1.0}


@dataclass(frozen=True)
class PrivateContext(Context):
    """A context with the budget of its run."""

    budget: Budget = field(kw_only=True)

    def noise(self, mechanism: str) -> float:
        """Return the noise multiplier of `mechanism`; raise PrivacyError if it is not in the budget."""
        if mechanism not in self.budget.noise:
            raise PrivacyError(f"{mechanism!r} is not in the budget of this run")
        return self.budget.noise[mechanism]


def check_private(scenes: Scenes, config: Config) -> None:
    """Raise PrivacyError if the run could give no guarantee.

    This is so with several processes, a range of values measured on the scenes, δ not below 1 / (number of images), or
    a base trained on them.
    """
    if processes().count > 1:
        raise PrivacyError("differential privacy is worked out for one process: start this without accelerate")
    if scenes.reading.measured:
        raise PrivacyError(
            "the range of the values was measured on the training scenes, which no guarantee covers: give --scale "
            "LOW,HIGH, chosen without looking at them"
        )
    count, delta = len(scenes), config.delta or 0.0
    if delta >= 1 / count:
        raise PrivacyError(
            f"delta is {delta:g}, with {count} images it has to be below {1 / count:.2g}, or giving one image "
            "away whole would pass for private: lower --delta"
        )
    folder = Path(source_of(config.base, config.size))
    overlap = told_overlap(scenes, folder, images="images", base=f"the base {config.base!r}")
    if overlap:
        raise PrivacyError(
            f"{overlap}, and what it remembers of them no noise hides: give a --base that was trained on other data"
        )
    warn_of_unlisted(config.base, folder)


def budget_of(count: int, config: Config) -> Budget:
    """Return the budget of a run on `count` images, with the noise of every mechanism."""
    teacher, adapter = teacher_training(count, config), adapter_training(count, config)
    mechanisms = [Mechanism("profiles", _RATIOS["profiles"])]
    if follows(config):
        mechanisms.append(Mechanism("clusters", _RATIOS["clusters"], steps=ROUNDS))
        mechanisms.append(Mechanism("starts", _RATIOS["starts"]))
    if has_teacher(config):
        mechanisms.append(Mechanism("teacher", _RATIOS["teacher"], teacher.rate, teacher.steps))
    if config.refinement.steps:
        mechanisms.append(Mechanism("moments", _RATIOS["moments"]))
    if config.finetune.steps:
        mechanisms.append(Mechanism("adapter", _RATIOS["adapter"], adapter.rate, adapter.steps))
    if config.epsilon is None or config.delta is None:
        raise PrivacyError("differential privacy needs epsilon and delta")
    return spend(mechanisms, config.epsilon, config.delta)


def encodes(config: Config) -> bool:
    """Return whether a private run needs the scenes' latents: the means of clusters and the adapter's training do."""
    return bool(config.finetune.steps) or follows(config)


def follows(config: Config) -> bool:
    """Return whether candidates start from noisy means."""
    return config.sampling.follow == "start"


def has_teacher(config: Config) -> bool:
    """Return whether a private run has a teacher: only the adapter's consistency loss needs it, and it costs budget."""
    return bool(config.finetune.steps and config.finetune.consistency)


def teacher_training(count: int, config: Config) -> PrivateTraining:
    """Return the DP-SGD training that replaces the teacher's ordinary training on `count` images."""
    own = config.teacher
    return PrivateTraining.instead_of(count, own.steps, own.batch, own.lr)


def adapter_training(count: int, config: Config) -> PrivateTraining:
    """Return the DP-SGD training that replaces the adapter's ordinary training on `count` images."""
    own = config.finetune
    return PrivateTraining.instead_of(count, max(1, own.steps), own.batch, own.lr)


def guarantee(budget: Budget, count: int, fewest: int | None) -> str:
    """Return the data card's statement of the guarantee: what it covers and what it does not cover.

    `fewest`: how many of the `count` images the base must have seen for the check to notice; None if it cannot be
    checked.
    """
    checked = "which cannot be checked, as it does not list its training images"
    if fewest is not None:
        checked = (
            f"which was checked file by file: a base that was trained on fewer than about {fewest} of the {count} "
            "files is not noticed, nor is one that was trained on the same images in other files, unless it has "
            "perceptual hashes of at least a fifth of them"
        )
    return (
        f"Differentially private: ε = {_rounded_up(budget.epsilon)}, δ = {budget.delta:.3g}. Two archives are "
        f"neighbours if one of their {count} images counts in the one and is blank in the other (zero-out; the number "
        "of images is public). If one image is replaced by another, ε = "
        f"{_rounded_up(budget.replacing)} at the same δ. "
        "Covered is all that was learned from the images: means of classes and clusters (if any), second moments of "
        "features, teacher and adapter (if any), descriptions, choice and refinement follow from sums with Gaussian "
        "noise. "
        "The account is numerical (privacy loss distributions, rounded up). Another set made from the same images "
        "spends as much again. Not covered: what the "
        f"base was trained on, {checked}; the names of the classes and the number of images, taken as known; "
        "several images of one place (each counts separately); whoever reads the run folder or the memory of "
        "the machine that made the set."
    )


def _rounded_up(epsilon: float) -> str:
    """Return ε with three digits, rounded up."""
    step = 10.0 ** (math.floor(math.log10(epsilon)) - 2)
    return f"{math.ceil(epsilon / step - 1e-6) * step:.3g}"
