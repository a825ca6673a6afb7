"""A method of another package: the first images of each class."""

import torch

from geodistill.distilled import DistilledSet
from geodistill.provenance import Made, Method
from geodistill.stages.context import Context
from geodistill.stages.distilled import each_class, keep_scenes

METHOD = Method("first", "the first images of each class", "real", "toy")


def make(context: Context) -> Made[DistilledSet]:
    def select() -> torch.Tensor:
        return each_class(context.scenes, lambda own: own[: context.config.ipc])

    return keep_scenes(context, select)
