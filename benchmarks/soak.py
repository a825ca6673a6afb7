"""Does `predict` stay within the same memory for hours? One process classifies rasters and folders without end.

    python benchmarks/soak.py --set RUN/distilled --data ../shared/data --hours 24 --out runs/soak

A network is trained on the set, and loaded once. Then one process maps a raster that is composed anew of the archive's
test scenes, and classifies a folder of 64 of them, again and again. Its memory is read after each. The row of
benchmarks/results/soak.csv has the memory after the first tenth of the time (when caches are full), the largest one
after that, the last one, and the slope of a straight line through all after the first tenth. It is written after each
round, so a process that is stopped early has a row as well. `--pause 600` rests for ten minutes between rounds, so that
a day's run leaves the machine to others.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import rasterio
import torch
from numpy.typing import NDArray
from PIL import Image
from record import ARCHIVES, circumstances, folder_of, merged, to_csv

from geodistill.commands.predict import predict
from geodistill.commands.train import train
from geodistill.deployment.predictors import load_predictor
from geodistill.networks import PRETRAINED
from geodistill.scenes import Scenes, open_scenes
from geodistill.seeding import generator

SHEET, ARCHIVE = "soak.csv", "ucmerced"
# Scenes along a side of the raster, their side in pixels, images in the folder.
_SIDE, _PIXELS, _IMAGES = 32, 128, 64


def main() -> None:
    """Train, classify for the given time, write the row."""
    args = _arguments()
    model = args.out / "model"
    train(args.set, PRETRAINED, out=model)
    test = open_scenes(folder_of(ARCHIVE, args.data)).test
    assert test is not None
    folder = _folder(test, args.out / "images")
    measured = []
    for one in _soaked(args, model, test, folder):
        measured.append(one)
        line = _line(np.array(measured)) | {"pause_seconds": f"{args.pause:g}"}
        print(line, flush=True)
        to_csv(merged([line | circumstances()], SHEET, ("archive", "pause_seconds")), SHEET)


def _line(measured: NDArray[np.float64]) -> dict[str, str]:
    """Return the columns of a row; `measured` are hours and MiB, [rounds, 2]."""
    hours, memory = measured.T
    late = hours >= hours[-1] / 10
    slope = np.polyfit(hours[late], memory[late], 1)[0] if late.sum() > 1 else 0.0
    line = {"archive": ARCHIVES[ARCHIVE], "hours": f"{hours[-1]:.2f}", "rounds": str(len(hours))}
    line |= {"tiles": str(len(hours) * _SIDE**2), "images": str(len(hours) * _IMAGES)}
    line |= {"mib_after_a_tenth": f"{memory[late][0]:.0f}", "mib_at_most": f"{memory[late].max():.0f}"}
    return line | {"mib_at_the_end": f"{memory[-1]:.0f}", "mib_per_hour": f"{slope:.2f}"}


def _arguments() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--set", type=Path, required=True, help="a set of the archive, to train on")
    options.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the archives")
    options.add_argument("--out", type=Path, default=Path("runs/soak"))
    options.add_argument("--hours", type=float, default=24.0)
    options.add_argument("--pause", type=float, default=0.0, help="seconds of rest between rounds")
    return options.parse_args()


def _folder(test: Scenes, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for k, image in enumerate(test.pixels(torch.arange(_IMAGES), size=_PIXELS)):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{k}.png")
    return folder


def _soaked(args: argparse.Namespace, model: Path, test: Scenes, folder: Path) -> Iterator[tuple[float, float]]:
    """Yield the hours so far and the memory in MiB after each round."""
    start, count, predictor = time.monotonic(), 0, load_predictor(model)
    while (hours := (time.monotonic() - start) / 3600) < args.hours:
        raster = args.out / "raster.tif"
        _compose(test, raster, count)
        predict(predictor, raster, out=args.out / "map.tif", tile=_PIXELS)
        predict(predictor, folder, out=args.out / "table.csv")
        count += 1
        yield hours, psutil.Process().memory_info().rss / 2**20
        time.sleep(args.pause)


def _compose(test: Scenes, path: Path, seed: int) -> None:
    """Write a raster of random test scenes, row by row."""
    chosen = torch.randint(len(test), (_SIDE, _SIDE), generator=generator(seed, "raster"))
    form = {"driver": "GTiff", "width": _SIDE * _PIXELS, "height": _SIDE * _PIXELS, "count": 3, "dtype": "uint8"}
    transform = rasterio.transform.from_origin(500_000, 4_000_000, 0.6, 0.6)
    with rasterio.open(path, "w", **form, crs="EPSG:32611", transform=transform) as file:
        for row, scenes in enumerate(chosen):
            strip = torch.cat(list(test.pixels(scenes, size=_PIXELS)), dim=2).numpy()
            file.write(strip, window=rasterio.windows.Window(0, row * _PIXELS, _SIDE * _PIXELS, _PIXELS))


if __name__ == "__main__":
    main()
