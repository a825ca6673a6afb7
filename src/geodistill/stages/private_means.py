"""Stages `profiles`, `centres` and `moments`: noisy sums over the scenes."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from geodistill.descriptions.measured import DIRECTION, measure, sentence
from geodistill.descriptions.prompts import class_prompt
from geodistill.networks import FEATURES as WIDTH
from geodistill.pipeline import CENTRES, MOMENTS, PROFILES
from geodistill.prior.base import Prior
from geodistill.prior.guidance import coarse
from geodistill.privacy.noisy import Moments, SecretNoise, noisy_means, noisy_moments, private_clusters
from geodistill.provenance import Made, derived
from geodistill.run import Stored, save_tensors
from geodistill.scenes.pixels import Pixels, in_blocks
from geodistill.scenes.scenes import Scenes
from geodistill.seeding import generator
from geodistill.stages.latents import scene_features
from geodistill.stages.private import PrivateContext

# Number of random directions onto which features are projected for clustering.
_DIRECTIONS = 16
# Largest number of clusters of a class. The noise of a cluster's mean grows as the cluster shrinks: on EuroSAT at
# ε = 10, 40 images a class from ten clusters gave 63 % under fine-tuning, from 40 clusters 53 % (docs/experiments.md).
MOST_CENTRES = 10
# Length to which the coarse part of a latent is clipped, divided by the root of the latent's number of dimensions.
_COARSE = 0.66
# The describer's measurements are divided by this length before they are clipped together with the features. Most of
# them are shares that sum to one.
_MEASURES = 2.0


@dataclass(frozen=True)
class Profiles:
    """Noisy means of each class: `features` float64 [classes, 1280], `measures` [classes, M]."""

    features: Tensor
    measures: Tensor


def make_profiles(context: PrivateContext) -> Made[Profiles]:
    """Return the noisy means from stage `profiles`."""
    scenes, size, noise = context.scenes, context.config.size, context.noise("profiles")
    features = scene_features(context)

    def build(folder: Path) -> None:
        measures = torch.cat([measure(part) / _MEASURES for part in in_blocks(Pixels(scenes, size))])
        rows = torch.cat([features.value[:].double(), measures.double()], dim=1)
        by = SecretNoise()
        means, _ = noisy_means(rows, scenes.labels, len(scenes.classes), norm=2**0.5, noise=noise, by=by)
        save_tensors({"means": means}, folder / "profiles.safetensors")

    return context.run.make(PROFILES, build, _load_profiles, given=[scenes.fingerprint(), size, noise])


def _load_profiles(folder: Path) -> Profiles:
    means = load_file(folder / "profiles.safetensors")["means"]
    measures = means[:, WIDTH:] * _MEASURES
    # Shares and strengths cannot be negative: noise that makes them so is cut off. Directions, a cosine and a sine, can
    # be.
    possible = measures.clamp_min(0)
    possible[:, DIRECTION] = measures[:, DIRECTION]
    return Profiles(means[:, :WIDTH], possible)


def noisy_descriptions(scenes: Scenes, profiles: Made[Profiles], prior: Made[Prior]) -> Made[list[str]]:
    """Return a text for each class from its noisy mean measurements; its class prompt if that text is too long."""

    def compute() -> list[str]:
        prompts = [class_prompt(name) for name in scenes.classes]
        texts = [f"{one}, {sentence(row)}" for one, row in zip(prompts, profiles.value.measures, strict=True)]
        return [text if prior.value.fits(text) else one for text, one in zip(texts, prompts, strict=True)]

    return derived(compute, profiles)


@dataclass(frozen=True)
class Starts:
    """Noisy means float32 [K, C, h, w] of the clusters' coarse latents, and the deviation of their noise, float [K].

    The clusters of a class are adjacent, as many in each class.
    """

    latents: Tensor
    noisy: Tensor


def make_starts(context: PrivateContext, latents: Made[Stored], profiles: Made[Profiles]) -> Made[Starts]:
    """Return what candidates start from, from stage `centres`: noisy means of each class, at most MOST_CENTRES."""
    scenes, each = context.scenes, min(context.config.ipc, MOST_CENTRES)
    features = scene_features(context)
    clusters, starts = context.noise("clusters"), context.noise("starts")

    def build(folder: Path) -> None:
        by = SecretNoise()
        points = _points(features.value[:], scenes.labels, profiles.value)
        assigned = private_clusters(points, scenes.labels, len(scenes.classes), each, noise=clusters, by=by)
        rough = coarse(latents.value[:, 0].float())
        norm = _COARSE * rough[0].numel() ** 0.5
        count = len(scenes.classes) * each
        means, noisy = noisy_means(rough.flatten(1), assigned, count, norm=norm, noise=starts, by=by)
        # The true means are coarse, so this removes only noise.
        kept = {"latents": coarse(means.float().view(-1, *rough.shape[1:])), "noisy": noisy.float()}
        save_tensors(kept, folder / "centres.safetensors")

    def load(folder: Path) -> Starts:
        return Starts(**load_file(folder / "centres.safetensors"))

    return context.run.make(CENTRES, build, load, given=[latents, profiles, each, clusters, starts])


def _points(features: Tensor, labels: Tensor, profiles: Profiles) -> Tensor:
    """Return float64 [N, _DIRECTIONS]: features minus the noisy mean of their class, projected on random directions."""
    drawn = torch.randn(features.shape[1], _DIRECTIONS, generator=generator(0, "directions"), dtype=torch.float64)
    directions = torch.linalg.qr(drawn).Q * (features.shape[1] / _DIRECTIONS) ** 0.5  # keeps lengths on average
    points: Tensor = (features.double() - profiles.features[labels]) @ directions
    return points


def make_moments(context: PrivateContext) -> Made[Moments]:
    """Return the noisy moments of the backbone's features from stage `moments`."""
    scenes, noise = context.scenes, context.noise("moments")
    features = scene_features(context)

    def build(folder: Path) -> None:
        found = noisy_moments(features.value[:], scenes.labels, len(scenes.classes), noise=noise, by=SecretNoise())
        kept = {"second": found.second, "sums": found.sums, "counts": found.counts}
        save_tensors(kept | {"deviation": torch.tensor(found.deviation)}, folder / "moments.safetensors")

    def load(folder: Path) -> Moments:
        kept = load_file(folder / "moments.safetensors")
        return Moments(kept["second"], kept["sums"], kept["counts"], float(kept["deviation"]))

    return context.run.make(MOMENTS, build, load, given=[scenes.fingerprint(), context.config.size, noise])
