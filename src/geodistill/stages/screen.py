"""Stage `screened`: candidates too similar to a training image are drawn again, following their prototype less."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from geodistill.config import Config, SamplingSettings
from geodistill.pipeline import CANDIDATES, SCREENED
from geodistill.prior.base import Prior
from geodistill.prior.sample import sample
from geodistill.privacy.copies import are_copies, find_copies
from geodistill.privacy.screen import Screen, make_screen
from geodistill.processes import processes
from geodistill.provenance import Made
from geodistill.run import forget_part_folders, save_tensors
from geodistill.scenes.pixels import Pixels
from geodistill.scenes.scenes import Scenes
from geodistill.stages.candidates import Candidates, Slots, decode, requests_for, slot_labels
from geodistill.stages.context import Context
from geodistill.stages.noise import seed_of_noise

# Number of times that candidates are drawn again, each time following their prototype less.
_ROUNDS = 3
# If this share of a prototype's candidates passes, none of them is drawn again.
_ENOUGH = 0.25
_FILE = "screened.safetensors"


def screened(
    context: Context, prior: Made[Prior], candidates: Made[Candidates], slots: Made[Slots]
) -> Made[Candidates]:
    """Return `candidates` from stage `screened`: failing ones are drawn again, and the result marks those that pass.

    If enough candidates of a prototype pass, its failing ones are left as they are; they are not chosen. Raises
    PrivacyError if a class is too small for screening.
    """
    scenes, config = context.scenes, context.config

    def build(folder: Path) -> dict[str, Any]:
        own = make_screen(Pixels(scenes, config.size), scenes.labels, seed=config.seed)
        requests = requests_for(prior.value, slots.value, config.sampling.candidates)
        place = torch.arange(len(slots.value.texts)).repeat_interleave(config.sampling.candidates)
        labels = slot_labels(scenes, config)[place]
        drawn = candidates.value.latents.clone()
        passing = _passing(own, drawn, labels, prior.value, config)
        rejected, settings = [int((~passing).sum())], config.sampling
        for number in range(_ROUNDS):
            again = (~passing & _short(passing, place)[place]).nonzero()[:, 0]
            if not len(again):
                break
            settings = weaker(settings)
            seed = seed_of_noise(context, SCREENED, number)
            parts = folder / f"round-{number}"
            parts.mkdir(exist_ok=True)
            drawn[again] = sample(prior.value, requests.part(again), settings, seed=seed, folder=parts)
            passing[again] = _passing(own, drawn[again], labels[again], prior.value, config)
            rejected.append(int((~passing[again]).sum()))
        if processes().main:
            save_tensors({"latents": drawn, "passing": passing}, folder / _FILE)
            forget_part_folders(folder, "round-*")
        return {"distance": own.distance, "ratio": own.ratio, "rejected": rejected, "passing": int(passing.sum())}

    def load(folder: Path) -> Candidates:
        return Candidates(**load_file(folder / _FILE))

    return context.run.make(SCREENED, build, load, given=[candidates, scenes.fingerprint()])


def keeps_away(images: Tensor, labels: Tensor, scenes: Scenes, config: Config) -> Tensor:
    """Return bool [n]: which uint8 images [n, 3, s, s] of classes int64 [n] pass the screen and are no copies."""
    train = Pixels(scenes, config.size)
    own = make_screen(train, scenes.labels, seed=config.seed)
    return own.passes(images, labels) & ~are_copies(find_copies(images, train))


def ways_of_drawing(
    config: Config, sampling: SamplingSettings
) -> tuple[tuple[SamplingSettings, ...], tuple[tuple[str, int], ...]]:
    """Return the settings, `sampling` first, and the seeds with which a candidate of `config` may have been drawn.

    A seed is given as the arguments of `seed_of_noise`: the name of a stage and an index. Under privacy 'screen' a
    candidate may have been drawn again.
    """
    settings, names = [sampling], [(CANDIDATES.name, 0)]
    for number in range(_ROUNDS if config.privacy == "screen" else 0):
        settings.append(weaker(settings[-1]))
        names.append((SCREENED.name, number))
    return tuple(settings), tuple(names)


def weaker(settings: SamplingSettings) -> SamplingSettings:
    """Return `settings` that follow a prototype less: a strength 0.1 higher (at most 1), or half the pull."""
    if settings.starts:
        return settings.model_copy(update={"strength": min(1.0, round(settings.noise_strength + 0.1, 4))})
    return settings.model_copy(update={"scale": settings.scale / 2})


def _passing(own: Screen, latents: Tensor, labels: Tensor, prior: Prior, config: Config) -> Tensor:
    return own.passes(decode(prior, latents, config, draft=True), labels)


def _short(passing: Tensor, slots: Tensor) -> Tensor:
    """Return bool [P]: the slots with too few passing candidates."""
    passed = torch.bincount(slots, weights=passing.double())
    return passed < _ENOUGH * torch.bincount(slots)
