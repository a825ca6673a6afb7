from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from geodistill.distilled import DistilledSet
from geodistill.privacy import null as module
from geodistill.privacy.membership import Seen, seen
from geodistill.privacy.null import ALARM, Null, _best, _Class, _p_value, _scored, null_of
from geodistill.scenes import SceneData, builtin_scenes


@pytest.fixture(scope="module", autouse=True)
def cheap_features() -> Iterator[None]:
    """Features that take no network: the attacks are tested in test_membership.py."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("geodistill.privacy.membership.backbone_features", _small)
        yield


def _small(images: Tensor) -> Tensor:
    return F.normalize(F.adaptive_avg_pool2d(images.float(), 6).flatten(1) - 127, dim=1)


@pytest.fixture(scope="module")
def data() -> SceneData:
    """Ten classes of ten training images and twelve held-out ones."""
    return builtin_scenes(train_per_class=10, test_per_class=12, size=32)


@pytest.fixture(scope="module")
def views(data: SceneData) -> tuple[Seen, Seen, Tensor]:
    assert data.test is not None
    train, test = (part.pixels(size=32) for part in (data.train, data.test))
    return seen(train, data.train.labels), seen(test, data.test.labels), test


def of_set(images: Tensor, labels: Tensor, data: SceneData, views: tuple[Seen, Seen, Tensor]) -> Null:
    found = null_of(DistilledSet(images, labels, data.train.classes), data.train.classes, *views)
    assert found is not None
    return found


def test_training_images_leak_and_are_counted(data: SceneData, views: tuple[Seen, Seen, Tensor]) -> None:
    chosen = torch.arange(100)[torch.arange(100) % 10 < 3]
    found = of_set(data.train.pixels(chosen, size=32), data.train.labels[chosen], data, views)
    assert found.p == 1 / 200
    assert found.leaks
    assert (found.images, found.train, len(found.drawn)) == (30, 100, 199)
    # All thirty are found. Of the others as many are as of training images where there is nothing to be found.
    assert found.observed[0] >= 0.3
    value, low, high = found.exposed
    assert low <= value <= high
    assert 25 < value <= 30


def test_one_image_in_ten_leaks_too(data: SceneData, views: tuple[Seen, Seen, Tensor]) -> None:
    fresh = builtin_scenes(train_per_class=3, test_per_class=1, size=32, seed=99).train
    images = fresh.pixels(size=32)
    images[::3] = data.train.pixels(torch.arange(0, 100, 10), size=32)
    found = of_set(images, fresh.labels, data, views)
    assert found.leaks
    assert found.exposed[0] < 20


@pytest.mark.parametrize("seed", [97, 98, 99])
def test_fresh_images_do_not_leak(seed: int, data: SceneData, views: tuple[Seen, Seen, Tensor]) -> None:
    fresh = builtin_scenes(train_per_class=3, test_per_class=1, size=32, seed=seed).train
    found = of_set(fresh.pixels(size=32), fresh.labels, data, views)
    assert not found.leaks
    assert found.exposed[1] == 0


@pytest.mark.slow
def test_p_values_of_held_out_sets_are_spread_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SETS", 19)
    many = builtin_scenes(train_per_class=10, test_per_class=24, size=32)
    assert many.test is not None
    train, test = many.train.pixels(size=32), many.test.pixels(size=32)
    known, held, place = seen(train, many.train.labels), seen(test, many.test.labels), torch.arange(240) % 24
    found = []
    for first in range(0, 12, 2):
        inside = (place >= first) & (place < first + 2)
        others = Seen(tuple(vectors[~inside] for vectors in held.vectors), held.labels[~inside])
        own = DistilledSet(test[inside], many.test.labels[inside], many.train.classes)
        null = null_of(own, many.train.classes, known, others, test[~inside], seed=first)
        assert null is not None
        found.append(null.p)
    assert 0.25 < sum(found) / len(found) < 0.85
    assert len(set(found)) > 3


def _classes_at_random(seed: int, classes: int, held: int, ipc: int) -> list[_Class]:
    """Return classes of 20 training images, held-out images and a set's images, all drawn alike, in four numbers."""
    random = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(classes):
        real, own = torch.randn(20 + held, 4, generator=random), torch.randn(ipc, 4, generator=random)
        among, pool = torch.cdist(own, own), torch.cdist(real, real[20:])
        found.append(_Class(20, (torch.cdist(real, own),), (among,), (pool,)))
    return found


@pytest.mark.parametrize(("held", "ipc"), [(5, 10), (12, 10)])
def test_few_held_out_images_raise_no_false_alarm(held: int, ipc: int) -> None:
    sets, runs, at = 19, 100, 0.05
    alarms = 0
    for seed in range(runs):
        parts = _classes_at_random(seed, 10, held, ipc)
        observed = _best(parts, None, torch.Generator().manual_seed(seed), (0.1,))
        drawn = []
        for k in range(sets):
            random = torch.Generator().manual_seed(1000 * seed + k)
            drawn.append(_best(parts, random, random, (0.1,)))
        alarms += _p_value(observed, drawn) <= at
    # Five in a hundred by chance; more than twelve happen once in a thousand times.
    assert alarms <= 12


@pytest.mark.slow
def test_as_many_held_out_images_are_asked_about_as_the_smallest_rate_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SETS", 3)
    random = torch.Generator().manual_seed(0)

    def views_of(count: int) -> tuple[Seen, Tensor, Tensor]:
        images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=random)
        labels = torch.arange(count) % 4
        return seen(images, labels), images, labels

    train, images, labels = views_of(40)
    # One image of each of four classes: ten times as many held-out images would be 80.
    own = DistilledSet(images[:4], labels[:4], ("a", "b", "c", "d"))
    for held, rates in ((1000, (10 / 996, 0.01)), (1004, (0.01, 0.001))):
        others, pixels, _ = views_of(held)
        found = null_of(own, own.classes, train, others, pixels)
        assert found is not None
        assert found.rates == rates


def test_a_set_of_one_class_asks_about_that_class_alone(data: SceneData, views: tuple[Seen, Seen, Tensor]) -> None:
    chosen = (data.train.labels < 2).nonzero()[:, 0]
    distilled = DistilledSet(data.train.pixels(chosen, size=32), data.train.labels[chosen], data.train.classes[:2])
    # Twelve held-out images stay of 24: too few for the rate at which ten of them are errors.
    assert null_of(distilled, data.train.classes, *views) is None


def test_without_two_held_out_images_of_a_class_there_is_no_null(data: SceneData) -> None:
    assert data.test is not None
    few = [int((data.test.labels == label).nonzero()[0]) for label in range(10)]
    test = data.test.pixels(few, size=32)
    train = data.train.pixels(size=32)
    own = DistilledSet(train[::5], data.train.labels[::5], data.train.classes)
    views = seen(train, data.train.labels), seen(test, data.test.labels[few]), test
    assert null_of(own, data.train.classes, *views) is None


def test_p_value_by_hand() -> None:
    assert _p_value((0.9,), [(0.1,)] * 199) == 1 / 200
    assert _p_value((0.1,), [(0.1,)] * 199) == 1
    # At the second rate one in four gives away as much; each of the four is first at one rate, last at the other.
    assert _p_value((0.0, 0.4), [(0.1, 0.3), (0.2, 0.2), (0.3, 0.1)]) == 0.5


def test_figures_of_a_null_by_hand() -> None:
    drawn = tuple((0.02 + 0.0001 * k, 0.001) for k in range(100))
    null = Null(rates=(0.01, 0.001), observed=(0.05, 0.003), drawn=drawn, p=ALARM, images=50, train=1000)
    assert null.leaks
    assert not replace(null, p=ALARM + 1e-6).leaks
    assert null.mean == (pytest.approx(0.02495), pytest.approx(0.001))
    # 2.5 and 97.5 % of the draws at the largest rate: 0.0202 and 0.0297.
    value, least, most = null.exposed
    assert value == pytest.approx(1000 * (0.05 - 0.02495) / (1 - 0.02495))
    assert least == pytest.approx(1000 * (0.05 - 0.0297) / (1 - 0.0297))
    assert most == pytest.approx(1000 * (0.05 - 0.0202) / (1 - 0.0202))
    assert replace(null, observed=(0.9, 0.9)).exposed == (50, 50, 50)
    assert replace(null, observed=(0.0, 0.0)).exposed == (0, 0, 0)


def _two_spaces(held: int, ipc: int, near: int) -> _Class:
    """Return a class whose images lie on training images in space `near`, and anywhere in the other space."""
    random, spaces = torch.Generator().manual_seed(0), []
    for space in range(2):
        real = torch.randn(20 + held, 4, generator=random)
        own = real[:ipc] + 1e-3 if space == near else torch.randn(ipc, 4, generator=random)
        spaces.append((torch.cdist(real, own), torch.cdist(own, own), torch.cdist(real, real[20:])))
    own, among, pool = (tuple(column) for column in zip(*spaces, strict=True))
    return _Class(20, own, among, pool)


@pytest.mark.parametrize("near", [0, 1])
def test_a_leak_in_any_space_is_found(near: int) -> None:
    part = _two_spaces(40, 8, near)
    (found,) = _best([part], None, torch.Generator().manual_seed(0), (0.1,))
    assert found >= 8 / 20


@pytest.mark.parametrize(("held", "ipc", "taken"), [(40, 8, 8), (20, 8, 5), (7, 8, 1)])
def test_a_quarter_of_the_held_out_images_at_most_takes_the_place_of_the_set_s(held: int, ipc: int, taken: int) -> None:
    assert _two_spaces(held, ipc, 0).taken == taken


@pytest.mark.parametrize(("ipc", "kinds"), [(2, 2), (3, 3)])
def test_two_images_do_not_show_what_distance_is_usual(ipc: int, kinds: int) -> None:
    part = _two_spaces(40, ipc, 0)
    scored = list(_scored([part], [part.own[0]], part.among[0].flatten(), [torch.arange(ipc)]))
    assert len(scored) == kinds
    for values, members in scored:
        # The held-out images that stand for the set's are not asked about.
        assert len(values) == len(members) == 60 - ipc
        assert int(members.sum()) == 20


def test_a_set_as_extreme_as_the_alarm_leaks() -> None:
    found = Null((0.01,), (0.5,), ((0.1,),) * 99, ALARM, 10, 100)
    assert found.leaks
    assert not replace(found, p=ALARM + 1e-9).leaks


def test_images_that_expose_one_are_counted_at_the_largest_rate() -> None:
    drawn = tuple((0.1 + 0.001 * k, 0.9) for k in range(100))
    found = Null((0.01, 0.001), (0.5, 0.5), drawn, 0.01, 1000, 1000)
    value, low, high = found.exposed
    assert low == pytest.approx(1000 * (0.5 - 0.197) / (1 - 0.197), rel=0.01)
    assert high == pytest.approx(1000 * (0.5 - 0.102) / (1 - 0.102), rel=0.01)
    assert low < value < high
