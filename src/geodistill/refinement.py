"""Refining a chosen set: its latents are moved a little, so that its images teach more about the real scenes.

The loss is that of kernel-inducing points (Nguyen, Chen, Lee, "Dataset Meta-Learning from Kernel Ridge-Regression",
ICLR 2021) with the linear kernel of a network's features: the squared error on the real scenes of a ridge regression
that has the set's images alone to learn from. Several networks take turns, the ImageNet backbone as it is and finetuned
on the real scenes: what all of them learn from, others will. There pixels are free; here only what the autoencoder can
draw is in reach (Cazenavette et al., "Generalizing Dataset Distillation via Deep Generative Prior", CVPR 2023), each
step sees every image under another crop, and a latent is held near where it was: images stay as realistic as they were.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geodistill.config import RefinementSettings
from geodistill.evaluation.networks import embed
from geodistill.evaluation.protocols import crop, draw_crops
from geodistill.evaluation.workers import kept_memory
from geodistill.prior.base import Prior, images_together
from geodistill.prior.training import Optimisation, batches, forget_checkpoint, train
from geodistill.seeding import generator

# Chosen on a quarter of AID's training scenes held out: docs/experiments.md.
RIDGE = 0.3
# Weight of the mean squared distance to where the latents were.
_HELD = 0.1


@dataclass(frozen=True)
class Lesson:
    """What a ridge regression that learns from a set's features in one network gets wrong on the real scenes.

    network: as `networks.embed` takes it. labels: int64 [m] of the set. real: float [N, D], the real scenes' features
    of length 1. real_labels: int64 [N].
    """

    network: nn.Module
    labels: Tensor
    real: Tensor
    real_labels: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Return the squared error after learning from `features` [m, D] of length 1, over that of no knowledge.

        Targets are one-hot less 1/classes, features less the mean of the real ones.
        """
        mean = self.real.mean(dim=0)
        points = features - mean
        targets, wanted = self._targets(self.labels), self._targets(self.real_labels)
        weights = points.T @ torch.linalg.solve(points @ points.T + RIDGE * torch.eye(len(points)), targets)
        error: Tensor = ((self.real - mean) @ weights - wanted).square().sum() / wanted.square().sum()
        return error

    def _targets(self, labels: Tensor) -> Tensor:
        classes = int(max(self.labels.max(), self.real_labels.max())) + 1
        return F.one_hot(labels, classes).float() - 1 / classes


def refine(
    prior: Prior,
    latents: Tensor,
    lessons: Sequence[Lesson],
    settings: RefinementSettings,
    *,
    seed: int,
    folder: Path,
) -> tuple[Tensor, dict[str, Any]]:
    """Return `latents` [m, C, h, w] moved so that each of `lessons` gets less wrong, and facts on how it went.

    The lessons take turns, a step each. What training under way needs to go on is kept in `folder` until it is done.
    Where memory runs out, fewer images are drawn together.
    Raises TrainingError where the loss is no number, or memory runs out with one image at a time.
    """
    moved = _Moved(latents.to(prior.device))
    # What a step keeps for the gradient does not grow with the set.
    together = _Together(min(len(latents), images_together(latents.shape[-1] * prior.downscale)))

    def losses(step: int) -> Iterator[Tensor]:
        lesson = lessons[step % len(lessons)]
        crops = draw_crops(len(latents), generator(seed, "refined view", step))
        parts = list(batches(len(latents), together.count))

        def features(part: slice) -> Tensor:
            return embed(lesson.network, crop(prior.render(moved.latents[part]), crops[part]))

        with torch.no_grad():
            seen = torch.cat([features(part) for part in parts]).cpu()
        error = lesson(seen.requires_grad_())
        (slope,) = torch.autograd.grad(error, seen)
        yield error.detach() + _HELD * moved.distance()
        # The chain rule, part after part: terms without a value of their own, whose gradient is that of the error.
        for part in parts:
            along = (features(part) * slope[part].to(prior.device)).sum()
            yield along - along.detach()

    plan = Optimisation(
        steps=settings.steps,
        lr=settings.lr,
        warmup=0,
        ema=0,
        weight_decay=0,
        working=torch.float32,
        checkpoint_every=10,
    )
    with kept_memory():
        facts = train(moved, losses, plan, folder, "refinement", relieve=together.halve)
    forget_checkpoint(folder)
    moved.requires_grad_(False)
    return moved.latents.cpu(), facts | {"moved": round(float(moved.distance()) ** 0.5, 4)}


class _Together:
    """How many images are drawn together."""

    def __init__(self, count: int) -> None:
        self.count = count

    def halve(self) -> str:
        """Ask for less memory; return how, or nothing when no less can be asked for."""
        if self.count == 1:
            return ""
        self.count = -(-self.count // 2)
        return f"{self.count} images at a time"


class _Moved(nn.Module):
    """Latents, and where they were."""

    def __init__(self, latents: Tensor) -> None:
        super().__init__()
        self.latents, self._start = nn.Parameter(latents.clone()), latents

    def distance(self) -> Tensor:
        """Return the mean squared distance of their elements to where they were."""
        return (self.latents - self._start).square().mean()
