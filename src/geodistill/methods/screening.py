"""Screening the candidates: those too like a training image are drawn again, following their prototype less."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from geodistill.config import Config, SamplingSettings
from geodistill.methods.stages import decode, requests_for, seed_of_noise
from geodistill.prior.base import Prior
from geodistill.prior.sample import sample
from geodistill.privacy.copies import are_copies, find_copies
from geodistill.privacy.screen import Screen, make_screen
from geodistill.processes import processes
from geodistill.prototypes import Prototypes
from geodistill.run import Run, forget_parts, save_tensors
from geodistill.scenes.scenes import Scenes

# How often candidates are drawn again, each time following their prototype less.
_ROUNDS = 3
# A prototype of whose candidates this share passes needs no more.
_ENOUGH = 0.25


@dataclass(frozen=True)
class Screened:
    """Candidates float32 [n, C, h, w] after screening, and which of them pass, bool [n]."""

    latents: Tensor
    passing: Tensor


def screen(
    candidates: Tensor,
    latents: Tensor,
    prior: Prior,
    scenes: Scenes,
    prototypes: Prototypes,
    texts: list[str],
    config: Config,
    run: Run,
) -> Screened:
    """Return `candidates` [P * R, C, h, w], those that fail drawn again, from stage `screened`.

    Of a prototype of whose candidates enough pass the others are left as they are: they are not chosen.
    Raises PrivacyError where a class is too small for it.
    """

    def build(folder: Path) -> dict[str, Any]:
        own = make_screen(scenes.pixels(size=config.size), scenes.labels, seed=config.seed)
        starts = prototypes.starts(config.sampling.candidates, config.seed, of=config.prototypes.starts)
        requests = requests_for(prior, latents, texts, config, starts=starts)
        slots = torch.arange(len(texts)).repeat_interleave(config.sampling.candidates)
        labels = prototypes.labels[slots]
        drawn, passing = candidates.clone(), _passing(own, candidates, labels, prior, config)
        rejected, settings = [int((~passing).sum())], config.sampling
        for number in range(_ROUNDS):
            again = (~passing & _short(passing, slots)[slots]).nonzero()[:, 0]
            if not len(again):
                break
            settings = weaker(settings)
            seed = seed_of_noise("screened", config, run, number)
            parts = folder / f"round-{number}"
            parts.mkdir(exist_ok=True)
            drawn[again] = sample(prior, requests.part(again), settings, seed=seed, folder=parts)
            passing[again] = _passing(own, drawn[again], labels[again], prior, config)
            rejected.append(int((~passing[again]).sum()))
        if processes().main:
            save_tensors({"latents": drawn, "passing": passing}, folder / "screened.safetensors")
            for parts in folder.glob("round-*"):
                forget_parts(parts)
                parts.rmdir()
        return {"distance": own.distance, "ratio": own.ratio, "rejected": rejected, "passing": int(passing.sum())}

    inputs = [run.fingerprint_of("candidates"), scenes.fingerprint()]
    stage = run.stage("screened", build, version=1, inputs=inputs, shared=True)
    kept = load_file(stage / "screened.safetensors")
    return Screened(kept["latents"], kept["passing"])


def keeps_away(images: Tensor, labels: Tensor, scenes: Scenes, config: Config) -> Tensor:
    """Return bool [n]: which of uint8 images [n, 3, s, s] of classes int64 [n] pass the screen and are no copies."""
    train = scenes.pixels(size=config.size)
    own = make_screen(train, scenes.labels, seed=config.seed)
    return own.passes(images, labels) & ~are_copies(find_copies(images, train))


def ways_of_drawing(
    config: Config, sampling: SamplingSettings
) -> tuple[tuple[SamplingSettings, ...], tuple[tuple[str, int], ...]]:
    """Return under which settings a candidate of `config` may have been drawn, `sampling` the first, and by which seed.

    A seed is told by what `seed_of_noise` is asked for: a stage's name and an index. Under privacy 'screen' a candidate
    may have been drawn again.
    """
    settings, names = [sampling], [("candidates", 0)]
    for number in range(_ROUNDS if config.privacy == "screen" else 0):
        settings.append(weaker(settings[-1]))
        names.append(("screened", number))
    return tuple(settings), tuple(names)


def weaker(settings: SamplingSettings) -> SamplingSettings:
    """Return `settings` under which a prototype is followed less: noised a tenth more, or pulled half as much."""
    if settings.follow == "start":
        return settings.model_copy(update={"strength": min(1.0, round(settings.noise_strength + 0.1, 4))})
    return settings.model_copy(update={"scale": settings.scale / 2})


def _passing(own: Screen, latents: Tensor, labels: Tensor, prior: Prior, config: Config) -> Tensor:
    return own.passes(decode(prior, latents, config, draft=True), labels)


def _short(passing: Tensor, slots: Tensor) -> Tensor:
    """Return bool [P]: the slots of whose candidates too few pass."""
    passed = torch.bincount(slots, weights=passing.double())
    return passed < _ENOUGH * torch.bincount(slots)
