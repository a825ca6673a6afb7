"""`geodistill distill`: some scenes are held out, the set is made from the others, and tested on those held out."""

import tempfile
from pathlib import Path

from geodistill.config import Config, recorded, to_toml
from geodistill.distilled import DistilledSet
from geodistill.errors import ConfigError
from geodistill.methods import METHODS, check_method, make_distilled
from geodistill.methods.dpd import check
from geodistill.pipeline import OWN
from geodistill.processes import processes
from geodistill.run import Run, write_atomic
from geodistill.scenes.scenes import Scenes
from geodistill.stages.base import tell_of_base
from geodistill.stages.checks import check_counts
from geodistill.stages.context import Context
from geodistill.stages.held_out import set_apart
from geodistill.stages.self_test import run_self_test


def distill(
    scenes: Scenes,
    config: Config | None = None,
    *,
    method: str = OWN,
    out: Path | str | None = None,
    command: str = "",
) -> DistilledSet:
    """Condense `scenes` into `config.ipc` synthetic images per class, and test these (see `stages.self_test`).

    What the test found is in the run's stage `self_test`, in the data card of its set, and in the log of
    `geodistill.self_test`: a warning where the set is below random real images.

    Args:
        scenes: the training scenes; nothing else is looked at. Those held out for the test are not learned from.
        config: settings; the defaults when None.
        method: a name in `methods.METHODS`; its own settings are those that it has a use for.
        out: the run folder, kept; a run there that stopped goes on. A temporary folder when None.
        command: the command line, for the record.

    Raises:
        GeodistillError: one of its kinds, before hours are spent where that can be known before.

    >>> import geodistill
    >>> data = geodistill.builtin_scenes(train_per_class=12, test_per_class=3, size=32)
    >>> distilled = geodistill.distill(data.train, geodistill.load_config("tiny"))
    >>> distilled.images.shape
    torch.Size([20, 3, 32, 32])
    """
    config = config or Config()
    if out is None and processes().count > 1:
        raise ConfigError("several processes need one run folder: give out")
    if out is None:
        with tempfile.TemporaryDirectory(prefix="geodistill-") as folder:
            return distill(scenes, config, method=method, out=folder, command=command)
    # Before the run folder is made, so that settings that cannot work leave none behind.
    check_method(method, config.privacy)
    if method == OWN:
        check(scenes, config)
    check_counts(scenes, config.ipc, config.privacy)
    apart = set_apart(scenes, config)
    settings = {"method": method, "config": recorded(config), "scenes": scenes.fingerprint()}
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
