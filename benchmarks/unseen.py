"""Archives that the base has not seen: every method at IPC 10, several sets of each, as a table.

    python benchmarks/unseen.py --archive aid --data ../shared/data --base compact --out runs/unseen
    python benchmarks/unseen.py --archive ucmerced --data ../shared/data --base aid --out runs/unseen

It is `geodistill compare` for each of `--sets` seeds, in one run folder each under `--out`; the same command resumes. A
row of benchmarks/results/unseen.csv has one method under one protocol and network: the mean overall accuracy, its
standard deviation over sets (each the mean of its classifiers), how far the project's own method is ahead, with a 95 %
bootstrap interval, what this interval covers, the nearness ratio, and how many images of each set of the own method the
audit's search takes for copies of training images. docs/unseen.md shows the rows and a grid of the first set. A row of
fewer sets does not replace one of more. A base that was trained on the archive is refused. No setting is chosen here;
docs/experiments.md says which choices were made after figures on test images were known.
`--classes 10` takes 10 classes, evenly spaced in the sorted list, where the whole archive would take too long; its rows
have a name of their own.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch
from record import (
    ARCHIVES,
    circumstances,
    command,
    difference_columns,
    folder_of,
    merged,
    rows_to_compare,
    to_csv,
    told_difference,
)
from torch import Tensor

from geodistill.commands.compare import compare
from geodistill.config import Config, load_config
from geodistill.distilled import DistilledSet
from geodistill.evaluation.pairs import compare_shares
from geodistill.evaluation.rows import FULL, Row
from geodistill.evaluation.table import load_predictions
from geodistill.networks import PRETRAINED
from geodistill.pipeline import OWN
from geodistill.prior.base import source_of
from geodistill.privacy.copies import CopySearch, are_copies
from geodistill.privacy.overlap import known_archives
from geodistill.report.grid import draw_grid
from geodistill.run import write_atomic
from geodistill.scenes import builtin_scenes, open_scenes
from geodistill.scenes.scenes import SceneData, Scenes

SHEET, IPC, SEEDS = "unseen.csv", 10, 3
METHODS = ("random", "herding", "kmeans", "reconstruction", "template", "d4m", "dpd")
KEY = ("archive", "size", "base", "settings", "protocol", "network", "method")
# Methods that choose other real images under another seed, and those that choose the same ones under every seed.
_DRAWN, _FIXED = ("random", "kmeans"), ("herding", "kcenter")
AHEAD = ("ahead", "ahead_low", "ahead_high")
PAGE = Path(__file__).parents[1] / "docs" / "unseen.md"
PICTURES = PAGE.parent / "images"
NAMES = {**ARCHIVES, "builtin": "built-in scenes"}
Cell = tuple[str, str, str]


def main() -> None:
    """Make the sets, merge their rows into the CSV file, write the page."""
    args = _arguments()
    data = _scenes(args)
    config = load_config(sets=args.set, base=args.base, size=args.size)
    _refuse_seen(data, config)
    found: dict[Cell, list[tuple[Row, Tensor]]] = {}
    copies = []
    few = f"-{args.classes}" if args.classes else ""
    for seed, methods, own, end in _calls(args):
        out = args.out / f"{args.archive}{few}-{args.size}-{args.base}-{end}"
        rows = compare(
            data,
            config.model_copy(update={"seed": own}),
            out=out,
            methods=methods,
            ipcs=(IPC,),
            protocols=args.protocols,
            networks=args.networks,
            seeds=SEEDS,
            full=not args.no_full and seed == 0,
            command=command(),
        )
        if OWN in methods:
            distilled = DistilledSet.load(out / "sets" / f"{OWN}-ipc{IPC}" / "distilled")
            copies.append(_copies(distilled, data.train))
            if seed == 0:
                draw_grid(distilled, _picture(_name(args), str(args.size)), per_class=8)
        # The folder may have rows of earlier calls.
        asked = {*methods, *((FULL,) if seed == 0 and not args.no_full else ())}
        for row in (row for row in rows if row.method in asked and _tested(row, args)):
            predicted, labels = load_predictions(out, row)
            found.setdefault((row.protocol, row.network, row.method), []).append((row, (predicted == labels).double()))
    lines = [_line(args, cell, found) for cell in found]
    for line in (one for one in lines if one["method"] == OWN):
        line |= {"copies": " ".join(map(str, copies)), "images": str(IPC * len(data.train.classes))}
    to_csv(merged(_not_fewer(lines), SHEET, KEY), SHEET)
    write_atomic(PAGE, _page(merged([], SHEET, KEY)))


def _copies(distilled: DistilledSet, train: Scenes) -> int:
    """Return how many images the audit's search takes for copies of training images."""
    return int(are_copies(CopySearch(train.pixels(size=distilled.size))(distilled.images)).sum())


def _not_fewer(lines: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return `lines` without those that would replace a row of more sets; name them."""
    known = {tuple(line[name] for name in KEY): int(line["sets"]) for line in merged([], SHEET, KEY)}
    kept = []
    for line in lines:
        own = tuple(line[name] for name in KEY)
        if known.get(own, 0) > int(line["sets"]):
            print(f"not written, there is a row of {known[own]} sets: {', '.join(own)}", flush=True)
        else:
            kept.append(line)
    return kept


def _calls(args: argparse.Namespace) -> list[tuple[int, list[str], int, str]]:
    """Return, for each call of `compare`: the number of the set, the methods, their seed, the end of the folder's name.

    `compare` draws a choice of real images anew for each classifier, under the run's seed and those that follow it. So
    that no choice occurs in two sets, their seeds are SEEDS apart. Methods in _FIXED have one set.
    """
    drawn = [name for name in args.methods if name in _DRAWN]
    others = [name for name in args.methods if name not in (*_DRAWN, *_FIXED)]
    calls = [(0, list(args.methods), 0, "0")]
    for seed in range(1, args.sets):
        calls += [(seed, others, seed, str(seed))] if others else []
        calls += [(seed, drawn, SEEDS * seed, f"drawn-{seed}")] if drawn else []
    return calls


def _tested(row: Row, args: argparse.Namespace) -> bool:
    """Return whether `row` is of a protocol and network that `args` name; the probe has a network of its own."""
    return row.protocol in args.protocols and (row.protocol == "probe" or row.network in args.networks)


def _arguments() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--archive", choices=list(NAMES), required=True)
    options.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the archives")
    options.add_argument("--out", type=Path, default=Path("runs/unseen"))
    options.add_argument("--base", default="compact")
    options.add_argument("--size", type=int, default=64)
    options.add_argument("--classes", type=int, help="only this many classes")
    options.add_argument("--sets", type=int, default=3, help="sets of each method, each under its own seed")
    options.add_argument("--methods", nargs="+", default=list(METHODS))
    options.add_argument("--protocols", nargs="+", default=["finetune"])
    options.add_argument("--networks", nargs="+", default=[PRETRAINED])
    options.add_argument("--no-full", action="store_true", help="do not train on all real images")
    options.add_argument("--set", action="append", default=[], help="a setting, such as finetune.steps=9")
    return options.parse_args()


def _scenes(args: argparse.Namespace) -> SceneData:
    if args.archive == "builtin":
        return builtin_scenes(size=args.size)
    data = open_scenes(folder_of(args.archive, args.data))
    if not args.classes:
        return data
    every = data.train.classes
    chosen = [every[k * len(every) // args.classes] for k in range(args.classes)]
    assert data.test is not None
    return replace(data, train=data.train.of_classes(chosen), test=data.test.of_classes(chosen))


def _name(args: argparse.Namespace) -> str:
    return NAMES[args.archive] + (f", {args.classes} classes" if args.classes else "")


def _refuse_seen(data: SceneData, config: Config) -> None:
    seen = known_archives(data.train.keys, Path(source_of(config.base, config.size)))
    if seen:
        sys.exit(f"the base {config.base!r} was trained on {seen[0].count} of these scenes: give another --base")


def _line(args: argparse.Namespace, cell: Cell, found: dict[Cell, list[tuple[Row, Tensor]]]) -> dict[str, str]:
    protocol, network, method = cell
    rights = [own for _, own in found[cell]]
    means = torch.stack([own.mean() for own in rights])  # [sets]
    near = [row.rho for row, _ in found[cell] if row.rho is not None]
    line = dict(zip(KEY, (_name(args), str(args.size), args.base, " ".join(args.set), *cell), strict=True))
    line |= {
        "sets": str(len(means)),
        "seeds": str(SEEDS),
        "oa_mean": f"{float(means.mean()):.4f}",
        "oa_std_sets": f"{float(means.std()):.4f}" if len(means) > 1 else "",
        "rho": f"{sum(near) / len(near):.3f}" if near else "",
    }
    subject, pair = found.get((protocol, network, OWN)), None
    if subject and method not in (OWN, FULL):
        both = (rows_to_compare([own for _, own in subject]), rows_to_compare(rights))
        pair = compare_shares(*both, seed=0)
        line["interval"] = "images, classifiers" + (", sets" if len(subject) > 1 else "")
    return line | difference_columns(pair, AHEAD) | circumstances()


def _picture(archive: str, size: str) -> Path:
    return PICTURES / f"unseen_{archive.lower().replace(',', '').replace(' ', '_')}_{size}.jpg"


def _page(lines: list[dict[str, str]]) -> str:
    """Return the rows as Markdown: a table for each archive, size and base."""
    parts = [_INTRODUCTION]
    groups = dict.fromkeys(tuple(line[name] for name in KEY[:4]) for line in lines)
    for group in groups:
        own = [line for line in lines if tuple(line[name] for name in KEY[:4]) == group]
        archive, size, base, settings = group
        parts += [f"## {archive}, {size} px, base `{base}`" + (f", {settings}" if settings else ""), "", _table(own)]
        if (picture := _picture(archive, size)).is_file():
            parts.append(f"![Eight of ten images a class of DPD, {archive}](images/{picture.name})\n")
    return "\n".join(parts)


_INTRODUCTION = """# Archives that the base has not seen

Overall accuracy (OA) on test images in per cent at 10 images a class, mean ± standard deviation over sets; each set is
tested with three classifiers. Random and k-means choose other real images for each classifier. "DPD ahead" is the
accuracy of DPD minus that of the method, in points, with a 95 % bootstrap interval over test images, classifiers and,
if there are several, sets of DPD. ρ is the nearness ratio: the median distance of the images to their nearest training
images over that of held-out real images. 1 is no nearer than held-out images are, 0 is a copy. "Copies" are the
generated images that the audit's search takes for copies of training images.

Parts of the archives were used: of AID 6,000 training and 2,000 test images (30 classes, 150 px) of 10,000, of EuroSAT
8,000 and 2,000 (10 classes, 64 px) of 27,000, of UC Merced 1,260 and 420 (21 classes, 256 px) of 2,100. Selection and
refinement use the features of EfficientNet-Lite0; EfficientNet-Lite2 and ResNet-18 take no part in making a set.

Source: `benchmarks/results/unseen.csv` (hardware, versions, command), made by `benchmarks/unseen.py`.
"""


def _table(lines: list[dict[str, str]]) -> str:
    head = "| protocol, network | method | OA % | sets | DPD ahead | ρ | copies |\n|---|---|---|---|---|---|---|"
    order = {name: rank for rank, name in enumerate([FULL, *METHODS])}
    rows = [head]
    for line in sorted(lines, key=lambda one: (one["protocol"], one["network"], order.get(one["method"], len(order)))):
        spread = f" ± {100 * float(line['oa_std_sets']):.1f}" if line["oa_std_sets"] else ""
        name = "all real images" if line["method"] == FULL else line["method"]
        oa = f"{100 * float(line['oa_mean']):.1f}{spread}"
        cells = [
            f"{line['protocol']}, {line['network']}",
            name,
            oa,
            line["sets"],
            told_difference(line, AHEAD),
            line["rho"],
            _told_copies(line),
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def _told_copies(line: dict[str, str]) -> str:
    """Return the number of copies as the page has it: "7 of 100", for several sets "38 to 42 of 210"; "" if unknown."""
    counts = [int(one) for one in line.get("copies", "").split()]
    if not counts:
        return ""
    span = str(counts[0]) if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    return f"{span} of {line['images']}"


if __name__ == "__main__":
    main()
