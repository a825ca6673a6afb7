import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from geodistill.methods.random import select
from geodistill.scenes import Scenes


def _scenes(labels: list[int]) -> Scenes:
    images = [np.full((1, 1, 3), index, np.uint8) for index in range(len(labels))]
    return Scenes.from_arrays(images, labels, ("Beach", "Port"))


@given(st.permutations([0, 0, 0, 0, 1, 1, 1]), st.integers(1, 3), st.integers(0, 2**40))
def test_so_many_different_scenes_of_each_class(labels: list[int], count: int, seed: int) -> None:
    chosen = select(_scenes(labels), count, seed)
    assert [labels[index] for index in chosen] == [0] * count + [1] * count
    assert len(set(chosen.tolist())) == 2 * count
    assert torch.equal(chosen, select(_scenes(labels), count, seed))


def test_every_scene_is_as_likely() -> None:
    scenes = _scenes([0, 0, 0, 0, 1])
    drawn = torch.tensor([int(select(scenes, 1, seed)[0]) for seed in range(1000)])
    # Of a binomial (1000, 1/4): mean 250, deviation 13.7.
    assert all(abs(int(times) - 250) < 5 * 13.7 for times in torch.bincount(drawn, minlength=4))
