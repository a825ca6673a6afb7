import pytest
import torch
from torch import Tensor

from geodistill.errors import PrivacyError
from geodistill.privacy import screen as module
from geodistill.privacy.neighbours import Neighbours, by_structure
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


@pytest.mark.parametrize(("distance", "ratio", "passes"), [(0.5, 0.5, True), (0.4, 0.9, False), (0.9, 0.4, False)])
def test_both_limits_must_be_met(distance: float, ratio: float, passes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Neighbours(torch.tensor([0]), torch.tensor([distance]), torch.tensor([ratio]))
    monkeypatch.setattr(module, "_of_class", lambda *_: found)
    images, labels = torch.zeros(1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, dtype=torch.int64)
    assert Screen(images, labels, 0.5, 0.5).passes(images, labels).tolist() == [passes]


def test_a_hundredth_of_the_images_set_apart_is_nearer_than_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def of_class(images: Tensor, labels: Tensor, train: Tensor, of: Tensor) -> Neighbours:
        seen.append((images[:, 0, 0, 0].tolist(), torch.bincount(labels).tolist(), torch.bincount(of).tolist()))
        count = len(images)
        return Neighbours(torch.zeros(count, dtype=torch.int64), torch.arange(count) / 1.0, torch.arange(count) / 10)

    monkeypatch.setattr(module, "_of_class", of_class)
    labels = torch.tensor([0] * 150 + [1] * 50)
    images = torch.arange(200, dtype=torch.uint8)[:, None, None, None].expand(200, 3, 8, 8).contiguous()
    found = make_screen(images, labels, seed=0)
    # A fifth of each class is set apart: 30 and 10. A hundredth of 40 lies at 0.39.
    assert seen[0][1:] == ([30, 10], [120, 40])
    assert (found.distance, found.ratio) == (pytest.approx(0.39), pytest.approx(0.039))
    make_screen(images, labels, seed=1)
    assert seen[0][0] != seen[1][0]
