import pytest
import torch
import torch.nn.functional as F

from geodistill.prior.losses import (
    add_noise,
    consistency_loss,
    diffusion_loss,
    estimate_clean,
    min_snr_weight,
    target,
)

LEVELS = torch.tensor([0.999, 0.9, 0.5, 0.1], dtype=torch.float64)


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return (
        torch.randn(4, 3, 2, 2, generator=g, dtype=torch.float64),
        torch.randn(4, 3, 2, 2, generator=g, dtype=torch.float64),
    )


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_estimate_from_the_exact_output_is_the_clean_latent(prediction: str) -> None:
    clean, noise = _batch()
    noisy = add_noise(clean, noise, LEVELS)
    wanted = target(clean, noise, LEVELS, prediction)
    assert torch.allclose(estimate_clean(wanted, noisy, LEVELS, prediction), clean, atol=1e-12)


def test_min_snr_weights_by_hand() -> None:
    # SNR = 9 and 1/9; gamma 5.
    levels = torch.tensor([0.9, 0.1], dtype=torch.float64)
    assert torch.allclose(min_snr_weight(levels, "epsilon", 5.0), torch.tensor([5 / 9, 1.0], dtype=torch.float64))
    assert torch.allclose(min_snr_weight(levels, "v_prediction", 5.0), torch.tensor([0.5, 0.1], dtype=torch.float64))


def test_diffusion_loss_by_hand() -> None:
    output, wanted = torch.zeros(2, 1, 1, 2), torch.tensor([[[[1.0, 3.0]]], [[[2.0, 0.0]]]])
    # Mean squared errors 5 and 2, weights 5/9 and 1.
    loss = diffusion_loss(output, wanted, torch.tensor([0.9, 0.1]), "epsilon", 5.0)
    assert loss.item() == pytest.approx((5 * 5 / 9 + 2) / 2, rel=1e-6)


def test_consistency_loss_against_torch_in_float64() -> None:
    clean, noise = _batch()
    labels, weight = torch.tensor([0, 1, 2, 0]), torch.linspace(-1, 1, 36, dtype=torch.float64).view(3, 12)

    def teacher(latents: torch.Tensor) -> torch.Tensor:
        return latents.flatten(1) @ weight.T

    loss = consistency_loss(teacher, noise, clean, labels, LEVELS, cross_entropy=0.5, kl=2.0)
    real, made = teacher(clean).softmax(1), teacher(noise).softmax(1)
    by_hand = 0.0
    for i in range(4):
        divergence = float((real[i] * (real[i].log() - made[i].log())).sum())
        by_hand += float(LEVELS[i]) * (-0.5 * float(made[i, labels[i]].log()) + 2.0 * divergence) / 4
    assert loss.item() == pytest.approx(by_hand, rel=1e-9)


def test_consistency_gradient_flows_through_the_estimate_alone() -> None:
    clean, estimate = torch.randn(2, 1, 2, 2, requires_grad=True), torch.randn(2, 1, 2, 2, requires_grad=True)
    loss = consistency_loss(
        lambda z: z.flatten(1), estimate, clean, torch.tensor([0, 1]), torch.ones(2), cross_entropy=1, kl=1
    )
    loss.backward()
    assert clean.grad is None
    assert estimate.grad is not None
    assert estimate.grad.abs().sum() > 0
    expected = F.softmax(estimate.detach().flatten(1), 1)  # d(CE)/dlogits = p - y, d(KL)/dlogits = p - q
    expected = 2 * expected - F.one_hot(torch.tensor([0, 1]), 4) - F.softmax(clean.detach().flatten(1), 1)
    assert torch.allclose(estimate.grad.flatten(1), expected / 2, atol=1e-6)
