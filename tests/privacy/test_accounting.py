import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from geodistill.errors import ConfigError, PrivacyError
from geodistill.privacy.accounting import Mechanism, epsilon_of, spend


def epsilon_of_gaussian(sigma: float, delta: float) -> float:
    """Solve the exact δ(ε) of the Gaussian mechanism (Balle and Wang, ICML 2018, theorem 8) for ε."""

    def delta_of(epsilon: float) -> float:
        less, more = 1 / (2 * sigma) - epsilon * sigma, -1 / (2 * sigma) - epsilon * sigma
        return float(norm.cdf(less) - np.exp(epsilon) * norm.cdf(more))

    return float(brentq(lambda epsilon: delta_of(epsilon) - delta, 0, 100))


@pytest.mark.parametrize("sigma", [0.5, 1.3, 8.0])
def test_one_gaussian_mechanism_is_the_formula(sigma):
    found = epsilon_of([Mechanism("sum", 1.0)], sigma, 1e-5)
    exact = epsilon_of_gaussian(sigma, 1e-5)
    assert exact <= found <= 1.001 * exact


def test_another_image_in_its_place_moves_a_sum_twice_as_far():
    found = epsilon_of([Mechanism("sum", 1.0)], 2.0, 1e-5, replacing=True)
    assert found == pytest.approx(epsilon_of_gaussian(1.0, 1e-5), rel=1e-3)


def test_steps_and_several_mechanisms_add_up_and_random_batches_cost_less():
    twice = epsilon_of([Mechanism("sum", 2**0.5, steps=2)], 1.0, 1e-5)
    split = epsilon_of([Mechanism("a", 2**0.5), Mechanism("b", 2**0.5)], 1.0, 1e-5)
    assert twice == pytest.approx(split) == pytest.approx(epsilon_of_gaussian(1.0, 1e-5), rel=1e-3)
    assert epsilon_of([Mechanism("batches", 1.0, rate=0.1)], 1.0, 1e-5) < 0.5 * epsilon_of_gaussian(1.0, 1e-5)


@given(st.floats(0.2, 50), st.floats(0.5, 8))
@settings(max_examples=5)
def test_the_budget_is_spent_but_not_overdrawn(epsilon, ratio):
    mechanisms = [Mechanism("first", 1.0), Mechanism("second", ratio, rate=0.05, steps=20)]
    budget = spend(mechanisms, epsilon, 1e-5)
    assert 0.99 * epsilon < budget.epsilon <= epsilon
    assert budget.replacing > budget.epsilon
    assert budget.noise["second"] == pytest.approx(ratio * budget.noise["first"])
    exact = epsilon_of(mechanisms, budget.noise["first"], 1e-5, spacing=min(1e-3, epsilon / 1e3))
    assert 0.998 * budget.epsilon < exact <= budget.epsilon * 1.0001


def test_more_steps_ask_for_more_noise():
    few, many = (spend([Mechanism("sum", 1.0, steps=steps)], 1.0, 1e-5).noise["sum"] for steps in (1, 9))
    assert many == pytest.approx(3 * few, rel=0.02)


def test_what_cannot_be_had_is_said():
    with pytest.raises(PrivacyError, match=r"^no noise makes this run \(1e-09, 1e-12\) differentially private"):
        spend([Mechanism("sum", 1.0)], 1e-9, 1e-12)


def test_without_its_libraries_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    message = r"^--privacy dp needs dp_accounting, which cannot be imported \(.*\): pip install 'geodistill\[dp\]'$"
    with pytest.raises(ConfigError, match=message):
        epsilon_of([Mechanism("sum", 1.0)], 1.0, 1e-5)
