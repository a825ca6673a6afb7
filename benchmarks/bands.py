"""RGB against all 13 bands: every method at IPC 5 on the Sentinel-2 tiles of ../shared/data/eurosat_ms, as a table.

    python benchmarks/bands.py --out runs/bands --sets 3

It is `geodistill compare` for each of `--sets` seeds, with the base built from the scenes (`--base scratch`), once with
`--bands rgb` and once with `--bands all`; the same command resumes. The archive has 12 training and 5 test images of
each of 10 classes. A row of benchmarks/results/bands.csv has one method: the mean overall accuracy of
EfficientNet-Lite0 under `finetune` over sets and classifiers, how far the project's own method is ahead, and how far 13
bands are ahead of RGB, with 95 % bootstrap intervals over test images, classifiers and sets. `patch_borders` tells
whether one sees the 8x8-pixel patches of the autoencoder in the first set: the mean squared difference of neighbouring
pixels across their borders over that elsewhere. docs/bands.md shows the rows and a grid.
"""

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from record import circumstances, command, difference_columns, merged, rows_to_compare, to_csv, told_difference
from torch import Tensor

from geodistill.commands.compare import compare
from geodistill.config import load_config
from geodistill.distilled import DistilledSet
from geodistill.evaluation.pairs import compare_shares
from geodistill.evaluation.rows import FULL
from geodistill.evaluation.table import load_predictions
from geodistill.pipeline import OWN
from geodistill.report.grid import draw_grid
from geodistill.run import write_atomic
from geodistill.scenes import open_scenes

SHEET, IPC, SEEDS, SIZE, BASE, PATCH = "bands.csv", 5, 3, 64, "scratch", 8
METHODS = ("random", "kmeans", "dpd")
KEY = ("bands", "method")
AHEAD, WIDER = ("own_ahead", "own_low", "own_high"), ("wider_ahead", "wider_low", "wider_high")
KINDS = {"rgb": "RGB", "all": "13 bands"}
PAGE = Path(__file__).parents[1] / "docs" / "bands.md"
Right = Mapping[tuple[str, str], list[Tensor]]


def main() -> None:
    """Make the sets, merge their rows into the CSV file, write the page."""
    args = _arguments()
    if not args.data.is_dir():
        sys.exit(f"benchmark skipped: the tiles of Sentinel-2 are not at {args.data}")
    parts, borders = defaultdict[tuple[str, str], list[Tensor]](list), dict[tuple[str, str], str]()
    for bands in KINDS:
        for seed in range(args.sets):
            for method, right in _compared(args, bands, seed).items():
                parts[bands, method].append(right)
        borders |= {(bands, method): _borders(args.out / f"{bands}-0", method) for method in METHODS}
    lines = [_line(args, cell, parts) | {"patch_borders": borders.get(cell, "")} | circumstances() for cell in parts]
    to_csv(merged(lines, SHEET, KEY), SHEET)
    write_atomic(PAGE, _page(merged([], SHEET, KEY)))


def _arguments() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=Path("../shared/data/eurosat_ms"), help="tiles of 13 bands")
    options.add_argument("--out", type=Path, default=Path("runs/bands"))
    options.add_argument("--sets", type=int, default=3, help="sets of each method, each under its own seed")
    options.add_argument("--set", action="append", default=[], help="a setting, such as compact.steps=1000")
    return options.parse_args()


def _compared(args: argparse.Namespace, bands: str, seed: int) -> dict[str, Tensor]:
    """Return whether each classifier is right, [seeds, n], for each method and all real images."""
    data, out = open_scenes(args.data, bands=bands), args.out / f"{bands}-{seed}"
    # Methods that draw real images draw others for each classifier, under the seeds that follow the run's.
    config = load_config(sets=args.set, base=BASE, size=SIZE).model_copy(update={"seed": SEEDS * seed})
    rows = compare(data, config, out=out, methods=METHODS, ipcs=(IPC,), seeds=SEEDS, full=seed == 0, command=command())
    if seed == 0:
        draw_grid(_set(out, OWN), _picture(bands), per_class=IPC)
    found = {}
    for row in rows:
        predicted, labels = load_predictions(out, row)
        found[row.method] = (predicted == labels).double()
    return found


def _set(out: Path, method: str) -> DistilledSet:
    return DistilledSet.load(out / "sets" / f"{method}-ipc{IPC}" / "distilled")


def _borders(out: Path, method: str) -> str:
    """Return the mean squared difference of neighbouring columns across borders of patches over that elsewhere."""
    images = _set(out, method).images.double()
    steps = (images[..., 1:] - images[..., :-1]).square().mean(dim=(0, 1, 2))  # [side - 1]
    border = torch.arange(len(steps)) % PATCH == PATCH - 1
    return f"{float(steps[border].mean() / steps[~border].mean()):.2f}"


def _line(args: argparse.Namespace, cell: tuple[str, str], found: Right) -> dict[str, str]:
    bands, method = cell
    right, means = rows_to_compare(found[cell]), torch.stack([own.mean() for own in found[cell]])
    line = dict(zip(KEY, (KINDS[bands], method), strict=True))
    line |= {"sets": str(len(means)), "seeds": str(SEEDS), "settings": " ".join(args.set)}
    line |= {"oa_mean": f"{float(means.mean()):.4f}"}
    line |= {"oa_std_sets": f"{float(means.std()):.4f}" if len(means) > 1 else ""}
    own = None if method in (OWN, FULL) else compare_shares(rows_to_compare(found[bands, OWN]), right, seed=0)
    wider = compare_shares(right, rows_to_compare(found["rgb", method]), seed=0) if bands == "all" else None
    return line | difference_columns(own, AHEAD) | difference_columns(wider, WIDER)


def _picture(bands: str) -> Path:
    return PAGE.parent / "images" / f"bands_{bands}.jpg"


_INTRODUCTION = """# RGB against all bands

Sentinel-2 tiles with 13 bands (EuroSAT, 64 px): 12 training and 5 test images of each of 10 classes. Overall accuracy
on the 50 test images in per cent of EfficientNet-Lite0 fine-tuned on 5 images a class, mean ± standard deviation over
sets; each set is tested with three classifiers. The base is built from the 120 training images (`--base scratch`).
Differences are in points, with 95 % bootstrap intervals over test images, classifiers and, if there are several, sets.
With 50 test images, the half-width of an interval is 12 to 17 points. "Patch borders" tells whether one
sees the 8x8-pixel patches of the base's linear autoencoder: the mean squared difference of neighbouring pixels across
their borders over that elsewhere, 1 if one does not. Its 48 latent channels hold a quarter of the numbers of an RGB
patch, and 6 % of those of 13 bands. With `compact.channels=192` borders show less and grain more
([experiments.md](experiments.md#all-bands)).

Source: `benchmarks/results/bands.csv` (hardware, versions, settings, command), made by `benchmarks/bands.py`.

| bands | method | OA % | sets | DPD ahead | 13 bands ahead of RGB | patch borders |
|---|---|---|---|---|---|---|
"""


def _page(lines: list[dict[str, str]]) -> str:
    order = {name: rank for rank, name in enumerate([FULL, *METHODS])}
    rows = []
    for line in sorted(lines, key=lambda one: (one["bands"] != "RGB", order[one["method"]])):
        spread = f" ± {100 * float(line['oa_std_sets']):.1f}" if line["oa_std_sets"] else ""
        name = "all real images" if line["method"] == FULL else line["method"]
        cells = [line["bands"], name, f"{100 * float(line['oa_mean']):.1f}{spread}", line["sets"]]
        cells += [told_difference(line, AHEAD), told_difference(line, WIDER), line["patch_borders"]]
        rows.append("| " + " | ".join(cells) + " |")
    pictures = [
        f"## DPD, {name}\n\n![Five images a class of DPD, {name}](images/{_picture(bands).name})\n"
        for bands, name in KINDS.items()
        if _picture(bands).is_file()
    ]
    settings = ", ".join(dict.fromkeys(f"`{line['settings']}`" for line in lines if line["settings"]))
    told = [f"Settings that differ from the defaults: {settings}.\n"] if settings else []
    return _INTRODUCTION + "\n".join([*rows, "", *told, *pictures])


if __name__ == "__main__":
    main()
