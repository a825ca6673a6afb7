"""Which scenes the trained parts of a run learn from: all of them, or a fair share of a very large archive.

A base from scratch, the latent teacher, the adapter, the test of stage `following` and refinement take a bounded number
of steps. From a very large archive they would never see most scenes, and they would hardly see a rare class. They learn
from `MOST` scenes of it instead, equally many of each class; a rare class keeps all its scenes. All scenes are encoded
and clustered, candidates start from any of them, and selection among candidates follows the mean of all.
"""

from typing import Any

import torch

from geodistill.scenes.scenes import Scenes
from geodistill.scenes.splits import fair_share

# Largest number of scenes; half of what teacher and adapter draw by default.
MOST = 2**15


def learned(scenes: Scenes, seed: int) -> torch.Tensor:
    """Return int64 [n], sorted: the indices of the scenes that the trained parts of a run learn from."""
    return fair_share(scenes.labels, MOST, seed)


def unless_all(scenes: Scenes) -> list[Any]:
    """Return the part of a stage's fingerprint that covers the choice of scenes: nothing if all are learned from."""
    return [["learned", MOST]] if len(scenes) > MOST else []
