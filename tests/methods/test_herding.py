import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from geodistill.selection import herd


def test_by_hand() -> None:
    # The mean of the angles 0, 90, 45 lies at 45. Then 2 mu - phi_45 is along 45 too, to which 0 and 90 degrees are
    # equally near: the first is taken.
    half = 0.5**0.5
    assert herd(torch.tensor([[1.0, 0.0], [0.0, 1.0], [half, half]]), 3).tolist() == [2, 0, 1]


@given(st.integers(0, 10**6), st.integers(2, 9), st.integers(1, 4))
def test_each_scene_brings_the_mean_nearest_to_the_class_s(seed: int, many: int, width: int) -> None:
    features = F.normalize(torch.randn(many, width + 1, generator=torch.Generator().manual_seed(seed)), dim=1)
    points = F.normalize(features.double(), dim=1).numpy()
    count = (many + 1) // 2
    herded, taken = herd(torch.from_numpy(points), count).tolist(), list[int]()
    for _ in range(count):
        # All scenes not yet taken are tried.
        away = {
            index: np.linalg.norm(points.mean(axis=0) - points[[*taken, index]].mean(axis=0))
            for index in range(many)
            if index not in taken
        }
        taken.append(herded[len(taken)])
        assert away[taken[-1]] < min(away.values()) + 1e-9  # ties are anyone's


def test_scenes_that_coincide_are_taken_once_each() -> None:
    assert sorted(herd(torch.tensor([[1.0, 0.0]] * 4), 4).tolist()) == [0, 1, 2, 3]


def test_towards_a_mean_from_elsewhere() -> None:
    # 0 degrees is nearest to the mean at 20; then w = 2 mu - phi_0 lies at 43 degrees, and of 45 and 90 takes 45.
    angles = torch.tensor([0.0, 45.0, 90.0, 20.0]).deg2rad()
    points = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert herd(points[:3], 2, points[3]).tolist() == [0, 1]
