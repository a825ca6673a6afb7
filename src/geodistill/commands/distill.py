"""`geodistill distill`: hold out some scenes, make the set from the others, and test it on those held out."""

import tempfile
from pathlib import Path

from geodistill.config import Config, to_toml, without_self_test
from geodistill.distilled import DistilledSet
from geodistill.errors import ConfigError, SceneError
from geodistill.methods import METHODS, check_method, make_distilled
from geodistill.methods.dpd import check
from geodistill.pipeline import ADDS_TO, OWN
from geodistill.processes import processes
from geodistill.run import Run, write_atomic
from geodistill.scenes.scenes import Scenes
from geodistill.stages.base import tell_of_base
from geodistill.stages.checks import check_counts
from geodistill.stages.context import Context, run_settings
from geodistill.stages.held_out import set_apart
from geodistill.stages.self_test import run_self_test


def distill(
    scenes: Scenes,
    config: Config | None = None,
    *,
    method: str = OWN,
    out: Path | str | None = None,
    adds_to: DistilledSet | None = None,
    command: str = "",
) -> DistilledSet:
    """Condense `scenes` into `config.ipc` synthetic images per class, and test the set (see `stages.self_test`).

    The result of the test is stored in the run's stage `self_test` and in the data card of the set, and logged by
    `geodistill.self_test`: as a warning if the set is below random real images.

    Args:
        scenes: the training scenes; no other data are used. Those held out for the test are not learned from.
        config: settings; the defaults if None.
        method: a name in `methods.METHODS`; it uses only the settings that concern it.
        out: the run folder, which is kept; an interrupted run there is resumed. A temporary folder if None.
        adds_to: the set that the result will be added to (`commands.add`). The run records it, so that nobody takes the
            result for the updated set.
        command: the command line, for the record.

    Raises:
        GeodistillError: one of its subclasses, before the long computation if the problem can be known by then.

    >>> import geodistill
    >>> data = geodistill.builtin_scenes(train_per_class=12, test_per_class=3, size=32)
    >>> distilled = geodistill.distill(data.train, geodistill.load_config("tiny", ["sampling.strength=0.6"]))
    >>> distilled.images.shape
    torch.Size([20, 3, 32, 32])
    """
    config = config or Config()
    if not isinstance(scenes, Scenes):
        raise SceneError(f"scenes are {type(scenes).__name__}: give the training part of what open_scenes returns")
    if out is None and processes().count > 1:
        raise ConfigError("several processes need one run folder: give out")
    if out is None:
        with tempfile.TemporaryDirectory(prefix="geodistill-") as folder:
            return distill(scenes, config, method=method, out=folder, adds_to=adds_to, command=command)
    # Checked before the run folder is made, so that settings that cannot work leave no folder behind.
    check_method(method, config.privacy)
    if config.privacy == "dp" and config.reproducible:
        raise ConfigError(
            "privacy 'dp' does not go with --reproducible: its noise comes from the operating system, and no command "
            "draws it again"
        )
    if config.soft_labels and method != OWN:
        raise ConfigError(f"method {method!r} stores no soft labels, only {OWN!r} does: leave --soft-labels out")
    if METHODS[method].kind == "real":
        # The self-test compares a set with real images, and this set consists of them.
        config = without_self_test(config)
    if method == OWN:
        check(scenes, config)
    else:
        check_counts(scenes, config.ipc, config.privacy)
    apart = set_apart(scenes, config)
    settings = run_settings(method, config, scenes) | ({ADDS_TO: adds_to.content_hash()} if adds_to else {})
    with Run(Path(out), settings, command) as run:
        context = Context(apart.train, config, run, METHODS[method])
        if processes().main:
            write_atomic(run.folder / "config.toml", to_toml(config))
        if METHODS[method].kind != "real":
            tell_of_base(scenes, config, run)
        distilled = make_distilled(method, context)
        if config.self_test.held_out:
            run_self_test(context, distilled, apart)
        return distilled.value
