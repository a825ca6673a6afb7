"""Herding (Welling, ICML 2009): real images, chosen so that their mean features follow those of the class.

Features are those of the ImageNet backbone, of unit length. The weights start as w_0 = μ, the mean over the class. Each
step takes the scene with the largest ⟨w, φ⟩ among those not yet taken, and sets w to w + μ - φ. For features of unit
length, this scene brings the mean of the taken scenes nearest to μ.
"""

from torch import Tensor

from geodistill.distilled import DistilledSet
from geodistill.provenance import Made
from geodistill.selection import herd
from geodistill.stages.context import Context
from geodistill.stages.distilled import each_class, keep_scenes
from geodistill.stages.latents import scene_features


def make(context: Context) -> Made[DistilledSet]:
    """Return the first `config.ipc` real scenes of each class that herding takes."""
    features = scene_features(context)

    def select() -> Tensor:
        return each_class(context.scenes, lambda own: own[herd(features.value[own], context.config.ipc)])

    return keep_scenes(context, select)
