"""Stages `latents` and `features`: the scenes encoded by the autoencoder and by the pretrained backbone."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geodistill.config import Config
from geodistill.networks import backbone_features
from geodistill.pipeline import FEATURES, LATENTS
from geodistill.prefetch import Prefetch
from geodistill.prior.base import Prior, fingerprint_of_base, source_of
from geodistill.prior.catalogue import SCRATCH
from geodistill.prior.training import batches
from geodistill.processes import processes
from geodistill.provenance import Made, Stage
from geodistill.run import (
    Rows,
    Run,
    Stored,
    forget_parts,
    in_parts,
    join_parts,
    make_parts,
    save_rows,
    stage_of,
    subset,
)
from geodistill.scenes.scenes import Scenes
from geodistill.scenes.views import dihedral
from geodistill.stages.context import Context, unless_default

# Number of scenes whose views are encoded together.
_ENCODED_TOGETHER = 100
# Number of scenes that are read together to compute their features.
_READ_TOGETHER = 1024
# Largest number of latents that are stored, unless the scenes are more. The trainings draw 64,000 each by default: of
# many scenes they would see most views never.
_MOST_VIEWS = 2**18


def views_of(count: int, config: Config) -> int:
    """Return the number of views that are stored of each of `count` scenes: those of `config`, or fewer of many scenes.

    >>> [views_of(count, Config()) for count in (32_768, 32_769, 100_000, 1_000_000)]
    [8, 4, 2, 1]
    """
    views: int = config.latents.views
    while views > 1 and count * views > _MOST_VIEWS:
        views //= 2
    return views


def encode(context: Context, prior: Made[Prior]) -> Made[Stored]:
    """Return the scenes' latents, float16 [N, V, C, h, w] with V views of each scene, from stage `latents`.

    They stay in the stage's file; V follows from `views_of`.
    """
    scenes, config = context.scenes, context.config

    def build(folder: Path) -> None:
        ahead = _read_ahead(scenes, config.size)

        def views(which: slice) -> Tensor:
            pixels, count = ahead(which.start), views_of(len(scenes), config)
            return torch.stack([prior.value.encode(dihedral(pixels, view)).half() for view in range(count)], dim=1)

        paths = make_parts("latents", batches(len(scenes), _ENCODED_TOGETHER), views, folder)
        if processes().main:
            join_parts(paths, LATENTS.name, folder / _file(LATENTS))
            forget_parts(folder)

    return context.run.make(LATENTS, build, lambda folder: _read(folder, LATENTS), given=_given(scenes, config, prior))


def _given(scenes: Scenes, config: Config, base: Made[Prior] | str) -> list[Any]:
    return [scenes.fingerprint(), base, config.size, views_of(len(scenes), config), *unless_default(config.precision)]


def scene_features(context: Context) -> Made[Stored]:
    """Return float32 [N, 1280] from stage `features`: the pretrained backbone's unit-length features of all scenes.

    They stay in the stage's file.
    """
    scenes, size = context.scenes, context.config.size

    def build(folder: Path) -> None:
        def features(which: slice) -> Tensor:
            return backbone_features(scenes.pixels(range(which.start, which.stop), size=size))

        paths = make_parts(FEATURES.name, batches(len(scenes), _READ_TOGETHER), features, folder)
        if processes().main:
            join_parts(paths, FEATURES.name, folder / _file(FEATURES))
            forget_parts(folder)

    given = [scenes.fingerprint(), size]
    return context.run.make(FEATURES, build, lambda folder: _read(folder, FEATURES), given=given)


def reuse_encoded(folder: Path, scenes: Scenes, part: Tensor, config: Config, run: Run) -> None:
    """Make stages `latents` and `features` of `run`, a run on some of `scenes`, from those of the run in `folder`.

    `folder` holds a run on all scenes with the same settings; `part` int64 [k] are the indices of the scenes of `run`.
    Stages that are missing in `folder` are left to be made. A base built from the scenes depends on them, and so do its
    latents; these are not reused.
    """
    own = scenes.subset(part)

    def reuse(stage: Stage, of_all: list[Any], of_part: list[Any]) -> None:
        whole = stage_of(folder, stage, given=of_all)
        if whole is not None:
            rows = in_parts(subset(_read(whole, stage), part))
            run.make(stage, lambda out: save_rows(rows, stage.name, out / _file(stage)), lambda out: out, given=of_part)

    reuse(FEATURES, *([some.fingerprint(), config.size] for some in (scenes, own)))
    # Some methods have no latents. Their base may not exist, or may not draw this size.
    if config.base != SCRATCH and (folder / LATENTS.name).is_dir():
        base = fingerprint_of_base(source_of(config.base, config.size))
        reuse(LATENTS, *(_given(some, config, base) for some in (scenes, own)))


def _file(stage: Stage) -> str:
    return f"{stage.name}.safetensors"


def _read(folder: Path, stage: Stage) -> Stored:
    return Rows(folder / _file(stage), stage.name)


def _read_ahead(scenes: Scenes, size: int) -> Prefetch[int, Tensor]:
    """Return a function from the first index of a part to its pixels; the next part is read from files meanwhile."""

    def pixels(start: int) -> Tensor:
        return scenes.pixels(range(start, min(start + _ENCODED_TOGETHER, len(scenes))), size=size)

    def following(start: int) -> int | None:
        coming = start + _ENCODED_TOGETHER * processes().count
        return coming if coming < len(scenes) else None

    return Prefetch(pixels, following)
