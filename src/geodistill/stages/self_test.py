"""Stage `self_test`, the last of `distill`: compares the set with random real images on held-out training scenes.

No earlier stage uses the held-out scenes. A classifier is fine-tuned once on the set and once on as many random real
images, and both predict the held-out scenes; a probe does the same. The interval of the difference covers only the
choice of these scenes. It does not cover what another training or other random images would change.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from geodistill.config import Config
from geodistill.distilled import DistilledSet, tell_of_self_test
from geodistill.errors import RunError
from geodistill.evaluation.bench import PREDICTIONS, Bench, Task, Training
from geodistill.evaluation.evaluate import random_real
from geodistill.evaluation.measures import measure
from geodistill.evaluation.pairs import compare_pair
from geodistill.evaluation.worth import SelfTest, Worth, advice
from geodistill.networks import PRETRAINED
from geodistill.pipeline import ADAPTER, DISTILLED, SELF_TEST
from geodistill.prior.base import source_of
from geodistill.prior.catalogue import SCRATCH
from geodistill.privacy.overlap import count_known
from geodistill.processes import processes
from geodistill.provenance import Made
from geodistill.run import write_atomic
from geodistill.scenes.scenes import SceneData, Scenes
from geodistill.stages.context import Context
from geodistill.stages.held_out import Apart

log = logging.getLogger("geodistill.self_test")

_RESULT = "self_test.json"
# The protocol that decides the verdict, and the one beside it, which decides where the first shows no difference.
VERDICT_PROTOCOL, _PROBE = "finetune", "probe"


def run_self_test(context: Context, distilled: Made[DistilledSet], apart: Apart) -> SelfTest:
    """Return the comparison of `distilled` with random real images, from stage `self_test`.

    The result is written into the set's data card and logged: as a warning if the set is below random.
    """
    config, run = context.config, context.run

    def build(folder: Path) -> None:
        found = SelfTest(skipped=apart.reason)
        if apart.test is not None:
            found = _measured(distilled.value, SceneData(apart.train, apart.test), config, folder)
        write_atomic(folder / _RESULT, json.dumps(asdict(found), indent=2) + "\n")

    given = [distilled, apart.train.fingerprint(), config.size, config.seed, apart.reason]
    given += [apart.test.fingerprint() if apart.test else None, PREDICTIONS[VERDICT_PROTOCOL], PREDICTIONS[_PROBE]]
    run.make(SELF_TEST, build, lambda folder: folder, given=given)
    found = read_self_test(run.folder)
    if found is None:
        raise RunError(f"{run.folder / SELF_TEST.name} holds no result: delete it, and the same command makes it anew")
    if processes().main:
        tell_of_self_test(run.folder / DISTILLED.name, found.summary)
        below = found.verdict == "below random"
        tail = f" {advice(config, adapts=adapts_base(run.folder, config))}" if below else ""
        log.log(logging.WARNING if below else logging.INFO, "%s%s", found.summary, tail)
    return found


def adapts_base(run: Path, config: Config) -> bool:
    """Return whether the method of the run in folder `run` adapts the base, or would with other settings."""
    return (run / ADAPTER.name).is_dir() or not config.finetune.steps


def read_self_test(run: Path) -> SelfTest | None:
    """Return the result of the self-test of the run in folder `run`; None if there is none (yet).

    Raises RunError if the file is damaged.
    """
    path = run / SELF_TEST.name / _RESULT
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        worths = {name: values[name] and Worth(**values[name]) for name in (VERDICT_PROTOCOL, _PROBE)}
        return SelfTest(**{**values, **worths})
    except (ValueError, KeyError, TypeError):
        raise RunError(
            f"{path} is not the result of a self-test: delete {path.parent}, and the run's command makes it anew"
        ) from None


def _measured(distilled: DistilledSet, data: SceneData, config: Config, folder: Path) -> SelfTest:
    """Return the result; predictions are kept in `folder`, and stored ones are reused."""
    trainings = {
        "distilled": Training.on_set("distilled", distilled),
        "random": Training.on_scenes("random", random_real(data.train, distilled, config.seed), config.size),
    }
    tasks = {
        protocol: {name: Task(one, protocol, PRETRAINED, config.seed) for name, one in trainings.items()}
        for protocol in (VERDICT_PROTOCOL, _PROBE)
    }
    bench = Bench(data, config.size, store=folder)
    bench.train_all(task for pair in tasks.values() for task in pair.values())
    worths = {protocol: _worth(bench, pair) for protocol, pair in tasks.items()}
    return SelfTest(len(bench.test), _seen(bench.test, config), worths[VERDICT_PROTOCOL], worths[_PROBE])


def _worth(bench: Bench, tasks: Mapping[str, Task]) -> Worth:
    labels, classes = bench.test.labels, len(bench.test.classes)
    predicted = {name: bench.logits(task).argmax(1) for name, task in tasks.items()}
    oa = {name: measure(one, labels, classes).oa for name, one in predicted.items()}
    pair = compare_pair(predicted["distilled"][None], predicted["random"][None], labels, seed=0)
    return Worth(oa["distilled"], oa["random"], pair.low, pair.high)


def _seen(test: Scenes, config: Config) -> int:
    """Return about how many of the scenes the base was trained on; 0 if it has no record of this or is from scratch."""
    if config.base == SCRATCH:
        return 0
    return count_known(test, Path(source_of(config.base, config.size)))
