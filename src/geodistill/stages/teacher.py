"""The teachers: of latents (stage `teacher`), and of soft labels for images (stage `labeller`)."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from geodistill.evaluation.soft_label_teacher import (
    load_soft_label_teacher,
    save_soft_label_teacher,
    train_soft_label_teacher,
)
from geodistill.latent_teacher import LatentTeacher, load_latent_teacher, train_latent_teacher
from geodistill.pipeline import SOFT_LABEL_TEACHER, TEACHER
from geodistill.provenance import Made
from geodistill.run import Stored, subset
from geodistill.scenes.scenes import Scenes
from geodistill.scenes.splits import hold_out
from geodistill.stages.context import Context
from geodistill.stages.learned import learned, unless_all

_WEIGHTS = "labeller.safetensors"


def teach(context: Context, latents: Made[Stored]) -> Made[LatentTeacher]:
    """Return the frozen latent teacher from stage `teacher`."""
    scenes, config = context.scenes, context.config

    def build(folder: Path) -> dict[str, Any]:
        part = learned(scenes, config.seed)
        own = scenes.subset(part)
        held = _held(own, config.teacher.held_out)
        return train_latent_teacher(
            subset(latents.value, part),
            own.labels,
            held,
            config.teacher,
            seed=config.seed,
            folder=folder,
            precision=config.precision,
        )

    given = [latents, config.teacher.model_dump(), config.seed, *unless_all(scenes)]
    return context.run.make(TEACHER, build, load_latent_teacher, given=given)


def _held(scenes: Scenes, fraction: float) -> Tensor:
    """Return which scenes validate the teacher: about `fraction`, but no class as a whole, which it would not learn."""
    kept, held = hold_out(scenes, fraction, TEACHER.name)
    shown = torch.bincount(scenes.labels[kept], minlength=len(scenes.classes)) > 0
    return held[shown[scenes.labels[held]]]


def soft_label_teacher(context: Context) -> Made[nn.Module] | None:
    """Return the soft-label teacher from stage `labeller`, or None if no soft labels are asked for."""
    scenes, config = context.scenes, context.config
    if not config.soft_labels:
        return None

    def build(folder: Path) -> None:
        save_soft_label_teacher(train_soft_label_teacher(scenes, config.size), folder / _WEIGHTS)

    def load(folder: Path) -> nn.Module:
        return load_soft_label_teacher(folder / _WEIGHTS, len(scenes.classes))

    return context.run.make(SOFT_LABEL_TEACHER, build, load, given=[scenes.fingerprint(), config.size])
