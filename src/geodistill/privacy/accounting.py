"""Differential privacy: how much noise each mechanism of a run adds, so that all together keep within (ε, δ).

Two data sets are neighbours when one has an image that the other lacks. Every mechanism adds Gaussian noise to a sum to
which an image contributes at most its sensitivity; the noise multiplier is the noise over that. They are added up as
Rényi differential privacy (Mironov, CSF 2017; on random batches: Mironov, Talwar, Zhang 2019) by Opacus.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from geodistill.errors import ConfigError, PrivacyError

# Rényi orders, among which the best is taken: low ones for large ε, high ones for small.
_ORDERS = [1.01, 1.03, 1.06, *(1 + x / 10 for x in range(1, 30)), *range(4, 64), 96, 128, 192, 256, 384, 512]
# Noise multipliers between which the smallest that will do is looked for.
_LEAST, _MOST = 0.05, 1e4
_HALVINGS = 16


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
    """Noise multipliers by the names of the mechanisms, which together spend (`epsilon`, `delta`)."""

    epsilon: float
    delta: float
    noise: dict[str, float]


def spend(mechanisms: Sequence[Mechanism], epsilon: float, delta: float) -> Budget:
    """Return the least noise with which `mechanisms` together are (`epsilon`, `delta`) differentially private.

    Raises PrivacyError where no noise is enough, ConfigError without Opacus.
    """
    low, high = _LEAST, _MOST
    if epsilon_of(mechanisms, high, delta) > epsilon:
        raise PrivacyError(f"no noise makes this run ({epsilon:g}, {delta:g}) differentially private: raise --epsilon")
    for _ in range(_HALVINGS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if epsilon_of(mechanisms, middle, delta) > epsilon else (low, middle)
    return Budget(epsilon_of(mechanisms, high, delta), delta, {one.name: one.ratio * high for one in mechanisms})


def epsilon_of(mechanisms: Sequence[Mechanism], scale: float, delta: float) -> float:
    """Return the ε at `delta` of `mechanisms` together, their noise multipliers `scale` times their ratios."""
    rdp = opacus("accountants.analysis.rdp")
    spent = [
        rdp.compute_rdp(q=one.rate, noise_multiplier=scale * one.ratio, steps=one.steps, orders=_ORDERS)
        for one in mechanisms
    ]
    total = [sum(column) for column in zip(*spent, strict=True)]
    with warnings.catch_warnings():
        # At an end of the orders the bound holds all the same, and the search for the noise passes by there.
        warnings.filterwarnings("ignore", "Optimal order is the")
        epsilon, _ = rdp.get_privacy_spent(orders=_ORDERS, rdp=total, delta=delta)
    return float(epsilon)


def opacus(module: str) -> Any:
    """Return a module of Opacus; raises ConfigError where it is not installed."""
    import importlib

    try:
        return importlib.import_module(f"opacus.{module}")
    except ModuleNotFoundError:
        raise ConfigError("--privacy dp needs Opacus: pip install 'geodistill[dp]'") from None
