import pytest
import torch
from diffusers import DDPMScheduler

from geodistill.prior.guidance import classifier_free, coarse, pull, start_from, towards_mode
from geodistill.prior.noising import Epsilon

EPSILON = Epsilon(torch.tensor([0.36]))


def test_classifier_free_guidance_by_hand() -> None:
    assert classifier_free(torch.tensor(3.0), torch.tensor(1.0), 7.5).item() == 16.0


def test_start_from_mixes_prototype_and_noise() -> None:
    prototype, noise = torch.full((1, 1, 2, 2), 2.0), torch.full((1, 1, 2, 2), 10.0)
    assert torch.allclose(start_from(EPSILON, prototype, noise, 0.64), torch.full((1, 1, 2, 2), 0.8 * 2 + 0.6 * 10))


def test_noise_that_is_in_a_prototype_already_is_not_added_again() -> None:
    # Of variance 0.36 at this level, 0.64 * 0.5² is there already, in the mean of each 2x2.
    random = torch.Generator().manual_seed(0)
    noise, own = (torch.randn(2, 3, 64, 64, generator=random) for _ in range(2))
    clean = torch.zeros(2, 3, 64, 64)
    noisy = torch.tensor([0.5, 0.0])
    prototypes = clean + noisy.view(2, 1, 1, 1) * coarse(own)
    started = start_from(EPSILON, prototypes, noise, 0.64, noisy)
    assert torch.equal(started[1], start_from(EPSILON, prototypes, noise, 0.64)[1])
    for part, share in ((coarse(started), 1 / 4), (started - coarse(started), 3 / 4)):
        assert part[0].var().item() == pytest.approx(0.36 * share, rel=0.05)
    added = coarse(start_from(EPSILON, clean, noise, 0.64, noisy))[0]
    assert added.var().item() == pytest.approx((0.36 - 0.64 * 0.25) / 4, rel=0.05)


def test_coarse_is_a_projection_that_shortens() -> None:
    latents = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(coarse(coarse(latents)), coarse(latents))
    assert coarse(latents)[0, 0, :2, :2].flatten().tolist() == pytest.approx([latents[0, 0, :2, :2].mean().item()] * 4)
    assert bool((coarse(latents).flatten(1).norm(dim=1) < latents.flatten(1).norm(dim=1)).all())


def test_pull_has_length_scale_times_sigma_and_points_at_the_prototype() -> None:
    g = torch.Generator().manual_seed(0)
    noisy, output, prototype = (torch.randn(3, 2, 4, 4, generator=g) for _ in range(3))
    estimate = EPSILON.clean(output, noisy, torch.full((3,), 0.36))
    moved = pull(noisy, estimate, prototype, 0.36, 2.0)
    step = (moved - noisy).flatten(1)
    assert torch.allclose(step.norm(dim=1), torch.full((3,), 2.0 * 0.8), atol=1e-5)
    gap = (prototype - (noisy - 0.8 * output) / 0.6).flatten(1)
    assert torch.allclose(torch.cosine_similarity(step, gap), torch.ones(3), atol=1e-5)


def test_pull_on_the_prototype_stays_finite() -> None:
    noisy = torch.ones(1, 1, 2, 2)
    moved = pull(noisy, noisy / 0.6, noisy / 0.6, 0.36, 1.0)
    assert torch.isfinite(moved).all()


def test_towards_mode_by_hand() -> None:
    # From abar 0.36 to 0.64 the reverse step has variance (0.36 / 0.64) (1 - 0.36 / 0.64) = 0.24609.
    stepped, estimate, mode = (torch.full((1, 1, 2, 2), value) for value in (5.0, 1.0, 4.0))
    moved = towards_mode(stepped, estimate, mode, 0.36, 0.64, 0.1)
    assert torch.allclose(moved, torch.full((1, 1, 2, 2), 5 + 0.1 * 0.496078 * 3), atol=1e-6)


def test_towards_mode_moves_by_more_where_the_gap_is_wider() -> None:
    stepped, estimate = torch.zeros(2, 1, 1, 1), torch.zeros(2, 1, 1, 1)
    moved = towards_mode(stepped, estimate, torch.tensor([1.0, 3.0]).view(2, 1, 1, 1), 0.2, 0.5, 1.0)
    assert moved[1].item() == pytest.approx(3 * moved[0].item())


def test_deviation_is_that_of_stock_ddpm() -> None:
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="fixed_small")
    scheduler.set_timesteps(50)
    for time in scheduler.timesteps[:-1]:
        level, following = (float(scheduler.alphas_cumprod[t]) for t in (time, time - 20))
        zero, one = torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)
        deviation = towards_mode(zero, zero, one, level, following, 1.0).item()
        assert deviation == pytest.approx(float(scheduler._get_variance(time)) ** 0.5, rel=1e-3)
