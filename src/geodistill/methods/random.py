"""Real images drawn at random, IPC of each class: the baseline for every other method."""

import torch
from torch import Tensor

from geodistill.distilled import DistilledSet
from geodistill.provenance import Made
from geodistill.scenes.scenes import Scenes
from geodistill.seeding import generator
from geodistill.stages.context import Context
from geodistill.stages.distilled import each_class, keep_scenes


def make(context: Context) -> Made[DistilledSet]:
    """Return `config.ipc` real scenes of each class, drawn without replacement."""
    config = context.config
    return keep_scenes(context, lambda: select(context.scenes, config.ipc, config.seed))


def select(scenes: Scenes, count: int, seed: int) -> Tensor:
    """Return int64 [classes * count]: indices of `count` scenes of each class, classes side by side."""
    random = generator(seed, "random")

    def drawn(own: Tensor) -> Tensor:
        return own[torch.randperm(len(own), generator=random)[:count]]

    return each_class(scenes, drawn)
