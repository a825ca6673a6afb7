"""k-centre (Sener and Savarese, ICLR 2018): real images that leave none of the class far from all of them.

Features: those of the ImageNet backbone, of unit length; Euclidean distance. Greedy: each step takes the scene that is
farthest from those taken, which keeps the largest distance that is left within twice the least possible (Gonzalez
1985). The paper starts from the labelled pool of active learning; here there is none, and the first centre is the scene
nearest the mean of the class.
"""

import torch
from torch import Tensor

from geodistill.distilled import DistilledSet
from geodistill.provenance import Made
from geodistill.stages.context import Context
from geodistill.stages.distilled import each_class, keep_scenes
from geodistill.stages.latents import scene_features


def make(context: Context) -> Made[DistilledSet]:
    """Return `config.ipc` real scenes of each class, its greedy centres."""
    features = scene_features(context)

    def select() -> Tensor:
        return each_class(context.scenes, lambda own: own[centres(features.value[own], context.config.ipc)])

    return keep_scenes(context, select)


def centres(features: Tensor, count: int) -> Tensor:
    """Return int64 [count]: the rows of `features` [n, D] taken as centres, all different; ties to the first."""
    points = features.double()
    taken = [int((points - points.mean(dim=0)).norm(dim=1).argmin())]
    left = torch.full((len(points),), torch.inf, dtype=points.dtype)  # of each scene, to the nearest centre
    while len(taken) < count:
        left = torch.minimum(left, (points - points[taken[-1]]).norm(dim=1))
        left[taken[-1]] = -torch.inf  # not to be taken again, even where scenes coincide
        taken.append(int(left.argmax()))
    return torch.tensor(taken)
