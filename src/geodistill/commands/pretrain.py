"""Pretraining: a base trained on a user's own archive once, for any number of later runs."""

import math
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from geodistill.commands.source import recorded_part
from geodistill.config import CompactSettings, Config
from geodistill.errors import ConfigError, PriorError
from geodistill.pipeline import BASE
from geodistill.prior.base import source_of
from geodistill.prior.catalogue import (
    FACTS,
    SCRATCH,
    BaseFacts,
    check_drawn,
    facts_text,
    folder_of,
    read_facts,
    tell_terms,
)
from geodistill.prior.compact import check_compact_size
from geodistill.prior.training import apportion
from geodistill.privacy.overlap import PICTURES, footprint_of, sign_pictures
from geodistill.run import Run, versions, write_atomic
from geodistill.scenes import open_scenes, open_unlabelled
from geodistill.scenes.splits import PARTS
from geodistill.stages.base import Source, train_base

_JUDGED = (
    "- The autoencoder was trained to look right to an ImageNet backbone (EfficientNet-Lite0): judge images with\n"
    "  another network as well."
)
_OTHER_SIZE = "train it further at --size {sizes}, or leave --base out to train a new one"


def open_sources(labelled: Sequence[str], unlabelled: Sequence[str] = ()) -> list[Source]:
    """Return the archives that texts "PATH" or "PATH=WEIGHT" name; each archive gets the name of its folder.

    Raises ConfigError for a text without a folder, a weight that is not a positive number and a folder given twice,
    SceneError for a folder that cannot be read.
    """
    given = [(*_weighed(text), True) for text in labelled] + [(*_weighed(text), False) for text in unlabelled]
    paths = [path.resolve() for path, *_ in given]
    for path in paths:
        if paths.count(path) > 1:
            raise ConfigError(f"{path} is given twice: give each archive once, with a weight such as {path.name}=2")
    sources = []
    for path, weight, known in given:
        scenes = open_scenes(path, least=1).train if known else open_unlabelled(path)
        sources.append(Source(scenes, weight, labelled=known, name=_archive_name(path)))
    return sources


def archive_folders(labelled: Sequence[str], unlabelled: Sequence[str]) -> list[Path]:
    """Return the folders that texts "PATH" or "PATH=WEIGHT" name; raise ConfigError as `open_sources` does."""
    return [_weighed(text)[0] for text in (*labelled, *unlabelled)]


def _archive_name(path: Path) -> str:
    """Return the name of the archive in folder `path`: the folder's name, or its parent's if the folder is a split."""
    folder = path.resolve()
    return folder.parent.name if folder.name.lower() in PARTS else folder.name


def _weighed(text: str) -> tuple[Path, float]:
    if text and (Path(text).exists() or "=" not in text):
        return Path(text), 1.0
    path, _, given = text.rpartition("=")
    if not path:
        raise ConfigError(f"{text!r} names no folder: give PATH or PATH=WEIGHT")
    try:
        weight = float(given)
    except ValueError:
        weight = 0.0
    if not 0 < weight < math.inf:
        raise ConfigError(f"the weight of {path} is {given!r}: give a positive number, such as {path}=2")
    return Path(path), weight


def pretrain(
    sources: Sequence[Source],
    config: Config,
    *,
    out: Path,
    start: str | None = None,
    data_note: str = "",
    footprint: bool = False,
    command: str = "",
) -> Path:
    """Train a base on `sources` and return its folder, a pipeline for `--base` with a model card.

    Args:
        sources: the archives, training scenes only; no other data are used.
        config: its `compact`, `size`, `seed` and `precision` are used.
        out: the run folder; an interrupted run there is resumed.
        start: a base whose U-Net is trained further: 'compact', a pipeline folder or a hub name; if None, all is new.
        data_note: what the card states about the data and their licence.
        footprint: add to the base files that reveal whether it was trained on a given file or picture; for public
            data.
        command: the command line, for the record.

    Raises:
        PriorError: the size does not fit, or the base `start` does not exist or is 'scratch'.
        TrainingError: a loss is not finite.

    >>> import geodistill, tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> data = geodistill.builtin_scenes(train_per_class=4, test_per_class=1, size=32)
    >>> sources = [Source(data.train, name="built-in scenes")]
    >>> base = geodistill.pretrain(sources, geodistill.load_config("tiny"), out=folder / "run")
    >>> (base / "model_index.json").is_file()
    True
    """
    check_compact_size(config.size)
    _check_shares(sources, config.compact, new_autoencoder=not start)
    if start == SCRATCH:
        raise PriorError("there is nothing to go on from in base 'scratch': leave --base out to start anew")
    about: dict[str, Any] = {"compact": config.compact.model_dump(mode="json"), "size": config.size}
    about |= {"seed": config.seed, "start": start}
    known = recorded_part(out / "run.json", "settings").get("config", {})
    # A run from before the precision was recorded goes on; its stage compares it.
    about |= {"precision": config.precision} if not known or "precision" in known else {}
    if start:
        check_drawn(start, folder_of(start) or start, config.size, _OTHER_SIZE)
    scenes = [[source.scenes.fingerprint(), source.weight, source.labelled] for source in sources]
    earlier = source_of(start, config.size) if start else None
    with Run(out, {"method": "pretrain", "config": about, "scenes": scenes}, command) as run:
        if run.new and earlier:
            tell_terms(earlier)
        folder = train_base(sources, config, run, start).value
        card = model_card(run.record_of(BASE), sources, config, data_note, start)
        write_atomic(folder / "README.md", card + _earlier_card(earlier))
        if footprint and (path := footprint_of(folder)) and path.parent != folder:
            shutil.copy(path, folder)
        if footprint and not (folder / PICTURES).is_file():
            archives = [(source.name, source.scenes) for source in sources]
            sign_pictures(folder, archives, None if earlier is None else Path(earlier))
        facts = _facts(out.resolve().name, sources, _sizes(run.record_of(BASE), config), earlier)
        write_atomic(folder / FACTS, facts_text(facts))
    return folder


def _check_shares(sources: Sequence[Source], settings: CompactSettings, *, new_autoencoder: bool) -> None:
    """Raise ConfigError if the weight of an archive is so small that its share of a batch is not one image.

    `new_autoencoder`: whether an autoencoder is made, not that of another base taken.
    """
    both = new_autoencoder and settings.autoencoder == "convolutional"
    smallest = min(settings.batch, settings.autoencoder_batch) if both else settings.batch
    weights = [source.weight for source in sources]
    for source, count in zip(sources, apportion(smallest, weights), strict=True):
        if not count:
            name, total = source.name or "an archive", sum(weights)
            raise ConfigError(
                f"{name} has weight {source.weight:g} of {total:g}, less than one image in a batch of {smallest}: "
                f"nothing would be learned from it; give it at least {total / smallest:.2g}"
            )


def _facts(name: str, sources: Sequence[Source], sizes: tuple[int, ...], earlier: str | None) -> BaseFacts:
    """Return the content of base.json; the terms of a base in folder `earlier` also bind what is trained from it."""
    before = read_facts(earlier) if earlier else None
    archives = [source.name for source in sources if source.name]
    archives += before.archives if before else ()
    classes = [name for source in sources if source.labelled for name in source.scenes.classes]
    classes += before.classes if before else ()
    terms = before.terms if before else ""
    return BaseFacts(name, sizes, terms, tuple(dict.fromkeys(archives)), tuple(dict.fromkeys(classes)))


def _sizes(record: dict[str, Any], config: Config) -> tuple[int, ...]:
    """Return the image sizes in pixels that the base was trained on; `record` is that of stage `base`."""
    # A record from before this was noted has what the settings asked for.
    doubled = record["facts"].get("doubled", config.compact.doubled)
    return (config.size, 2 * config.size) if doubled else (config.size,)


def _earlier_card(earlier: str | None) -> str:
    """Return the model card of the base that was trained further, one heading lower; "" if it has none here."""
    card = Path(earlier) / "README.md" if earlier else None
    if card is None or not card.is_file():
        return ""
    lines = card.read_text(encoding="utf-8").splitlines()
    lowered = "\n".join(f"#{line}" if line.startswith("#") else line for line in lines)
    return f"\n# The base it goes on from\n\n{lowered}\n"


def model_card(
    record: dict[str, Any], sources: Sequence[Source], config: Config, data_note: str, start: str | None = None
) -> str:
    """Return the model card in Markdown; `record` is that of stage `base`, `start` the base it continues from."""
    facts, settings = record["facts"], config.compact
    made, sizes = versions(), " and ".join(str(size) for size in _sizes(record, config))
    lines = [
        "# Model card",
        "",
        f"A text-conditional latent diffusion model of overhead scenes at {sizes} px, a diffusers pipeline made",
        "by `geodistill pretrain`. Prompts: `A satellite image of <class>`, then what geodistill's describer measured.",
        "",
        *(_trained_on(source, sum(one.weight for one in sources)) for source in sources),
        f"- Data and licence: {data_note or 'not told (--data-note)'}",
        f"- Autoencoder: {_autoencoder(facts, settings, start)}; "
        f"{facts['autoencoder_psnr_db']} dB PSNR on the training scenes.",
        f"- U-Net: {facts['unet_parameters']:,} parameters, {facts['steps']} steps of {settings.batch} latents; loss "
        f"{facts['first_loss']:.3f} in the first tenth, {facts['last_loss']:.3f} in the last.",
        f"- Text encoder: {f'that of {start}' if start else f'as drawn at random, seed {config.seed}'}.",
        f"- Cost: {record['wall_seconds'] / 3600:.1f} hours on {platform.machine()}; torch {made['torch']}, "
        f"diffusers {made['diffusers']}.",
        "",
        "## Limits",
        "",
        "- It knows the classes above, seen from the same height; others need `geodistill distill`'s adapter and come",
        "  out less well.",
        f"- It draws {sizes} px. Small objects (cars, single aircraft) and regular layouts (rows of tanks) come",
        "  out worst.",
        *([_JUDGED] if start or settings.autoencoder == "convolutional" else []),
        "- A model of a few thousand images can repeat some of them: `geodistill evaluate` prints the nearness ratio.",
    ]
    return "\n".join(lines) + "\n"


def _trained_on(source: Source, weights: float) -> str:
    scenes = source.scenes
    name = f"{source.name}, " if source.name else ""
    share = "" if source.weight == weights else f"; {source.weight / weights:.0%} of every batch"
    what = f"{len(scenes.classes)} classes ({', '.join(scenes.classes)})" if source.labelled else "no classes"
    terms = f" Terms: {source.terms}." if source.terms else ""
    return f"- Trained on: {name}{len(scenes)} images of {what}{share}.{terms}"


def _autoencoder(facts: dict[str, Any], settings: CompactSettings, start: str | None) -> str:
    if start:
        return f"that of {start}"
    kind = "principal components of 8x8-pixel patches"
    if settings.autoencoder == "convolutional":
        kind = f"convolutional, {facts['autoencoder_steps']} steps of {settings.autoencoder_batch} images"
    if settings.sharpening_steps and settings.autoencoder == "convolutional":
        kind += f", its decoder {settings.sharpening_steps} more under adversarial critics"
    return f"{kind}; {settings.channels} channels at 1/8 of the resolution"
