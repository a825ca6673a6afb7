"""Stage `candidates`: several latents drawn for each image of the distilled set."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from geodistill.config import Config, SamplingSettings
from geodistill.pipeline import CANDIDATES
from geodistill.prior.base import Prior
from geodistill.prior.guidance import ModeGuidance
from geodistill.prior.sample import Requests, sample
from geodistill.prior.training import prompt_table
from geodistill.processes import processes
from geodistill.prototypes import Prototypes
from geodistill.provenance import Made, derived
from geodistill.run import Stored, column, forget_part_folders, forget_parts, save_tensors
from geodistill.scenes.scenes import Scenes
from geodistill.stages.context import Context, unless_default
from geodistill.stages.noise import seed_of_noise

# Largest number of candidates per slot. The noise of a candidate has the index slot * MOST_CANDIDATES + rank, so
# drawing more candidates leaves the earlier ones unchanged.
MOST_CANDIDATES = 10_000


@dataclass(frozen=True)
class Slots:
    """The P = classes * IPC images of the set to be made, and what the R candidates of each follow.

    texts: [P]. latents: float [P, C, h, w], in memory or in a file; with `starts`, any number of rows. starts: int64
    [P * R], the row of `latents` that each candidate follows. noisy: float, the deviation of the noise already in each
    row of `latents` (see `Requests`).
    """

    texts: list[str]
    latents: Stored
    starts: Tensor | None = None
    noisy: Tensor | None = None


@dataclass(frozen=True)
class Candidates:
    """Latents float32 [P * R, C, h, w]; the R candidates of a slot are adjacent.

    passing: bool [P * R], which candidates passed the screening; None without screening.
    """

    latents: Tensor
    passing: Tensor | None = None


def slot_labels(scenes: Scenes, config: Config) -> Tensor:
    """Return int64 [classes * IPC]: the class of each image of the set; the IPC images of a class are adjacent."""
    return torch.arange(len(scenes.classes)).repeat_interleave(config.ipc)


def slots_of(
    context: Context, latents: Made[Stored], texts: Made[list[str]], prototypes: Made[Prototypes]
) -> Made[Slots]:
    """Return the slots of DPD: each candidate starts from a scene of its prototype's cluster."""
    config = context.config

    def compute() -> Slots:
        starts = prototypes.value.starts(config.sampling.candidates, config.seed, of=config.prototypes.starts)
        return Slots(texts.value, column(latents.value, 0), starts)

    return derived(compute, latents, prototypes, texts)


def draw(
    context: Context, prior: Made[Prior], slots: Made[Slots], modes: ModeGuidance | None = None
) -> Made[Candidates]:
    """Return the candidates from stage `candidates`; with `modes`, MGD3 guidance pulls them to their prototypes."""
    config = context.config

    def build(folder: Path) -> dict[str, Any]:
        requests = requests_for(prior.value, slots.value, config.sampling.candidates)
        seed = seed_of_noise(context, CANDIDATES)
        if config.sampling.follow == "base":
            drawn = _from_both(prior.value, requests, config.sampling, seed, folder)
        else:
            drawn = sample(prior.value, requests, config.sampling, seed=seed, folder=folder, modes=modes)
        if processes().main:
            save_tensors({"latents": drawn}, folder / "candidates.safetensors")
            forget_parts(folder)
        return {"images": len(drawn)}

    given = [slots, prior, config.sampling.model_dump(), config.seed]
    given += [] if modes is None else [asdict(modes)]
    given += unless_default(config.precision)
    return context.run.make(CANDIDATES, build, load_candidates, given=given)


def from_noise(sampling: SamplingSettings) -> SamplingSettings:
    """Return `sampling` from text alone."""
    return sampling.model_copy(update={"follow": "none"})


def _from_both(prior: Prior, requests: Requests, sampling: SamplingSettings, seed: int | bytes, folder: Path) -> Tensor:
    """Return latents [n, C, h, w]: every other image starts from its initial image, the others from text alone.

    The selection takes from both. On UC Merced images from both taught more than those of either kind
    (docs/experiments.md).
    """
    drawn = torch.empty(len(requests.seeds), *requests.prototypes.shape[1:])
    for start, settings in enumerate((sampling, from_noise(sampling))):
        which = torch.arange(start, len(drawn), 2)
        parts = folder / f"part-{start}"
        parts.mkdir(exist_ok=True)
        drawn[which] = sample(prior, requests.part(which), settings, seed=seed, folder=parts)
    if processes().main:
        forget_part_folders(folder, "part-*")
    return drawn


def load_candidates(folder: Path) -> Candidates:
    """Return the candidates that stage `candidates` saved in `folder`."""
    return Candidates(load_file(folder / "candidates.safetensors")["latents"])


def requests_for(prior: Prior, slots: Slots, candidates: int) -> Requests:
    """Return the requests for `candidates` images of each slot; those of a slot are adjacent."""
    table, rows = prompt_table([[text] for text in slots.texts])
    own = torch.arange(len(slots.texts)).repeat_interleave(candidates)
    ranks = torch.arange(candidates).repeat(len(slots.texts))
    return Requests(
        prompts=rows[own, 0],
        embeddings=prior.embed(table),
        prototypes=slots.latents,
        slots=own if slots.starts is None else slots.starts,
        seeds=own * MOST_CANDIDATES + ranks,
        noisy=slots.noisy,
    )


def decode(prior: Prior, latents: Tensor, config: Config, *, draft: bool = False) -> Tensor:
    """Return uint8 images of `latents`, decoded in batches of `sampling.batch`; as drafts if nobody will see them."""
    return torch.cat([prior.decode(part, draft=draft) for part in latents.split(config.sampling.batch)])
