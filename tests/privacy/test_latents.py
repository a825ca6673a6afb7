from pathlib import Path

import pytest
import torch
from torch import Tensor

from geodistill.prior.base import Prior, load_prior
from geodistill.privacy.latents import invert, latent_spaces
from geodistill.privacy.membership import distances_to
from geodistill.scenes import Scenes


class _Still(torch.nn.Module):
    """A U-Net that takes all for signal: it predicts no noise."""

    def __init__(self, config: object) -> None:
        super().__init__()
        self.config = config

    def forward(self, latents: Tensor, *_: object, **__: object) -> object:
        return type("Output", (), {"sample": torch.zeros_like(latents)})()


@pytest.fixture
def prior(sd_folder: Path) -> Prior:
    return load_prior(str(sd_folder), "f32")


@pytest.mark.parametrize("strength", [0.6, 0.4, 1.0, 0.01])
def test_inversion_without_noise_scales_by_the_level(strength: float, prior: Prior, pair: Scenes) -> None:
    latents = prior.encode(pair.pixels([0, 1, 2], size=32))
    prior.unet = _Still(prior.unet.config)
    alphas = prior.scheduler.alphas_cumprod
    # Nine of fifteen steps are up to time step 0.6 of all; at least one is done.
    level = float(alphas[round(max(1, round(strength * 15)) / 15 * len(alphas)) - 1])
    # diffusers starts from what the scheduler takes for no noise at all.
    assert torch.allclose(invert(prior, latents, strength), latents * level**0.5, rtol=0.03, atol=2e-3)
    _, space = latent_spaces(prior, strength)
    assert torch.allclose(space.real(pair.pixels([0, 1, 2], size=32)), level**0.5 * latents.flatten(1), atol=1e-5)


def test_an_image_lies_nearest_to_itself_in_both_spaces(prior: Prior, pair: Scenes) -> None:
    images = pair.pixels(size=32)
    # Of random weights the U-Net adds anything.
    prior.unet = _Still(prior.unet.config)
    for space in latent_spaces(prior):
        drawn = space.drawn(images[:5])
        assert drawn.shape[1:] == space.real(images[:5]).shape
        found = distances_to(space.real(images), drawn)
        assert found.argmin(0).tolist() == list(range(5))


def test_a_turned_image_lies_nearest_to_itself_in_latents(prior: Prior, pair: Scenes) -> None:
    space, _ = latent_spaces(prior)
    images = pair.pixels(size=32)
    found = distances_to(space.real(images), space.drawn(images[:5].flip(-1)))
    assert found.argmin(0).tolist() == list(range(5))
