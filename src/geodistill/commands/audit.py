"""`geodistill audit`: the audit of a set in a folder, with what its run records about how the set was made."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from geodistill.commands.source import Source, read_source, recorded_base, shadow_sets
from geodistill.distilled import BATCHES, DistilledSet, owner_files, run_of, set_folder, strays, tell_of_audit
from geodistill.errors import ConfigError, RunError
from geodistill.pipeline import OWN
from geodistill.privacy.audit import FAILURES, Audit, Known, Shadow
from geodistill.privacy.audit import audit as audit_set
from geodistill.privacy.latents import STRENGTH
from geodistill.privacy.membership import too_little
from geodistill.privacy.texts import foreign_texts
from geodistill.processes import processes
from geodistill.run import versions
from geodistill.run.secret import SECRET
from geodistill.scenes.scenes import SceneData, Scenes
from geodistill.stages.checks import warn_of_seen_tests

log = logging.getLogger("geodistill")


def audit(
    what: Path | str, data: SceneData, *, shadows: int = 0, fail_on: Sequence[str] = (), out: Path | str | None = None
) -> tuple[Audit, DistilledSet, Scenes]:
    """Audit the set in `what`: a run, the folder of its set, or a folder <class>/<image>.

    Returns the findings, the set and the training images.

    Training images are those that the run learned from, without those held out for its self-test.

    For a run it is also known how the set was made: the scene that each image started from, and how to make `shadows`
    further sets from random halves of the training scenes. These are written to `out`, by default the folder `audit` in
    the run. The verdict is written into the set's data card. Without the run's secret the scenes that its images
    started from are not known, and nothing is replayed; a warning says so.

    Raises:
        ConfigError: a name in `fail_on` is unknown; `out` is in the set's folder; shadows of a set without a run; what
            `privacy.audit.audit` raises.
        RunError: the run was made from other scenes, or `out` cannot be a folder.
        DistilledSetError: there is no set.

    >>> import geodistill, tempfile
    >>> data = geodistill.builtin_scenes(train_per_class=4, test_per_class=1, size=32)
    >>> folder = data.train.subset(range(0, 40, 4))
    >>> given = geodistill.DistilledSet(folder.pixels(size=32), folder.labels, folder.classes)
    >>> found, *_ = geodistill.audit(given.save(tempfile.mkdtemp() + "/set"), data)
    >>> found.copies
    10
    """
    what, out = Path(what), None if out is None else Path(out)
    folder, run = set_folder(what), run_of(what)
    if out is not None and out.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"--out {out} is in the folder of the set, which is shared: the page shows training images")
    if out is not None and any(one.is_file() for one in (out, *out.parents)):
        raise RunError(f"{out} cannot be a folder, a file is in its place: choose another --out")
    for name in fail_on:
        if name not in FAILURES:
            raise ConfigError(f"--fail-on {name!r} is unknown: known: {', '.join(FAILURES)}")
    if shadows and not run:
        raise ConfigError(
            f"{what} is no run that made all images of its set, so there are no shadow sets: leave --shadows out"
        )
    source = read_source(run, data.train) if run else None
    warn_of_seen_tests(recorded_base(what), data)
    distilled = DistilledSet.load(folder)
    data = replace(data, train=source.learned_from(data.train)) if source else data
    known = Known(replayable=distilled.replayable)
    if source:
        made = shadow_sets(source, data.train, shadows, out or source.folder / "audit") if shadows else []
        known = _known(source, distilled, data.train, made)
    # A set that can be replayed fails already, and is not mended by other descriptions.
    foreign = 0 if known.replayable else foreign_texts(distilled)
    known = replace(known, beside=tuple(owner_files(folder)), strays=tuple(strays(folder)), foreign=foreign)
    # Where the base is missing, `unchecked` says already that nothing was replayed.
    if distilled.follows_scenes and known.draws is None and not known.unchecked:
        known = replace(known, untested=_why_untested(source, distilled))
    result = audit_set(distilled, data, known, out=out)
    if processes().main:
        tell_of_audit(folder, f"Audited by `geodistill audit` {versions()['geodistill']}. {_shared(result, distilled)}")
    return result, distilled, data.train


def _known(source: Source, distilled: DistilledSet, train: Scenes, shadows: Sequence[Shadow]) -> Known:
    prior, starts, unchecked = source.prior(), None, ""
    if not prior and not source.real:
        # Its name alone: the set's card gets this sentence, and must not have a path of this machine.
        unchecked = f"the base {Path(source.base).name!r} of the run's settings cannot be loaded"
        log.warning("%s (%s): its part of the audit is left out", unchecked, source.base)
    try:
        starts = source.starts(distilled)
    except RunError:
        log.warning(
            "%s is gone or damaged, so the scenes that the images started from are not known: nothing is replayed",
            source.folder / SECRET,
        )
    return Known(
        starts=starts,
        shadows=shadows,
        overlap=source.overlap(train),
        replayable=source.replayable(distilled),
        prior=prior,
        strength=source.strength or STRENGTH,
        draws=source.draws(distilled, prior) if prior and starts is not None else None,
        unchecked=unchecked,
    )


def _shared(result: Audit, distilled: DistilledSet) -> str:
    """Return what the data card states about the audit.

    If the set has a guarantee, this omits exact figures about the training images, which are no private release.
    """
    if distilled.about.get("guarantee"):
        return "Its findings stay with the data owner: figures about the real images are outside the guarantee."
    return result.verdict


def _why_untested(source: Source | None, distilled: DistilledSet) -> str:
    """Return why images that follow scenes are not replayed."""
    if BATCHES in distilled.about:
        return "the set was updated, so no run made all its images"
    if source and source.method != OWN:
        return f"only that of method {OWN!r} can be, and method {source.method!r} drew them"
    return "the set's run, or the run's secret, is not at hand"


def unanswerable(distilled: DistilledSet, data: SceneData) -> str:
    """Return why `--fail-on membership` has no answer, "" if it has one.

    If no attack could show a leak, finding none would mean nothing.
    """
    if data.test is None:
        return "--fail-on membership needs held-out images: give data with a test part"
    reason = too_little(len(distilled), len(data.train), len(data.test))
    return reason and (f"--fail-on membership cannot be answered: {reason}: add held-out images, or ask for copy alone")
