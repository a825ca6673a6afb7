"""Stage `chosen`: the selection of IPC candidates of each class."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from geodistill.config import Config
from geodistill.errors import PrivacyError
from geodistill.latent_teacher import LatentTeacher, predict
from geodistill.networks import backbone_features
from geodistill.pipeline import CHOSEN
from geodistill.prior.base import Prior
from geodistill.privacy.copies import are_copies, find_copies
from geodistill.provenance import Made
from geodistill.run import Stored, column, save_tensors
from geodistill.scenes.pixels import Pixels
from geodistill.scenes.scenes import Scenes
from geodistill.seeding import generator
from geodistill.selection import by_coverage, by_margin, herd
from geodistill.stages.candidates import Candidates, decode
from geodistill.stages.context import Context
from geodistill.stages.latents import scene_features
from geodistill.stages.real import Real

_CHOSEN = "chosen.safetensors"


@dataclass(frozen=True)
class Chosen:
    """The selected candidates before they are decoded: IPC of each class, adjacent.

    rows: int64 [n], indices into all candidates. latents: float32 [n, C, h, w]. logits: float32 [n, classes], the
    teacher's; [n, 0] if there is no teacher.
    """

    rows: Tensor
    latents: Tensor
    logits: Tensor

    @classmethod
    def load(cls, folder: Path) -> "Chosen":
        """Return the selection that `save` wrote into `folder`."""
        return cls(**load_file(folder / _CHOSEN))

    def save(self, folder: Path) -> None:
        """Write the selection into `folder`."""
        save_tensors({"rows": self.rows, "latents": self.latents, "logits": self.logits}, folder / _CHOSEN)


def choose(
    context: Context,
    prior: Made[Prior],
    candidates: Made[Candidates],
    latents: Made[Stored],
    teacher: Made[LatentTeacher],
) -> Made[Chosen]:
    """Return IPC selected candidates of each class from stage `chosen`.

    After screening, only candidates that passed are selected, and copies of training images are excluded as well.
    """
    scenes, config = context.scenes, context.config
    known = scene_features(context) if config.selection.by == "herding" else None

    def build(folder: Path) -> None:
        drawn = candidates.value
        logits, features = predict(teacher.value, drawn.latents)
        real = Real(teacher.value, column(latents.value, 0), None if known is None else known.value, scenes.labels)
        if known is not None:
            # A candidate is less likely to suit two networks for a wrong reason if they were trained on different data.
            seen = backbone_features(decode(prior.value, drawn.latents, config, draft=True))
            features = torch.cat([features, seen], dim=1)
        means = real.means() if config.selection.by == "herding" else None
        among = _Among(logits, features, real, means, scenes, config)
        free = torch.ones(len(logits), dtype=torch.bool) if drawn.passing is None else drawn.passing
        rows = among.chosen(free)
        if drawn.passing is not None:
            train = Pixels(scenes, config.size)
            while (copied := are_copies(find_copies(decode(prior.value, drawn.latents[rows], config), train))).any():
                free = free.index_fill(0, rows[copied], False)
                rows = among.chosen(free)
        if not config.reproducible:
            rows = _shuffled(rows, config)
        Chosen(rows, drawn.latents[rows], logits[rows]).save(folder)

    given = [candidates, teacher, config.selection.model_dump()]
    return context.run.make(CHOSEN, build, Chosen.load, given=given)


def _shuffled(rows: Tensor, config: Config) -> Tensor:
    """Return `rows` with each class in random order, so that positions reveal nothing of prototypes and selection."""
    own = rows.view(-1, config.ipc)
    orders = [torch.randperm(config.ipc, generator=generator(config.seed, "order", label)) for label in range(len(own))]
    return own.gather(1, torch.stack(orders)).flatten()


@dataclass(frozen=True)
class _Among:
    """The data that the selection among n candidates uses.

    logits: [n, classes]. features: [n, D] of the candidates. real: the scenes. means: [classes, D], for herding.
    """

    logits: Tensor
    features: Tensor
    real: Real
    means: Tensor | None
    scenes: Scenes
    config: Config

    def chosen(self, free: Tensor) -> Tensor:
        """Return the rows of the selected candidates, class by class; only those in `free`, bool [n], are eligible."""
        return torch.cat([self._of_class(label, free) for label in range(len(self.scenes.classes))])

    def _of_class(self, label: int, free: Tensor) -> Tensor:
        """Return the rows selected for class `label`; raise PrivacyError if it has fewer than IPC free candidates."""
        config, count = self.config, self.config.sampling.candidates
        slots = torch.arange(len(free)) // count
        own = ((slots // config.ipc == label) & free).nonzero()[:, 0]
        if len(own) < config.ipc:
            raise PrivacyError(
                f"class {self.scenes.classes[label]!r}: {len(own)} candidates keep away from the training images, "
                f"{config.ipc} are needed: draw more (sampling.candidates) or follow prototypes less "
                "(sampling.strength)"
            )
        if config.selection.by == "margin":
            return own[by_margin(self.logits[own], label, slots[own])]
        if self.means is not None:
            return own[herd(self.features[own], config.ipc, self.means[label])]
        if config.selection.by == "coverage":
            return own[by_coverage(self.features[own], self.real.of_class(label, config.seed), slots[own])]
        return own[::count]
