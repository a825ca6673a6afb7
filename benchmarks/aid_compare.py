"""AID at 64 px: all methods at several IPC under several protocols, as a table and a plot.

    python benchmarks/aid_compare.py --data ../shared/data/aid --out runs/aid-compare --ipc 1 10 50 \
        --protocols probe finetune

It is `geodistill compare`, whose run folder `--out` is; the same command goes on where it stopped. Rows go to
benchmarks/results/aid_compare.csv, where they replace rows of the same method, IPC, protocol and network and leave the
others; all of them are shown in docs/comparison.md and its plots, some in README.md. What was predicted is kept beside
them, so that the table can be made in parts, on one machine after the other, and each row still be paired with the
project's own method.
Nothing in it is chosen on the test split.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from record import RESULTS, circumstances, command, merged, parsed, parser, to_csv
from safetensors.torch import load_file
from torch import Tensor

from geodistill.commands.compare import compare
from geodistill.config import load_config
from geodistill.evaluation.measures import hlr, ior, share
from geodistill.evaluation.pairs import compare_pair
from geodistill.evaluation.rows import COPYING, FULL, Row
from geodistill.evaluation.table import load_predictions
from geodistill.methods import METHODS
from geodistill.networks import PRETRAINED
from geodistill.pipeline import OWN
from geodistill.report.plots import accuracy_plot, nearness_plot, standalone
from geodistill.run import save_tensors, write_atomic
from geodistill.scenes import open_scenes

SHEET = "aid_compare.csv"
# Predicted classes, uint8 [seeds, n], of each row under its key, and the true ones as `labels`.
PREDICTIONS = RESULTS / "aid_compare_predictions.safetensors"
README = Path(__file__).parents[1] / "README.md"
DOCS = README.parent / "docs"
PICTURES = "images"
# Columns of the table in README.md.
SHOWN = (
    *(("finetune, efficientnet-lite0", ipc) for ipc in (1, 10, 50)),
    ("probe, efficientnet-lite0", 10),
    ("scratch, convnet3", 10),
    ("scratch, resnet18", 10),
)
KEY = ("protocol", "network", "ipc", "method")
FIGURES = (
    "oa_mean",
    "oa_std",
    "aa_mean",
    "kappa_mean",
    "share_of_full",
    "hlr",
    "ior",
    "rho",
    "rho_pixel",
    "rho_feature",
    "nearest_similarity",
    "fid",
    "kid",
    "images_per_second",
    "wall_seconds",
    "peak_memory_mib",
)


def main() -> None:
    """Compare, merge the rows into the CSV file, show them all."""
    args = _arguments()
    rows = compare(
        open_scenes(args.data),
        load_config(sets=args.set, base=args.base),
        out=args.out,
        methods=args.methods,
        ipcs=args.ipc,
        protocols=args.protocols,
        networks=args.networks,
        full=not args.no_full,
        command=command(),
    )
    asked = [row for row in rows if _asked(row, args)]
    lines = [_line(row) for row in asked]
    everything = _merge(lines, _keep_predictions(args.out, dict(zip(map(_key, lines), asked, strict=True))))
    _show(everything)


def _asked(row: Row, args: argparse.Namespace) -> bool:
    """Return whether this command asked for `row`; the run folder may have rows of others."""
    if row.protocol not in args.protocols or (row.protocol != "probe" and row.network not in args.networks):
        return False
    return not args.no_full if row.full else row.method in args.methods and row.ipc in args.ipc


def _arguments() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--out", type=Path, default=Path("runs/aid-compare"))
    options.add_argument("--ipc", type=int, nargs="+", default=[1, 10, 50])
    options.add_argument("--methods", nargs="+", default=list(METHODS))
    options.add_argument("--protocols", nargs="+", default=["probe", "finetune"])
    options.add_argument("--networks", nargs="+", default=[PRETRAINED])
    options.add_argument("--no-full", action="store_true", help="do not train on all real images")
    options.add_argument("--base", help="a base that is there already")
    options.add_argument("--set", action="append", default=[], help="a setting, such as compact.steps=9")
    return parsed(options)


def _line(row: Row) -> dict[str, str]:
    """Return a row of the CSV file, without how it compares with the project's own method."""
    values = asdict(row)
    figures = {name: _short(values[name]) for name in FIGURES}
    seeds = {"seeds": " ".join(map(str, row.seeds)), "oa": " ".join(map(_short, row.oa))}
    about = {"dataset": "AID 64 px, 6000 train, 2000 test", **circumstances()}
    return {name: str(values[name]) for name in KEY} | figures | _ahead({}) | seeds | about


def _ahead(pair: dict[str, Any]) -> dict[str, str]:
    points = {
        f"{OWN}_ahead{end}": pair.get(name) for name, end in (("difference", ""), ("low", "_low"), ("high", "_high"))
    }
    return {name: _short(value) for name, value in points.items()} | {f"{OWN}_is": pair.get("verdict", "")}


def _key(line: dict[str, str]) -> str:
    return "/".join(line[name] for name in KEY)


def _keep_predictions(run: Path, rows: dict[str, Row]) -> dict[str, Tensor]:
    """Put what was predicted in `rows`, by their keys, in the place of what was kept for them; return all of it."""
    kept = load_file(PREDICTIONS) if PREDICTIONS.is_file() else {}
    for key, row in rows.items():
        predicted, labels = load_predictions(run, row)
        kept |= {key: predicted.to(torch.uint8), "labels": labels.to(torch.uint8)}
    save_tensors(kept, PREDICTIONS)
    return kept


def _pair(line: dict[str, str], kept: dict[str, Tensor]) -> dict[str, Any]:
    """Return how far the project's own method is ahead of `line`; nothing where predictions were not kept."""
    own, subject = _key(line), _key(line | {"method": OWN})
    if own == subject or not {own, subject} <= kept.keys():
        return {}
    ours, theirs, labels = (kept[key].long() for key in (subject, own, "labels"))
    return asdict(compare_pair(ours, theirs, labels, seed=0))


def _beside(line: dict[str, str], oa: dict[str, float]) -> dict[str, str]:
    """Return share of full-data OA, HLR and IOR of `line` beside the table's own rows, by their keys in `oa`."""
    own = float(line["oa_mean"])
    full, random = oa.get(_key(line | {"method": FULL, "ipc": "0"})), oa.get(_key(line | {"method": "random"}))
    found = {"share_of_full": full and share(full, own), "hlr": full and hlr(full, own)}
    if line["method"] != FULL:
        found["ior"] = None if random is None else ior(own, random)
    return {name: _short(value) for name, value in found.items()}


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _merge(lines: list[dict[str, str]], kept: dict[str, Tensor]) -> list[dict[str, str]]:
    """Put `lines` in the CSV file, in the place of those with the same key, and return all its rows, paired anew."""
    order = {name: rank for rank, name in enumerate([FULL, *METHODS])}
    rows = merged(lines, SHEET, KEY)
    for line in rows:
        # Where the own method's are not kept, its row is as old as the verdict.
        if _key(line | {"method": OWN}) in kept:
            line |= _ahead(_pair(line, kept))
        line |= _beside(line, {_key(other): float(other["oa_mean"]) for other in rows})
    rows.sort(key=lambda x: (x["protocol"], x["network"], int(x["ipc"]), order[x["method"]]))
    to_csv(rows, SHEET)
    return rows


def _cells(lines: Sequence[dict[str, str]]) -> dict[str, list[dict[str, str]]]:
    """Return the lines of each protocol and network, under a name for both."""
    return {cell: [line for line in lines if _cell(line) == cell] for cell in dict.fromkeys(map(_cell, lines))}


def _cell(line: dict[str, str]) -> str:
    return f"{line['protocol']}, {line['network']}"


def _show(lines: Sequence[dict[str, str]]) -> None:
    """Draw the plots, write the page and the table in README.md."""
    _draw(lines)
    write_atomic(DOCS / "comparison.md", _page(lines))
    text = README.read_text(encoding="utf-8")
    start = text.index("| OA % |")
    end = text.index("\n\n", start)
    write_atomic(README, text[:start] + _overview(lines, SHOWN).rstrip() + text[end:])


def _draw(lines: Sequence[dict[str, str]]) -> None:
    """Draw two plots for each protocol and network: accuracy by method, and against nearness."""
    (DOCS / PICTURES).mkdir(parents=True, exist_ok=True)
    for cell, own in _cells(lines).items():
        rows = [_row(line) for line in own]
        near = [row for row in rows if row.rho is not None and not row.full]
        write_atomic(DOCS / _picture(cell, "accuracy"), standalone(accuracy_plot("accuracy", rows)))
        write_atomic(DOCS / _picture(cell, "nearness"), standalone(nearness_plot("nearness", near)))


def _picture(cell: str, what: str) -> str:
    return f"{PICTURES}/aid_{cell.replace(', ', '_')}_{what}.svg"


def _row(line: dict[str, str]) -> Row:
    """Return what the plots need of a line."""
    rho = float(line["rho"]) if line["rho"] else None
    cell = (line["protocol"], line["network"])
    return Row(line["method"], int(line["ipc"]), *cell, float(line["oa_mean"]), float(line["oa_std"]), rho=rho)


_INTRODUCTION = f"""# AID under every method

30 classes, 64 px, 6,000 training and 2,000 test images; overall accuracy on the test images in per cent, mean ±
standard deviation over the seeds (a probe of the same images comes out the same for each). All methods share one
base, trained on the training scenes alone.
The table is made in parts, on two kinds of processor (the CSV file says which), and the same seed trains another
classifier on another processor. Differences between rows of different processors may therefore be too large or too
small by a point or two. ρ is the nearness ratio: 1 is no nearer to a training image than held-out real images are, 0
is a copy; below {COPYING} the accuracy is that of copies. Random and k-means choose other real images for each seed,
herding and kcenter the same ones; generated sets are made once, and the seeds vary the classifier.

Source: `benchmarks/results/{SHEET}` (seeds, hardware, versions, command), made by `benchmarks/aid_compare.py`.
"""


def _page(lines: Sequence[dict[str, str]]) -> str:
    """Return the rows as Markdown: all in one table, then two plots and a table for each protocol and network."""
    sections = (_section(cell, own) for cell, own in _cells(lines).items())
    return "\n".join([_INTRODUCTION, _overview(lines), *sections])


def _overview(lines: Sequence[dict[str, str]], shown: Sequence[tuple[str, int]] = ()) -> str:
    """Return a table: a line for each method, a column for each cell and IPC in `shown` or all, ρ at the middle IPC."""
    found = {(line["method"], _cell(line), int(line["ipc"])): line for line in lines}
    columns = shown or sorted({(cell, ipc) for _, cell, ipc in found if ipc})
    ipcs = sorted({ipc for _, ipc in columns})
    middle = ipcs[len(ipcs) // 2]
    heads = ["OA %", *(f"{cell.replace(', ', '<br>')}<br>IPC {ipc}" for cell, ipc in columns), f"ρ<br>IPC {middle}"]
    rows = [heads, ["---"] * len(heads)]
    for method in METHODS:
        own = [found.get((method, *column)) for column in columns]
        near = [line["rho"] for (name, _, ipc), line in found.items() if (name, ipc) == (method, middle)]
        rows.append([method, *(_oa(line) if line else "" for line in own), _two(near[0] if near else "")])
    everything = [found.get((FULL, cell, 0)) for cell, _ in columns]
    rows.append(["all real images", *(_oa(line) if line else "" for line in everything), ""])
    return "\n".join(["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def _oa(line: dict[str, str]) -> str:
    """Return mean ± standard deviation in per cent; the mean alone where the seeds change nothing."""
    mean, std = (f"{100 * float(line[name]):.1f}" for name in ("oa_mean", "oa_std"))
    return mean if std == "0.0" else f"{mean} ± {std}"


def _section(cell: str, lines: Sequence[dict[str, str]]) -> str:
    drawn = {"by method": "accuracy", "against nearness": "nearness"}
    plots = " ".join(f"![Accuracy {words}]({_picture(cell, what)})" for words, what in drawn.items())
    head = "| IPC | method | OA % | share of full | IOR | ρ | nearest similarity | KID |\n|" + "---|" * 8
    rows = []
    for line in lines:
        points = f"{100 * float(line['ior']):+.1f}" if line["ior"] else ""
        share = f"{100 * float(line['share_of_full']):.0f} %" if line["share_of_full"] else ""
        rest = [_two(line[name]) for name in ("rho", "nearest_similarity", "kid")]
        ipc, method = ("all", "all real images") if line["method"] == FULL else (line["ipc"], line["method"])
        rows.append("| " + " | ".join([ipc, method, _oa(line), share, points, *rest]) + " |")
    return "\n".join([f"## {cell}", "", plots, "", head, *rows, ""])


def _two(value: str) -> str:
    return f"{float(value):.2f}" if value else ""


if __name__ == "__main__":
    main()
