"""A model for a device: trained on a distilled set or on the whole archive, exported, and measured.

    python benchmarks/device.py --archive ucmerced --set RUN/distilled --data ../shared/data --out runs/device

For each network, `geodistill train` on the set and on all training scenes, `export` to each format (8-bit integers are
calibrated on the set in both cases), `bench` on the real test scenes. A row of benchmarks/results/device.csv is one
format of one model; docs/device.md has them as tables and a plot. Models that `--out` has are used again. Training
takes one thread; its minutes are of the processor, which other processes do not change much. Latencies are measured in
`--rounds` rounds over all models, of which each figure takes the lowest: other processes only add to it. `--calibration`
adds rows to device_calibration.csv instead: 8-bit accuracy against the number of calibration images.
"""

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from record import ARCHIVES, RESULTS, circumstances, folder_of, merged, to_csv

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
KEY = ("archive", "size", "network", "trained_on", "format")
PAGE = Path(__file__).parents[1] / "docs" / "device.md"
NETWORKS = ("efficientnet-lite0", "resnet18", "mobilenetv2")
KINDS = {"set": "distilled set", "full": "whole archive"}
COUNTS = (10, 21, 42, 105, 210)


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
        write_atomic(folder / "cost.json", json.dumps(cost))
        print(network, kind, done.about.protocol, cost, flush=True)
    return folder


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
    line |= {name: _text(value) for name, value in asdict(row).items() if name != "format"}
    return line | circumstances()


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _calibrate(args: argparse.Namespace, data: SceneData, models: dict[tuple[str, str], Path]) -> None:
    """Add rows with the accuracy of 8-bit models after calibration on some of the set's images."""
    assert data.test is not None
    lines = []
    for (network, kind), folder in models.items():
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
    to_csv(merged(lines, CALIBRATION, ("archive", "network", "trained_on", "images")), CALIBRATION)


def write_page() -> None:
    """Write docs/device.md and its plot from the rows there are."""
    lines = merged([], SHEET, KEY)
    if not lines:
        return
    parts = [_INTRODUCTION]
    for archive in dict.fromkeys(line["archive"] for line in lines):
        own = [line for line in lines if line["archive"] == archive]
        picture = PAGE.parent / "images" / f"device_{archive.lower().replace(' ', '_')}.svg"
        _plot(own, picture)
        parts += [f"## {archive}", "", _promise(own), f"![Accuracy against training minutes](images/{picture.name})\n"]
        parts += ["### Formats", "", _formats(own)]
    write_atomic(PAGE, "\n".join(parts))


_INTRODUCTION = ""


if __name__ == "__main__":
    main()
