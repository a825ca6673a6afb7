"""`geodistill audit`: the audit of a set in a folder, with what its run records about how the set was made."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from geodistill.commands.source import Source, read_source, shadow_sets
from geodistill.distilled import DistilledSet, owner_files, set_folder, tell_of_audit
from geodistill.errors import ConfigError
from geodistill.pipeline import DISTILLED
from geodistill.privacy.audit import FAILURES, Audit, Known, Shadow
from geodistill.privacy.audit import audit as audit_set
from geodistill.privacy.membership import too_little
from geodistill.processes import processes
from geodistill.run import versions
from geodistill.scenes.scenes import SceneData, Scenes


def audit(
    what: Path, data: SceneData, *, shadows: int = 0, fail_on: Sequence[str] = (), out: Path | None = None
) -> tuple[Audit, DistilledSet, Scenes]:
    """Audit the set in `what`, a run or a folder <class>/<image>; return the findings, the set and the training images.

    Training images are those that the run learned from, without those held out for its self-test.

    For a run it is also known how the set was made: the scene that each image started from, and how to make `shadows`
    further sets from random halves of the training scenes. These are written to `out`, by default the folder `audit` in
    the run. The verdict is written into the set's data card.

    Raises:
        ConfigError: a name in `fail_on` is unknown, or membership alone is asked for and no attack could show it;
            `out` is in the set's folder; shadows of a set without a run; errors of `privacy.audit.audit`.
        RunError: the run was made from other scenes.
        DistilledSetError: there is no set.

    >>> import geodistill, tempfile
    >>> data = geodistill.builtin_scenes(train_per_class=4, test_per_class=1, size=32)
    >>> folder = data.train.subset(range(0, 40, 4))
    >>> given = geodistill.DistilledSet(folder.pixels(size=32), folder.labels, folder.classes)
    >>> found, *_ = geodistill.audit(given.save(tempfile.mkdtemp() + "/set"), data)
    >>> found.copies
    10
    """
    folder = set_folder(what)
    # How an updated set was made is known of its new images alone.
    is_run = folder.name == DISTILLED.name and folder != what
    if out is not None and out.absolute().is_relative_to(folder.absolute()):
        raise ConfigError(f"--out {out} is in the folder of the set, which is shared: the page shows training images")
    for name in fail_on:
        if name not in FAILURES:
            raise ConfigError(f"--fail-on {name!r} is unknown: known: {', '.join(FAILURES)}")
    if shadows and not is_run:
        raise ConfigError(
            f"{what} is no run: how its images were made is not known, so there are no shadow sets: leave --shadows out"
        )
    source = read_source(what, data.train) if is_run else None
    distilled = DistilledSet.load(folder)
    data = replace(data, train=source.learned_from(data.train)) if source else data
    if [*fail_on] == ["membership"] and (reason := unanswerable(distilled, data)):
        raise ConfigError(reason)
    known = Known(replayable=distilled.replayable)
    if source:
        made = shadow_sets(source, data.train, shadows, out or what / "audit") if shadows else []
        known = _known(source, distilled, data.train, made)
    known = replace(known, beside=tuple(owner_files(folder)))
    result = audit_set(distilled, data, known, out=out)
    if processes().main:
        tell_of_audit(folder, f"Audited by `geodistill audit` {versions()['geodistill']}. {_shared(result, distilled)}")
    return result, distilled, data.train


def _known(source: Source, distilled: DistilledSet, train: Scenes, shadows: Sequence[Shadow]) -> Known:
    prior = source.prior()
    return Known(
        starts=source.starts(distilled),
        shadows=shadows,
        overlap=source.overlap(train),
        replayable=source.replayable(distilled),
        prior=prior,
        draws=source.draws(distilled, prior) if prior else None,
    )


def _shared(result: Audit, distilled: DistilledSet) -> str:
    """Return what the data card states about the audit.

    If the set has a guarantee, this omits exact figures about the training images, which are no private release.
    """
    if distilled.about.get("guarantee"):
        return "Its findings stay with the data owner: figures about the real images are outside the guarantee."
    return result.verdict


def unanswerable(distilled: DistilledSet, data: SceneData) -> str:
    """Return why `--fail-on membership` has no answer, "" if it has one.

    If no attack could show a leak, finding none would mean nothing.
    """
    if data.test is None:
        return "--fail-on membership needs held-out images: give data with a test part"
    reason = too_little(len(distilled), len(data.train), len(data.test))
    return reason and (f"--fail-on membership cannot be answered: {reason}: add held-out images, or ask for copy alone")
