"""Stage `following`: how closely prototypes are followed, where the settings leave it open.

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

from geodistill.config import Config, SamplingSettings
from geodistill.evaluation.protocols import predict_from_features
from geodistill.networks import backbone_features
from geodistill.pipeline import FOLLOWING
from geodistill.prior.base import Prior
from geodistill.prior.sample import sample
from geodistill.processes import processes
from geodistill.prototypes import Prototypes
from geodistill.provenance import Made
from geodistill.run import forget_parts, write_atomic
from geodistill.stages.candidates import Slots, decode, requests_for, slot_labels
from geodistill.stages.context import Context, unless_default
from geodistill.stages.latents import scene_features
from geodistill.stages.noise import seed_of_noise

# Strength and guidance for a base that draws poorly. For one that draws well, `SamplingSettings` has them.
_CLOSELY = (0.4, 1.5)
# A base draws well if what it draws is worth this share of what it starts from. Measured: EuroSAT 0.81 and UC Merced
# 0.76 with base aid, AID 0.67 with base compact; the last alone gains by following closely (docs/experiments.md).
_ENOUGH = 0.72
_FOUND = "following.json"
# Images that the test draws, at least: with 100 the shares were off by several points.
_DRAWN = 300


def followed(
    context: Context,
    prior: Made[Prior],
    latents: Made[Tensor],
    texts: Made[list[str]],
    prototypes: Made[Prototypes],
) -> Context:
    """Return `context` with the strength and guidance that stage `following` chose; as it is where there is no test.

    latents: [N, V, C, h, w] of the scenes. texts: one description for each prototype. `prior` is adapted already.
    """
    scenes, config = context.scenes, context.config
    each = draws_per_prototype(len(scenes.classes), config)
    if not each:
        return context
    known = scene_features(context)

    def build(folder: Path) -> dict[str, Any]:
        starts = prototypes.value.starts(each, config.seed, of=config.prototypes.starts)
        requests = requests_for(prior.value, Slots(texts.value, latents.value[:, 0], starts), each)
        seed = seed_of_noise(context, FOLLOWING)
        drawn = sample(prior.value, requests, config.sampling, seed=seed, folder=folder)
        if not processes().main:
            return {}
        others = torch.ones(len(scenes), dtype=torch.bool)
        others[starts] = False
        # Where every scene was drawn from, they are all there is to ask about.
        asked = others if others.any() else ~others
        labels = slot_labels(scenes, config).repeat_interleave(each)

        def worth(images: Tensor) -> float:
            seen = backbone_features(decode(prior.value, images, config, draft=True))
            return _accuracy(seen, labels, known.value[asked], scenes.labels[asked], len(scenes.classes))

        of_drawn, of_given_back = worth(drawn), worth(latents.value[starts, 0].float())
        found = {
            "drawn": round(of_drawn, 4),
            "given_back": round(of_given_back, 4),
            "closely": _draws_poorly(of_drawn, of_given_back),
        }
        write_atomic(folder / _FOUND, json.dumps(found))
        forget_parts(folder)
        return found

    given = [latents, prototypes, texts, prior, config.sampling.model_dump(), config.seed]
    given += unless_default(config.precision)
    context.run.make(FOLLOWING, build, lambda folder: folder, given=given)
    return context.having(config.model_copy(update={"sampling": chosen_sampling(config, context.run.folder)}))


def chosen_sampling(config: Config, folder: Path) -> SamplingSettings:
    """Return how the candidates of the run in `folder` are drawn: with what its stage `following` chose, if it has one.

    A set of scenes of one class, and one whose strength is set, has none.
    """
    sampling, file = config.sampling, folder / FOLLOWING.name / _FOUND
    if sampling.strength is not None or not file.is_file():
        return sampling
    closely = bool(json.loads(file.read_text(encoding="utf-8"))["closely"])
    strength, guidance = _CLOSELY if closely else (sampling.noise_strength, sampling.guidance_scale)
    if sampling.guidance is not None:
        guidance = sampling.guidance
    return sampling.model_copy(update={"strength": strength, "guidance": guidance})


def _draws_poorly(drawn: float, given_back: float) -> bool:
    """Whether images drawn from much noise are worth too little, by the accuracy of what learns from each kind."""
    return drawn < _ENOUGH * given_back


def draws_per_prototype(classes: int, config: Config) -> int:
    """Return the number of images that the test draws from each prototype; 0 where there is no test.

    There is none where the strength is set or does not count, nor with a single class, as there is nothing to tell
    apart.
    """
    if config.sampling.strength is not None or config.sampling.follow != "start" or classes < 2:
        return 0
    return -(-_DRAWN // (classes * config.ipc))


def _accuracy(features: Tensor, labels: Tensor, asked: Tensor, wanted: Tensor, classes: int) -> float:
    """Return the overall accuracy on features `asked` of classes `wanted` of what learned `features` of `labels`."""
    logits = predict_from_features(features, labels, asked, classes)
    return float((logits.argmax(dim=1) == wanted).double().mean())
