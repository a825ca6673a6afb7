"""Checks before anything is computed: some stop a run, some warn of what its result is worth."""

import logging
from pathlib import Path

import torch

from geodistill.config import Config
from geodistill.descriptions import class_prompt
from geodistill.errors import ConfigError, PriorError, SceneError
from geodistill.prior.base import Prior, source_of
from geodistill.prior.catalogue import SCRATCH, local_folder
from geodistill.prior.compact import check_compact_size
from geodistill.privacy.overlap import footprint_of, told_overlap
from geodistill.privacy.screen import LEAST
from geodistill.scenes.scenes import SceneData, Scenes

log = logging.getLogger("geodistill")


def check_counts(scenes: Scenes, ipc: int, privacy: str = "none") -> None:
    """Raise SceneError, before anything is computed, for a single class, or one with too few images.

    Too few are fewer than `ipc`, or than screening needs.

    Under differential privacy the images are not counted: the check would reveal the size of a class, and noisy means
    exist for a class of any size.
    """
    if len(scenes.classes) < 2:
        raise SceneError(f"only one class, {scenes.classes[0]!r}: a classifier needs at least 2")
    if privacy == "dp":
        return
    counts = torch.bincount(scenes.labels, minlength=len(scenes.classes))
    for name, count in zip(scenes.classes, counts.tolist(), strict=True):
        if count < ipc:
            raise SceneError(
                f"class '{name}' has {count} images, IPC {ipc} needs at least {ipc}: lower --ipc or add images"
            )
        if privacy == "screen" and count < LEAST:
            raise SceneError(
                f"class '{name}' has {count} images, screening needs at least {LEAST}: add images or leave the class "
                "out"
            )


def check_bands(base: str, drawn: int, scenes: Scenes) -> None:
    """Raise PriorError unless the base, which draws images of `drawn` channels, fits the scenes."""
    if drawn != scenes.channels:
        raise PriorError(
            f"the base {base!r} draws images of {drawn} bands, the scenes have {scenes.channels}: use --base "
            f"{SCRATCH}, or --bands with {drawn} bands"
        )


def check_names(scenes: Scenes, prior: Prior) -> None:
    """Raise ConfigError if the prompt of a class name is too long: two classes could get the same embedding."""
    for name in scenes.classes:
        if not prior.fits(class_prompt(name)):
            raise ConfigError(
                f"the prompt of class {name!r} has {prior.tokens(class_prompt(name))} tokens, the base's text encoder "
                f"takes {prior.token_limit}: give the class's folder a shorter name"
            )


def check_base(config: Config) -> None:
    """Raise PriorError, before anything is computed, if the base is missing or does not draw images of this size."""
    if config.base == SCRATCH:
        check_compact_size(config.size)
    else:
        source_of(config.base, config.size)


def warn_of_seen_tests(base: str | None, data: SceneData) -> None:
    """Warn if `base` was trained on test or validation images of `data`: accuracy on them is no test then."""
    folder = local_folder(base) if base else None
    for part, images in ((data.test, "test images"), (data.val, "validation images")):
        overlap = told_overlap(part, folder, images=images) if part and folder else ""
        if overlap:
            log.warning("%s: accuracy and nearness measured on them are too optimistic", overlap)


def warn_of_unlisted(base: str, folder: Path) -> None:
    """Warn if the base in `folder` does not list its training images, so that a guarantee cannot be checked."""
    if footprint_of(folder) is None:
        log.warning(
            "the base %r does not list its training images: whether it was trained on these scenes cannot be checked, "
            "and the guarantee does not cover what it remembers of them",
            base,
        )
