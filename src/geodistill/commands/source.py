"""What the folder of a run reveals to an audit: the scene that each image started from, and how to make more sets."""

import json
import logging
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geodistill.config import FOLLOWING_NO_SCENE, Config, read_recorded
from geodistill.distilled import MANIFEST, DistilledSet, run_of
from geodistill.errors import ConfigError, PriorError, RunError
from geodistill.methods import METHODS, make_distilled
from geodistill.pipeline import ADAPTER, BASE, CANDIDATES, CHOSEN, DESCRIPTIONS, DISTILLED, OWN, PROTOTYPES
from geodistill.prior.base import Prior, load_prior, source_of
from geodistill.prior.catalogue import SCRATCH, base_names, local_folder
from geodistill.prior.finetune import merge_adapter
from geodistill.privacy.overlap import told_overlap
from geodistill.privacy.replay import Draws
from geodistill.prototypes import Prototypes
from geodistill.run import Run, read_secret
from geodistill.scenes.reading import PLAIN, Reading
from geodistill.scenes.scenes import Scenes
from geodistill.seeding import generator
from geodistill.stages.candidates import MOST_CANDIDATES
from geodistill.stages.chosen import Chosen
from geodistill.stages.context import Context, run_settings
from geodistill.stages.descriptions import load_texts
from geodistill.stages.following import chosen_sampling
from geodistill.stages.held_out import set_apart
from geodistill.stages.latents import reuse_encoded
from geodistill.stages.noise import drawn_in_secret, noise_seed
from geodistill.stages.screen import ways_of_drawing

log = logging.getLogger("geodistill")


@dataclass(frozen=True)
class Source:
    """How a set was made: the run's folder, its method and settings, and whether the run has a secret."""

    folder: Path
    method: str
    config: Config
    secret: bool

    @property
    def real(self) -> bool:
        """Whether the images are real ones as they are, so that no base drew them."""
        return METHODS[self.method].kind == "real"

    def replayable(self, distilled: DistilledSet) -> bool:
        """Return whether the images of `distilled`, its set, follow from a seed that is stated there or guessable."""
        generated = not self.real and self.config.privacy != "dp"
        return distilled.replayable or (generated and not self.secret)

    def learned_from(self, train: Scenes) -> Scenes:
        """Return the part of the training scenes `train` that the set was made from: none held out for a self-test."""
        return set_apart(train, self.config).train

    def starts(self, distilled: DistilledSet) -> Tensor | None:
        """Return int64 [n], the scene that each image started from; None if images start from no scene.

        The values index the scenes that the set was made from. Raises RunError if the run's secret is gone, because the
        starts are then unknown.
        """
        if self.method != OWN or self.config.privacy == "dp" or self.config.sampling.follow in FOLLOWING_NO_SCENE:
            return None
        config = self.config
        if not self.replayable(distilled):
            config = drawn_in_secret(config, read_secret(self.folder))
        prototypes = Prototypes.load(self.folder / PROTOTYPES.name)
        starts = prototypes.starts(config.sampling.candidates, config.seed, of=config.prototypes.starts)
        return starts[Chosen.load(self.folder / CHOSEN.name).rows]

    @property
    def strength(self) -> float | None:
        """The noise level that candidates started from; None if they started from no scene, or it is not known."""
        sampling = chosen_sampling(self.config, self.folder)
        follows = self.method == OWN and sampling.follow == "start" and self.config.privacy != "dp"
        return sampling.noise_strength if follows else None

    def prior(self) -> Prior | None:
        """Return the base that drew the set, without its adapter; None if it is unavailable or the images are real."""
        if self.real:
            return None
        try:
            return load_prior(source_of(self.base, self.config.size), self.config.precision)
        except PriorError:
            # An audit only needs the set: the base may have been removed since it was made.
            return None

    @property
    def base(self) -> str:
        """The base that drew the set: a name, or a folder."""
        return base_from(self.folder, self.config.base)

    def draws(self, distilled: DistilledSet, prior: Prior) -> Draws | None:
        """Return how the images of `distilled`, its set, were drawn by `prior`; None if they started from no scene."""
        starts = self.starts(distilled)
        if starts is None:
            return None
        adapted = replace(prior, unet=deepcopy(prior.unet))
        if self.config.finetune.steps:
            merge_adapter(adapted, self.folder / ADAPTER.name)
        rows = Chosen.load(self.folder / CHOSEN.name).rows
        slots, ranks = rows // self.config.sampling.candidates, rows % self.config.sampling.candidates
        prompts = load_texts(self.folder / DESCRIPTIONS.name)
        settings, names = ways_of_drawing(self.config, chosen_sampling(self.config, self.folder))
        seed, secret = self.config.seed, None if self.replayable(distilled) else read_secret(self.folder)
        return Draws(
            prior=prior,
            adapted=adapted,
            texts=tuple(prompts[slot] for slot in slots.tolist()),
            told=tuple(str(record["description"]) for record in distilled.records),
            starts=starts,
            indices=slots * MOST_CANDIDATES + ranks,
            guessed=noise_seed(CANDIDATES.name, 0, seed, None),
            settings=settings,
            seeds=tuple(noise_seed(what, index, seed, secret) for what, index in names),
        )

    def overlap(self, train: Scenes) -> str:
        """Return a sentence, less full stop, on how many of `train` the base was trained on; "" if none is known."""
        # An audit only needs the set: the base may have been removed since it was made.
        folder = local_folder(self.base)
        return told_overlap(train, folder) if folder else ""


def read_source(folder: Path, train: Scenes) -> Source:
    """Return how the set in run folder `folder` was made.

    Raises RunError if there is no run of one set, if its method is not installed, or if it was made from scenes other
    than `train`.
    """
    try:
        about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        settings = about["settings"]
        source = Source(folder, settings["method"], read_recorded(settings["config"]), "secret_sha256" in about)
    except (OSError, ValueError, KeyError, TypeError):
        raise RunError(f"{folder} is no run of one set: give the folder that `geodistill distill` wrote") from None
    if source.method not in METHODS:
        raise RunError(
            f"{folder} was made by method {source.method!r}, which is not installed: install the package that has it"
        )
    if settings.get("scenes") != train.fingerprint():
        raise RunError(f"{folder} was made from other scenes than these: give the data that it was made from")
    return source


def recorded_reading(folder: Path) -> Reading | None:
    """Return how files became images for the run or the distilled set in `folder`; None if it is neither.

    A record without a reading is one of 8-bit images in their own colours.
    """
    for path, where in ((folder / "run.json", "settings"), (folder / MANIFEST, "about")):
        if found := recorded_part(path, where):
            with suppress(KeyError, TypeError, ValueError):
                reading = Reading.from_dict(found["reading"]) if "reading" in found else PLAIN
                return replace(reading, of_bands=reading.of_bands or _of_bands(folder))
    return None


def _of_bands(run: Path) -> int:
    """Return how many bands the files of the run's set have, 0 if it is not known: the set has it, the run has not."""
    reading = recorded_part(run / DISTILLED.name / MANIFEST, "about").get("reading", {})
    return int(reading.get("of_bands", 0))


def recorded_base(folder: Path) -> str | None:
    """Return the base of the run in `folder`, or of the run that the set in `folder` belongs to; None if not known.

    Without a run it is the installed base that the set's manifest names. A base that the run built from its scenes is
    its folder in the run.
    """
    run = folder if (folder / "run.json").is_file() else folder.parent
    base: str | None = recorded_part(run / "run.json", "settings").get("config", {}).get("base")
    if base is None:
        named = recorded_part(folder / MANIFEST, "about").get("config", {}).get("base")
        return named if named in base_names() and named != SCRATCH else None
    found = base_from(run, base)
    return None if base == SCRATCH and not Path(found).is_dir() else found


def base_from(run: Path, base: str) -> str:
    """Return the base that the setting `base` of the run in folder `run` names, for any working directory.

    The run keeps the path of a base as it was typed. A relative path is looked for in the working directory, then in
    each folder above the run, because the command was probably typed in one of them. A base that was built from the
    scenes is in the run's own folder.
    """
    if base == SCRATCH:
        return str(run / BASE.name)
    if base in base_names() or Path(base).is_dir():
        return base
    return next((str(above / base) for above in run.resolve().parents if (above / base).is_dir()), base)


def recorded_part(path: Path, part: str) -> dict[str, Any]:
    """Return a part of the record at `path`; {} if there is no such record."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))[part]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found if isinstance(found, dict) else {}


def warn_of_other_scenes(what: Path, train: Scenes) -> None:
    """Log if a run was made from other training scenes than `train`; `what` is the run, or the folder of its set.

    An updated set stands for scenes of several archives, so nothing is logged.
    """
    run = run_of(what)
    made_from = recorded_part(run / "run.json", "settings").get("scenes") if run else None
    if made_from is not None and made_from != train.fingerprint():
        log.warning(
            "%s was made from other training scenes than these: if --split or the data have changed, some of its "
            "training scenes may be test images now, and the figures too optimistic",
            what,
        )


def shadow_sets(source: Source, train: Scenes, count: int, out: Path) -> list[tuple[DistilledSet, Tensor]]:
    """Return `count` sets made as `source` was, each from a random half of every class, with these scenes' indices.

    Each is a run in `out`, which resumes if it was interrupted. Latents and features that do not depend on the half are
    taken from the original run; the rest costs as much as it did there. Raises ConfigError if half of the smallest
    class is fewer than IPC images.
    """
    least = int(torch.bincount(train.labels, minlength=len(train.classes)).min())
    if least // 2 < source.config.ipc:
        raise ConfigError(
            f"the smallest class has {least} training images: half of them are fewer than {source.config.ipc} a class, "
            "so there is no shadow attack on this set"
        )
    made = []
    for rank in range(count):
        part = _half(train, rank)
        scenes = train.subset(part)
        settings = run_settings(source.method, source.config, scenes)
        with Run(out / f"shadow-{rank}", settings, "geodistill audit") as run:
            reuse_encoded(source.folder, train, part, source.config, run)
            made.append((make_distilled(source.method, Context(scenes, source.config, run)).value, part))
    return made


def _half(train: Scenes, rank: int) -> Tensor:
    """Return int64 [k], sorted: the indices of half of the scenes of each class, drawn by `rank`."""
    random = generator(0, "shadow half", rank)
    parts = []
    for label in range(len(train.classes)):
        own = (train.labels == label).nonzero()[:, 0]
        parts.append(own[torch.randperm(len(own), generator=random)[: len(own) // 2]])
    return torch.cat(parts).sort().values
