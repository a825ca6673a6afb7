"""Membership attacks in the latents of the base, the pretrained diffusion model that any holder of a set can install.

- latents: compares the image's latent with those of real images.
- inverted: takes the image back to the noise level that candidates start from, by DDIM inversion (Song, Meng, Ermon,
  ICLR 2021; Mokady et al., CVPR 2023). A candidate starts as the noised latent of a scene, so inversion gives that
  latent, scaled, plus noise. The attack searches for the nearest latent at the same noise level.
"""

import math

import torch
from diffusers import DDIMInverseScheduler
from torch import Tensor

from geodistill.prior.base import Prior
from geodistill.prior.training import no_class
from geodistill.privacy.membership import Space, in_orientations

# Noise level at which the inversion ends unless that of the set is known, as a share of all time steps, and steps of an
# inversion from 0 to 1.
STRENGTH, _STEPS = 0.6, 15
_TOGETHER = 64


def latent_spaces(prior: Prior, strength: float = STRENGTH) -> tuple[Space, Space]:
    """Return the spaces for attacks in the latents of `prior` without an adapter, which is what an outsider has.

    strength: the noise level that candidates started from, in (0, 1].
    """

    def flat(images: Tensor) -> Tensor:
        return prior.encode(images).flatten(1)

    def at_level(images: Tensor) -> Tensor:
        level = float(prior.scheduler.alphas_cumprod[_level(prior, strength)[-1]])
        return math.sqrt(level) * flat(images)

    def back(images: Tensor) -> Tensor:
        # One orientation is enough, because the sampler keeps the orientation of the start.
        return invert(prior, prior.encode(images), strength).flatten(1)[None]

    return Space("latents", flat, in_orientations(flat)), Space("inverted", at_level, back)


@torch.inference_mode()
def invert(prior: Prior, latents: Tensor, strength: float = STRENGTH) -> Tensor:
    """Return latents [n, C, h, w] at the noise level of candidates' starts, by DDIM inversion with an empty text."""
    empty = prior.embed([""]).to(prior.device)
    return torch.cat([_inverted(prior, part, empty, strength) for part in latents.split(_TOGETHER)])


def _inverted(prior: Prior, latents: Tensor, empty: Tensor, strength: float) -> Tensor:
    scheduler, latents = _scheduler(prior), latents.to(prior.device)
    texts = empty.expand(len(latents), -1, -1)
    for time in _level(prior, strength):
        with prior.mixed():
            wide = latents.contiguous(memory_format=torch.channels_last)
            output = prior.unet(wide, time, texts, class_labels=no_class(prior.unet, wide)).sample.float()
        latents = scheduler.step(output, time, latents).prev_sample
    return latents.cpu()


def _scheduler(prior: Prior) -> DDIMInverseScheduler:
    scheduler = DDIMInverseScheduler.from_config(prior.scheduler.config, clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(_STEPS)
    return scheduler


def _level(prior: Prior, strength: float) -> Tensor:
    """Return the time steps int64 [k] of the inversion, in ascending order."""
    times: Tensor = _scheduler(prior).timesteps
    return times[: max(1, round(strength * _STEPS))]
