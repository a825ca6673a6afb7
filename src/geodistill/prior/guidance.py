"""Two ways to follow a prototype while denoising. Formulas: METHOD §2."""

import torch
from torch import Tensor

from geodistill.prior.losses import add_noise, estimate_clean


def classifier_free(conditional: Tensor, unconditional: Tensor, weight: float) -> Tensor:
    """Return `u + w (c - u)` (Ho and Salimans 2022)."""
    return unconditional + weight * (conditional - unconditional)


def start_from(prototype: Tensor, noise: Tensor, alpha_bar: float) -> Tensor:
    """Return the prototypes [n, C, h, w] noised to level ᾱ, from where denoising starts (SDEdit, Meng et al. 2022)."""
    return add_noise(prototype, noise, torch.full((len(prototype),), alpha_bar))


def pull(noisy: Tensor, output: Tensor, prototype: Tensor, alpha_bar: float, prediction: str, scale: float) -> Tensor:
    """Return `z_t + s σ_t (p - ẑ0) / ‖p - ẑ0‖`: latents [n, C, h, w] moved towards their prototypes.

    Args:
        noisy: z_t.
        output: what the U-Net gave for it, after classifier-free guidance.
        prototype: p.
        alpha_bar: ᾱ_t of the step.
        prediction: "epsilon" or "v_prediction".
        scale: s.
    """
    level = torch.full((len(noisy),), alpha_bar)
    gap = prototype - estimate_clean(output, noisy, level, prediction)
    length = gap.flatten(1).norm(dim=1).clamp_min(1e-8).view(-1, 1, 1, 1)
    moved: Tensor = noisy + scale * (1 - alpha_bar) ** 0.5 * gap / length
    return moved
