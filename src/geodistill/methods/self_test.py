"""The self-test that ends `distill`: the set against random real images, on training scenes that were held out.

What is held out has no part in any stage before. A classifier is finetuned once on the set and once on as many random
real images, and both predict the held-out scenes; a probe does the same. The interval of the difference is over these
scenes alone: what another training or other random images would change is not in it.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from geodistill.config import Config, read_recorded
from geodistill.distilled import DistilledSet, tell_of_self_test
from geodistill.errors import RunError
from geodistill.evaluation.bench import PREDICTIONS, Bench, Task, Training
from geodistill.evaluation.evaluate import random_real
from geodistill.evaluation.measures import measure
from geodistill.evaluation.networks import PRETRAINED
from geodistill.evaluation.pairs import compare_pair
from geodistill.evaluation.protocols import SMALLEST_SIDE
from geodistill.prior.base import source_of
from geodistill.prior.catalogue import SCRATCH
from geodistill.privacy.overlap import known
from geodistill.processes import processes
from geodistill.progress import stages
from geodistill.run import Run, write_atomic
from geodistill.scenes.scenes import SceneData, Scenes
from geodistill.scenes.splits import spare

log = logging.getLogger("geodistill.self_test")

STAGE = "self_test"
_RESULT = "self_test.json"
# Protocol that the verdict follows from, and the one beside it.
JUDGE, _PROBE = "finetune", "probe"
# More tell little more and take longer to predict; fewer tell nothing.
MOST, FEWEST = 2000, 20

Verdict = Literal["better than random", "not distinguishable from random", "below random"]


@dataclass(frozen=True)
class Apart:
    """Training scenes: `train` is what a run learns from, `test` what it is tested on.

    `test` is None where nothing is held out; `reason` says why, where a test was asked for.
    """

    train: Scenes
    test: Scenes | None = None
    reason: str = ""


def set_apart(scenes: Scenes, config: Config) -> Apart:
    """Return the training scenes without those that are held out for the self-test, and those.

    They follow from the scenes' contents, `self_test.held_out` and the IPC, which every class keeps at least. Where a
    class cannot spare one, or all classes together spare too few, nothing is held out.
    """
    if not config.self_test.held_out:
        return Apart(scenes)
    if config.size < SMALLEST_SIDE:
        return Apart(scenes, None, f"images of {config.size} px are too small for its network")
    share = min(config.self_test.held_out, MOST / len(scenes))
    kept, held = spare(scenes, share, "self-test", leave=config.ipc)
    counts = torch.bincount(scenes.labels[held], minlength=len(scenes.classes)).tolist()
    if 0 in counts:
        label = counts.index(0)
        there = int((scenes.labels == label).sum())
        name = scenes.classes[label]
        return Apart(scenes, None, f"class {name!r} has {there} training images, IPC {config.ipc} leaves none to spare")
    if len(held) < FEWEST:
        return Apart(scenes, None, f"{len(held)} held-out scenes are too few, it needs {FEWEST}")
    return Apart(scenes.subset(kept), scenes.subset(held))


def learned_from(scenes: Scenes, settings: Mapping[str, Any]) -> Scenes:
    """Return the part of training scenes `scenes` that a run learned from, whose run.json has `settings`."""
    if settings.get("method") != "dpd":
        return scenes
    return set_apart(scenes, read_recorded(settings.get("config", {}))).train


@dataclass(frozen=True)
class Worth:
    """Overall accuracy after the set and after random real images, and the 95 % interval of the difference.

    All are fractions.
    """

    distilled: float
    random: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        """Accuracy after the set minus that after random real images."""
        return self.distilled - self.random

    @property
    def verdict(self) -> Verdict:
        """Where the interval lies relative to 0."""
        if self.low > 0:
            return "better than random"
        return "below random" if self.high < 0 else "not distinguishable from random"

    def __str__(self) -> str:
        return (
            f"distilled set {100 * self.distilled:.1f} %, random real images {100 * self.random:.1f} %, "
            f"difference {100 * self.difference:+.1f} points (95 % interval {100 * self.low:+.1f} to "
            f"{100 * self.high:+.1f})"
        )


@dataclass(frozen=True)
class SelfTest:
    """What the self-test found on `held_out` scenes, about `seen` of them known to the base.

    `skipped` says why it was not done; the other fields are 0 and None then.
    """

    held_out: int = 0
    seen: int = 0
    finetune: Worth | None = None
    probe: Worth | None = None
    skipped: str = ""

    @property
    def verdict(self) -> Verdict | None:
        """The verdict under finetune; None where the test was not done."""
        return self.finetune.verdict if self.finetune else None

    @property
    def figures(self) -> list[str]:
        """What was found, a line for each protocol; empty where the test was not done."""
        if self.finetune is None or self.probe is None:
            return []
        seen = f" (the base was trained on about {self.seen} of them)" if self.seen else ""
        return [
            f"after finetuning {PRETRAINED}: {self.finetune}, on {self.held_out:,} held-out training scenes{seen}",
            f"after logistic regression on its ImageNet features: {self.probe}",
        ]

    @property
    def conclusion(self) -> str:
        """The verdict in words, or why there is none."""
        if self.verdict is None:
            return f"no self-test: {self.skipped}"
        return f"self-test: the set is {self.verdict} real images"

    @property
    def summary(self) -> str:
        """Return conclusion and figures as one paragraph, for the data card and the report; it names no scene."""
        sentences = [self.conclusion, *self.figures]
        return " ".join(f"{one[0].upper()}{one[1:]}." for one in sentences)


def advice(config: Config) -> str:
    """Return what to try where a set made with `config` is below random real images."""
    steps = max(400, 2 * config.finetune.steps)
    return (
        f"try longer adaptation (--set finetune.steps={steps}), more images (--ipc {2 * config.ipc}), another --base, "
        "or a base of your own by `geodistill pretrain`"
    )


def run_self_test(distilled: DistilledSet, apart: Apart, config: Config, run: Run) -> SelfTest:
    """Return what `distilled`, made in `run`, is worth beside random real images, from stage `self_test`.

    The result goes into the set's data card and to the log: as a warning where the set is below random.
    """

    def build(folder: Path) -> None:
        test = apart.test
        found = _measured(distilled, apart.train, test, config, folder) if test else SelfTest(skipped=apart.reason)
        write_atomic(folder / _RESULT, json.dumps(asdict(found), indent=2) + "\n")

    inputs = [run.fingerprint_of("distilled"), apart.train.fingerprint(), config.size, config.seed, apart.reason]
    inputs += [apart.test.fingerprint() if apart.test else None, PREDICTIONS[JUDGE], PREDICTIONS[_PROBE]]
    run.stage(STAGE, build, version=1, inputs=inputs)
    found = read_self_test(run.folder)
    if found is None:
        raise RunError(f"{run.folder / STAGE} holds no result: delete it, and the same command makes it anew")
    if processes().main:
        tell_of_self_test(run.folder / "distilled", found.summary)
        below = found.verdict == "below random"
        log.log(
            logging.WARNING if below else logging.INFO, "%s%s", found.summary, f" {advice(config)}" if below else ""
        )
    return found


def read_self_test(run: Path) -> SelfTest | None:
    """Return what the self-test of the run in folder `run` found; None where there was none, or not yet.

    Raises RunError where the file is damaged.
    """
    path = run / STAGE / _RESULT
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        worths = {name: values[name] and Worth(**values[name]) for name in (JUDGE, _PROBE)}
        return SelfTest(**{**values, **worths})
    except (ValueError, KeyError, TypeError):
        raise RunError(
            f"{path} is not the result of a self-test: delete {path.parent}, and the run's command makes it anew"
        ) from None


def _measured(distilled: DistilledSet, train: Scenes, test: Scenes, config: Config, folder: Path) -> SelfTest:
    """Return the outcome; predictions are kept in `folder`, and read from there where they are known."""
    trainings = {
        "distilled": Training.on_set("distilled", distilled),
        "random": Training.on_scenes("random", random_real(train, distilled, config.seed), config.size),
    }
    tasks = {
        protocol: {name: Task(one, protocol, PRETRAINED, config.seed) for name, one in trainings.items()}
        for protocol in (JUDGE, _PROBE)
    }
    with stages() as advance:
        bench = Bench(SceneData(train, test), config.size, store=folder, progress=advance)
        bench.train_all(task for pair in tasks.values() for task in pair.values())
    worths = {protocol: _worth(bench, pair) for protocol, pair in tasks.items()}
    return SelfTest(len(test), _seen(test, config), worths[JUDGE], worths[_PROBE])


def _worth(bench: Bench, tasks: Mapping[str, Task]) -> Worth:
    labels, classes = bench.test.labels, len(bench.test.classes)
    predicted = {name: bench.logits(task).argmax(1) for name, task in tasks.items()}
    oa = {name: measure(one, labels, classes).oa for name, one in predicted.items()}
    pair = compare_pair(predicted["distilled"][None], predicted["random"][None], labels, seed=0)
    return Worth(oa["distilled"], oa["random"], pair.low, pair.high)


def _seen(test: Scenes, config: Config) -> int:
    """Return about how many of the scenes the base was trained on, where it tells; one from scratch on none."""
    if config.base == SCRATCH:
        return 0
    return min(len(test), known(test.keys, Path(source_of(config.base, config.size))))
