"""How closely prototypes are followed, where the settings leave it open: more closely where the base draws them poorly.

A base that has seen little like an archive turns a noised prototype into an image that teaches less than the prototype
itself. So some images are drawn under much noise. Logistic regression on the pretrained backbone's features learns from
these images, and from the scenes that they started from, through the autoencoder and back; both are asked to name the
other training scenes. Where the drawn images are worth much less, candidates start from less noise, with less guidance.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geodistill.config import Config
from geodistill.evaluation.networks import backbone_features
from geodistill.evaluation.protocols import predict_from_features
from geodistill.methods.stages import decode, requests_for, scene_features, slot_labels
from geodistill.prior.base import Prior
from geodistill.prior.sample import sample
from geodistill.processes import processes
from geodistill.prototypes import Prototypes
from geodistill.run import Run, forget_parts, write_atomic
from geodistill.scenes.scenes import Scenes
from geodistill.seeding import derive_seed

# The strength and guidance of a base that draws well are the defaults of `SamplingSettings`. These are for the others.
CLOSELY = {"strength": 0.4, "guidance": 1.5}
# A base draws well if what it draws is worth this share of what it starts from. Measured: EuroSAT 0.81 and UC Merced
# 0.76 with base aid, AID 0.67 with base compact; the last alone gains by following closely (docs/experiments.md).
_ENOUGH = 0.72
_FOUND = "following.json"
# Images that are drawn to find out, at least: with 100 the shares were off by several points.
_DRAWN = 300


def followed(
    prior: Prior, latents: Tensor, texts: list[str], prototypes: Prototypes, scenes: Scenes, config: Config, run: Run
) -> Config:
    """Return `config` with a sampling strength, from stage `following` where the settings leave it open.

    With a single class there is nothing to tell apart, and the strength stays the default.

    latents: [N, V, C, h, w] of the scenes. texts: one description for each prototype. `prior` is adapted already.
    """
    if config.sampling.strength is not None or config.sampling.follow != "start" or len(scenes.classes) < 2:
        return config
    known = scene_features(scenes, config, run)

    def build(folder: Path) -> dict[str, Any]:
        count = drawn_of_each(len(prototypes))
        some = config.model_copy(update={"sampling": config.sampling.model_copy(update={"candidates": count})})
        starts = prototypes.starts(count, config.seed, of=config.prototypes.starts)
        requests = requests_for(prior, latents[:, 0], texts, some, starts=starts)
        drawn = sample(prior, requests, some.sampling, seed=derive_seed(config.seed, "following"), folder=folder)
        labels = slot_labels(scenes, config).repeat_interleave(count)
        others = torch.ones(len(scenes), dtype=torch.bool)
        others[starts] = False
        # Where every scene was drawn from, they are all there is to ask about.
        asked = others if others.any() else ~others
        worth = {
            name: _accuracy(backbone_features(decode(prior, images, config, draft=True)), labels, known, scenes, asked)
            for name, images in (("drawn", drawn), ("given_back", latents[starts, 0].float()))
        }
        closely = worth["drawn"] < _ENOUGH * worth["given_back"]
        found = {name: round(value, 4) for name, value in worth.items()} | {"closely": closely}
        if processes().main:
            write_atomic(folder / _FOUND, json.dumps(found))
            forget_parts(folder)
        return found

    before = [run.fingerprint_of(stage) for stage in _stages_before(config)]
    inputs = [*before, config.sampling.model_dump(), config.seed]
    found = json.loads((run.stage("following", build, version=1, inputs=inputs, shared=True) / _FOUND).read_text())
    sampling = config.sampling
    given = {"strength": sampling.noise_strength, "guidance": sampling.guidance_scale}
    if found["closely"]:
        given = CLOSELY | ({} if sampling.guidance is None else {"guidance": sampling.guidance})
    return config.model_copy(update={"sampling": sampling.model_copy(update=given)})


def drawn_of_each(prototypes: int) -> int:
    """Return how many images are drawn from each of so many prototypes.

    >>> drawn_of_each(100), drawn_of_each(1000)
    (3, 1)
    """
    return -(-_DRAWN // prototypes)


def _stages_before(config: Config) -> list[str]:
    return ["latents", "prototypes", "descriptions", *(["adapter"] if config.finetune.steps else [])]


def _accuracy(features: Tensor, labels: Tensor, known: Tensor, scenes: Scenes, asked: Tensor) -> float:
    """Return the share of the `asked` scenes that a classifier on `features` names right."""
    logits = predict_from_features(features, labels, known[asked], len(scenes.classes))
    return float((logits.argmax(dim=1) == scenes.labels[asked]).double().mean())
