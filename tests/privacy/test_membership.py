import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from geodistill.distilled import DistilledSet
from geodistill.errors import ConfigError
from geodistill.privacy import membership as module
from geodistill.privacy.membership import Seen, attack, interval, isolated, scores, seen, shadow_scores
from geodistill.scenes import builtin_scenes

values = st.lists(st.integers(-5, 5), min_size=1, max_size=30)


@given(values, values)
def test_auc_is_the_share_of_pairs_in_the_right_order(members: list[int], others: list[int]) -> None:
    pairs = [(m > o) + 0.5 * (m == o) for m in members for o in others]
    found = attack("any", torch.tensor(members).float(), torch.tensor(others).float())
    assert found.auc.value == pytest.approx(sum(pairs) / len(pairs))
    assert found.auc.low <= found.auc.high


def test_found_counts_what_is_above_all_but_the_allowed_errors() -> None:
    others = torch.arange(1000.0)
    members = torch.tensor([5000.0, 998.5, 995.0, 989.0, 988.0, 0.0, -1.0, -1.0])
    found = attack("any", members, others)
    one_per_cent, one_per_mille = (one.value for one in found.found if one is not None)
    assert one_per_cent == 3 / 8  # above 989, which 10 of 1,000 others are
    assert one_per_mille == 2 / 8
    assert found.curve[0] == (1 / 1000, 2 / 8)


def test_a_rate_for_which_there_are_too_few_held_out_images_is_not_told() -> None:
    found = attack("any", torch.ones(5), torch.zeros(200)).found
    assert (found[0].value, found[1]) == (1.0, None)
    few = attack("any", torch.ones(5), torch.zeros(100))
    assert (few.rate, few.judged.value, few.leaks) == (0.1, 1.0, True)
    fewer = attack("any", torch.ones(5), torch.zeros(20))
    assert (fewer.judged, fewer.leaks) == (None, False)


@pytest.mark.parametrize(("share", "leaks"), [(0.0, False), (0.01, False), (0.1, True)])
def test_a_leak_is_more_than_chance_finds(share: float, leaks: bool) -> None:
    random = torch.Generator().manual_seed(0)
    members, others = torch.randn(5000, generator=random), torch.randn(2000, generator=random)
    members[: int(share * 5000)] += 10
    assert attack("any", members, others).leaks is leaks


def test_chance_is_seldom_taken_for_a_leak() -> None:
    random = torch.Generator().manual_seed(3)
    runs = [attack("any", torch.randn(300, generator=random), torch.randn(110, generator=random)) for _ in range(60)]
    assert sum(run.leaks for run in runs) <= 1


def test_nothing_to_tell_apart() -> None:
    with pytest.raises(ConfigError) as caught:
        attack("any", torch.ones(0), torch.ones(2))
    assert str(caught.value) == "no images to tell apart: a membership attack needs training and held-out images"


@pytest.fixture(scope="module")
def real() -> tuple[Tensor, Tensor, tuple[str, ...]]:
    scenes = builtin_scenes(train_per_class=8, test_per_class=1, size=32).train
    return scenes.pixels(size=32), scenes.labels, scenes.classes


def test_images_of_the_set_score_highest_under_the_nearest_attacks(
    real: tuple[Tensor, Tensor, tuple[str, ...]],
) -> None:
    images, labels, classes = real
    inside = torch.arange(len(labels)) % 8 < 4
    # In other orientations, and with classes numbered as in a set that has fewer.
    kept = inside & (labels > 0)
    distilled = DistilledSet(images[kept].flip(-1), labels[kept] - 1, classes[1:])
    found = scores(distilled, classes, seen(images, labels))
    assert sorted(found) == sorted(
        f"{kind}, {space}"
        for kind in ("nearest", "relative", "density")
        for space in ("pixels", "structure", "features")
    )
    for space in ("pixels", "structure", "features"):
        nearest = found[f"nearest, {space}"]
        assert nearest[kept].min() > nearest[~kept].max()
        assert nearest[kept].max() == pytest.approx(0, abs=2e-3)
        # The class that the set has not.
        assert (nearest[labels == 0] == nearest.min()).all()


def test_fresh_images_do_not_leak() -> None:
    data = builtin_scenes(train_per_class=10, test_per_class=11, size=32)
    fresh = builtin_scenes(train_per_class=3, test_per_class=1, size=32, seed=99).train
    members, others = (seen(part.pixels(size=32), part.labels) for part in (data.train, data.test))
    distilled = DistilledSet(fresh.pixels(size=32), fresh.labels, fresh.classes)
    found = scores(distilled, fresh.classes, members, others)
    assert not any(attack(name, values[:100], values[100:]).leaks for name, values in found.items())


def test_distances_by_hand() -> None:
    # Constant images: L2 at 32 px is the difference times the root of 3 * 32 * 32.
    images = torch.tensor([0, 51, 255], dtype=torch.uint8)[:, None, None, None].expand(3, 3, 32, 32)
    distilled = DistilledSet(images[[0, 2]].contiguous(), torch.tensor([0, 1]), ("a", "b"))
    found = scores(distilled, ("a", "b"), seen(images.contiguous(), torch.tensor([0, 0, 1])))
    side = (3 * 32 * 32) ** 0.5
    assert found["nearest, pixels"].tolist() == pytest.approx([0, -0.2 * side, 0], abs=1e-3)
    # The width is the distance of the two, `side`; one Gaussian a class.
    assert found["density, pixels"].tolist() == pytest.approx([0, -(0.2**2) / 2, 0], abs=1e-4)
    # One image a class is too few: usual is what all of the set is at, here 0.2 and 0.8 (mean 0.5, deviation 0.6 / √2).
    assert float(found["relative, pixels"][1]) == pytest.approx(0.3 / (0.6 / 2**0.5), abs=1e-3)


def test_shadow_attack_weighs_what_told_on_sets_of_known_halves() -> None:
    random = torch.Generator().manual_seed(1)

    def made() -> tuple[dict[str, Tensor], Tensor]:
        inside = torch.rand(400, generator=random) < 0.5
        telling = inside.float() + 0.3 * torch.randn(400, generator=random)
        return {"telling": 10 * telling, "noise": torch.randn(400, generator=random)}, inside

    (target, inside), shadows = made(), [made(), made()]
    found = shadow_scores(shadows, target)
    assert attack("shadow", found[inside], found[~inside]).auc.value > 0.97
    assert attack("noise", target["noise"][inside], target["noise"][~inside]).auc.value < 0.6


def test_the_most_isolated_images_are_those_farthest_from_all_others_of_their_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("geodistill.privacy.membership._FEWEST", 1)
    # On a line, in two classes: 9 is far from its own class though near the other.
    places, labels = torch.tensor([[0.0], [0.1], [9.0], [9.1], [9.2]]), torch.tensor([0, 0, 0, 1, 1])
    blank = torch.zeros(5, 1)
    known = Seen((blank, blank, places), labels)
    others = Seen((blank[:3], blank[:3], torch.tensor([[0.2], [5.0], [9.15]])), torch.tensor([0, 1, 1]))
    inside, outside = isolated(known, others)
    assert inside.tolist() == [False, False, True, False, False]
    assert outside.tolist() == [False, True, False]


def test_an_interval_has_the_percentiles_of_what_was_drawn() -> None:
    found = interval(0.7, [None, *(k / 100 for k in range(101))])
    assert (found.value, found.low, found.high) == (0.7, pytest.approx(0.025), pytest.approx(0.975))


def test_members_and_others_are_both_drawn_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    real = module.resampled
    monkeypatch.setattr(module, "resampled", lambda values, random: asked.append(len(values)) or real(values, random))
    attack("any", torch.arange(5).float(), torch.arange(7).float())
    assert asked == [5, 7] * (len(asked) // 2)
    assert len(asked) == 2 * module._RESAMPLES


def test_a_density_is_a_mean_over_the_images() -> None:
    distances = torch.full((2, 50), 3.0)
    assert module._log_density(distances, 2.0).tolist() == pytest.approx([-9 / 8, -9 / 8], abs=1e-5)
