import os

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from geodistill.privacy import noisy
from geodistill.privacy.noisy import (
    ROUNDS,
    SecretNoise,
    clipped,
    noisy_means,
    noisy_moments,
    noisy_sums,
    private_clusters,
)


def by(seed: int = 0) -> SecretNoise:
    return SecretNoise(np.random.default_rng(seed).bytes)


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_secret_numbers_are_normal_and_uniform():
    assert kstest(by().gaussian(100_000).numpy(), "norm").pvalue > 0.01
    assert kstest(by().uniform(100_000).numpy(), "uniform").pvalue > 0.01
    assert by().gaussian(2, 3).shape == (2, 3)
    assert by().gaussian(2, 3).dtype == torch.float64


def test_secret_numbers_by_hand():
    # The largest word is 1, of which the logarithm is 0; the smallest is no 0, of which it would be infinite.
    assert SecretNoise(lambda count: b"\xff" * count).uniform(2).tolist() == [1, 1]
    assert SecretNoise(bytes).uniform(1).tolist() == [2.0**-53]
    # Four times the same summand, over the root of four.
    assert float(SecretNoise(bytes).gaussian(1)) == pytest.approx(2 * (2 * 53 * np.log(2)) ** 0.5, rel=1e-9)


def test_secret_numbers_are_the_operating_system_s(monkeypatch):
    assert len({float(SecretNoise().gaussian(1)) for _ in range(5)}) == 5
    assert SecretNoise()._source is os.urandom


def test_rows_are_clipped_and_short_ones_left_alone():
    rows = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    assert torch.allclose(clipped(rows), torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))


def test_sums_of_groups_by_hand():
    values = torch.tensor([[1.0, 0.0], [0.0, 1.0], [6.0, 8.0]])
    sums = noisy_sums(values, torch.tensor([0, 0, 2]), 3, norm=5.0, noise=0.0, by=by())
    assert sums.tolist() == [[1, 1], [0, 0], [3, 4]]


def test_noise_has_the_deviation_it_says():
    sums = noisy_sums(torch.zeros(1, 2000), torch.tensor([0]), 2, norm=3.0, noise=2.0, by=by())
    assert float(sums.std()) == pytest.approx(6.0, rel=0.05)
    values = torch.full((40, 2000), 0.01)
    means, deviation = noisy_means(values, torch.zeros(40, dtype=torch.int64), 1, norm=1.0, noise=0.5, by=by())
    assert float((means - 0.01).std()) == pytest.approx(float(deviation), rel=0.1)


def test_moments_by_hand():
    values = torch.tensor([[1.0, 0.0], [0.0, 1.0], [6.0, 8.0]])
    found = noisy_moments(values, torch.tensor([0, 0, 1]), 3, noise=0.0, by=by())
    # The third is clipped to (0.6, 0.8); of an empty class one is counted.
    assert torch.allclose(found.second, torch.tensor([[1.36, 0.48], [0.48, 1.64]], dtype=torch.float64))
    assert torch.allclose(found.sums, torch.tensor([[1, 1], [0.6, 0.8], [0, 0]], dtype=torch.float64))
    assert found.counts.tolist() == [2, 1, 1]
    assert found.deviation == 0


def test_noise_of_moments_is_symmetric_and_of_the_deviation_that_one_image_needs():
    found = noisy_moments(torch.zeros(1, 300), torch.tensor([0]), 200, noise=2.0, by=by())
    # An image changes the upper triangle by 1, its class's sum by 1 and the weighted count by 0.5.
    assert found.deviation == pytest.approx(2 * 2.25**0.5)
    assert torch.equal(found.second, found.second.T)
    assert float(found.second.triu().flatten()[found.second.triu().flatten() != 0].std()) == pytest.approx(3, rel=0.02)
    assert float(found.sums.std()) == pytest.approx(3, rel=0.02)


def test_one_image_changes_the_moments_by_no_more_than_the_mechanism_says():
    rows = torch.nn.functional.normalize(torch.randn(1, 20, generator=drawn()), dim=1)
    there = noisy_moments(rows, torch.tensor([1]), 2, noise=0.0, by=by())
    change = torch.cat([there.second.triu().flatten(), there.sums.flatten(), torch.tensor([0.5])])
    assert float(change.norm()) <= 2.25**0.5


def test_means_by_hand_and_none_of_nothing():
    values = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    means, deviation = noisy_means(values, torch.tensor([1, 1]), 2, norm=1.0, noise=0.0, by=by())
    assert means.tolist() == [[0, 0], [0.5, 0.5]]
    assert deviation.tolist() == [0, 0]


class Sums:
    """Keeps the sums that are made, before noise."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kept: list[torch.Tensor] = []
        add = torch.Tensor.index_add_

        def keep(sums, dim, groups, rows):
            self.kept.append(add(sums, dim, groups, rows).clone())
            return sums

        monkeypatch.setattr(torch.Tensor, "index_add_", keep)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("norm", [0.1, 1.0, 20.0])
def test_one_image_more_changes_the_sums_by_no_more_than_they_are_noised_for(seed, norm, monkeypatch):
    sums = Sums(monkeypatch)
    values = 10 * torch.randn(6, 4, generator=drawn(seed), dtype=torch.float64)
    groups = torch.randint(0, 3, (6,), generator=drawn(seed))
    for some in (slice(None), slice(1, None)):
        noisy_means(values[some], groups[some], 3, norm=norm, noise=0.0, by=by())
    # What the sums are noised for: the deviation of the noise of multiplier 1 on sums of nothing.
    empty = torch.zeros(0, 2000, dtype=torch.float64)
    _, deviation = noisy_means(empty, torch.zeros(0, dtype=torch.int64), 1, norm=norm, noise=1.0, by=by())
    with_all, without = sums.kept[:2]
    assert 0 < float((with_all - without).norm()) <= float(deviation) * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_one_image_more_changes_the_clusters_sums_by_no_more_than_one(seed, monkeypatch):
    sums = Sums(monkeypatch)
    values = 10 * torch.randn(6, 4, generator=drawn(seed), dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    for some in (slice(None), slice(1, None)):
        private_clusters(values[some], labels[some], 2, 2, noise=0.0, by=by())
    assert 0 < float((sums.kept[0] - sums.kept[ROUNDS]).norm()) <= 1 + 1e-9


def test_clusters_follow_their_noise():
    labels = torch.zeros(300, dtype=torch.int64)
    points = torch.randn(300, 8, generator=drawn(), dtype=torch.float64)
    clear, same, other = (private_clusters(points, labels, 1, 4, noise=n, by=by(3)) for n in (0.0, 0.0, 5.0))
    assert torch.equal(clear, same)
    assert not torch.equal(clear, other)


def test_what_is_no_number_counts_as_nothing():
    rows = torch.tensor([[float("nan"), 1.0], [float("inf"), 0.0]])
    assert clipped(rows).tolist() == [[0, 1], [0, 0]]


def test_clusters_are_found_through_little_noise_and_stay_full_in_much():
    # Two clusters on opposite sides, along an axis of their class's own.
    labels, side = torch.arange(400) % 2, torch.arange(400) // 2 % 2
    points = torch.eye(4, dtype=torch.float64)[labels] * (2 * side - 1)[:, None]
    points = points + 0.05 * torch.randn(400, 4, generator=drawn(), dtype=torch.float64)
    found = private_clusters(points, labels, 2, 2, noise=0.5, by=by(3))
    assert torch.equal(found // 2, labels)
    for label in range(2):
        own, truth = found[labels == label] % 2, side[labels == label]
        assert torch.equal(own, truth) or torch.equal(own, 1 - truth)
    blind = private_clusters(torch.randn(400, 16, generator=drawn()), labels, 2, 4, noise=1e6, by=by(1))
    assert int(torch.bincount(blind, minlength=8).min()) > 10


def test_long_rows_count_as_one_image_and_the_deviation_is_that_of_row_and_count(monkeypatch):
    monkeypatch.setattr(SecretNoise, "gaussian", lambda self, *shape: torch.zeros(shape, dtype=torch.float64))
    values = torch.tensor([[30.0, 40.0], [0.0, 2.0], [0.3, 0.4]])
    means, deviation = noisy_means(values, torch.tensor([0, 0, 0]), 1, norm=1.0, noise=0.8, by=by())
    # (0.6, 0.8) + (0, 1) + (0.3, 0.4), of three images.
    torch.testing.assert_close(means, torch.tensor([[0.3, 2.2 / 3]], dtype=torch.float64))
    assert deviation.tolist() == [pytest.approx(0.8 * (1 + noisy._COUNTED**2) ** 0.5 / 3)]


def test_every_round_of_the_clusters_has_the_whole_noise(monkeypatch):
    asked = []
    real = noisy.noisy_sums
    monkeypatch.setattr(noisy, "noisy_sums", lambda *a, **k: asked.append((k["norm"], k["noise"])) or real(*a, **k))
    points = torch.randn(12, 4, generator=drawn(), dtype=torch.float64)
    private_clusters(points, torch.zeros(12, dtype=torch.int64), 1, 2, noise=3.0, by=by())
    assert asked == [(1.0, 3.0)] * ROUNDS
