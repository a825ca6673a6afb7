import pytest
import torch
from torch import Tensor

from geodistill.errors import PrivacyError
from geodistill.privacy.neighbours import by_structure
from geodistill.privacy.screen import Screen, make_screen
from geodistill.scenes import builtin_scenes
from geodistill.scenes.views import dihedral

Real = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def real() -> Real:
    scenes = builtin_scenes(train_per_class=30, test_per_class=1, size=32).train
    return scenes.pixels(size=32), scenes.labels


@pytest.fixture(scope="module")
def screen(real: Real) -> Screen:
    return make_screen(*real, seed=0)


def test_training_images_do_not_pass_in_any_orientation(screen: Screen, real: Real) -> None:
    images = torch.stack([dihedral(image, index % 8) for index, image in enumerate(real[0][::7])])
    assert not screen.passes(images, real[1][::7]).any()


def test_nearly_all_fresh_images_pass(screen: Screen) -> None:
    fresh = builtin_scenes(train_per_class=10, test_per_class=1, size=32, seed=99).train
    assert screen.passes(fresh.pixels(size=32), fresh.labels).float().mean() > 0.94


def test_limits_are_those_of_images_set_apart_from_their_own_class(real: Real) -> None:
    images, labels = (part[real[1] < 2] for part in real)
    found = make_screen(images, labels, seed=3)
    assert torch.equal(found.train, images)
    # Which images are set apart is drawn; the limits must be those of some of them, so no less than the least of all.
    alone = []
    for label in (0, 1):
        own = images[labels == label]
        for index in range(len(own)):
            rest = torch.cat([own[:index], own[index + 1 :]])
            alone.append(by_structure(own[index : index + 1], rest))
    assert found.distance >= min(float(one.distance) for one in alone) - 1e-6
    assert found.distance <= max(float(one.distance) for one in alone)
    assert 0 < found.ratio < 1
    assert make_screen(images, labels, seed=3).ratio == found.ratio


def test_only_images_of_the_same_class_count(screen: Screen, real: Real) -> None:
    images, labels = real
    other = (labels[:1] + 1) % 10
    assert not screen.passes(images[:1], labels[:1]).any()
    assert screen.passes(images[:1], other).all()


def test_class_too_small() -> None:
    with pytest.raises(PrivacyError) as caught:
        make_screen(torch.zeros(5, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 0, 0, 1, 1]), seed=0)
    assert str(caught.value) == (
        "the smallest class has 2 training images: screening needs 3 or more a class, add images or leave the class out"
    )
