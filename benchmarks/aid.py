"""AID at 64 px, IPC 10: every ingredient of the method, one after the other, against real images.

    python benchmarks/aid.py --data ../shared/data/aid --out runs/aid-bench

Rows go to benchmarks/results/aid_<protocol>_<network>.csv (figures) and aid_stages.csv (the stages' cost), the default
recipe's images to docs/images/aid_distilled.jpg, some of them before and after refinement to aid_refinement.jpg. The
script resumes: runs, predictions and nearness ratios that are there are used again. Nothing in it is chosen on the
test split.
"""

import argparse
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from record import circumstances, command, hardware, parsed, parser, to_csv

from geodistill.config import Config, load_config
from geodistill.distilled import DistilledSet
from geodistill.evaluation.bench import Bench, Training, open_store
from geodistill.evaluation.evaluate import random_real
from geodistill.evaluation.measures import Measures, mean_std
from geodistill.evaluation.networks import backbone_features
from geodistill.methods.dpd import distill
from geodistill.prior.base import load_prior, source_of
from geodistill.privacy.nearness import Nearness
from geodistill.progress import stages
from geodistill.prototypes import find_prototypes
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
}
# Stages that several rungs share; a run takes them over only where the fingerprints agree.
SHARED = ("features", "latents", "teacher", "prototypes", "descriptions", "adapter", "candidates", "chosen", "experts")


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
    rungs = LADDER | (LEFT_OUT if args.leave_out else {})
    sets = {name: _rung(name, changes, data.train, args) for name, changes in rungs.items()}
    _write_stages(args.out)
    draw_grid(sets["+ refinement"], PICTURES / "aid_distilled.jpg", per_class=8)
    draw_grid(_side_by_side(sets["+ selection"], sets["+ refinement"]), PICTURES / "aid_refinement.jpg", per_class=8)
    if args.only_distill:
        return
    kmeans = _kmeans_real(data.train)
    sets = {"k-means real": kmeans, "reconstruction": _reconstructed(kmeans, load_config(sets=args.set).base)} | sets
    with stages() as advance:
        bench = Bench(data, Config().size, store=open_store(args.out), progress=advance)
        trainings = _trainings(sets, bench, args.seeds)
        measured = bench.measure_all(trainings, args.protocol, args.network, range(args.seeds))
        rows = [Row(name, measures, _nearness(sets.get(name), bench)) for name, measures in measured.items()]
    _write(rows, args)


def _side_by_side(before: DistilledSet, after: DistilledSet) -> DistilledSet:
    """Return the first images of every third class, as they were before refinement and then after it."""
    classes = before.classes[::_EVERY]
    shown = range(0, len(before.classes), _EVERY)
    images = [one.images[one.labels == label][:_SHOWN] for label in shown for one in (before, after)]
    return DistilledSet(torch.cat(images), torch.arange(len(classes)).repeat_interleave(2 * _SHOWN), classes)


def _trainings(sets: dict[str, DistilledSet], bench: Bench, seeds: int) -> dict[str, list[Training]]:
    """Return what to train on for each row, once for each seed; random real images are drawn anew for each."""
    random = [random_real(bench.train, sets["k-means real"], seed) for seed in range(seeds)]
    return {
        "all real images": [Training.on_scenes("full", bench.train, bench.size)] * seeds,
        "random real": [Training.on_scenes("random", draw, bench.size) for draw in random],
        **{name: [Training.on_set(_folder_name(name), one)] * seeds for name, one in sets.items()},
    }


def _nearness(distilled: DistilledSet | None, bench: Bench) -> Nearness:
    """Return the nearness ratio; training images are at distance 0 from themselves, which makes theirs 0."""
    return bench.likeness(distilled).nearness if distilled else Nearness(0.0, 0.0, 0.0)


def _arguments() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--out", type=Path, default=Path("runs/aid-bench"))
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--protocol", default="finetune")
    options.add_argument("--network", default="efficientnet-lite0")
    options.add_argument("--set", action="append", default=[], help="a setting for every rung, such as base=FOLDER")
    options.add_argument("--leave-out", action="store_true", help="also the recipe without each of its ingredients")
    options.add_argument("--only-distill", action="store_true", help="make the sets, evaluate nothing")
    return parsed(options)


def _rung(name: str, changes: list[str], train: Scenes, args: argparse.Namespace) -> DistilledSet:
    config = load_config(sets=[*args.set, *changes])
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


def _kmeans_real(train: Scenes) -> DistilledSet:
    """Return the real images nearest to ten k-means centres of each class in the ImageNet backbone's features."""
    config = Config()
    found = find_prototypes(
        backbone_features(train.pixels(size=config.size)),
        train.labels,
        classes=train.classes,
        per_class=config.ipc,
        seed=config.seed,
    )
    medoids = torch.stack([members[0] for members in found.members])
    return DistilledSet(train.pixels(medoids, size=config.size), found.labels, train.classes)


def _reconstructed(real: DistilledSet, base: str) -> DistilledSet:
    prior = load_prior(source_of(base, Config().size))
    return DistilledSet(prior.decode(prior.encode(real.images)), real.labels, real.classes)


def _write(rows: list[Row], args: argparse.Namespace) -> None:
    """Write the figures; a row says all that is needed to make it again."""
    means = {row.name: mean_std([measures.oa for measures in row.measures])[0] for row in rows}
    lines = [_line(row, means["all real images"], means["random real"]) | _circumstances(args) for row in rows]
    to_csv(lines, f"aid_{args.protocol}_{args.network}.csv")


def _line(row: Row, full: float, random: float) -> dict[str, Any]:
    oa, oa_std = mean_std([measures.oa for measures in row.measures])
    aa, aa_std = mean_std([measures.aa for measures in row.measures])
    kappa, kappa_std = mean_std([measures.kappa for measures in row.measures])
    figures = {"oa": oa, "oa_std": oa_std, "aa": aa, "aa_std": aa_std, "kappa": kappa, "kappa_std": kappa_std}
    figures |= {"ior": oa - random, "share_of_full": oa / full, "hlr": full - oa, "rho": row.nearness.ratio}
    figures |= {"rho_pixel": row.nearness.pixel, "rho_feature": row.nearness.feature}
    return {"trained_on": row.name} | {name: round(value, 4) for name, value in figures.items()}


def _write_stages(out: Path) -> None:
    lines = []
    for rung in map(_folder_name, LADDER):
        for record in records(out / rung):
            cost = {key: record[key] for key in ("stage", "wall_seconds", "cpu_seconds", "peak_memory_mib")}
            lines.append({"run": rung, **cost, "hardware": hardware(), "command": command()})
    to_csv(lines, "aid_stages.csv")


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
