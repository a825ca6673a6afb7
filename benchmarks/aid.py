"""AID at 64 px, IPC 10: every ingredient of the method, added one after the other, and left out of the whole.

    python benchmarks/aid.py --data ../shared/data/aid --out runs/aid-bench

Rows go to benchmarks/results/aid_<protocol>_<network>.csv (figures) and aid_stages.csv (the stages' cost), where they
replace rows of the same set; real images and rivals are in aid_compare.py's. The default recipe's images go to
docs/images/aid_distilled.jpg, some of them before and after refinement to aid_refinement.jpg. The script resumes:
runs, predictions and nearness ratios that are there are used again. Nothing in it is chosen on the test split.
"""

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from record import circumstances, command, hardware, merged, parsed, parser, to_csv

from geodistill.commands.distill import distill
from geodistill.config import Config, load_config
from geodistill.distilled import DistilledSet
from geodistill.evaluation.bench import Bench, Training, open_store
from geodistill.evaluation.measures import Measures, mean_std
from geodistill.privacy.nearness import Nearness
from geodistill.report.grid import draw_grid
from geodistill.run import records
from geodistill.scenes import Scenes, open_scenes

PICTURES = Path(__file__).parents[1] / "docs" / "images"
# Of every third class so many images show in docs what refinement does.
_EVERY, _SHOWN = 3, 4
TEMPLATE = [
    "sampling.follow=none",
    "descriptions.describer=template",
    "finetune.consistency=0",
    "sampling.candidates=1",
    "selection.by=first",
    "refinement.steps=0",
]
# Each rung takes one thing back to its default; the last is the default recipe itself.
LADDER = {
    "template": TEMPLATE,
    "+ prototypes": TEMPLATE[1:],
    "+ descriptions": TEMPLATE[2:],
    "+ consistency loss": TEMPLATE[3:],
    "+ selection": TEMPLATE[5:],
    "+ refinement": [],
}
# The default recipe without one of its ingredients; without refinement it is the last rung but one.
LEFT_OUT = {
    "without prototypes": ["sampling.follow=none"],
    "without descriptions": ["descriptions.describer=template"],
    "without consistency loss": ["finetune.consistency=0"],
    "without adapter": ["finetune.steps=0"],
    "without selection": TEMPLATE[3:5],
    "without random networks": ["refinement.random=false"],
}
RUNGS = LADDER | LEFT_OUT
STAGES = "aid_stages.csv"
# Stages that several rungs share; a run takes them over only where the fingerprints agree.
SHARED = ("features", "latents", "teacher", "prototypes", "descriptions", "adapter", "candidates", "chosen")


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    measures: tuple[Measures, ...]
    nearness: Nearness


def main() -> None:
    """Run the rungs, evaluate every row, write the CSV files."""
    args = _arguments()
    data = open_scenes(args.data)
    sets = {name: _rung(name, RUNGS[name], data.train, args) for name in args.rungs}
    _write_stages(args)
    _draw(sets)
    bench = Bench(data, Config().size, store=open_store(args.out))
    trainings = {name: [Training.on_set(_folder_name(name), one)] * args.seeds for name, one in sets.items()}
    measured = bench.measure_all(trainings, args.protocol, args.network, range(args.seeds))
    rows = [Row(name, measures, bench.likeness(sets[name]).nearness) for name, measures in measured.items()]
    _write(rows, args)


def _draw(sets: dict[str, DistilledSet]) -> None:
    """Draw the default recipe's set, and beside it what it was before refinement, where these were made."""
    before, after = sets.get("+ selection"), sets.get("+ refinement")
    if after:
        draw_grid(after, PICTURES / "aid_distilled.jpg", per_class=8)
    if before and after:
        draw_grid(_side_by_side(before, after), PICTURES / "aid_refinement.jpg", per_class=8)


def _side_by_side(before: DistilledSet, after: DistilledSet) -> DistilledSet:
    """Return the first images of every third class, as they were before refinement and then after it."""
    classes = before.classes[::_EVERY]
    shown = range(0, len(before.classes), _EVERY)
    images = [one.images[one.labels == label][:_SHOWN] for label in shown for one in (before, after)]
    return DistilledSet(torch.cat(images), torch.arange(len(classes)).repeat_interleave(2 * _SHOWN), classes)


def _arguments() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--out", type=Path, default=Path("runs/aid-bench"))
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--protocol", default="finetune")
    options.add_argument("--network", default="efficientnet-lite0")
    options.add_argument("--set", action="append", default=[], help="a setting for every rung, such as base=FOLDER")
    options.add_argument("--rungs", nargs="+", choices=RUNGS, default=list(RUNGS), metavar="RUNG")
    return parsed(options)


def _rung(name: str, changes: list[str], train: Scenes, args: argparse.Namespace) -> DistilledSet:
    # It is tested on the test split, and learns from all training scenes.
    config = load_config(sets=["self_test.held_out=0", "reproducible=true", *args.set, *changes])
    folder = args.out / _folder_name(name)
    _take_over(folder, args.out)
    distilled = distill(train, config, out=folder, command=command())
    draw_grid(distilled, folder / "grid.png")
    return distilled


def _folder_name(rung: str) -> str:
    return rung.strip("+ ").replace(" ", "-")


def _take_over(folder: Path, out: Path) -> None:
    """Copy the stages of the rung before; `Run.stage` builds anew those whose fingerprint is another."""
    earlier = list(out.glob("*/run.json"))
    if (folder / "run.json").exists() or not earlier:
        return
    before = max(earlier, key=lambda path: path.stat().st_mtime_ns).parent
    (folder / "stages").mkdir(parents=True, exist_ok=True)
    for stage in filter(lambda name: (before / name).is_dir(), SHARED):
        shutil.copytree(before / stage, folder / stage, dirs_exist_ok=True)
        shutil.copy2(before / "stages" / f"{stage}.json", folder / "stages")


def _write(rows: list[Row], args: argparse.Namespace) -> None:
    """Write the figures; a row says all that is needed to make it again."""
    sheet, names = f"aid_{args.protocol}_{args.network}.csv", list(RUNGS)
    lines = merged([_line(row) | _circumstances(args) for row in rows], sheet, ("trained_on",))
    to_csv(sorted(lines, key=lambda line: names.index(line["trained_on"])), sheet)


def _line(row: Row) -> dict[str, Any]:
    oa, oa_std = mean_std([measures.oa for measures in row.measures])
    aa, aa_std = mean_std([measures.aa for measures in row.measures])
    kappa, kappa_std = mean_std([measures.kappa for measures in row.measures])
    figures = {"oa": oa, "oa_std": oa_std, "aa": aa, "aa_std": aa_std, "kappa": kappa, "kappa_std": kappa_std}
    figures |= {"rho": row.nearness.ratio, "rho_pixel": row.nearness.pixel, "rho_feature": row.nearness.feature}
    return {"trained_on": row.name} | {name: round(value, 4) for name, value in figures.items()}


def _write_stages(args: argparse.Namespace) -> None:
    lines, names = [], list(map(_folder_name, RUNGS))
    for rung in map(_folder_name, args.rungs):
        for record in records(args.out / rung):
            cost = {key: record[key] for key in ("stage", "wall_seconds", "cpu_seconds", "peak_memory_mib")}
            lines.append({"run": rung, **cost, "hardware": hardware(), "command": command()})
    lines = merged(lines, STAGES, ("run", "stage"))
    to_csv(sorted(lines, key=lambda line: names.index(line["run"])), STAGES)


def _circumstances(args: argparse.Namespace) -> dict[str, str]:
    return {
        "dataset": "AID 64 px, IPC 10, 6000 train, 2000 test",
        "protocol": args.protocol,
        "network": args.network,
        "seeds": " ".join(str(seed) for seed in range(args.seeds)),
        **circumstances(),
    }


if __name__ == "__main__":
    main()
