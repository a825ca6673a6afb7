"""k-means: the real image nearest to each of the IPC centres of its class; ten restarts.

Features are those of the ImageNet backbone, of unit length. Unlike a prototype of DPD, the image need not be far from
the other centres.
"""

import torch
from torch import Tensor

from geodistill.config import Config
from geodistill.distilled import DistilledSet
from geodistill.prototypes import find_prototypes
from geodistill.provenance import Made
from geodistill.run import Stored
from geodistill.scenes.scenes import Scenes
from geodistill.stages.context import Context
from geodistill.stages.distilled import keep_scenes
from geodistill.stages.latents import scene_features


def make(context: Context) -> Made[DistilledSet]:
    """Return `config.ipc` real scenes of each class, those of the largest cluster first."""
    features = scene_features(context)
    return keep_scenes(context, lambda: select(features.value, context.scenes, context.config))


def select(features: Stored, scenes: Scenes, config: Config) -> Tensor:
    """Return int64 [classes * IPC]: the scene nearest to each centre of `features` [N, D], class by class."""
    found = find_prototypes(features, scenes.labels, classes=scenes.classes, per_class=config.ipc, seed=config.seed)
    return torch.stack([members[0] for members in found.members])
