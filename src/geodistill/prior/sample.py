"""Drawing candidates from the prior, batched over prototypes and candidates."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, PNDMScheduler
from torch import Tensor

from geodistill.config import SamplingSettings
from geodistill.errors import PriorError
from geodistill.prior.base import Prior
from geodistill.prior.guidance import ModeGuidance, classifier_free, pull, start_from, towards_mode
from geodistill.prior.noising import noise_process
from geodistill.prior.training import batches, no_class
from geodistill.run import Stored, kept_parts
from geodistill.seeding import generator

log = logging.getLogger("geodistill")

# A noisy start is noised to this multiple of its own noise variance, so half is drawn anew and candidates differ.
_MARGIN = 2.0


@dataclass(frozen=True)
class Requests:
    """n images to draw.

    prompts: int64 [n], rows of `embeddings`. embeddings: [U, tokens, width], row 0 the empty prompt.
    prototypes: any floating type [P, C, h, w]. slots: int64 [n], the prototype that each image follows.
    seeds: int64 [n], the index of each image's own noise.
    noisy: float [P], the standard deviation of the noise already in each prototype's coarse part (see start_from).
    """

    prompts: Tensor
    embeddings: Tensor
    prototypes: Stored
    slots: Tensor
    seeds: Tensor
    noisy: Tensor | None = None

    def part(self, which: slice | Tensor) -> "Requests":
        """Return the requests at `which`, a slice or int64 indices."""
        own = (self.slots[which], self.seeds[which], self.noisy)
        return Requests(self.prompts[which], self.embeddings, self.prototypes, *own)


def sample(
    prior: Prior,
    requests: Requests,
    settings: SamplingSettings,
    *,
    seed: int | bytes,
    folder: Path,
    modes: ModeGuidance | None = None,
) -> Tensor:
    """Return latents [n, C, h, w] of all requests; each batch is saved in `folder`, so sampling can resume.

    `seed`: an int, or a secret without which nobody can reproduce the noise (see seeding).
    """

    def drawn(which: slice) -> Tensor:
        return sample_fitting(prior, requests.part(which), settings, seed=seed, modes=modes)

    return kept_parts("candidates", batches(len(requests.prompts), settings.batch), drawn, folder)


def sample_fitting(
    prior: Prior,
    requests: Requests,
    settings: SamplingSettings,
    *,
    seed: int | bytes,
    modes: ModeGuidance | None = None,
) -> Tensor:
    """Return what `sample_batch` returns, halving the batch repeatedly if memory runs out.

    Raises PriorError if memory runs out with one image at a time.
    """
    count = len(requests.prompts)
    try:
        return sample_batch(prior, requests, settings, seed=seed, modes=modes)
    except torch.OutOfMemoryError as error:
        if count == 1:
            raise PriorError(
                f"out of memory with one image at a time ({str(error).split('.')[0]}): use a smaller --size or base, "
                "or free the device"
            ) from error
    # Outside the handler, which would keep the batch's tensors in memory.
    torch.cuda.empty_cache()
    log.warning("out of memory: drawing %d images at a time, not %d (--set sampling.batch=…)", -(-count // 2), count)
    halves = (slice(0, -(-count // 2)), slice(-(-count // 2), count))
    drawn = [sample_fitting(prior, requests.part(half), settings, seed=seed, modes=modes) for half in halves]
    return torch.cat(drawn)


@torch.inference_mode()
def sample_batch(
    prior: Prior,
    requests: Requests,
    settings: SamplingSettings,
    *,
    seed: int | bytes,
    modes: ModeGuidance | None = None,
) -> Tensor:
    """Return latents [n, C, h, w] drawn together; each depends on its own seed, not on its neighbours.

    With `modes`, MGD3 guidance towards the prototypes is applied in addition to `settings.follow`.
    """
    scheduler, times = _schedule(prior.scheduler.config, settings)
    alphas, process = prior.scheduler.alphas_cumprod, noise_process(prior.scheduler)
    prototypes = requests.prototypes[requests.slots].float().to(prior.device)
    # Drawn on the CPU, so that every device draws the same image.
    noise = _noise(prototypes.shape[1:], requests.seeds, seed).to(prior.device)
    latents = noise
    if settings.starts:
        noisy = None if requests.noisy is None else requests.noisy[requests.slots].float().to(prior.device)
        latents = start_from(process, prototypes, noise, float(alphas[times[0]]), noisy)
    embeddings = _embeddings(requests, settings.guidance_scale).to(prior.device)
    for index, time in enumerate(times):
        output = _denoise(prior, latents, time, embeddings, settings.guidance_scale)
        if settings.follow == "guide" and index / len(times) <= settings.until:
            level = float(alphas[time])
            estimate = process.clean(output, latents, latents.new_full((len(latents),), level))
            latents = pull(latents, estimate, prototypes, level, settings.scale)
        stepped = scheduler.step(output, time, latents).prev_sample
        if modes and index < modes.steps and index + 1 < len(times):
            level, following = float(alphas[time]), float(alphas[times[index + 1]])
            estimate = process.clean(output, latents, latents.new_full((len(latents),), level))
            stepped = towards_mode(stepped, estimate, prototypes, level, following, modes.scale)
        latents = stepped
    return latents.cpu()


def covering_strengths(prior: Prior, settings: SamplingSettings, noisy: Sequence[float]) -> list[float]:
    """Return for each start the smallest noise strength, at least that of `settings`, that covers its noise `noisy`.

    At that strength the noise variance is at least _MARGIN times the variance of the noise already present. The
    strength is 1 if no level reaches this.
    """
    alphas = prior.scheduler.alphas_cumprod
    variances = {}
    for share in range(round(settings.noise_strength * settings.steps), settings.steps):
        strength = share / settings.steps
        _, times = _schedule(prior.scheduler.config, settings.model_copy(update={"strength": strength}))
        level = float(alphas[times[0]])
        variances[strength] = (1 - level) / level
    return [
        next((strength for strength, variance in variances.items() if variance >= _MARGIN * own**2), 1.0)
        for own in noisy
    ]


def _schedule(config: Any, settings: SamplingSettings) -> tuple[Any, Tensor]:
    """Return the solver and its time steps; if sampling starts from an image, none is above the noise strength."""
    scheduler = _SOLVERS[settings.solver](config)
    scheduler.set_timesteps(settings.steps)
    times = scheduler.timesteps
    if settings.starts:
        times = times.unique().flip(0)
        first = min(round((1 - settings.noise_strength) * len(times)), len(times) - 1)
        times = times[first:]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(first)
        if settings.solver == "pndm":
            # PNDM runs its first step twice, wherever it begins, and expects the second time twice in its list.
            times = torch.cat([times[:2], times[1:]])
    return scheduler, times


_SOLVERS: dict[str, Callable[[Any], Any]] = {
    "ddim": lambda config: DDIMScheduler.from_config(config, clip_sample=False),
    "dpmsolver++": lambda config: DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++"),
    "pndm": lambda config: PNDMScheduler.from_config(config, skip_prk_steps=True),
}


def _noise(shape: torch.Size, seeds: Tensor, seed: int | bytes) -> Tensor:
    return torch.stack([torch.randn(shape, generator=generator(seed, "image", int(index))) for index in seeds])


def _embeddings(requests: Requests, guidance: float) -> Tensor:
    own = requests.embeddings[requests.prompts].float()
    if guidance == 1:
        return own
    return torch.cat([requests.embeddings[:1].float().expand_as(own), own])


def _denoise(prior: Prior, latents: Tensor, time: Tensor, embeddings: Tensor, guidance: float) -> Tensor:
    count = len(latents)
    doubled = latents if guidance == 1 else torch.cat([latents, latents])
    with prior.mixed():
        output = prior.unet(
            doubled.contiguous(memory_format=torch.channels_last),
            time,
            embeddings,
            class_labels=no_class(prior.unet, doubled),
        ).sample.float()
    return output if guidance == 1 else classifier_free(output[count:], output[:count], guidance)
