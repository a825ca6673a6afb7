"""Training losses of the denoiser: min-SNR-weighted diffusion loss, classification consistency (arXiv 2601.15829)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from geodistill.prior.noising import NoiseProcess


def diffusion_loss(process: NoiseProcess, output: Tensor, wanted: Tensor, level: Tensor, gamma: float) -> Tensor:
    """Return the min-SNR-weighted mean squared error of the U-Net's `output`, a scalar."""
    error = F.mse_loss(output, wanted, reduction="none").mean(dim=(1, 2, 3))
    return (process.weight(level, gamma) * error).mean()


def consistency_loss(
    teacher: Callable[[Tensor], Tensor],
    estimate: Tensor,
    clean: Tensor,
    labels: Tensor,
    signal: Tensor,
    *,
    cross_entropy: float,
    kl: float,
) -> Tensor:
    """Return the classification-consistency loss, a scalar, weighted so that very noisy steps count little.

    Args:
        teacher: frozen classifier from latents [n, C, h, w] to logits [n, classes].
        estimate: ẑ0, through which the gradient flows.
        clean: latents of the real scenes.
        labels: their classes, int64 [n].
        signal: weight of each latent [n], the share of the signal's variance (ᾱ).
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
    return (signal * loss).mean()
