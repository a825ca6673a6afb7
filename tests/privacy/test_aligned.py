import pytest
import torch
from torch import Tensor

from geodistill.errors import ConfigError
from geodistill.privacy.aligned import aligned_nearness, blurred_to, sharpness
from geodistill.privacy.copies import CopySearch, find_copies
from geodistill.scenes import builtin_scenes

SIZE = 64


@pytest.fixture(scope="module")
def train() -> Tensor:
    return builtin_scenes(train_per_class=4, test_per_class=1, size=SIZE).train.pixels(size=SIZE)


@pytest.fixture(scope="module")
def fresh() -> Tensor:
    return builtin_scenes(train_per_class=1, test_per_class=2, size=SIZE, seed=9).test.pixels(size=SIZE)


def test_turned_training_images_are_copies_and_fresh_images_are_not(train: Tensor, fresh: Tensor) -> None:
    near = aligned_nearness(train[::4].transpose(2, 3), fresh, CopySearch(train))
    assert near.ratio < 0.05
    assert near.low <= near.ratio <= near.high
    same = aligned_nearness(fresh, fresh, CopySearch(train))
    assert (same.ratio, same.sharpness) == (1, 1)
    assert same.low < 1 < same.high


@pytest.mark.slow
def test_blur_alone_makes_no_image_nearer(train: Tensor, fresh: Tensor) -> None:
    blurred = blurred_to(fresh, 0.4 * sharpness(fresh))
    # Without the match it would.
    assert find_copies(blurred, train).distance.median() < find_copies(fresh, train).distance.median()
    near = aligned_nearness(blurred, fresh, CopySearch(train))
    assert near.ratio == pytest.approx(1, abs=0.05)
    assert near.sharpness == pytest.approx(0.4, abs=0.02)
    # Nor does it hide a copy.
    assert aligned_nearness(blurred_to(train[::4], 0.4 * sharpness(fresh)), fresh, CopySearch(train)).ratio < 0.25


def test_a_set_sharper_than_the_held_out_images_is_blurred_to_match(train: Tensor, fresh: Tensor) -> None:
    blurred = blurred_to(fresh, 0.4 * sharpness(fresh))
    near = aligned_nearness(fresh, blurred, CopySearch(train))
    assert near.ratio == pytest.approx(1, abs=0.05)
    assert near.sharpness == pytest.approx(2.5, abs=0.1)


def test_known_distances_are_used_for_the_group_that_is_not_blurred(train: Tensor, fresh: Tensor) -> None:
    ones = torch.ones(len(fresh))
    assert aligned_nearness(fresh, fresh, CopySearch(train), (ones / 2, ones)).ratio == 0.5


def test_sharpness_by_hand() -> None:
    # The filter takes all of the finest chequers, and nothing of a constant.
    chequers = 255 * ((torch.arange(8)[:, None] + torch.arange(8)) % 2).expand(1, 3, 8, 8).to(torch.uint8)
    assert sharpness(chequers) == pytest.approx(1, abs=1e-4)
    assert blurred_to(chequers, 0.5).float().std() < chequers.float().std()


def test_held_out_copies_are_refused(train: Tensor) -> None:
    with pytest.raises(ConfigError) as caught:
        aligned_nearness(train[:3], train[:5], CopySearch(train))
    assert str(caught.value) == "half of the held-out images are copies of training images: remove the copies"
