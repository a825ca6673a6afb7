import pytest
import torch

from geodistill.privacy import copyprint
from geodistill.privacy.copyprint import changed_copies, learn_copyprint
from geodistill.privacy.neighbours import by_embedding
from geodistill.scenes import builtin_scenes


def test_changed_copies_lie_nearest_to_what_they_are_copies_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copyprint, "_STEPS", 60)
    scenes = builtin_scenes(train_per_class=8, test_per_class=1, size=64).train
    train = scenes.pixels(size=64)
    learned = learn_copyprint(train)
    prints = learned(train)
    assert torch.allclose(prints.norm(dim=1), torch.ones(len(train)), atol=1e-5)
    assert torch.equal(learn_copyprint(train)(train[:3]), learned(train[:3]))
    copies = changed_copies(train, seed=9, rank=0)
    found = by_embedding(copies, prints, learned)
    assert (found.nearest == torch.arange(len(train))).float().mean() > 0.8


def test_changed_copies_differ_and_repeat() -> None:
    image = builtin_scenes(train_per_class=1, test_per_class=1, size=32).train.pixels(size=32)[:1]
    one, other = changed_copies(image, 0, 0), changed_copies(image, 0, 1)
    assert one.shape == image.shape
    assert not torch.equal(one, other)
    assert not torch.equal(one, image)
    assert torch.equal(one, changed_copies(image, 0, 0))
