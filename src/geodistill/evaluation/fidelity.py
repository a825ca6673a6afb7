"""Fidelity: how similar distilled images are to real test images as a set (FID, KID), and how well they fit a text.

FID and KID are computed from `networks.pooled_features`, because the weights of the usual Inception network would have
to be downloaded. The figures are comparable with each other, but not with published ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import CLIPModel, CLIPProcessor

from geodistill.errors import ConfigError
from geodistill.scenes.views import as_rgb
from geodistill.seeding import generator

# Samples of 50 real AID images at 64 px have a KID of 0 ± 0.4 against other real images, samples of 20 one of 0 ± 0.6.
# A blur over 3x3 pixels raises it to 2.7. With fewer images, defects much weaker than this blur could not be
# distinguished from chance.
MIN_KID = 50
SUBSET = 1000
SUBSETS = 100


@dataclass(frozen=True)
class Score:
    """A value, or None and the `reason` why the images do not give one."""

    value: float | None
    reason: str = ""


def fid(features: torch.Tensor, real: torch.Tensor) -> Score:
    """Return the Fréchet distance of two sets of features [n, d] and [m, d], which must not be normalised.

    ‖μ − ν‖² + tr(S) + tr(R) − 2 tr((S R)^½), with means μ, ν and covariances S, R (Heusel et al. 2017). The last trace
    is computed as the sum of the singular values of S^½ R^½, which is more precise than a square root of S R. Without
    more images than features a covariance is singular and the distance far too large, so the Score has no value.
    Raises ConfigError if the two sets do not have the same features.
    """
    _check_features(features, real)
    count, width = min(len(features), len(real)), features.shape[1]
    if count <= width:
        reason = f"{count:,} images: FID needs at least {width + 1:,}, more than the {width:,} features; read KID"
        return Score(None, reason)
    one, two = features.double(), real.double()
    spread = torch.cov(one.T).reshape(width, width), torch.cov(two.T).reshape(width, width)
    shared = torch.linalg.svdvals(_square_root(spread[0]) @ _square_root(spread[1])).sum()
    distance = (one.mean(0) - two.mean(0)).square().sum() + spread[0].trace() + spread[1].trace() - 2 * shared
    return Score(max(float(distance), 0.0))  # only rounding can make it negative


def kid(features: torch.Tensor, real: torch.Tensor, *, seed: int = 0) -> Score:
    """Return the kernel distance of two sets of features [n, d] and [m, d], which must not be normalised.

    It is the unbiased estimate of the squared maximum mean discrepancy with the kernel (x·y/d + 1)³ (Bińkowski et al.
    2018), averaged over 100 pairs of subsets of 1,000 images, or of the smaller set's size; `seed` draws them. Its mean
    is 0 for two samples of one distribution, so it can be negative. With fewer than 50 images in a set the Score has no
    value.
    Raises ConfigError if the two sets do not have the same features.
    """
    _check_features(features, real)
    count = min(len(features), len(real))
    if count < MIN_KID:
        return Score(None, f"{count} images: KID needs at least {MIN_KID}")
    size = min(count, SUBSET)
    # One pair is enough if the subsets are the whole sets.
    subsets = 1 if size == len(features) == len(real) else SUBSETS
    one, two = features.double(), real.double()
    values = [_mmd(_subset(one, size, seed, 2 * k), _subset(two, size, seed, 2 * k + 1)) for k in range(subsets)]
    return Score(sum(values) / subsets)


def clip_score(images: torch.Tensor, texts: Sequence[str], source: str | Path, *, batch: int = 32) -> float:
    """Return the mean of max(100 · cosine, 0) between uint8 images [n, channels, s, s] and texts (Hessel et al. 2021).

    `source` is a CLIP model of transformers: a folder, or a name on the hub, from which it is downloaded once. Only
    safetensors are read, and no remote code runs. A text beyond the model's length is cut. Scores of different models
    are not comparable.
    Raises ConfigError if the model cannot be loaded, or if there is not one text for each image.
    """
    if len(images) != len(texts) or not len(images):
        raise ConfigError(f"{len(images)} images and {len(texts)} texts: the CLIP score needs one text an image")
    model, processor = _load_clip(str(source))
    total = 0.0
    for start in range(0, len(images), batch):
        part = slice(start, start + batch)
        total += float(_clip_cosines(model, processor, as_rgb(images[part]), list(texts[part])).clamp(min=0).sum())
    return 100 * total / len(images)


def _check_features(features: torch.Tensor, real: torch.Tensor) -> None:
    if features.shape[1:] != real.shape[1:] or features.ndim != 2:
        raise ConfigError(
            f"features are {list(features.shape)} and {list(real.shape)}: give [n, d] and [m, d] of one network"
        )


def _square_root(matrix: torch.Tensor) -> torch.Tensor:
    """Return the symmetric square root of a positive semidefinite matrix; rounding below 0 counts as 0."""
    values, vectors = torch.linalg.eigh(matrix)
    root: torch.Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root


def _subset(features: torch.Tensor, size: int, seed: int, index: int) -> torch.Tensor:
    return features[torch.randperm(len(features), generator=generator(seed, "kid", index))[:size]]


def _mmd(one: torch.Tensor, two: torch.Tensor) -> float:
    """Return the unbiased squared maximum mean discrepancy of features [n, d] and [n, d]."""
    n = len(one)
    within = [(kernel.sum() - kernel.trace()) / (n * (n - 1)) for kernel in (_kernel(one, one), _kernel(two, two))]
    return float(within[0] + within[1] - 2 * _kernel(one, two).mean())


def _kernel(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    return (one @ two.T / one.shape[1] + 1).pow(3)


def _load_clip(source: str) -> tuple[CLIPModel, CLIPProcessor]:
    try:
        model, info = CLIPModel.from_pretrained(source, use_safetensors=True, output_loading_info=True)
        processor = CLIPProcessor.from_pretrained(source)
    except (OSError, ValueError, RuntimeError, AttributeError, ImportError, KeyError, TypeError) as error:
        raise ConfigError(_unloadable(source, str(error).split("\n")[0])) from error
    # transformers fills missing weights with random values, and only logs it.
    if info["missing_keys"]:
        raise ConfigError(_unloadable(source, f"it lacks {len(info['missing_keys'])} of CLIP's weights"))
    return model.eval(), processor


def _unloadable(source: str, why: str) -> str:
    return (
        f"the CLIP model {source!r} cannot be loaded ({why}): give a folder with a CLIPModel and its CLIPProcessor in "
        "safetensors, or the name of one on the hub, for example openai/clip-vit-large-patch14"
    )


@torch.no_grad()
def _clip_cosines(model: CLIPModel, processor: CLIPProcessor, images: torch.Tensor, texts: list[str]) -> torch.Tensor:
    inputs = processor(text=texts, images=list(images.numpy()), return_tensors="pt", padding=True, truncation=True)
    found = model(**inputs)
    cosines: torch.Tensor = (found.image_embeds * found.text_embeds).sum(1)  # both have norm 1
    return cosines
