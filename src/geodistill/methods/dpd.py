"""Discriminative prototype-guided diffusion (Xu, Ghamisi, Weng, arXiv 2601.15829), from scenes to distilled set.

    scenes -> base -> latents -> teacher, prototypes -> descriptions -> adapter -> following -> candidates
    -> chosen, refined -> distilled set

`make` is that line. Each stage is a folder of the run that holds all that the next ones need. `distill` holds some
scenes out before it and tests the set on them after it.
"""

import tempfile
from pathlib import Path

from geodistill.config import Config, recorded, to_toml
from geodistill.descriptions import make_describer
from geodistill.distilled import DistilledSet
from geodistill.errors import ConfigError
from geodistill.evaluation.protocols import check_side
from geodistill.methods.following import followed
from geodistill.methods.private import check_private, make_private
from geodistill.methods.refining import refined
from geodistill.methods.screening import screen
from geodistill.methods.self_test import run_self_test, set_apart
from geodistill.methods.stages import (
    MOST_CANDIDATES,
    check_base,
    check_counts,
    choose,
    cluster,
    describe,
    draw,
    drawn_in_secret,
    encode,
    finetune,
    hand_out,
    make_base,
    teach,
    tell_of_base,
    texts_of_each,
)
from geodistill.processes import processes
from geodistill.run import Run, write_atomic
from geodistill.scenes.scenes import Scenes


def distill(
    scenes: Scenes, config: Config | None = None, *, out: Path | str | None = None, command: str = ""
) -> DistilledSet:
    """Condense `scenes` into `config.ipc` synthetic images per class, and test these (see `methods.self_test`).

    What the test found is in the run's stage `self_test`, in the data card of its set, and in the log of
    `geodistill.self_test`: a warning where the set is below random real images.

    Args:
        scenes: the training scenes; nothing else is looked at. Those held out for the test are not learned from.
        config: settings; the defaults when None.
        out: the run folder, kept; a run there that stopped goes on. A temporary folder when None.
        command: the command line, for the record.

    Raises:
        GeodistillError: one of its kinds, before hours are spent where that can be known before.
    """
    config = config or Config()
    if out is None and processes().count > 1:
        raise ConfigError("several processes need one run folder: give out")
    if out is None:
        with tempfile.TemporaryDirectory(prefix="geodistill-") as folder:
            return distill(scenes, config, out=folder, command=command)
    # Before the run folder is made, so that settings that cannot work leave none behind.
    _check(scenes, config)
    apart = set_apart(scenes, config)
    settings = {"method": "dpd", "config": recorded(config), "scenes": scenes.fingerprint()}
    with Run(Path(out), settings, command) as run:
        if processes().main:
            write_atomic(run.folder / "config.toml", to_toml(config))
        tell_of_base(scenes, config, run)
        distilled = make(apart.train, config, run)
        if config.self_test.held_out:
            run_self_test(distilled, apart, config, run)
        return distilled


def make(scenes: Scenes, config: Config, run: Run) -> DistilledSet:
    """Return the distilled set of `scenes`, made in `run`."""
    _check(scenes, config)
    if config.privacy == "dp":
        return make_private(scenes, config, run)
    judged, adapted = config.finetune.consistency > 0, config.finetune.steps > 0
    prior = make_base(scenes, config, run)
    latents = encode(scenes, prior, config, run)
    teacher = teach(latents, scenes, config, run)
    prototypes = cluster(latents, scenes, config, run)
    texts = describe(prior, prototypes, scenes, config, run)
    finetune(
        prior,
        latents,
        scenes,
        texts_of_each(prototypes, texts, scenes),
        config,
        run,
        after=("latents", "descriptions", "teacher" if judged else None),
        teacher=teacher,
    )
    if not config.reproducible:
        config = drawn_in_secret(config, run.secret())
    before = ("latents", "prototypes", "descriptions", "adapter" if adapted else None)
    config = followed(prior, latents, texts, prototypes, scenes, config, run, after=before)
    candidates = draw(
        prior,
        latents[:, 0],
        texts,
        config,
        run,
        after=before,
        starts=prototypes.starts(config.sampling.candidates, config.seed, of=config.prototypes.starts),
    )
    passing = None
    if config.privacy == "screen":
        kept = screen(candidates, latents[:, 0], prior, scenes, prototypes, texts, config, run)
        candidates, passing = kept.latents, kept.passing
    chosen = choose(candidates, latents, prior, teacher, scenes, prototypes, config, run, passing=passing)
    last = "chosen"
    if config.refinement.steps:
        chosen, last = refined(chosen, prior, teacher, scenes, config, run), "refined"
    return hand_out(chosen, prior, scenes, texts, config, run, after=last)


def _check(scenes: Scenes, config: Config) -> None:
    """Find before the first stage what would stop a later one."""
    make_describer(config.descriptions.describer, config.precision)
    if config.sampling.candidates > MOST_CANDIDATES:
        raise ConfigError(f"sampling.candidates is {config.sampling.candidates}: at most {MOST_CANDIDATES}")
    if config.soft_labels:
        check_side(config.size)
    check_base(config)
    check_counts(scenes, config.ipc, config.privacy)
    if config.privacy == "dp":
        check_private(scenes, config)
