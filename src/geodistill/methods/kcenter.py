"""k-centre (Sener and Savarese, ICLR 2018): real images, chosen so that no image of the class is far from all of them.

Features are those of the ImageNet backbone, of unit length; distances are Euclidean. The choice is greedy: each step
takes the scene that is farthest from those taken. The largest remaining distance is then at most twice the smallest
possible one (Gonzalez 1985). The paper starts from the labelled pool of active learning. There is no pool here, so the
first centre is the scene nearest to the mean of the class.
"""

import torch
from torch import Tensor

from geodistill.distilled import DistilledSet
from geodistill.provenance import Made
from geodistill.stages.context import Context
from geodistill.stages.distilled import each_class, keep_scenes
from geodistill.stages.latents import scene_features


def make(context: Context) -> Made[DistilledSet]:
    """Return `config.ipc` real scenes of each class, the greedy centres."""
    features = scene_features(context)

    def select() -> Tensor:
        return each_class(context.scenes, lambda own: own[centres(features.value[own], context.config.ipc)])

    return keep_scenes(context, select)


def centres(features: Tensor, count: int) -> Tensor:
    """Return int64 [count]: the rows of `features` [n, D] taken as centres, all different; ties go to the first row."""
    points = features.double()
    taken = [int((points - points.mean(dim=0)).norm(dim=1).argmin())]
    left = torch.full((len(points),), torch.inf, dtype=points.dtype)  # distance to the nearest centre
    while len(taken) < count:
        left = torch.minimum(left, (points - points[taken[-1]]).norm(dim=1))
        left[taken[-1]] = -torch.inf  # never taken again, even if scenes coincide
        taken.append(int(left.argmax()))
    return torch.tensor(taken)
