from itertools import combinations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from geodistill.methods.kcenter import centres


def test_by_hand() -> None:
    # Mean 4: the first centre is 3; the farthest from it is 10, then 0 (3 away), then 7 (3 from 10), before 1.
    features = torch.tensor([[0.0], [1.0], [3.0], [3.0], [7.0], [10.0]])
    assert centres(features, 4).tolist() == [2, 5, 0, 4]


def _radius(points: np.ndarray, chosen: tuple[int, ...] | list[int]) -> float:
    distances = np.linalg.norm(points[:, None] - points[None, list(chosen)], axis=2)  # [n, k]
    return float(distances.min(axis=1).max())


@given(st.integers(0, 10**6), st.integers(2, 9), st.integers(1, 4))
def test_radius_is_within_twice_the_least_possible(seed: int, many: int, count: int) -> None:
    points = np.random.default_rng(seed).normal(size=(many, 2))
    count = min(count, many)
    chosen = centres(torch.from_numpy(points), count).tolist()
    assert len(set(chosen)) == count
    best = min(_radius(points, some) for some in combinations(range(many), count))
    assert _radius(points, chosen) <= 2 * best + 1e-12


def test_scenes_that_coincide_are_taken_once_each() -> None:
    assert sorted(centres(torch.ones(4, 2), 4).tolist()) == [0, 1, 2, 3]
