import pytest
import torch
import torch.nn.functional as F

from geodistill.prior.losses import consistency_loss, diffusion_loss
from geodistill.prior.noising import PROCESSES, Epsilon

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
    process = PROCESSES[prediction](LEVELS)
    noisy, wanted = process.add(clean, noise, LEVELS), process.target(clean, noise, LEVELS)
    assert torch.allclose(process.clean(wanted, noisy, LEVELS), clean, atol=1e-12)


def test_min_snr_weights_by_hand() -> None:
    # SNR = 9 and 1/9; gamma 5.
    levels = torch.tensor([0.9, 0.1], dtype=torch.float64)
    weights = {name: process(levels).weight(levels, 5.0) for name, process in PROCESSES.items()}
    assert torch.allclose(weights["epsilon"], torch.tensor([5 / 9, 1.0], dtype=torch.float64))
    assert torch.allclose(weights["v_prediction"], torch.tensor([0.5, 0.1], dtype=torch.float64))


def test_diffusion_loss_by_hand() -> None:
    output, wanted = torch.zeros(2, 1, 1, 2), torch.tensor([[[[1.0, 3.0]]], [[[2.0, 0.0]]]])
    levels = torch.tensor([0.9, 0.1])
    # Mean squared errors 5 and 2, weights 5/9 and 1.
    loss = diffusion_loss(Epsilon(levels), output, wanted, levels, 5.0)
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
