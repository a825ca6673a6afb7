from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from geodistill.errors import ConfigError
from geodistill.privacy import nearness as module
from geodistill.privacy import nearness_ratio, real_distances
from geodistill.privacy.nearness import (
    Nearness,
    RealDistances,
    _least_l2,
    feature_distances,
    pixel_vectors,
    symmetries,
)
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


def test_the_ratio_is_the_smaller_one_of_two_ratios_of_medians(monkeypatch):
    """Distances are drawn by hand; the images stand for their order."""
    pixel, feature = torch.tensor([1.0, 2.0, 9.0]), torch.tensor([0.3, 0.6, 0.7])
    monkeypatch.setattr(module, "pixel_distances", lambda images, real: pixel)
    monkeypatch.setattr(module, "feature_distances", lambda images, real: feature)
    images = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    real = RealDistances(torch.zeros(1), torch.zeros(1), 4.0, 0.8)
    assert nearness_ratio(images, real) == Nearness(pixel=0.5, feature=pytest.approx(0.75), ratio=0.5)
    assert nearness_ratio(images, replace(real, pixel=2.0)).ratio == pytest.approx(0.75)
    found = real_distances(images, images, features=torch.zeros(3, 4))
    assert (found.pixel, found.feature) == (2.0, pytest.approx(0.6))


def test_features_are_compared_with_all_blocks_and_orientations(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 2)
    monkeypatch.setattr(module, "backbone_features", lambda images: F.normalize(images[:, :, 0, 0].float(), dim=1))
    images = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    images[0, :, 1, 1] = torch.tensor([3, 4, 0], dtype=torch.uint8)  # seen in the corner once it is turned
    real = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.6, 0.8, 0.0]])
    assert feature_distances(images, real).tolist() == [pytest.approx(0, abs=1e-6)]


def test_images_are_averaged_over_areas():
    checks = (torch.arange(64)[:, None] + torch.arange(64)) % 2 * 255
    assert pixel_vectors(checks.expand(1, 3, 64, 64).to(torch.uint8)).unique().tolist() == [0.5]
