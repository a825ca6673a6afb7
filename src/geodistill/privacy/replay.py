"""Replay attack: an attacker samples the set again from suspect images, and checks which one reproduces its images.

A candidate is sampled from the noised latent of a training scene, its start. For some images of the set, the suspects
are the start and other real images of its class. Each suspect is noised and sampled from again. The suspect whose
result is nearest to the image of the set is named as its source.

- The outsider has the set, the base and the settings. He draws the noise from a guessed seed. If the set was drawn from
  a secret, he can only use what is left of the starts in its images.
- The insider also has the adapter and the secret, and so the exact noise of each image.
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
from geodistill.processes import processes
from geodistill.scenes.pixels import Images
from geodistill.seeding import generator

# Number of images of the set that are replayed, and of suspects for each (its start and others).
_IMAGES, _SUSPECTS = 30, 16


@dataclass(frozen=True)
class Draws:
    """How the n images of a set were sampled.

    prior: the base without the run's adapter; `adapted`: with it. texts: the prompt of each image. told: what the set
    says of it. starts: int64 [n], the training scene that each image was sampled from. indices: int64 [n], the index of
    each image's own noise.
    guessed: a seed that an outsider would try. settings, seeds: pairs of settings and seed that an image may have been
    sampled with; several if candidates were sampled again and it is not recorded which ones.
    """

    prior: Prior
    adapted: Prior
    texts: tuple[str, ...]
    told: tuple[str, ...]
    starts: Tensor
    indices: Tensor
    guessed: int | bytes
    settings: tuple[SamplingSettings, ...]
    seeds: tuple[int | bytes, ...]


@dataclass(frozen=True)
class Replay:
    """The number of sources that `outsider` and `insider` name for `images` replayed images with `suspects` each.

    p_outsider, p_insider: the probability that guessing names at least as many (one-sided binomial test).
    """

    images: int
    suspects: int
    outsider: int
    insider: int
    p_outsider: float
    p_insider: float

    @property
    def guessed(self) -> float:
        """The mean number of sources that guessing names."""
        return self.images / self.suspects


def replay(draws: Draws, images: Tensor, pixels: Images, labels: Tensor, *, seed: int = 0) -> Replay | None:
    """Return how many starts of `images`, uint8 [n, 3, s, s], an outsider and an insider name; None without suspects.

    `pixels` uint8 [m, 3, s, s] and `labels` int64 [m] are all real images, first the training scenes that
    `draws.starts` refers to. An image has the class of its start.
    """
    least = int(torch.bincount(labels)[labels[draws.starts].unique()].min())
    suspects = min(_SUSPECTS, least)
    if suspects < 2:
        return None
    random = generator(seed, "replay")
    chosen = torch.randperm(len(images), generator=random)[:_IMAGES].sort().values
    asked = torch.stack([_suspects(int(start), labels, suspects, random) for start in draws.starts[chosen]])
    outsider = _Attacker(draws.prior, draws.told, draws.settings[:1], (draws.guessed,))
    insider = _Attacker(draws.adapted, draws.texts, draws.settings, draws.seeds)
    named = [
        one.names(asked, pixels, images[chosen], chosen, draws.indices[chosen].repeat_interleave(suspects))
        for one in (outsider, insider)
    ]
    p_values = (float(binomtest(one, len(chosen), 1 / suspects, alternative="greater").pvalue) for one in named)
    return Replay(len(chosen), suspects, *named, *p_values)


def _suspects(start: int, labels: Tensor, count: int, random: torch.Generator) -> Tensor:
    """Return int64 [count]: `start` first, then other images of its class."""
    own = (labels == labels[start]).nonzero()[:, 0]
    others = own[own != start]
    return torch.cat([torch.tensor([start]), others[torch.randperm(len(others), generator=random)[: count - 1]]])


@dataclass(frozen=True)
class _Attacker:
    """What an attacker samples with: a base, a text for each image of the set, settings, and a seed for each of them.

    The images are sampled in each of these ways, and the nearest one counts.
    """

    prior: Prior
    texts: tuple[str, ...]
    settings: Sequence[SamplingSettings]
    seeds: Sequence[int | bytes]

    def names(self, asked: Tensor, pixels: Images, images: Tensor, chosen: Tensor, noise: Tensor) -> int:
        """Return for how many of `images` the start is named, that is gives the nearest image of all suspects.

        `images` are those with the indices `chosen` in the set. `asked` int64 [k, suspects] are the suspects, the start
        first, as indices into `pixels`. `noise` int64 [k * suspects]: the indices of the noise.
        """
        flat, each = asked.flatten(), asked.shape[1]
        table, rows = prompt_table([[self.texts[index]] for index in chosen.tolist()])
        requests = Requests(
            prompts=rows[:, 0].repeat_interleave(each),
            embeddings=self.prior.embed(table),
            prototypes=self.prior.encode(pixels[flat]),
            slots=torch.arange(len(flat)),
            seeds=noise,
        )
        wanted = pixel_vectors(images).repeat_interleave(each, dim=0)
        work = [
            (settings, seed, part)
            for settings, seed in zip(self.settings, self.seeds, strict=True)
            for part in batches(len(flat), settings.batch)
        ]

        def apart(one: tuple[SamplingSettings, int | bytes, slice]) -> Tensor:
            settings, seed, part = one
            drawn = self.prior.decode(sample_batch(self.prior, requests.part(part), settings, seed=seed), draft=True)
            distances: Tensor = torch.linalg.vector_norm(pixel_vectors(drawn) - wanted[part], dim=1)
            return distances

        least = torch.full((len(flat),), torch.inf)
        for (_, _, part), distances in zip(work, processes().shared(work, apart), strict=True):
            least[part] = torch.minimum(least[part], distances)
        # The start is the first suspect; a tie names nobody.
        nearest = least.view(asked.shape)
        return int((nearest[:, 0] < nearest[:, 1:].amin(1)).sum())
