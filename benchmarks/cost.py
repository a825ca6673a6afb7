"""What the default `distill` costs, against the number of training scenes and of images per class, on AID at 64 px.

    python benchmarks/cost.py --data ../shared/data/aid --out runs/cost

A run of its own, in a process of its own, for 1,000, 3,000 and 6,000 scenes (the same share of each class) at IPC 5,
and for IPC 10, the default, and 20 on all of them. A row of benchmarks/results/cost.csv has the wall time and the
processors' time of all stages, the wall time of those that grow with the scenes, of those that grow with the images
made and of the others, and the peak memory.
"""

import argparse
from collections.abc import Collection
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from record import circumstances, merged, parsed, parser, to_csv

from geodistill.commands.distill import distill
from geodistill.config import load_config
from geodistill.run import records
from geodistill.scenes import Scenes, open_scenes

SHEET = "cost.csv"
CASES = ((6000, 10), (1000, 5), (3000, 5), (6000, 5), (6000, 20))
# Stages whose work follows the number of scenes, and of images made; the others take a fixed number of steps.
OF_SCENES = ("features", "latents", "prototypes")
OF_IMAGES = ("descriptions", "candidates", "chosen", "refined", "distilled")


def main() -> None:
    """Distill once for each case, write a row after each."""
    args = _arguments()
    for count, ipc in CASES:
        folder = args.out / f"{count}-scenes-ipc{ipc}"
        # A new process each time: the peak memory of one says nothing about the next.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            process.submit(_distill, args.data, count, ipc, folder).result()
        line = _line(count, ipc, records(folder)) | circumstances()
        print({name: line[name] for name in ("scenes", "ipc", "wall_seconds", "peak_memory_mib")}, flush=True)
        to_csv(merged([line], SHEET, ("scenes", "ipc")), SHEET)


def _arguments() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--out", type=Path, default=Path("runs/cost"))
    return parsed(options)


def _distill(data: Path, count: int, ipc: int, folder: Path) -> None:
    config = load_config(sets=["self_test.held_out=0", "reproducible=true"], ipc=ipc)
    distill(_share(open_scenes(data).train, count), config, out=folder)


def _share(scenes: Scenes, count: int) -> Scenes:
    """Return about `count` scenes, the same share of each class."""
    order = torch.argsort(scenes.labels, stable=True)
    return scenes.subset(order[torch.linspace(0, len(scenes) - 1, count).round().long()])


def _line(count: int, ipc: int, stages: list[dict[str, Any]]) -> dict[str, str]:
    names = {stage["stage"] for stage in stages}

    def seconds(of: Collection[str], clock: str = "wall_seconds") -> str:
        return f"{sum(stage[clock] for stage in stages if stage['stage'] in of):.0f}"

    return {
        "scenes": str(count),
        "ipc": str(ipc),
        "wall_seconds": seconds(names),
        "cpu_seconds": seconds(names, "cpu_seconds"),
        "seconds_of_scenes": seconds(OF_SCENES),
        "seconds_of_images": seconds(OF_IMAGES),
        "seconds_of_the_rest": seconds(names.difference(OF_SCENES, OF_IMAGES)),
        "peak_memory_mib": str(max(stage["peak_memory_mib"] for stage in stages)),
    }


if __name__ == "__main__":
    main()
