"""Real images drawn at random, IPC of each class: the bar that every other method has to pass."""

import torch
from torch import Tensor

from geodistill.config import Config
from geodistill.distilled import DistilledSet
from geodistill.methods.stages import each_class, keep_scenes
from geodistill.run import Run
from geodistill.scenes.scenes import Scenes
from geodistill.seeding import generator


def make(scenes: Scenes, config: Config, run: Run) -> DistilledSet:
    """Return `config.ipc` real scenes of each class, drawn without replacement."""
    return keep_scenes("random", lambda: select(scenes, config.ipc, config.seed), scenes, config, run)


def select(scenes: Scenes, count: int, seed: int) -> Tensor:
    """Return int64 [classes * count]: indices of `count` scenes of each class, classes side by side."""
    random = generator(seed, "random")

    def drawn(own: Tensor) -> Tensor:
        return own[torch.randperm(len(own), generator=random)[:count]]

    return each_class(scenes, drawn)
