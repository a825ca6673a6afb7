import torch

from geodistill.prior.guidance import classifier_free, pull, start_from


def test_classifier_free_guidance_by_hand() -> None:
    assert classifier_free(torch.tensor(3.0), torch.tensor(1.0), 7.5).item() == 16.0


def test_start_from_mixes_prototype_and_noise() -> None:
    prototype, noise = torch.full((1, 1, 2, 2), 2.0), torch.full((1, 1, 2, 2), 10.0)
    assert torch.allclose(start_from(prototype, noise, 0.64), torch.full((1, 1, 2, 2), 0.8 * 2 + 0.6 * 10))


def test_pull_has_length_scale_times_sigma_and_points_at_the_prototype() -> None:
    g = torch.Generator().manual_seed(0)
    noisy, output, prototype = (torch.randn(3, 2, 4, 4, generator=g) for _ in range(3))
    moved = pull(noisy, output, prototype, 0.36, "epsilon", 2.0)
    step = (moved - noisy).flatten(1)
    assert torch.allclose(step.norm(dim=1), torch.full((3,), 2.0 * 0.8), atol=1e-5)
    gap = (prototype - (noisy - 0.8 * output) / 0.6).flatten(1)
    assert torch.allclose(torch.cosine_similarity(step, gap), torch.ones(3), atol=1e-5)


def test_pull_on_the_prototype_stays_finite() -> None:
    noisy = torch.ones(1, 1, 2, 2)
    moved = pull(noisy, torch.zeros_like(noisy), noisy / 0.6, 0.36, "epsilon", 1.0)
    assert torch.isfinite(moved).all()
