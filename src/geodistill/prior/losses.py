"""Training losses of the denoiser. Formulas: METHOD §2; min-SNR: Hang et al., ICCV 2023."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def spread(values: Tensor) -> Tensor:
    """Return per-sample `values` [n] as [n, 1, 1, 1]."""
    return values.view(-1, 1, 1, 1)


def add_noise(clean: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """Return `sqrt(ᾱ) z + sqrt(1 - ᾱ) ε` for per-sample ᾱ [n]."""
    return spread(alpha_bar.sqrt()) * clean + spread((1 - alpha_bar).sqrt()) * noise


def target(clean: Tensor, noise: Tensor, alpha_bar: Tensor, prediction: str) -> Tensor:
    """Return the U-Net's training target: ε, or v = sqrt(ᾱ) ε - sqrt(1 - ᾱ) z (Salimans and Ho 2022)."""
    if prediction == "epsilon":
        return noise
    return spread(alpha_bar.sqrt()) * noise - spread((1 - alpha_bar).sqrt()) * clean


def estimate_clean(output: Tensor, noisy: Tensor, alpha_bar: Tensor, prediction: str) -> Tensor:
    """Return ẑ0 from the U-Net's output at noise level ᾱ [n]."""
    alpha, sigma = spread(alpha_bar.sqrt()), spread((1 - alpha_bar).sqrt())
    if prediction == "epsilon":
        return (noisy - sigma * output) / alpha
    return alpha * noisy - sigma * output


def min_snr_weight(alpha_bar: Tensor, prediction: str, gamma: float) -> Tensor:
    """Return the min-SNR-γ weight [n] of the squared error: min(SNR, γ)/SNR for ε, min(SNR, γ)/(SNR + 1) for v."""
    snr = alpha_bar / (1 - alpha_bar)
    return snr.clamp(max=gamma) / (snr if prediction == "epsilon" else snr + 1)


def diffusion_loss(output: Tensor, wanted: Tensor, alpha_bar: Tensor, prediction: str, gamma: float) -> Tensor:
    """Return the min-SNR-weighted mean squared error, a scalar."""
    error = F.mse_loss(output, wanted, reduction="none").mean(dim=(1, 2, 3))
    return (min_snr_weight(alpha_bar, prediction, gamma) * error).mean()


def consistency_loss(
    teacher: Callable[[Tensor], Tensor],
    estimate: Tensor,
    clean: Tensor,
    labels: Tensor,
    alpha_bar: Tensor,
    *,
    cross_entropy: float,
    kl: float,
) -> Tensor:
    """Return the classification-consistency loss, a scalar, weighted by ᾱ so that very noisy steps count little.

    Args:
        teacher: frozen classifier from latents [n, C, h, w] to logits [n, classes].
        estimate: ẑ0, through which the gradient flows.
        clean: latents of the real scenes.
        labels: their classes, int64 [n].
        alpha_bar: noise levels [n].
        cross_entropy: weight of the cross-entropy of the teacher on ẑ0 with the true class.
        kl: weight of KL(g(z) ‖ g(ẑ0)), "similar predictions for original and distilled data".
    """
    logits = teacher(estimate)
    loss = cross_entropy * F.cross_entropy(logits, labels, reduction="none")
    if kl:
        with torch.no_grad():
            wanted = F.log_softmax(teacher(clean), dim=1)
        divergence = F.kl_div(F.log_softmax(logits, dim=1), wanted, reduction="none", log_target=True).sum(dim=1)
        loss = loss + kl * divergence
    return (alpha_bar * loss).mean()
