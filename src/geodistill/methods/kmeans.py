"""k-means: the real image nearest each of IPC centres of its class, ten restarts.

Features: those of the ImageNet backbone, of unit length. Unlike a prototype, the image is not asked to be far from the
other centres.
"""

import torch
from torch import Tensor

from geodistill.config import Config
from geodistill.distilled import DistilledSet
from geodistill.methods.stages import keep_scenes, scene_features
from geodistill.prototypes import find_prototypes
from geodistill.run import Run
from geodistill.scenes.scenes import Scenes


def make(scenes: Scenes, config: Config, run: Run) -> DistilledSet:
    """Return `config.ipc` real scenes of each class, those of the largest cluster first."""
    features = scene_features(scenes, config, run)
    return keep_scenes("kmeans", lambda: select(features, scenes, config), scenes, config, run)


def select(features: Tensor, scenes: Scenes, config: Config) -> Tensor:
    """Return int64 [classes * IPC]: the scene nearest each centre of `features` [N, D], classes side by side."""
    found = find_prototypes(features, scenes.labels, classes=scenes.classes, per_class=config.ipc, seed=config.seed)
    return torch.stack([members[0] for members in found.members])
