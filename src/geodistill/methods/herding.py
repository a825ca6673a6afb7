"""Herding (Welling, ICML 2009): real images, chosen so that their mean features follow those of the class.

Features: those of the ImageNet backbone, of unit length. Weights start as w_0 = μ, the mean over the class; each step
takes the scene with the largest ⟨w, φ⟩ among those not yet taken and sets w to w + μ - φ. For features of unit length
that is the scene which brings the mean of those taken nearest to μ.
"""

from torch import Tensor

from geodistill.config import Config
from geodistill.distilled import DistilledSet
from geodistill.methods.stages import each_class, keep_scenes, scene_features
from geodistill.run import Run
from geodistill.scenes.scenes import Scenes
from geodistill.selection import herd


def make(scenes: Scenes, config: Config, run: Run) -> DistilledSet:
    """Return the first `config.ipc` real scenes of each class that herding takes."""
    features = scene_features(scenes, config, run)

    def select() -> Tensor:
        return each_class(scenes, lambda own: own[herd(features[own], config.ipc)])

    return keep_scenes("herding", select, scenes, config, run)
