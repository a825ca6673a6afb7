"""The stages that a run goes through, by its settings: for the plan, and for a report on what is missing."""

from geodistill.config import Config
from geodistill.pipeline import (
    ADAPTER,
    BASE,
    CANDIDATES,
    CENTRES,
    CHOSEN,
    DESCRIPTIONS,
    DISTILLED,
    FEATURES,
    INITIAL,
    LATENTS,
    MOMENTS,
    PRIVATE_ADAPTER,
    PRIVATE_CANDIDATES,
    PRIVATE_REFINED,
    PROFILES,
    PROTOTYPES,
    REFINED,
    SCREENED,
    SELF_TEST,
    SOFT_LABEL_TEACHER,
    TEACHER,
)
from geodistill.prior.catalogue import SCRATCH
from geodistill.provenance import Stage
from geodistill.stages.private import encodes, follows, has_teacher


def line(config: Config) -> tuple[Stage, ...]:
    """Return the stages of a `dpd` run with `config`, in order.

    Stage `following` is left out, because it also depends on the scenes.
    """
    if config.privacy == "dp":
        return _private_line(config)
    refines = bool(config.refinement.steps)
    chooses = config.selection.by == "herding" or config.sampling.follow == "base"
    features = config.prototypes.features == "backbone" or chooses or refines
    asked = {
        BASE: config.base == SCRATCH,
        LATENTS: True,
        TEACHER: True,
        FEATURES: features,
        PROTOTYPES: True,
        DESCRIPTIONS: True,
        INITIAL: config.sampling.follow == "base",
        ADAPTER: bool(config.finetune.steps),
        CANDIDATES: True,
        SCREENED: config.privacy == "screen",
        CHOSEN: True,
        REFINED: refines,
        SOFT_LABEL_TEACHER: config.soft_labels,
        DISTILLED: True,
        SELF_TEST: bool(config.self_test.held_out),
    }
    return tuple(stage for stage, there in asked.items() if there)


def _private_line(config: Config) -> tuple[Stage, ...]:
    asked = {
        LATENTS: encodes(config),
        FEATURES: True,
        PROFILES: True,
        CENTRES: follows(config),
        TEACHER: has_teacher(config),
        PRIVATE_ADAPTER: bool(config.finetune.steps),
        PRIVATE_CANDIDATES: True,
        CHOSEN: True,
        MOMENTS: bool(config.refinement.steps),
        PRIVATE_REFINED: bool(config.refinement.steps),
        DISTILLED: True,
    }
    return tuple(stage for stage, there in asked.items() if there)
