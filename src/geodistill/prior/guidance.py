"""Guidance towards a prototype or a mode while denoising. Formulas: METHOD §2 and Chan-Santiago et al., ICML 2025."""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from geodistill.prior.noising import NoiseProcess


def classifier_free(conditional: Tensor, unconditional: Tensor, weight: float) -> Tensor:
    """Return `u + w (c - u)` (Ho and Salimans 2022)."""
    return unconditional + weight * (conditional - unconditional)


def start_from(
    process: NoiseProcess, prototype: Tensor, noise: Tensor, alpha_bar: float, noisy: Tensor | None = None
) -> Tensor:
    """Return the prototypes [n, C, h, w] noised to level ᾱ, where denoising starts (SDEdit, Meng et al. 2022).

    `noisy` float [n] is the standard deviation of the noise that the `coarse` part of each prototype already contains;
    correspondingly less is added to that part. It must be at most sqrt((1 - ᾱ) / ᾱ).
    """
    if noisy is not None:
        left = (1 - alpha_bar / (1 - alpha_bar) * noisy**2).clamp_min(0).sqrt().view(-1, 1, 1, 1)
        noise = noise - (1 - left) * coarse(noise)
    return process.add(prototype, noise, prototype.new_full((len(prototype),), alpha_bar))


def coarse(latents: Tensor) -> Tensor:
    """Return latents [n, C, h, w] with each 2x2 block set to its mean: a projection onto a quarter of the dimensions.

    Sides must be even, as they are for every base whose U-Net halves its resolution.
    """
    return F.interpolate(F.avg_pool2d(latents, 2), scale_factor=2.0)


def pull(noisy: Tensor, estimate: Tensor, prototype: Tensor, alpha_bar: float, scale: float) -> Tensor:
    """Return `z_t + s σ_t (p - ẑ0) / ‖p - ẑ0‖`: latents [n, C, h, w] moved towards their prototypes.

    Args:
        noisy: z_t.
        estimate: ẑ0 at step t, after classifier-free guidance.
        prototype: p.
        alpha_bar: ᾱ_t of the step.
        scale: s.
    """
    gap = prototype - estimate
    length = gap.flatten(1).norm(dim=1).clamp_min(1e-8).view(-1, 1, 1, 1)
    moved: Tensor = noisy + scale * (1 - alpha_bar) ** 0.5 * gap / length
    return moved


@dataclass(frozen=True)
class ModeGuidance:
    """MGD3 mode guidance: its scale λ and the number of first steps that it applies to."""

    scale: float
    steps: int


def towards_mode(
    stepped: Tensor, estimate: Tensor, mode: Tensor, alpha_bar: float, following: float, scale: float
) -> Tensor:
    """Return `z_{t-1} + λ σ_t (m - ẑ0)`: latents [n, C, h, w] moved towards their modes.

    σ_t² = (1 - ᾱ_{t-1}) / (1 - ᾱ_t) · (1 - ᾱ_t / ᾱ_{t-1}), the variance of DDPM's reverse step (Ho et al. 2020).

    Args:
        stepped: z_{t-1}, the solver's result.
        estimate: ẑ0 at step t, after classifier-free guidance.
        mode: m.
        alpha_bar: ᾱ_t.
        following: ᾱ_{t-1}, that of the next step in the solver's list.
        scale: λ.
    """
    variance = (1 - following) / (1 - alpha_bar) * (1 - alpha_bar / following)
    moved: Tensor = stepped + scale * variance**0.5 * (mode - estimate)
    return moved
