import numpy as np
import pytest
import torch

from geodistill.distilled import DistilledSet
from geodistill.errors import RunError
from geodistill.report import embedding
from geodistill.report.embedding import _evenly, embed, nearest_agreement
from geodistill.scenes import SceneData


def test_agreement_by_hand() -> None:
    real = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    made = torch.tensor([[0.8, 0.6], [0.6, 0.8], [-0.8, 0.6]])
    found = nearest_agreement(made, torch.tensor([0, 0, 1]), real, torch.tensor([0, 1, 1]), 2)
    assert found == [0.5, 1.0]


def test_real_images_are_drawn_evenly() -> None:
    labels = torch.tensor([0] * 50 + [1] * 3 + [2] * 20)
    chosen = _evenly(labels, 10)
    assert torch.bincount(labels[chosen]).tolist() == [10, 3, 10]
    assert len(chosen.unique()) == 23
    assert torch.equal(chosen, _evenly(labels, 10))


def test_map_has_a_point_for_each_image_and_is_the_same_each_time(
    data: SceneData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "MOST_REAL", 40)
    chosen = [int((data.train.labels == label).nonzero()[0, 0]) for label in range(10)]
    copies = DistilledSet(data.train.pixels(chosen, size=32), torch.arange(10), data.train.classes)
    first, again = embed(copies, data.train), embed(copies, data.train)
    assert first.points.shape == (50, 2)
    assert np.array_equal(first.points, again.points)
    assert first.real.tolist() == [True] * 40 + [False] * 10
    assert np.bincount(first.labels).tolist() == [5] * 10
    assert np.isfinite(first.points).all()


def test_other_classes(data: SceneData) -> None:
    other = DistilledSet(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"))
    with pytest.raises(RunError) as caught:
        embed(other, data.train)
    assert str(caught.value) == "the scenes have other classes than the run: give the data that it was made from"
