import numpy as np
import torch

from geodistill.config import Config
from geodistill.methods import kmeans
from geodistill.scenes import Scenes


def test_the_scene_nearest_each_centre(tiny: Config) -> None:
    # Class 0: {0, 1, 5} around 2 and {100, 102} around 101, a tie: the first. Class 1: {50, 52, 57} and {7}.
    features = torch.tensor([[0.0], [50.0], [1.0], [52.0], [5.0], [57.0], [100.0], [7.0], [102.0]])
    labels = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1, 0])
    scenes = Scenes.from_arrays(np.zeros((9, 1, 1, 3), np.uint8), labels, ("Beach", "Port"))
    assert kmeans.select(features, scenes, tiny).tolist() == [2, 6, 3, 7]
