"""Differential privacy: how much noise each mechanism of a run adds, so that all together keep within (ε, δ).

Two data sets of as many images are neighbours when one of these counts in the one and contributes nothing in the other
("zero-out"; the number of images is public). Every mechanism adds Gaussian noise to a sum to which an image contributes
at most its sensitivity; the noise multiplier is the noise over that. They are added up as privacy loss distributions
(Koskela, Jälkö, Honkela, AISTATS 2020; rounded up: Doroshenko et al., PoPETs 2022) by Google's dp-accounting.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from geodistill.errors import ConfigError, PrivacyError

# Noise multiplier above which no more is looked for.
_MOST = 1e4
_HALVINGS = 12
# Spacing at which privacy losses are rounded up, for each unit of ε, from one upwards. With a tenth of it ε is less by
# 0.01 % at ε = 1 and 0.02 % at ε = 8, in ten times the time.
_SPACING = 1e-3


@dataclass(frozen=True)
class Mechanism:
    """Noise added `steps` times to sums over a share `rate` of the images, each drawn or not on its own.

    `ratio`: its noise multiplier over that of the whole run.
    """

    name: str
    ratio: float
    rate: float = 1.0
    steps: int = 1


@dataclass(frozen=True)
class Budget:
    """Noise multipliers by the names of the mechanisms, which together spend (`epsilon`, `delta`).

    `replacing`: the ε at the same δ of neighbours that differ in one image being another one.
    """

    epsilon: float
    delta: float
    noise: dict[str, float]
    replacing: float


def spend(mechanisms: Sequence[Mechanism], epsilon: float, delta: float) -> Budget:
    """Return the least noise, to 0.02 %, with which `mechanisms` together are (`epsilon`, `delta`) private.

    Raises PrivacyError where no noise is enough, ConfigError without dp-accounting.
    """
    return _spend(tuple(mechanisms), epsilon, delta)


@lru_cache(maxsize=16)
def _spend(mechanisms: tuple[Mechanism, ...], epsilon: float, delta: float) -> Budget:
    # From a multiplier of 1 outwards: far less noise than is needed takes long to account for.
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
    """Return the ε at `delta` of `mechanisms` together, their noise multipliers `scale` times their ratios.

    `replacing`: of neighbours that differ in one image being another one, not in its being there. `spacing`: privacy
    losses are rounded up to multiples of it.

    >>> round(epsilon_of([Mechanism("sum", 1.0)], 2.0, 1e-5), 3)
    1.993
    """
    dp = optional("dp_accounting")
    relation = dp.NeighboringRelation.REPLACE_ONE if replacing else dp.NeighboringRelation.REPLACE_SPECIAL
    accountant = optional("dp_accounting.pld").PLDAccountant(relation, value_discretization_interval=spacing)
    for one in mechanisms:
        noisy = dp.GaussianDpEvent(scale * one.ratio)
        accountant.compose(noisy if one.rate == 1 else dp.PoissonSampledDpEvent(one.rate, noisy), one.steps)
    return float(accountant.get_epsilon(delta))


def optional(module: str) -> Any:
    """Return a module of the extra `dp`; raises ConfigError where it is not installed."""
    import importlib

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise ConfigError("--privacy dp needs Opacus and dp-accounting: pip install 'geodistill[dp]'") from None
