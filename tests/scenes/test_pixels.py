import numpy as np
import pytest
import torch

from geodistill.scenes import Scenes
from geodistill.scenes.pixels import Pixels, in_blocks, some_of


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    random = np.random.default_rng(0)
    arrays = [random.integers(0, 256, (9, 8, 3), dtype=np.uint8) for _ in range(7)]
    return Scenes.from_arrays(arrays, [0, 1, 0, 1, 1, 0, 1], ("a", "b"))


def test_pixels_are_those_of_the_scenes(scenes: Scenes) -> None:
    whole, kept = scenes.pixels(size=4), Pixels(scenes, 4)
    assert (len(kept), kept.shape) == (7, whole.shape)
    for which in (slice(2, 5), slice(6, 20), torch.tensor([5, 0, 5]), scenes.labels == 1):
        assert torch.equal(kept[which], whole[which])
        if isinstance(which, torch.Tensor):
            some = kept.subset(which)
            assert torch.equal(some[:], whole[which])
            assert torch.equal(some.labels, scenes.labels[which])
            assert torch.equal(some.subset(torch.tensor([1]))[:], whole[which][1:2])


def test_images_in_memory_and_in_files_are_used_alike(scenes: Scenes) -> None:
    whole = scenes.pixels(size=4)
    for images in (whole, Pixels(scenes, 4)):
        blocks = list(in_blocks(images, 3))
        assert [len(block) for block in blocks] == [3, 3, 1]
        assert torch.equal(torch.cat(blocks), whole)
        assert torch.equal(some_of(images, scenes.labels == 0)[:], whole[scenes.labels == 0])


def test_only_what_is_asked_for_is_read(scenes: Scenes, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    image = scenes._image
    monkeypatch.setattr(scenes, "_image", lambda index: (read.append(index), image(index))[1])
    kept = Pixels(scenes, 4).subset(torch.tensor([6, 2, 4]))
    assert read == []
    assert len(kept[1:]) == 2
    assert sorted(read) == [2, 4]
