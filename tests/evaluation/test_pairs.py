import re
from statistics import NormalDist

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import t as student

from geodistill.errors import ConfigError
from geodistill.evaluation import pairs as module
from geodistill.evaluation.pairs import Pair, _resample, compare_pair


def draw(random, images, seeds, advantage, spread):
    """Right or wrong [seeds, n]: right where ease, the method's and the seed's advantage beat noise."""
    luck = spread * torch.randn(seeds, 1, generator=random, dtype=torch.float64)
    noise = torch.randn(seeds, len(images), generator=random, dtype=torch.float64)
    return (images + advantage + luck + noise > 0).long()


def expected_accuracy(advantage, spread):
    return NormalDist().cdf(advantage / (2 + spread**2) ** 0.5)  # images, seeds and noise are all normal


def test_difference_by_hand():
    labels = torch.tensor([0, 1, 2, 0])
    # right: 3 and 1 of 4; 2 of 4
    a, b = torch.tensor([[0, 1, 2, 1], [1, 1, 1, 1]]), torch.tensor([[0, 1, 1, 1]])
    found = compare_pair(a, b, labels, seed=0)
    assert found.difference == 0.0
    assert found.verdict == "no difference"
    assert compare_pair(a[:1], b, labels, seed=0).difference == 0.25
    assert compare_pair(a[:1], b, labels, seed=0) == compare_pair(a[:1], b, labels, seed=0)


def test_verdicts():
    labels = torch.zeros(40).long()
    right, wrong, half = labels[None], labels[None] + 1, (torch.arange(40) % 2)[None]
    assert compare_pair(right, wrong, labels, seed=0) == Pair(1.0, 1.0, 1.0, "better")
    assert compare_pair(wrong, right, labels, seed=0) == Pair(-1.0, -1.0, -1.0, "worse")
    assert compare_pair(half, wrong, labels, seed=0).verdict == "better"
    assert compare_pair(half, half.flip(1), labels, seed=0).verdict == "no difference"
    # One image in 40 is no difference to speak of: the interval touches 0.
    assert compare_pair((labels != torch.arange(40)).long()[None], wrong, labels, seed=0).verdict == "no difference"


@settings(max_examples=25)
@given(seed=st.integers(0, 1000), rows=st.tuples(st.integers(1, 5), st.integers(1, 5)), images=st.integers(1, 30))
def test_swapping_the_methods_swaps_the_interval(seed, rows, images):
    random = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (images,), generator=random)
    a, b = (torch.randint(0, 3, (n, images), generator=random) for n in rows)
    one, two = (compare_pair(*pair, labels, seed=seed, resamples=100) for pair in ((a, b), (b, a)))
    assert one.difference == -two.difference
    assert (one.low, one.high) == (pytest.approx(-two.high, abs=1e-12), pytest.approx(-two.low, abs=1e-12))
    assert {one.verdict, two.verdict} in ({"better", "worse"}, {"no difference"})
    assert one.low - 1e-12 <= one.high


@pytest.mark.parametrize("seeds", [1, 3])
def test_identical_predictions_are_no_difference(seeds):
    random = torch.Generator().manual_seed(0)
    labels, a = torch.randint(0, 3, (50,), generator=random), torch.randint(0, 3, (seeds, 50), generator=random)
    assert compare_pair(a, a.clone(), labels, seed=1) == Pair(0.0, 0.0, 0.0, "no difference")


def test_interval_of_two_deterministic_methods_in_closed_form():
    # 60 images that only the first gets right, 30 that only the second does, 310 on which they agree.
    gap = torch.cat([torch.ones(60), -torch.ones(30), torch.zeros(310)])
    labels = torch.zeros(400).long()
    found = compare_pair((gap < 0).long()[None], (gap > 0).long()[None], labels, seed=0, resamples=5000, level=0.9)
    half = NormalDist().inv_cdf(0.95) * gap.std().item() / 400**0.5
    assert found.difference == pytest.approx(30 / 400)
    assert found.low == pytest.approx(30 / 400 - half, abs=0.004)
    assert found.high == pytest.approx(30 / 400 + half, abs=0.004)


def test_seeds_alone_in_closed_form():
    # Every image alike, so that nothing but the seeds varies: right, wrong, wrong against a deterministic method.
    right = torch.tensor([[1.0], [0.0], [0.0]]).repeat(1, 8).double()
    drawn = _resample((right, torch.zeros(1, 8).double()), 20000, 0)
    # two of three are drawn: both right 1/9, one right 4/9; variance s²/S = (1/3) / 3
    assert (drawn == 1).double().mean() == pytest.approx(1 / 9, abs=0.01)
    assert (drawn == 0.5).double().mean() == pytest.approx(4 / 9, abs=0.015)
    assert drawn.var() == pytest.approx(1 / 9, abs=0.005)
    found = compare_pair(right.long(), torch.zeros(1, 8).long(), torch.ones(8).long(), seed=0, resamples=2000)
    # quantiles 0 and 1, stretched by Student's quantile at 2 degrees around 1/3
    stretch = student.ppf(0.975, 2) / NormalDist().inv_cdf(0.975)
    assert found.low == pytest.approx(1 / 3 - stretch / 3, rel=0.02)
    assert found.high == pytest.approx(1 / 3 + stretch * 2 / 3, rel=0.02)


def test_seeds_that_rise_and_fall_together_cancel():
    # Seeds are right on 180, 120 or 60 of 200 images; the second method fails on 20 of them besides.
    a = (torch.arange(200) < torch.tensor([[180], [120], [60]])).long()
    b = a * (torch.arange(200) >= 20)
    labels = torch.ones(200).long()
    paired, apart = compare_pair(a, b, labels, seed=0), compare_pair(a, b[:2], labels, seed=0)
    assert paired.difference == pytest.approx(0.1)
    assert paired.verdict == "better"
    # only the test images are left: 1.96 deviations of a share of 0.1 among 200
    half = NormalDist().inv_cdf(0.975) * (0.1 * 0.9 / 200) ** 0.5
    assert (paired.low, paired.high) == (pytest.approx(0.1 - half, abs=0.01), pytest.approx(0.1 + half, abs=0.01))
    assert apart.verdict == "no difference"


@pytest.mark.parametrize(
    ("rows", "images", "spread"),
    [((1, 1), 200, 0.0), ((3, 3), 1000, 0.15), ((4, 2), 1000, 0.15)],
)
def test_the_interval_holds_the_true_difference_as_often_as_it_says(rows, images, spread):
    random, held, count = torch.Generator().manual_seed(0), 0, 150
    true = expected_accuracy(0.9, spread) - expected_accuracy(0.7, spread)
    labels = torch.ones(images).long()
    for repeat in range(count):
        ease = torch.randn(images, generator=random, dtype=torch.float64)
        a, b = (draw(random, ease, n, skill, spread) for n, skill in zip(rows, (0.9, 0.7), strict=True))
        found = compare_pair(a, b, labels, seed=repeat, resamples=200)
        held += found.low <= true <= found.high
    # 0.95 less three standard errors of 150 repeats, which is 0.05
    assert held / count >= 0.90


def test_blocks_hold_all_resamples(monkeypatch):
    random = torch.Generator().manual_seed(0)
    right = tuple(torch.randint(0, 2, (3, 20), generator=random).double() for _ in range(2))
    whole = _resample(right, 101, 0)
    assert whole.shape == (101,)
    monkeypatch.setattr(module, "HELD", 200)
    assert _resample(right, 101, 0).shape == (101,)
    monkeypatch.setattr(module, "HELD", 1)
    assert _resample(right, 3000, 0).mean() == pytest.approx((right[0] - right[1]).mean().item(), abs=0.02)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"a": torch.zeros(2, 4).long()},
            "the first method's predictions are [2, 4] for labels [5]: give [seeds, n] and [n], at least one of each",
        ),
        (
            {"b": torch.zeros(5).long()},
            "the second method's predictions are [5] for labels [5]: give [seeds, n] and [n], at least one of each",
        ),
        (
            {"b": torch.zeros(0, 5).long()},
            "the second method's predictions are [0, 5] for labels [5]: give [seeds, n] and [n], at least one of each",
        ),
        ({"resamples": 99}, "resamples is 99: an interval needs at least 100"),
        ({"level": 95.0}, "level is 95.0: give a share between 0 and 1, such as 0.95"),
    ],
)
def test_bad_settings(change, message):
    options = {"a": torch.zeros(2, 5).long(), "b": torch.zeros(1, 5).long(), "seed": 0} | change
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        compare_pair(labels=torch.zeros(5).long(), **options)


def test_the_stretch_of_unequal_numbers_of_seeds_is_that_of_satterthwaite():
    random = torch.Generator().manual_seed(0)
    a, b = (torch.rand(seeds, 50, generator=random, dtype=torch.float64) for seeds in (3, 9))
    parts = [(float(rows.mean(1).var()) / len(rows), len(rows) - 1) for rows in (a, b)]
    variance = sum(part for part, _ in parts)
    degrees = variance**2 / sum(part**2 / own for part, own in parts)
    assert degrees > 2
    wanted = student.ppf(0.975, degrees) / NormalDist().inv_cdf(0.975)
    assert module._stretch((a, b), variance, 0.95) == pytest.approx(wanted)
    # With hardly any variance besides that of few seeds, their degrees count.
    assert module._stretch((a, b), 1e-9, 0.95) == pytest.approx(student.ppf(0.975, 2) / NormalDist().inv_cdf(0.975))
