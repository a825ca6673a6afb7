"""A model for a device: trained on a distilled set or on the whole archive, exported, and measured.

    python benchmarks/device.py --archive ucmerced --set RUN/distilled --data ../shared/data --out runs/device

For each network, `geodistill train` on the set and on all training scenes, `export` to each format (8-bit integers are
calibrated on the set in both cases), `bench` on the real test scenes. A row of benchmarks/results/device.csv is one
format of one model; docs/device.md has them as tables and a plot. Models that `--out` has are used again. Training
takes one thread; its minutes are of the processor, which other processes do not change much. Latencies are measured in
`--rounds` rounds over all models, and each figure is the lowest of them: other processes only add to it.
`--calibration` adds rows to device_calibration.csv instead: 8-bit accuracy against the number of calibration images.
"""

import argparse
import io
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from record import ARCHIVES, circumstances, folder_of, merged, to_csv

from geodistill.commands.bench import Row, bench
from geodistill.commands.export import export
from geodistill.commands.train import labelled_images, train
from geodistill.deployment.formats import FORMATS, check_format
from geodistill.deployment.predictors import load_predictor
from geodistill.deployment.quantised import write_int8
from geodistill.errors import ExportError
from geodistill.evaluation.classifier import WEIGHTS, Classifier
from geodistill.run import write_atomic
from geodistill.scenes import open_scenes
from geodistill.scenes.readers import SUFFIXES
from geodistill.scenes.scenes import SceneData
from geodistill.seeding import generator

SHEET, CALIBRATION = "device.csv", "device_calibration.csv"
CALIBRATION_KEY = ("archive", "network", "trained_on", "images")
KEY = ("archive", "size", "network", "trained_on", "format")
PAGE = Path(__file__).parents[1] / "docs" / "device.md"
NETWORKS = ("efficientnet-lite0", "resnet18", "mobilenetv2")
KINDS = {"set": "distilled set", "full": "whole archive"}
COUNTS = (20, 42, 105, 210)


def main() -> None:
    """Train, export, measure; merge the rows into the CSV file; write the page."""
    args = _arguments()
    data = open_scenes(folder_of(args.archive, args.data))
    models = {(network, kind): _trained(args, network, kind) for kind in KINDS for network in args.networks}
    if args.calibration:
        _calibrate(args, data, models)
    else:
        for folder in models.values():
            _exported(folder, args.set)
        lines = [
            _line(args, network, kind, row, models[network, kind])
            for (network, kind), rows in _measured(models, data, args.rounds).items()
            for row in rows
        ]
        to_csv(merged(lines, SHEET, KEY), SHEET)
    write_page()


def _arguments() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--archive", choices=list(ARCHIVES), default="ucmerced")
    options.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the archives")
    options.add_argument("--set", type=Path, required=True, help="folder of the distilled set")
    options.add_argument("--out", type=Path, default=Path("runs/device"))
    options.add_argument("--networks", nargs="+", default=list(NETWORKS))
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--calibration", action="store_true", help="vary the number of calibration images")
    return options.parse_args()


def _trained(args: argparse.Namespace, network: str, kind: str) -> Path:
    """Return the folder of the model, trained if it is not there yet; cost.json beside the weights has its cost."""
    folder: Path = args.out / f"{args.archive}-{network}-{kind}"
    if not (folder / WEIGHTS).is_file():
        source = args.set if kind == "set" else args.data / args.archive
        size = labelled_images(args.set).images.shape[-1]
        wall, processor = time.monotonic(), time.process_time()
        done = train(source, network, out=folder, size=size)
        cost = {"minutes": (time.process_time() - processor) / 60, "wall_minutes": (time.monotonic() - wall) / 60}
        cost |= {"images": len(labelled_images(source, size=32).labels), "bytes": _bytes(source, kind)}
        write_atomic(folder / "cost.json", json.dumps({**cost, "set": str(args.set.resolve())}))
        print(network, kind, done.about.protocol, cost, flush=True)
    _check_set(folder, args)
    return folder


def _check_set(folder: Path, args: argparse.Namespace) -> None:
    """End here if the model in `folder` was trained on, or calibrated with, another set than `args.set`."""
    made_with = json.loads((folder / "cost.json").read_text()).get("set", str(args.set.resolve()))
    if made_with != str(args.set.resolve()):
        sys.exit(f"{folder} was made with {made_with}: give another --out for {args.set}")


def _bytes(source: Path, kind: str) -> int:
    """Return the bytes of the images trained on."""
    root = source if kind == "set" else source / "train"
    return sum(path.stat().st_size for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)


def _exported(folder: Path, calibrate: Path) -> None:
    """Export the model to every format whose packages are installed."""
    for name, one in FORMATS.items():
        try:
            check_format(name)
        except ExportError as error:
            print(f"left out: {error}", flush=True)
            continue
        if not (folder / one.file).is_file():
            done = export(folder, name, calibrate=calibrate)
            print(folder.name, name, f"logits differ by {done.largest:.2g}", flush=True)


def _measured(models: dict[tuple[str, str], Path], data: SceneData, rounds: int) -> dict[tuple[str, str], list[Row]]:
    """Return the rows of each model, accuracy from the first round, latencies the lowest of all rounds."""
    found = {name: bench(folder, data) for name, folder in models.items()}
    for _ in range(rounds - 1):
        again = {name: bench(folder) for name, folder in models.items()}
        found = {name: [_quicker(*pair) for pair in zip(found[name], again[name], strict=True)] for name in found}
    return found


def _quicker(one: Row, other: Row) -> Row:
    names = ("median_1", "high_1", "median_all", "high_all", "memory")
    return replace(one, **{name: min(getattr(one, name), getattr(other, name)) for name in names})


def _line(args: argparse.Namespace, network: str, kind: str, row: Row, folder: Path) -> dict[str, str]:
    cost, about = json.loads((folder / "cost.json").read_text()), Classifier.load(folder).about
    line = dict(zip(KEY, (ARCHIVES[args.archive], str(about.size), network, kind, row.format), strict=True))
    line |= {"protocol": about.protocol, "seed": str(about.seed), "images": str(cost["images"])}
    line |= {"data_bytes": str(cost["bytes"]), "training_minutes": f"{cost['minutes']:.2f}"}
    # `size` of the key is that of the images.
    line |= {"file_bytes": str(row.size)}
    line |= {name: _text(value) for name, value in asdict(row).items() if name not in ("format", "size")}
    return line | circumstances()


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _calibrate(args: argparse.Namespace, data: SceneData, models: dict[tuple[str, str], Path]) -> None:
    """Add rows with the accuracy of 8-bit models after calibration on some of the set's images."""
    assert data.test is not None
    lines = []
    # The set is what these were trained on.
    for (network, kind), folder in models.items():
        if kind != "set":
            continue
        model = Classifier.load(folder)
        pixels, labels = data.test.pixels(size=model.about.size), data.test.labels
        exact = float((model.logits(pixels).argmax(1) == labels).double().mean())
        images = labelled_images(args.set, size=model.about.size).images
        order = torch.randperm(len(images), generator=generator(0, "calibration"))
        for count in (number for number in COUNTS if number <= len(images)):
            path = folder / f"calibrated-{count}.onnx"
            write_int8(model, path, "float", images[order[:count]])
            oa = float((load_predictor(path).logits(pixels).argmax(1) == labels).double().mean())
            path.unlink()
            line = {"archive": ARCHIVES[args.archive], "network": network, "trained_on": kind, "images": str(count)}
            lines.append(line | {"oa_float": f"{exact:.4f}", "oa_int8": f"{oa:.4f}"} | circumstances())
            print(lines[-1], flush=True)
    to_csv(merged(lines, CALIBRATION, CALIBRATION_KEY), CALIBRATION)


def write_page() -> None:
    """Write docs/device.md and its plots from the rows there are."""
    parts, lines = [_INTRODUCTION], merged([], SHEET, KEY)
    for archive in dict.fromkeys(line["archive"] for line in lines):
        own = [line for line in lines if line["archive"] == archive]
        picture = PAGE.parent / "images" / f"device_{archive.lower().replace(' ', '_')}.svg"
        write_atomic(picture, _plot(own))
        parts += [f"## {archive}, {own[0]['size']} px", "", _promise(own)]
        parts += [f"![Accuracy against the size of the training images](images/{picture.name})", ""]
        parts += ["### Formats", "", _FORMATS, "", _formats(own)]
    parts += ["## Calibration", "", _CALIBRATION, "", _calibrated(merged([], CALIBRATION, CALIBRATION_KEY))]
    write_atomic(PAGE, "\n".join(parts))


_INTRODUCTION = """# A model for a device

What a distilled set is worth where a model has to be trained, exported and run with little: `geodistill train`,
`export` and `bench` on the set and on the whole archive. One training each (seed 0); accuracy is that on the
real test images. Training minutes are those of one processor core; the set itself has to be made once, elsewhere. Up to
2,000 images the number of training steps does not depend on the number of images. MB are those of the files: of the
set PNGs at the size of the training, of the archive its JPEGs as they are (UC Merced: 256 px). ρ of UC Merced's set is
in [unseen.md](unseen.md).

Source: `benchmarks/results/device.csv` and `device_calibration.csv` (hardware, versions, command), made by
`benchmarks/device.py`.
"""
_FORMATS = """On the CPU, one image at a time: milliseconds, the median and in brackets what 95 % of 200 images stay
below. Memory is the peak of a process that does nothing else, with Python and the runtime. `onnx-int8` is calibrated
on the distilled set, also where the model was trained on the whole archive. "same" is the share of test images that
get the class that torch gives them, "logits" the largest difference of a logit from torch's. Other processes were
running on the two cores: threads that share a core wait for each other, so the figures for two threads and the 95 %
bounds are too high, for torch most of all. One thread is what was measured where there is one column."""
_CALIBRATION = """Accuracy in 8-bit integers minus that in float32, in points, against the number of images of the
distilled set (chosen at random) that the ranges are measured on. `export` takes 20 or more."""


def _promise(lines: list[dict[str, str]]) -> str:
    head = "| network | trained on | images | MB | minutes | OA %, float32 | OA %, int8 |"
    rows = [head, _ruler(7)]
    for line in (one for one in lines if one["format"] == "torch"):
        cells = [line["network"], KINDS[line["trained_on"]], f"{int(line['images']):,}", _mega(line["data_bytes"])]
        cells += [f"{float(line['training_minutes']):.1f}", _share(line), _share(_of(lines, line, "onnx-int8"))]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def _formats(lines: list[dict[str, str]]) -> str:
    threads = max(int(line["threads"]) for line in lines)
    # On one core there is nothing else to measure.
    measured = {"1": "1 thread"} | ({"all": f"{threads} threads"} if threads > 1 else {})
    heads = ["network, trained on", "format", "MB", *measured.values(), "memory", "OA %", "same %", "logits"]
    rows = [f"| {' | '.join(heads)} |", _ruler(len(heads))]
    for line in lines:
        times = [f"{float(line[f'median_{n}']):.2f} ({float(line[f'high_{n}']):.2f})" for n in measured]
        cells = [f"{line['network']}, {line['trained_on']}", line["format"], _mega(line["file_bytes"]), *times]
        cells += [f"{line['memory']} MiB"]
        cells += [_share(line), f"{100 * float(line['same']):.1f}", f"{float(line['largest']):.1g}"]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def _calibrated(lines: list[dict[str, str]]) -> str:
    counts = list(dict.fromkeys(line["images"] for line in lines))
    rows = ["| network, trained on | " + " | ".join(counts) + " |", _ruler(1 + len(counts))]
    for network, kind in dict.fromkeys((line["network"], line["trained_on"]) for line in lines):
        own = {one["images"]: one for one in lines if (one["network"], one["trained_on"]) == (network, kind)}
        lost = [100 * (float(own[count]["oa_int8"]) - float(own[count]["oa_float"])) for count in counts]
        rows.append(f"| {network}, {kind} | " + " | ".join(f"{one:+.1f}" for one in lost) + " |")
    return "\n".join(rows) + "\n"


def _ruler(columns: int) -> str:
    return "| " + " | ".join(["---"] * columns) + " |"


def _of(lines: list[dict[str, str]], like: dict[str, str], name: str) -> dict[str, str]:
    """Return the line of format `name` for the model of line `like`."""
    model = [like[column] for column in KEY[:-1]]
    return next(one for one in lines if [one[column] for column in KEY] == [*model, name])


def _mega(text: str) -> str:
    return f"{int(text) / 1e6:.1f}"


def _share(line: dict[str, str]) -> str:
    return f"{100 * float(line['accuracy']):.1f}"


def _plot(lines: list[dict[str, str]]) -> str:
    """Return an SVG plot: accuracy against MB of training images, a line from the set to the archive per network."""
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "geodistill", "font.size": 9}):
        figure = Figure(figsize=(5.6, 3.6), layout="constrained")
        axes = figure.add_subplot()
        for network in dict.fromkeys(line["network"] for line in lines):
            ends = [one for one in lines if one["network"] == network and one["format"] == "torch"]
            ends.sort(key=lambda one: list(KINDS).index(one["trained_on"]))
            size = [int(one["data_bytes"]) / 1e6 for one in ends]
            shares = [100 * float(one["accuracy"]) for one in ends]
            axes.plot(size, shares, "o-", label=network)
            for x, y, one in zip(size, shares, ends, strict=True):
                told = f"{y:.1f} %, {float(one['training_minutes']):.1f} min"
                axes.annotate(told, (x, y), (0, 7), textcoords="offset points", ha="center", fontsize=8)
        axes.set(xlabel="training images, MB", ylabel="overall accuracy, %", ylim=(0, 105), xscale="log", xlim=(1, 60))
        axes.set_xticks((1, 2, 5, 10, 20, 50), labels=("1", "2", "5", "10", "20", "50"))
        axes.minorticks_off()
        axes.grid(linewidth=0.4)
        axes.legend(frameon=False, loc="lower right")
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


if __name__ == "__main__":
    main()
