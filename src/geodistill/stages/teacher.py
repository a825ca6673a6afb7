"""Stages `teacher` and `labeller`: the classifier of real latents, and the classifier that gives soft labels."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from geodistill.evaluation.labeller import load_labeller, save_labeller, train_labeller
from geodistill.pipeline import LABELLER, TEACHER
from geodistill.provenance import Made
from geodistill.scenes.splits import hold_out
from geodistill.stages.context import Context
from geodistill.teacher import Teacher, load_teacher, train_teacher

_LABELLER = "labeller.safetensors"


def teach(context: Context, latents: Made[Tensor]) -> Made[Teacher]:
    """Return the frozen teacher from stage `teacher`."""
    scenes, config = context.scenes, context.config

    def build(folder: Path) -> dict[str, Any]:
        _, held = hold_out(scenes, config.teacher.held_out, TEACHER.name)
        return train_teacher(
            latents.value,
            scenes.labels,
            held,
            config.teacher,
            seed=config.seed,
            folder=folder,
            precision=config.precision,
        )

    given = [latents, config.teacher.model_dump(), config.seed]
    return context.run.make(TEACHER, build, load_teacher, given=given)


def label(context: Context) -> Made[nn.Module] | None:
    """Return the labeller from stage `labeller`, or None where no soft labels are asked for."""
    scenes, config = context.scenes, context.config
    if not config.soft_labels:
        return None

    def build(folder: Path) -> None:
        save_labeller(train_labeller(scenes, config.size), folder / _LABELLER)

    def load(folder: Path) -> nn.Module:
        return load_labeller(folder / _LABELLER, len(scenes.classes))

    return context.run.make(LABELLER, build, load, given=[scenes.fingerprint(), config.size])
