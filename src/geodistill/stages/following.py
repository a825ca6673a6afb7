"""Stage `following`: how closely candidates follow their prototypes, if the settings leave this open.

A base that was trained on few scenes like those of the archive turns a noised prototype into an image from which a
classifier learns less than from the prototype itself. The stage tests this. It draws some images from strongly noised
scenes. One logistic regression on the pretrained backbone's features is trained on these images, another on the scenes
that they started from, encoded and decoded by the autoencoder. Both predict the other training scenes. If the drawn
images give a much lower accuracy, candidates start from less noise, with less guidance.
"""

import json
import logging
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
from geodistill.run import Stored, column, forget_parts, write_atomic
from geodistill.stages.candidates import Slots, decode, requests_for, slot_labels
from geodistill.stages.context import Context, unless_default
from geodistill.stages.latents import scene_features
from geodistill.stages.learned import learned, unless_all
from geodistill.stages.noise import seed_of_noise

log = logging.getLogger("geodistill")

# Strength and guidance for a base that draws poorly. `SamplingSettings` has those for a base that draws well.
_CLOSELY = (0.4, 1.5)
# A base draws well if the accuracy from its images is at least this share of the accuracy from their starts. Measured:
# EuroSAT 0.81 and UC Merced 0.76 with base aid, AID 0.67 with base compact; only the last gains by following closely
# (docs/experiments.md).
_ENOUGH = 0.72
_FOUND = "following.json"
# With fewer scenes the accuracies are off by more than five points.
_ASKED = 100
# Smallest number of images that the test draws: with 100 the shares were off by several points.
_DRAWN = 300


def followed(
    context: Context,
    prior: Made[Prior],
    latents: Made[Stored],
    texts: Made[list[str]],
    prototypes: Made[Prototypes],
) -> Context:
    """Return `context` with the strength and guidance that stage `following` chose; unchanged if there is no test.

    latents: [N, V, C, h, w] of the scenes. texts: one description for each prototype. `prior` is already adapted.
    """
    scenes, config = context.scenes, context.config
    each = draws_per_prototype(len(scenes.classes), config)
    if not each:
        return context
    known = scene_features(context)

    def build(folder: Path) -> dict[str, Any]:
        starts = prototypes.value.starts(each, config.seed, of=config.prototypes.starts)
        requests = requests_for(prior.value, Slots(texts.value, column(latents.value, 0), starts), each)
        seed = seed_of_noise(context, FOLLOWING)
        drawn = sample(prior.value, requests, config.sampling, seed=seed, folder=folder)
        if not processes().main:
            return {}
        others = torch.zeros(len(scenes), dtype=torch.bool)
        others[learned(scenes, config.seed)] = True
        others[starts] = False
        # If images were drawn from every scene, none is left over, and all scenes are predicted.
        asked = others if others.any() else ~others
        if int(asked.sum()) < _ASKED:
            log.warning(
                "only %d scenes are left to test how closely images should follow training images: the choice is "
                "uncertain (closely: --set sampling.strength=0.4 --set sampling.guidance=1.5; freely: --set "
                "sampling.strength=0.6)",
                int(asked.sum()),
            )
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
    given += [*unless_default(config.precision), *unless_all(scenes)]
    context.run.make(FOLLOWING, build, lambda folder: folder, given=given)
    return context.having(config.model_copy(update={"sampling": chosen_sampling(config, context.run.folder)}))


def chosen_sampling(config: Config, folder: Path) -> SamplingSettings:
    """Return the sampling settings of the run in `folder`, with what its stage `following` chose, if it has one.

    A run on scenes of a single class and a run whose strength is set have none.
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
    """Return whether images drawn from strong noise are worth too little, by the accuracy learned from each kind."""
    return drawn < _ENOUGH * given_back


def draws_per_prototype(classes: int, config: Config) -> int:
    """Return the number of images that the test draws from each prototype; 0 if there is no test.

    There is no test if the strength is set or has no effect, or with a single class, as there is nothing to
    distinguish.
    """
    if config.sampling.strength is not None or config.sampling.follow != "start" or classes < 2:
        return 0
    return -(-_DRAWN // (classes * config.ipc))


def _accuracy(features: Tensor, labels: Tensor, asked: Tensor, wanted: Tensor, classes: int) -> float:
    """Return the overall accuracy on features `asked` of classes `wanted`, after training on `features` of `labels`."""
    logits = predict_from_features(features, labels, asked, classes)
    return float((logits.argmax(dim=1) == wanted).double().mean())
