"""Stage `base`: a base built from the scenes. Any other base is loaded from its folder or from the hub."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from geodistill.config import Config
from geodistill.descriptions import MeasuredDescriber, TemplateDescriber
from geodistill.pipeline import BASE
from geodistill.prior.base import Prior, check_size, fingerprint_of_base, load_prior, source_of
from geodistill.prior.catalogue import SCRATCH, tell_terms
from geodistill.prior.compact import Archive, build_compact
from geodistill.privacy.overlap import sign, told_overlap
from geodistill.provenance import Made
from geodistill.run import Run
from geodistill.scenes.scenes import Scenes
from geodistill.stages.checks import check_bands, check_names
from geodistill.stages.context import Context, unless_default
from geodistill.stages.learned import learned

log = logging.getLogger("geodistill")


def tell_of_base(scenes: Scenes, config: Config, run: Run) -> None:
    """Log, if `run` is new, the terms of its base, and warn if the base was trained on some of `scenes`."""
    if not run.new or config.base == SCRATCH:
        return
    folder = Path(source_of(config.base, config.size))
    tell_terms(folder)
    overlap = told_overlap(scenes, folder)
    if overlap:
        log.warning("%s: figures measured on them are too optimistic", overlap)


def load_base(context: Context) -> Made[Prior]:
    """Return the prior that the setting `base` names; with 'scratch' it is built from the scenes in stage `base`.

    Raises ConfigError if the prompt of a class name alone exceeds the prior's token limit.
    """
    scenes, config = context.scenes, context.config
    source = config.base
    if source == SCRATCH:
        own = scenes.subset(learned(scenes, config.seed))
        source = str(train_base([Source(own)], config, context.run).value)
    prior = _load(source, config)
    check_bands(config.base, prior.channels, scenes)
    check_names(scenes, prior)
    return Made.source(prior, fingerprint_of_base(prior.source))


def _load(source: str, config: Config) -> Prior:
    prior = load_prior(source_of(source, config.size), config.precision)
    check_size(config.size, prior.vae.config, prior.unet.config, prior.source)
    return prior


@dataclass(frozen=True)
class Source:
    """An archive that a base is trained on.

    weight: its share of every batch, relative to the weights of other sources. labelled: whether its class names are
    meaningful; if not, its scenes are described by measurements only. name, terms: for the model card.
    """

    scenes: Scenes
    weight: float = 1.0
    labelled: bool = True
    name: str = ""
    terms: str = ""


def train_base(sources: Sequence[Source], config: Config, run: Run, start: str | None = None) -> Made[Path]:
    """Return the folder of a base from stage `base`: trained on the sources alone, or `start` trained further on them.

    Raises:
        PriorError: `start` is unavailable or does not draw images of the config's size.
    """
    earlier = None if start is None else _load(start, config)
    for source in sources:
        if earlier is not None and source.labelled:
            check_names(source.scenes, earlier)
    zooms = earlier is not None or config.compact.autoencoder == "convolutional"

    def build(folder: Path) -> dict[str, Any]:
        facts = build_compact(
            [_archive(source, config, zooms=zooms) for source in sources],
            config.compact,
            seed=config.seed,
            folder=folder,
            start=earlier,
            precision=config.precision,
        )
        archives = [(source.name, source.scenes.keys) for source in sources]
        # Beside the base rather than in it, as the base may be handed out.
        sign(folder.parent, archives, None if earlier is None else Path(earlier.source))
        return facts

    given: list[Any] = [source.scenes.fingerprint() for source in sources]
    given += [config.compact.model_dump(), config.size, config.seed]
    if len(sources) > 1 or not sources[0].labelled:
        given.append([[source.weight, source.labelled] for source in sources])
    if earlier is not None:
        given.append(fingerprint_of_base(earlier.source))
    given += unless_default(config.precision)
    return run.make(BASE, build, lambda folder: folder, given=given)


def _archive(source: Source, config: Config, *, zooms: bool) -> Archive:
    """Return the training data of a source: pixels, and texts of each scene from measurements and any known class.

    `zooms`: whether there are zoomed-in views, for which larger images are kept.
    """
    scenes = source.scenes
    pixels = scenes.pixels(size=config.size)
    names = [scenes.classes[label] for label in scenes.labels]
    describer = MeasuredDescriber(scenes.reading)
    if source.labelled:
        texts = [TemplateDescriber().each(pixels, names), describer.each(pixels, names)]
    else:
        texts = [describer.unnamed(pixels)]
    prompts = [list(row) for row in zip(*texts, strict=True)]
    # A scene without a class gets its one text twice, so that every scene has two texts.
    prompts = [row * (2 // len(row)) for row in prompts]
    return Archive(pixels, scenes.labels, prompts, _larger(scenes, config) if zooms else None, source.weight)


def _larger(scenes: Scenes, config: Config) -> Tensor | None:
    """Return the scenes with up to `compact.zoom` (at least 2 if `compact.doubled`) times as many pixels along a side.

    None if the scenes are not larger than `config.size`.
    """
    zoom = max(config.compact.zoom, 2.0 if config.compact.doubled else 1.0)
    side = min(scenes.typical_side(), round(zoom * config.size))
    if side <= config.size:
        return None
    return scenes.pixels(size=side)
