"""Replay: whoever has a pile of suspect images draws the set again from each, and looks which one gives its images.

A candidate is drawn from the noised latent of a training scene. For some images of the set, the scene that each began
as and other real images of its class are the suspects. Each suspect is noised and drawn from again; it is named where
its image is the nearest to that of the set.

- The outsider has the set, the base and the settings. He draws the noise from a seed that he guesses: what the images
  of a set that was drawn in secret tell him is what is left of their starts.
- The insider has the adapter and the secret besides, and so the very noise of each image.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.stats import binomtest
from torch import Tensor

from geodistill.config import SamplingSettings
from geodistill.prior.base import Prior
from geodistill.prior.sample import Requests, sample_batch
from geodistill.prior.training import batches, prompt_table
from geodistill.privacy.nearness import pixel_vectors
from geodistill.seeding import generator

# Images of the set that are replayed, and suspects for each: its start and others.
_IMAGES, _SUSPECTS = 30, 16


@dataclass(frozen=True)
class Draws:
    """How the n images of a set were drawn.

    prior: without the run's adapter, `adapted` with it. texts: the description of each. starts: int64 [n], the training
    scene that each began as. indices: int64 [n], of each one's own noise. guessed: a seed that an outsider would try.
    settings, seeds: the settings and the seed that each may have been drawn with; several where candidates were drawn
    again and which ones is not kept.
    """

    prior: Prior
    adapted: Prior
    texts: tuple[str, ...]
    starts: Tensor
    indices: Tensor
    guessed: int | bytes
    settings: tuple[SamplingSettings, ...]
    seeds: tuple[int | bytes, ...]


@dataclass(frozen=True)
class Replay:
    """Of `images` replayed images, how many sources were named among `suspects` each; guessing names `guessed`.

    p_outsider, p_insider: the probability that guessing names as many (one-sided binomial test).
    """

    images: int
    suspects: int
    outsider: int
    insider: int
    p_outsider: float
    p_insider: float

    @property
    def guessed(self) -> float:
        """How many sources guessing names on average."""
        return self.images / self.suspects


def replay(draws: Draws, images: Tensor, pixels: Tensor, labels: Tensor, *, seed: int = 0) -> Replay | None:
    """Return how many starts of `images`, uint8 [n, 3, s, s], an outsider and an insider name; None without suspects.

    `pixels` uint8 [m, 3, s, s] of classes int64 [m]: all real images, the training scenes of `draws.starts` first. An
    image is of the class of its start.
    """
    least = int(torch.bincount(labels)[labels[draws.starts].unique()].min())
    suspects = min(_SUSPECTS, least)
    if suspects < 2:
        return None
    random = generator(seed, "replay")
    chosen = torch.randperm(len(images), generator=random)[:_IMAGES].sort().values
    asked = torch.stack([_suspects(int(start), labels, suspects, random) for start in draws.starts[chosen]])
    outsider = _named(draws.prior, draws, (draws.settings[:1], (draws.guessed,)), chosen, asked, images, pixels)
    insider = _named(draws.adapted, draws, (draws.settings, draws.seeds), chosen, asked, images, pixels)
    count, chance = len(chosen), 1 / suspects
    p_values = (float(binomtest(named, count, chance, alternative="greater").pvalue) for named in (outsider, insider))
    return Replay(count, suspects, outsider, insider, *p_values)


def _suspects(start: int, labels: Tensor, count: int, random: torch.Generator) -> Tensor:
    """Return int64 [count]: `start` first, then other images of its class."""
    own = (labels == labels[start]).nonzero()[:, 0]
    others = own[own != start]
    return torch.cat([torch.tensor([start]), others[torch.randperm(len(others), generator=random)[: count - 1]]])


def _named(
    prior: Prior,
    draws: Draws,
    ways: tuple[Sequence[SamplingSettings], Sequence[int | bytes]],
    chosen: Tensor,
    asked: Tensor,
    images: Tensor,
    pixels: Tensor,
) -> int:
    """Return of how many of the `chosen` images the start is the suspect, of `asked` int64 [k, suspects], that gives
    the nearest image, drawn by one of `ways`: settings, and a seed for each."""
    flat = asked.flatten()
    latents = prior.encode(pixels[flat])
    table, rows = prompt_table([[draws.texts[index]] for index in chosen.tolist()])
    requests = Requests(
        prompts=rows[:, 0].repeat_interleave(asked.shape[1]),
        embeddings=prior.embed(table),
        prototypes=latents,
        slots=torch.arange(len(flat)),
        seeds=draws.indices[chosen].repeat_interleave(asked.shape[1]),
    )
    wanted = pixel_vectors(images[chosen]).repeat_interleave(asked.shape[1], dim=0)
    least = torch.full((len(flat),), torch.inf)
    for settings, seed in zip(*ways, strict=True):
        for part in batches(len(flat), settings.batch):
            drawn = prior.decode(sample_batch(prior, requests.part(part), settings, seed=seed), draft=True)
            apart = (pixel_vectors(drawn) - wanted[part]).norm(dim=1)
            least[part] = torch.minimum(least[part], apart)
    # The start is the first suspect; a tie names nobody.
    distances = least.view(asked.shape)
    return int((distances[:, 0] < distances[:, 1:].amin(1)).sum())
