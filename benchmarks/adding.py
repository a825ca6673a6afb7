"""`distill SET --add NEWDATA` against distilling anew and against keeping random real images.

    python benchmarks/adding.py --data ../shared/data --out runs/adding

UC Merced arrives in two parts: half of the classes and then the others ("classes"), or half of each class's scenes and
then the others ("scenes"). A set is distilled from the first part and updated with the second, without the scenes of
the first. Compared with it: the set before the update, a set distilled from all scenes at once, and random real images
of all scenes. A row of benchmarks/results/adding.csv has one of these in one case: accuracy on the test images of three
classifiers, and how far the updated set is ahead, with a 95 % bootstrap interval over classifiers and test images.
docs/adding.md shows the rows. The same command resumes.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from record import (
    UNSEEN_BY,
    circumstances,
    command,
    difference_columns,
    folder_of,
    merged,
    to_csv,
    told_difference,
)
from torch import Tensor

from geodistill.commands.add import add
from geodistill.commands.distill import distill
from geodistill.config import Config, load_config, without_self_test
from geodistill.distilled import UPDATED, DistilledSet
from geodistill.evaluation.bench import Bench, Task, Training
from geodistill.evaluation.evaluate import random_real
from geodistill.evaluation.pairs import compare_pair
from geodistill.networks import PRETRAINED
from geodistill.run import write_atomic
from geodistill.scenes import Scenes, open_scenes
from geodistill.seeding import generator

SHEET, KEY, ARCHIVE = "adding.csv", ("arrives", "trained_on"), "ucmerced"
CASES = ("classes", "scenes")
UPDATED_SET, BEFORE, ANEW, RANDOM = "updated set", "set before the update", "set distilled anew", "random real images"
PROTOCOL, SEEDS = "finetune", 3
AHEAD = ("ahead", "ahead_low", "ahead_high")
PAGE = Path(__file__).parents[1] / "docs" / "adding.md"


def main() -> None:
    """Make the sets of each case, test them, merge the rows into the CSV file, write the page."""
    args = _arguments()
    data = open_scenes(folder_of(ARCHIVE, args.data))
    config = without_self_test(load_config(sets=args.set, base=UNSEEN_BY[ARCHIVE]))
    for case in args.cases:
        bench = Bench(data, config.size, store=args.out)
        tried = _tried(args, case, data.train, config)
        found = {name: _predicted(bench, trainings) for name, trainings in tried.items()}
        lines = [_line(case, name, found, data.test.labels) for name in found]  # type: ignore[union-attr]
        to_csv(merged(lines, SHEET, KEY), SHEET)
        write_atomic(PAGE, _page(merged([], SHEET, KEY)))


def _arguments() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the archives")
    options.add_argument("--out", type=Path, default=Path("runs/adding"))
    options.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    options.add_argument("--anew", type=Path, help="a set that was distilled from all scenes with the same settings")
    options.add_argument("--set", action="append", default=[], help="a setting, such as finetune.steps=9")
    return options.parse_args()


def _tried(args: argparse.Namespace, case: str, train: Scenes, config: Config) -> dict[str, list[Training]]:
    """Return what classifiers are trained on, one training for each seed."""
    first, second = parts(train, case)
    old = distill(first, config, out=args.out / f"{case}-first", command=command())
    add(old, second, config, out=args.out / f"{case}-added", command=command())
    updated = DistilledSet.load(args.out / f"{case}-added" / UPDATED)
    anew = _checked(args.anew, config) if args.anew else distill(train, config, out=args.out / "anew")
    sets = {UPDATED_SET: updated, ANEW: anew} | ({BEFORE: old} if case == "scenes" else {})
    tried = {name: SEEDS * [Training.on_set(name, one)] for name, one in sets.items()}
    picks = [random_real(train, updated, seed) for seed in range(SEEDS)]
    return tried | {RANDOM: [Training.on_scenes(RANDOM, pick, config.size) for pick in picks]}


def _checked(folder: Path, config: Config) -> DistilledSet:
    """Return the set in `folder`; end here if it was distilled with settings other than `config`."""
    made = DistilledSet.load(folder)
    # None is a value that the run works out. What the images are drawn from may differ.
    wanted = config.model_dump(mode="json", exclude_none=True, exclude={"seed", "reproducible"})
    other = [name for name, value in wanted.items() if not _agrees(made.about["config"].get(name), value)]
    if other:
        sys.exit(f"{folder} was distilled with another value of {', '.join(other)}: leave --anew out")
    return made


def _agrees(found: Any, wanted: Any) -> bool:
    """Return whether a setting has the value `wanted`, or a section of settings has all of its values."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        return all(_agrees(found.get(name), value) for name, value in wanted.items())
    return bool(found == wanted)


def parts(train: Scenes, case: str) -> tuple[Scenes, Scenes]:
    """Return the scenes that are there at first, and those that arrive."""
    if case == "classes":
        return train.of_classes(train.classes[::2]), train.of_classes(train.classes[1::2])
    chosen = torch.zeros(len(train), dtype=torch.bool)
    for label in range(len(train.classes)):
        own = (train.labels == label).nonzero()[:, 0]
        order = torch.randperm(len(own), generator=generator(0, "first part", label))
        chosen[own[order[: len(own) // 2]]] = True
    return train.subset(chosen.nonzero()[:, 0]), train.subset((~chosen).nonzero()[:, 0])


def _predicted(bench: Bench, trainings: list[Training]) -> Tensor:
    """Return the predicted classes of the test images, int64 [seeds, n]."""
    tasks = [Task(one, PROTOCOL, PRETRAINED, seed) for seed, one in enumerate(trainings)]
    bench.train_all(tasks)
    return torch.stack([bench.logits(task).argmax(1) for task in tasks])


def _line(case: str, name: str, found: dict[str, Tensor], labels: Tensor) -> dict[str, str]:
    accuracies = (found[name] == labels).double().mean(dim=1)
    line = dict(zip(KEY, (case, name), strict=True))
    line |= {"seeds": str(SEEDS), "oa_mean": f"{float(accuracies.mean()):.4f}"}
    line |= {"oa_std": f"{float(accuracies.std()):.4f}"}
    pair = None if name == UPDATED_SET else compare_pair(found[UPDATED_SET], found[name], labels, seed=0)
    return line | difference_columns(pair, AHEAD) | circumstances()


_INTRODUCTION = """# Updating a set

UC Merced (64 px, base `aid`, 10 images a class) arrives in two parts: half of the classes and then the others
("classes"), or half of each class's scenes and then the others ("scenes"). `geodistill distill SET --add NEWDATA`
updates the set of the first part without its scenes. One set each. Overall accuracy on the test images in per cent of
three fine-tuned EfficientNet-Lite0, mean ± standard deviation. "Updated set ahead" is in points, with a 95 % bootstrap
interval over classifiers and test images; it does not include the variation between sets.

Source: `benchmarks/results/adding.csv` (hardware, versions, command), made by `benchmarks/adding.py`.

| what arrives | trained on | OA % | updated set ahead |
|---|---|---|---|
"""


def _page(lines: list[dict[str, str]]) -> str:
    rows = []
    for line in lines:
        oa = f"{100 * float(line['oa_mean']):.1f} ± {100 * float(line['oa_std']):.1f}"
        rows.append("| " + " | ".join([line["arrives"], line["trained_on"], oa, told_difference(line, AHEAD)]) + " |")
    return _INTRODUCTION + "\n".join(rows) + "\n"


if __name__ == "__main__":
    main()
