"""Pretraining: a base from a user's own archive, once, for any number of later runs."""

import platform
from pathlib import Path
from typing import Any

from geodistill.config import CompactSettings, Config
from geodistill.errors import PriorError
from geodistill.methods.stages import train_base
from geodistill.prior.base import SCRATCH, source_of
from geodistill.prior.compact import check_compact_size
from geodistill.run import Run, versions, write_atomic
from geodistill.scenes.scenes import Scenes


def pretrain(
    scenes: Scenes, config: Config, *, out: Path, start: str | None = None, data_note: str = "", command: str = ""
) -> Path:
    """Train a base on `scenes` and return its folder, a pipeline for `--base` with a model card.

    Args:
        scenes: the training scenes; nothing else is looked at.
        config: its `compact`, `size` and `seed` count.
        out: the run folder; a run there that stopped goes on.
        start: a base whose U-Net is trained further: 'compact', a pipeline folder, a hub name; without one all is new.
        data_note: what the card says about the data and their licence.
        command: the command line, for the record.

    Raises:
        PriorError: the size does not fit, or there is no such base.
        TrainingError: a loss is not finite.
    """
    check_compact_size(config.size)
    if start == SCRATCH:
        raise PriorError("there is nothing to go on from in base 'scratch': leave --base out to start anew")
    about: dict[str, Any] = {"compact": config.compact.model_dump(mode="json"), "size": config.size}
    about |= {"seed": config.seed, "start": start}
    settings = {"method": "pretrain", "config": about, "scenes": scenes.fingerprint()}
    with Run(out, settings, command) as run:
        folder = train_base(scenes, config, run, start)
        card = model_card(run.record_of("base"), scenes, config, data_note, start)
        write_atomic(folder / "README.md", card + _earlier_card(start, config.size))
    return folder


def _earlier_card(start: str | None, size: int) -> str:
    """Return the model card of the base that was gone on from, one heading lower; nothing where it has none here."""
    card = Path(source_of(start, size)) / "README.md" if start else None
    if card is None or not card.is_file():
        return ""
    lines = card.read_text(encoding="utf-8").splitlines()
    lowered = "\n".join(f"#{line}" if line.startswith("#") else line for line in lines)
    return f"\n# The base it goes on from\n\n{lowered}\n"


def model_card(record: dict[str, Any], scenes: Scenes, config: Config, data_note: str, start: str | None = None) -> str:
    """Return the model card, Markdown; `record` is what the stage `base` recorded, `start` what it went on from."""
    facts, settings = record["facts"], config.compact
    made = versions()
    lines = [
        "# Model card",
        "",
        f"A text-conditional latent diffusion model of overhead scenes at {config.size} px, a diffusers pipeline made",
        "by `geodistill pretrain`. Prompts: `A satellite image of <class>`, then what geodistill's describer measured.",
        "",
        f"- Trained on: {len(scenes)} images of {len(scenes.classes)} classes ({', '.join(scenes.classes)}).",
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
        f"- It draws {config.size} px. Small objects (cars, single aircraft) and regular layouts (rows of tanks) come",
        "  out worst.",
        "- The autoencoder was trained to look right to an ImageNet backbone (EfficientNet-Lite0): judge images with",
        "  another network as well.",
        "- A model of a few thousand images can repeat some of them: `geodistill evaluate` prints the nearness ratio.",
    ]
    return "\n".join(lines) + "\n"


def _autoencoder(facts: dict[str, Any], settings: CompactSettings, start: str | None) -> str:
    if start:
        return f"that of {start}"
    kind = "principal components of 8x8-pixel patches"
    if settings.autoencoder == "convolutional":
        kind = f"convolutional, {facts['autoencoder_steps']} steps of {settings.autoencoder_batch} images"
    if settings.sharpening_steps and settings.autoencoder == "convolutional":
        kind += f", its decoder {settings.sharpening_steps} more under adversarial critics"
    return f"{kind}; {settings.channels} channels at 1/8 of the resolution"
