"""Stage `descriptions`: a text for each prototype."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from geodistill.descriptions import (
    Conversations,
    MeasuredDescriber,
    TemplateDescriber,
    class_prompt,
    make_describer,
    shortened,
)
from geodistill.pipeline import DESCRIPTIONS
from geodistill.prior.base import Prior
from geodistill.progress import progress
from geodistill.prototypes import Prototypes
from geodistill.provenance import Made
from geodistill.run import write_atomic
from geodistill.scenes.scenes import Scenes
from geodistill.stages.context import Context

# Number of members, the nearest to the centre of their cluster, that a description is made from.
_DESCRIBED = 16
_TEXTS = "descriptions.json"


def describe(context: Context, prior: Made[Prior], prototypes: Made[Prototypes]) -> Made[list[str]]:
    """Return one description for each prototype from stage `descriptions`, none over the prior's token limit.

    If a model writes them, all prompts to it and all its answers are kept in the stage's folder.
    """
    scenes, config = context.scenes, context.config

    def build(folder: Path) -> dict[str, Any]:
        describer = make_describer(config.descriptions.describer, config.precision, scenes.reading)
        found, fits, log = prototypes.value, prior.value.fits, Conversations(folder)
        with progress("descriptions", len(found)) as advance:
            for rank, (label, members) in enumerate(zip(found.labels, found.members, strict=True)):
                name = scenes.classes[label]
                if rank == len(log.kept):
                    text = describer(scenes.pixels(members[:_DESCRIBED], size=config.size), name)
                    log.add(shortened(text, fits, name))
                advance(rank + 1)
        texts = [one.text for one in log.kept]
        write_atomic(folder / _TEXTS, json.dumps(texts, indent=1, ensure_ascii=False))
        return log.outcomes()

    given = [prototypes, config.descriptions.model_dump(), config.size]
    return context.run.make(DESCRIPTIONS, build, load_texts, given=given)


def load_texts(folder: Path) -> list[str]:
    """Return the descriptions of the prototypes that stage `descriptions` wrote into `folder`."""
    texts: list[str] = json.loads((folder / _TEXTS).read_text(encoding="utf-8"))
    return texts


def describe_each(context: Context, images: Tensor, labels: Tensor) -> list[str]:
    """Return a description of each of `images`, uint8 [n, C, s, s], measured in the image itself.

    It is the class prompt alone if the descriptions of the run are class prompts.
    """
    scenes = context.scenes
    plain = context.config.descriptions.describer == TemplateDescriber.name
    describer = TemplateDescriber() if plain else MeasuredDescriber(scenes.reading)
    return describer.each(images, [scenes.classes[label] for label in labels.tolist()])


def texts_of_each(prototypes: Prototypes, texts: list[str], scenes: Scenes) -> list[list[str]]:
    """Return the two prompts of each training scene: the description of its cluster, and its class prompt."""
    own = [""] * len(scenes)
    for text, members in zip(texts, prototypes.members, strict=True):
        for member in members.tolist():
            own[member] = text
    return [[text, prompt] for text, prompt in zip(own, class_prompts(scenes, scenes.labels), strict=True)]


def class_prompts(scenes: Scenes, labels: Tensor) -> list[str]:
    """Return the class prompt of each of `labels`, int64 [n]."""
    prompts = [class_prompt(name) for name in scenes.classes]
    return [prompts[label] for label in labels.tolist()]
