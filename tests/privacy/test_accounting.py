import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from geodistill.errors import ConfigError, PrivacyError
from geodistill.privacy.accounting import _TWISTER, Mechanism, epsilon_of, secret_generator, spend


def epsilon_of_gaussian(sigma: float, delta: float) -> float:
    """From the formulas: Rényi α/(2σ²) (Mironov 2017), turned into ε as Canonne, Kamath and Steinke (2020) do."""
    orders = np.concatenate([np.arange(1.01, 1.1, 0.01), np.arange(1.1, 11, 0.1), np.arange(11, 512)])
    spent = orders / (2 * sigma**2)
    return float((spent + np.log1p(-1 / orders) - (np.log(delta) + np.log(orders)) / (orders - 1)).min())


@pytest.mark.parametrize("sigma", [0.5, 1.3, 8.0])
def test_one_gaussian_mechanism_is_the_formula(sigma):
    found = epsilon_of([Mechanism("sum", 1.0)], sigma, 1e-5)
    assert found == pytest.approx(epsilon_of_gaussian(sigma, 1e-5), rel=1e-2)


def test_steps_and_several_mechanisms_add_up_and_random_batches_cost_less():
    twice = epsilon_of([Mechanism("sum", 2**0.5, steps=2)], 1.0, 1e-5)
    split = epsilon_of([Mechanism("a", 2**0.5), Mechanism("b", 2**0.5)], 1.0, 1e-5)
    assert twice == pytest.approx(split) == pytest.approx(epsilon_of_gaussian(1.0, 1e-5), rel=1e-2)
    assert epsilon_of([Mechanism("batches", 1.0, rate=0.1)], 1.0, 1e-5) < 0.5 * epsilon_of_gaussian(1.0, 1e-5)


@given(st.floats(0.2, 50), st.floats(0.5, 8))
@settings(max_examples=5)
def test_the_budget_is_spent_but_not_overdrawn(epsilon, ratio):
    mechanisms = [Mechanism("first", 1.0), Mechanism("second", ratio, rate=0.05, steps=20)]
    budget = spend(mechanisms, epsilon, 1e-5)
    assert 0.99 * epsilon < budget.epsilon <= epsilon
    assert budget.noise["second"] == pytest.approx(ratio * budget.noise["first"])
    assert epsilon_of(mechanisms, budget.noise["first"], 1e-5) == budget.epsilon


def test_more_steps_ask_for_more_noise():
    few, many = (spend([Mechanism("sum", 1.0, steps=steps)], 1.0, 1e-5).noise["sum"] for steps in (1, 9))
    assert many == pytest.approx(3 * few, rel=0.02)


def test_what_cannot_be_had_is_said():
    with pytest.raises(PrivacyError, match=r"^no noise makes this run \(1e-09, 1e-12\) differentially private"):
        spend([Mechanism("sum", 1.0)], 1e-9, 1e-12)


def test_without_opacus_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus.accountants.analysis.rdp", None)
    with pytest.raises(ConfigError, match=r"^--privacy dp needs Opacus: pip install 'geodistill\[dp\]'$"):
        epsilon_of([Mechanism("sum", 1.0)], 1.0, 1e-5)


def test_noise_cannot_be_drawn_again(monkeypatch):
    assert len({float(torch.randn((), generator=secret_generator())) for _ in range(5)}) == 5
    # All of the state counts: torch takes 32 bits of a seed, which can be tried one after the other.
    drawn = []
    for last in (0, 1):
        bytes_drawn = bytes(623 * 4) + bytes([last, 0, 0, 0])
        monkeypatch.setattr("os.urandom", lambda count, drawn=bytes_drawn: drawn if count == len(drawn) else b"")
        drawn.append(torch.randn(2000, generator=secret_generator()))
    assert not torch.equal(*drawn)


def test_secret_noise_is_a_twister_s():
    by = secret_generator()
    values = torch.randn(200_000, generator=by)
    assert abs(float(values.mean())) < 0.01
    assert float(values.std()) == pytest.approx(1, abs=0.01)
    # Where torch keeps the words: those of seed 0 are known (Matsumoto and Nishimura 1998: 0, then 1812433253 * 0 + 1).
    words = torch.Generator().manual_seed(0).get_state()[_TWISTER].view(-1, 8)
    assert words[:2].tolist() == [[0] * 8, [1, *[0] * 7]]
    before = torch.Generator().manual_seed(0).get_state()
    after = secret_generator().get_state()
    assert torch.equal(before[:24], after[:24])
    assert torch.equal(before[24 + 624 * 8 :], after[24 + 624 * 8 :])
