"""How noise is added to latents, and what the U-Net predicts: one class for each kind of prediction.

Diffusion adds noise as z_t = sqrt(ᾱ) z + sqrt(1 - ᾱ) ε (Ho et al. 2020). The U-Net predicts ε, or
v = sqrt(ᾱ) ε - sqrt(1 - ᾱ) z (Salimans and Ho 2022). Min-SNR weights: Hang et al., ICCV 2023.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor


def spread(values: Tensor) -> Tensor:
    """Return per-sample `values` [n] as [n, 1, 1, 1]."""
    return values.view(-1, 1, 1, 1)


class NoiseProcess(ABC):
    """Noise on latents [n, C, h, w] at noise levels [n], which are ᾱ for diffusion.

    levels: float [T], the level of each time step.

    >>> import torch
    >>> clean, noise, level = torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), torch.tensor([0.25])
    >>> process = Velocity(levels=level)
    >>> noisy = process.add(clean, noise, level)
    >>> float(process.clean(process.target(clean, noise, level), noisy, level).mean())
    1.0
    """

    def __init__(self, levels: Tensor) -> None:
        self.levels = levels

    def add(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """Return the latents with noise."""
        return spread(level.sqrt()) * clean + spread((1 - level).sqrt()) * noise

    def signal(self, level: Tensor) -> Tensor:
        """Return the share of the signal's variance [n]: 1 without noise, 0 for noise alone."""
        return level

    @abstractmethod
    def target(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """Return what the U-Net is trained to predict."""

    @abstractmethod
    def clean(self, output: Tensor, noisy: Tensor, level: Tensor) -> Tensor:
        """Return the estimate ẑ0 that follows from the U-Net's `output` for `noisy` latents."""

    @abstractmethod
    def weight(self, level: Tensor, gamma: float) -> Tensor:
        """Return the min-SNR-γ weight [n] of the squared error of the prediction."""


class Epsilon(NoiseProcess):
    """The U-Net predicts the noise ε."""

    def target(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """Return ε."""
        return noise

    def clean(self, output: Tensor, noisy: Tensor, level: Tensor) -> Tensor:
        """Return (z_t - sqrt(1 - ᾱ) ε) / sqrt(ᾱ)."""
        return (noisy - spread((1 - level).sqrt()) * output) / spread(level.sqrt())

    def weight(self, level: Tensor, gamma: float) -> Tensor:
        """Return min(SNR, γ) / SNR."""
        snr = level / (1 - level)
        return snr.clamp(max=gamma) / snr


class Velocity(NoiseProcess):
    """The U-Net predicts v."""

    def target(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """Return sqrt(ᾱ) ε - sqrt(1 - ᾱ) z."""
        return spread(level.sqrt()) * noise - spread((1 - level).sqrt()) * clean

    def clean(self, output: Tensor, noisy: Tensor, level: Tensor) -> Tensor:
        """Return sqrt(ᾱ) z_t - sqrt(1 - ᾱ) v."""
        return spread(level.sqrt()) * noisy - spread((1 - level).sqrt()) * output

    def weight(self, level: Tensor, gamma: float) -> Tensor:
        """Return min(SNR, γ) / (SNR + 1)."""
        snr = level / (1 - level)
        return snr.clamp(max=gamma) / (snr + 1)


# By the name that a diffusers scheduler has for the prediction.
PROCESSES: dict[str, type[NoiseProcess]] = {"epsilon": Epsilon, "v_prediction": Velocity}


def noise_process(scheduler: Any, device: torch.device | None = None) -> NoiseProcess:
    """Return the noise process of a base, by its diffusers scheduler; its levels are on `device`."""
    return PROCESSES[scheduler.config.prediction_type](scheduler.alphas_cumprod.float().to(device))
