"""Differential privacy: how much noise each mechanism of a run must add so that all together stay within (ε, δ).

Two data sets of equal size are neighbours if one image contributes to the first and contributes nothing to the second
("zero-out"; the number of images is public). Every mechanism adds Gaussian noise to a sum. An image contributes at most
the sensitivity to this sum. The noise multiplier is the standard deviation of the noise divided by the sensitivity.
Google's dp-accounting composes the mechanisms as privacy loss distributions (Koskela, Jälkö, Honkela, AISTATS 2020;
rounded up: Doroshenko et al., PoPETs 2022).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from geodistill.errors import ConfigError, PrivacyError
from geodistill.lazy import optional

# The search for a noise multiplier gives up above this value.
_MOST = 1e4
_HALVINGS = 12
# Privacy losses are rounded up to multiples of this value times max(1, ε). With a tenth of it, ε is lower by 0.01 % at
# ε = 1 and by 0.02 % at ε = 8, and the accounting takes ten times as long.
_SPACING = 1e-3


@dataclass(frozen=True)
class Mechanism:
    """Gaussian noise that is added `steps` times, each time to a sum over a Poisson sample of the images.

    `rate`: the probability that an image is in the sample. `ratio`: the noise multiplier of this mechanism divided by
    that of the whole run.
    """

    name: str
    ratio: float
    rate: float = 1.0
    steps: int = 1


@dataclass(frozen=True)
class Budget:
    """Noise multipliers by name of the mechanism; all mechanisms together spend (`epsilon`, `delta`).

    `replacing`: the ε at the same δ if neighbours differ in one image that is replaced by another image.
    """

    epsilon: float
    delta: float
    noise: dict[str, float]
    replacing: float


def spend(mechanisms: Sequence[Mechanism], epsilon: float, delta: float) -> Budget:
    """Return the smallest noise, within 0.02 %, for which `mechanisms` together are (`epsilon`, `delta`) private.

    Raises PrivacyError if no noise is enough, ConfigError without dp-accounting.
    """
    return _spend(tuple(mechanisms), epsilon, delta)


@lru_cache(maxsize=16)
def _spend(mechanisms: tuple[Mechanism, ...], epsilon: float, delta: float) -> Budget:
    # The search starts at a multiplier of 1, because accounting is slow for multipliers far below the needed one.
    spacing, high = _SPACING * max(1.0, epsilon), 1.0
    while epsilon_of(mechanisms, high, delta, spacing=spacing) > epsilon:
        high *= 2
        if high > _MOST:
            raise PrivacyError(
                f"no noise makes this run ({epsilon:g}, {delta:g}) differentially private: raise --epsilon"
            )
    low = high / 2
    while epsilon_of(mechanisms, low, delta, spacing=spacing) <= epsilon:
        low, high = low / 2, low
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        spent = epsilon_of(mechanisms, middle, delta, spacing=spacing)
        low, high = (middle, high) if spent > epsilon else (low, middle)
    noise = {one.name: one.ratio * high for one in mechanisms}
    spent, replacing = (epsilon_of(mechanisms, high, delta, replacing=one, spacing=spacing) for one in (False, True))
    return Budget(spent, delta, noise, replacing)


def epsilon_of(
    mechanisms: Sequence[Mechanism], scale: float, delta: float, *, replacing: bool = False, spacing: float = _SPACING
) -> float:
    """Return the ε at `delta` of all `mechanisms` together, each with a noise multiplier of `scale` times its ratio.

    `replacing`: neighbours differ in one image that is replaced by another image; otherwise in one image that
    contributes or not. `spacing`: privacy losses are rounded up to multiples of it.

    >>> round(epsilon_of([Mechanism("sum", 1.0)], 2.0, 1e-5), 3)
    1.993
    """
    dp = needed("dp_accounting")
    relation = dp.NeighboringRelation.REPLACE_ONE if replacing else dp.NeighboringRelation.REPLACE_SPECIAL
    accountant = needed("dp_accounting.pld").PLDAccountant(relation, value_discretization_interval=spacing)
    for one in mechanisms:
        noisy = dp.GaussianDpEvent(scale * one.ratio)
        accountant.compose(noisy if one.rate == 1 else dp.PoissonSampledDpEvent(one.rate, noisy), one.steps)
    return float(accountant.get_epsilon(delta))


def needed(module: str) -> Any:
    """Return a module of the optional dependencies `dp`; raise ConfigError if it is not installed."""
    return optional(module, "--privacy dp", "dp", ConfigError)
