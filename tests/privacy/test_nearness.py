import pytest
import torch

from geodistill.errors import ConfigError
from geodistill.privacy import nearness_ratio, real_distances
from geodistill.privacy.nearness import _least_l2, symmetries
from geodistill.seeding import generator


def smooth(count, seed, size=32):
    """Random smooth colour fields."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=random) * 255
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear").to(torch.uint8)


def test_the_eight_symmetries_are_different_and_hold_the_same_pixels():
    image = torch.arange(12).view(1, 3, 2, 2)
    turned = symmetries(image)
    assert len({tuple(t.flatten().tolist()) for t in turned}) == 8
    assert all(sorted(t.flatten().tolist()) == list(range(12)) for t in turned)


@pytest.mark.parametrize("turn", range(8))
def test_copies_give_zero_in_any_orientation(turn):
    train = smooth(6, 0)
    copies = symmetries(train[2:4])[turn]
    found = nearness_ratio(copies, real_distances(train, smooth(3, 1)))
    assert found.pixel == 0
    assert found.feature == pytest.approx(0, abs=1e-3)
    assert found.ratio == min(found.pixel, found.feature)


def test_fresh_images_give_about_one():
    found = nearness_ratio(smooth(12, 2), real_distances(smooth(12, 0), smooth(12, 1)))
    assert found.pixel == pytest.approx(1, abs=0.2)
    assert found.feature == pytest.approx(1, abs=0.4)


def test_blocked_search_is_exact(monkeypatch):
    monkeypatch.setattr("geodistill.privacy.nearness.BLOCK", 3)
    random = torch.Generator().manual_seed(0)
    queries, real = torch.rand(5, 40, generator=random), torch.rand(10, 40, generator=random)
    assert torch.allclose(_least_l2(queries, real), torch.cdist(queries, real).amin(1))


def test_held_out_images_are_limited(monkeypatch):
    monkeypatch.setattr("geodistill.privacy.nearness.MAX_HELD_OUT", 4)
    train, held_out = smooth(4, 0), smooth(8, 1)
    drawn = torch.randperm(8, generator=generator(5, "nearness"))[:4]
    limited, by_hand = real_distances(train, held_out, seed=5), real_distances(train, held_out[drawn])
    assert (limited.pixel, limited.feature) == (by_hand.pixel, by_hand.feature)


def test_bad_sets():
    images = smooth(2, 0)
    with pytest.raises(ConfigError, match=r"^no held-out images: the nearness ratio needs distilled, training and"):
        real_distances(images, images[:0])
    with pytest.raises(ConfigError, match=r"^no distilled images: the nearness ratio needs"):
        nearness_ratio(images[:0], real_distances(images, smooth(2, 1)))
    message = r"^half of the held-out images are copies of training images \(in pixels\): remove the copies$"
    with pytest.raises(ConfigError, match=message):
        real_distances(images, images)
