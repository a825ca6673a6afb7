"""Refinement: the selected latents are optimised so that classifiers trained on the images generalise better.

The loss is that of kernel-inducing points (Nguyen, Chen, Lee, "Dataset Meta-Learning from Kernel Ridge-Regression",
ICLR 2021) with the linear kernel of a network's features: the squared error on the real scenes of a ridge regression
trained only on the set's images.

Several networks take turns: the ImageNet backbone as it is, and copies fine-tuned on the set itself for different
numbers of steps (a pool of networks trained on the set, as in FRePo: Zhou, Nezhadarya, Ba, "Dataset Distillation using
Neural Feature Regression", NeurIPS 2022). None of them has seen a real scene. Earlier versions used networks fine-tuned
on all real scenes, but these memorise a small archive and then have nothing left to teach.

A network trained from scratch has none of the backbone's features to build on. For such networks, networks with random
weights take turns as well; their loss makes the class means agree (Zhao and Bilen, "Dataset Condensation with
Distribution Matching", WACV 2023). There pixels are free; here only images that the autoencoder can decode are possible
(Cazenavette et al., "Generalizing Dataset Distillation via Deep Generative Prior", CVPR 2023). Each step crops every
image differently, and a penalty keeps each latent near its value at the start of the round, so images stay as realistic
as they were.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geodistill.config import RefinementSettings
from geodistill.devices import accelerator, free_memory
from geodistill.evaluation.protocols import crop, draw_crops
from geodistill.networks import embed
from geodistill.prior.base import Prior, images_together
from geodistill.prior.training import Optimisation, batches, forget_checkpoint, train
from geodistill.privacy.noisy import Moments
from geodistill.processes import processes
from geodistill.seeding import derive_seed, generator

# Chosen with a quarter of AID's training scenes held out: docs/experiments.md.
RIDGE = 0.3
# Fraction of the noise in a second moment that is added as scatter in every direction. Chosen on EuroSAT's training
# scenes, so that the ridge regression on noisy moments is best on held-out ones.
_FLOOR = 0.2
# An eigenvalue of a scatter matrix below this fraction of the largest one counts as zero.
_LEAST = 1e-6
# Weight of the mean squared distance of the latents from their initial values.
_HELD = 0.1
# Number of real images per class for a network with random weights, and number of images in one of its batches.
_REAL, _TOGETHER = 32, 64
# From this number of images per class on, the means count in full: the mean of fewer images cannot equal that of all
# real ones unless each image becomes unlike any scene. Chosen as above.
_FULL_FROM = 10


@dataclass(frozen=True)
class RefinementLoss:
    """Error on the real scenes of a ridge regression trained on a set's features in one network.

    network: any network that `networks.embed` accepts. labels: int64 [m] of the set. real: float [N, D], the real
    scenes' features of length 1. real_labels: int64 [N].
    """

    network: nn.Module
    labels: Tensor
    real: Tensor
    real_labels: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Return the squared error after training on `features` [m, D] of length 1, relative to no knowledge.

        Targets are one-hot minus 1/classes; the mean of the real features is subtracted from all features.
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


class MomentsLoss:
    """The error of `RefinementLoss` if only sums over the real scenes are known, with or without noise.

    network, labels: as in RefinementLoss. moments: of the real scenes' features of length 1 in that network.

    The weights of the ridge regression are rescaled to minimise the error: the predicted class does not depend on their
    scale, and the scatter of the noise would require smaller weights than any that can be learned.

    The noise of the second moment has eigenvalues of both signs, up to twice its deviation times √D. Negative
    eigenvalues of the scatter matrix are set to 0. Then `_FLOOR` times that deviation times √D is added to all, so that
    no direction hidden by the noise counts as free.
    """

    def __init__(self, network: nn.Module, labels: Tensor, moments: Moments) -> None:
        self.network = network
        classes, size = moments.sums.shape
        count = moments.counts.sum()
        mean = moments.sums.sum(dim=0) / count
        values, axes = torch.linalg.eigh(moments.second - count * torch.outer(mean, mean))
        values = values.clamp_min(0) + _FLOOR * moments.deviation * size**0.5
        self._mean, self._scatter = mean.float(), ((axes * values) @ axes.T).float()
        # Sums over the scenes of (feature - mean) times target, with targets one-hot minus 1/classes.
        centred = moments.sums - moments.counts[:, None] * mean
        self._cross = (centred - centred.mean(dim=0)).T.float()
        # The gain of the best weights; without noise there may be directions without any variance.
        along = (axes.T @ self._cross.double()).square().sum(dim=1)
        varies = values > _LEAST * values.max()
        self._whole = float((along[varies] / values[varies]).sum())
        self._targets = F.one_hot(labels, classes).float() - 1 / classes

    def __call__(self, features: Tensor) -> Tensor:
        """Return the squared error after training on `features` [m, D] of length 1, float [].

        0 is the smallest error of any weights, 1 that of no knowledge. Weights in the wrong direction give more than 1.
        """
        points = features - self._mean
        weights = points.T @ torch.linalg.solve(points @ points.T + RIDGE * torch.eye(len(points)), self._targets)
        gain, size = (weights * self._cross).sum(), (weights * (self._scatter @ weights)).sum()
        # The sign distinguishes weights in the wrong direction from those in the right one.
        error: Tensor = 1 - gain * gain.abs() / (size * self._whole)
        return error


class MeansLoss(RefinementLoss):
    """Distance of the class means of a set from the real ones in one network."""

    def __call__(self, features: Tensor) -> Tensor:
        """Return the squared distance of class means of `features` [m, D] to the real ones, relative to no knowledge.

        No knowledge is the mean of all real classes. The squared distance of the mean of k random real images falls as
        1/k; if the largest class of the set has k < 10 images, the result is therefore multiplied by k/10.
        """
        wanted = self._means(self.real, self.real_labels)
        distance = (self._means(features, self.labels) - wanted).square().sum()
        weight = min(1.0, int(self.labels.bincount().max()) / _FULL_FROM)
        return weight * distance / (wanted - wanted.mean(dim=0)).square().sum()

    @staticmethod
    def _means(features: Tensor, labels: Tensor) -> Tensor:
        share = F.one_hot(labels).float()
        return (share / share.sum(dim=0)).T @ features


class RandomNetwork(nn.Module):
    """Three convolutions with random weights and the interface of efficientnet-lite0 that `networks.embed` uses.

    This is not convnet3 itself, so that tests with convnet3 still say something about other networks.
    """

    def __init__(self, seed: int, channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for before, width, kernel in ((channels, 64, 5), (64, 96, 3), (96, 128, 3)):
                norm = nn.GroupNorm(width, width)  # as many groups as channels: instance norm
                layers += [nn.Conv2d(before, width, kernel, padding="same"), norm, nn.LeakyReLU(0.1), nn.MaxPool2d(2)]
        self.layers = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(4)).eval().requires_grad_(False)
        self.layers.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def extract_features(self, images: Tensor) -> Tensor:
        """Return features [n, 2048, 1, 1] of images [n, channels, s, s], s at least 8."""
        features: Tensor = self.layers(images)
        return features.flatten(1)[:, :, None, None]


def random_loss(pixels: Tensor, real_labels: Tensor, labels: Tensor, *, seed: int) -> MeansLoss:
    """Return the loss of a network with random weights on some real images of each class, both drawn by `seed`.

    pixels: uint8 [N, C, s, s], all scenes. real_labels: int64 [N], their classes. labels: int64 [m], those of the set.
    """
    network = RandomNetwork(derive_seed(seed, "weights"), pixels.shape[1]).to(accelerator())
    random = generator(seed, "real images")
    order = torch.randperm(len(real_labels), generator=random)
    each = [order[real_labels[order] == label][:_REAL] for label in range(int(real_labels.max()) + 1)]
    shown = torch.cat(each)
    with torch.no_grad():
        parts = [
            embed(network, pixels[part].to(accelerator()).float() / 127.5 - 1).cpu() for part in shown.split(_TOGETHER)
        ]
    return MeansLoss(network, labels, torch.cat(parts), real_labels[shown])


def refine(
    prior: Prior,
    latents: Tensor,
    loss_at: Callable[[int], RefinementLoss | MomentsLoss],
    settings: RefinementSettings,
    *,
    seed: int,
    folder: Path,
) -> tuple[Tensor, dict[str, Any]]:
    """Return `latents` [m, C, h, w] optimised to reduce the error of each loss, and facts about the training.

    `loss_at` returns the loss of a step; the same step must always get the same loss. The state of an unfinished
    training is kept in `folder`. Several processes share the images.
    If memory runs out, fewer images are decoded together.
    Raises TrainingError if the loss is not finite, or memory runs out with one image at a time.
    """
    moved = _Moved(latents.to(prior.device))
    group, together = processes(), images_together(latents.shape[-1] * prior.downscale)
    micro_batch = _ImagesTogether(min(-(-len(latents) // group.count), together), prior.device)

    def losses(step: int) -> Iterator[Tensor]:
        loss = loss_at(step)
        crops = draw_crops(len(latents), generator(seed, "refined view", step))
        every = list(batches(len(latents), micro_batch.count))
        parts = list(group.own(every))

        def features(part: slice) -> Tensor:
            return embed(loss.network, crop(prior.render(moved.latents[part]), crops[part]))

        # As many parts as memory allows are decoded once, and their graphs kept until all features are known. The
        # others are decoded again for their gradients.
        kept = micro_batch.keep(features, parts)
        with torch.no_grad():
            drawn = [*(one.cpu() for one in kept), *(features(part).cpu() for part in parts[len(kept) :])]
        seen = torch.cat(group.in_order([one.detach() for one in drawn], len(every)))
        error = loss(seen.requires_grad_())
        (slope,) = torch.autograd.grad(error, seen)
        # Every process adds its share of what none of the parts is responsible for.
        yield (error.detach() + _HELD * moved.distance()) / group.count
        # The chain rule, part by part: these terms have value 0, and their gradients add up to that of the error.
        for rank, part in enumerate(parts):
            own = kept[rank] if rank < len(kept) else features(part)
            along = (own * slope[part].to(prior.device)).sum()
            yield along - along.detach()

    plan = Optimisation(
        steps=settings.steps,
        lr=settings.lr,
        warmup=0,
        ema=0,
        weight_decay=0,
        dtype=torch.float32,
        shared=True,
        checkpoint_every=10,
    )
    facts = train(moved, losses, plan, folder, "refinement", relieve=micro_batch.relieve)
    forget_checkpoint(folder)
    moved.requires_grad_(False)
    return moved.latents.cpu(), facts | {"moved": round(float(moved.distance()) ** 0.5, 4)}


class _ImagesTogether:
    """Number of images decoded together, and number of parts of the set whose graphs are kept for their gradients."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.count, self._device, self._parts = count, device, 0

    def keep(self, features: Callable[[slice], Tensor], parts: list[slice]) -> list[Tensor]:
        """Return the features of the first parts: as many as fit into half of the free memory, and at least one."""
        if self._parts or not parts:
            return [features(part) for part in parts[: self._parts]]
        # Measured once: later, memory that this process has freed does not count as free.
        before = free_memory(self._device)
        kept = [features(parts[0])]
        each = max(before - free_memory(self._device), 1)
        self._parts = max(1, before // 2 // each)
        return kept + [features(part) for part in parts[1 : self._parts]]

    def relieve(self) -> str:
        """Reduce memory use; return how, or "" if no reduction is left."""
        if self.count == 1:
            return ""
        self.count, self._parts = -(-self.count // 2), 1
        return f"{self.count} images at a time"


class _Moved(nn.Module):
    """Trainable latents, and their initial values."""

    def __init__(self, latents: Tensor) -> None:
        super().__init__()
        self.latents, self._start = nn.Parameter(latents.clone()), latents

    def distance(self) -> Tensor:
        """Return the mean squared distance of the latents' elements from their initial values."""
        return (self.latents - self._start).square().mean()
