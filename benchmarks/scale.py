"""What a run costs against the number of scenes: EuroSAT's tiles, repeated by reference in a list.

    python benchmarks/scale.py --data ../shared/data --out runs/scale --scenes 8000 200000 1000000
    python benchmarks/scale.py --data ../shared/data --out runs/scale --scenes 1000000 --what opening

Three kinds of rows in benchmarks/results/scale.csv, each made in a process of its own:

- opening: a CSV list that names the tiles again and again is opened, its files are decoded and hashed, and the scenes
  for the self-test are set apart.
- stages: `distill` with `SHORT`, settings that keep every stage but take few steps, so that what grows with the scenes
  shows. The first number of scenes is encoded. For the others, latents and features of a tile that is there several
  times are those of the first run, copied: encoding it again would give the same. Their cost is in the first row.
- audit: the audit of a folder of 10 random real images a class, against the scenes and the archive's test images.

Seconds are those of the processor, divided by the scenes: the machine may be busy. The peak memory includes the pages
of files that are mapped while they are read.
"""

import argparse
import csv
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from record import ARCHIVES, circumstances, folder_of, merged, parser, to_csv
from torch import Tensor

from geodistill.commands.audit import audit
from geodistill.commands.distill import distill
from geodistill.commands.plan import plan
from geodistill.config import Config, load_config
from geodistill.methods import METHODS
from geodistill.pipeline import FEATURES, LATENTS
from geodistill.run import Rows, Run, peak_memory_mib, records, save_rows
from geodistill.scenes import Scenes, open_scenes
from geodistill.stages.base import load_base
from geodistill.stages.context import Context, run_settings
from geodistill.stages.held_out import set_apart
from geodistill.stages.latents import encode, scene_features, views_of

SHEET, ARCHIVE = "scale.csv", "eurosat"
ENCODING = (LATENTS.name, FEATURES.name)
SHORT = (
    "latents.views=1",
    "teacher.steps=150",
    "teacher.width=32",
    "finetune.steps=10",
    "finetune.batch=16",
    "sampling.steps=4",
    "sampling.candidates=2",
    "refinement.steps=4",
    "refinement.rounds=1",
    "refinement.students=[2]",
    "self_test.held_out=0",
    "reproducible=true",
)
# Rows of a file that are copied together.
_TOGETHER = 16_384


def main() -> None:
    """Measure each number of scenes, write a row after each."""
    args = _arguments()
    data = folder_of(ARCHIVE, args.data)
    args.out.mkdir(parents=True, exist_ok=True)
    for count in args.scenes:
        for what in args.what:
            work = {"opening": _opening, "stages": _stages, "audit": _audit}[what]
            # A new process each time: the peak memory of one says nothing about the next.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                found = process.submit(work, data, count, args.out, args.scenes[0]).result()
            line = {"what": what, "archive": ARCHIVES[ARCHIVE], "scenes": str(count)} | found | circumstances()
            print(found | {"what": what, "scenes": count}, flush=True)
            to_csv(merged([line], SHEET, ("what", "scenes")), SHEET)


def _arguments() -> argparse.Namespace:
    options = parser(__doc__)
    options.set_defaults(data=Path("../shared/data"))
    options.add_argument("--out", type=Path, default=Path("runs/scale"))
    options.add_argument("--scenes", type=int, nargs="+", default=[8000, 200_000, 1_000_000])
    options.add_argument("--what", nargs="+", choices=("opening", "stages", "audit"), default=["opening", "stages"])
    return options.parse_args()


def _opening(data: Path, count: int, out: Path, _: int) -> dict[str, str]:
    """Return the cost of opening a list of `count` scenes, a fifth of them for tests."""
    path = out / f"scenes-{count}.csv"
    tiles = sorted((data / "train").glob("*/*.jpg"))
    with path.open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(("path", "label", "split"))
        for k in range(count):
            tile = tiles[k % len(tiles)]
            lines.writerow((tile.resolve(), tile.parent.name, "test" if k % 5 == 4 else "train"))
    start, clock = time.perf_counter(), time.process_time()
    train = open_scenes(path).train
    apart = set_apart(train, Config())
    assert apart.test is not None
    return _cost(count, time.perf_counter() - start, time.process_time() - clock) | {
        "peak_memory_mib": str(peak_memory_mib())
    }


def _stages(data: Path, count: int, out: Path, first: int) -> dict[str, str]:
    """Return the cost of the stages on `count` scenes, and of encoding if these are the `first`."""
    scenes = _repeated(open_scenes(data).train, count)
    config, folder = load_config(sets=SHORT, ipc=10), out / f"stages-{count}"
    planned = plan(scenes, config, out)
    if count != first:
        _copy_encoded(scenes, config, folder, out / f"stages-{first}", first)
    distill(scenes, config, out=folder)
    made = records(folder)
    others = [stage for stage in made if stage["stage"] not in ENCODING]
    most = max(others, key=lambda stage: stage["peak_memory_mib"])
    seconds = {stage["stage"]: 1000 * stage["cpu_seconds"] / count for stage in made}
    return _cost(count, *(sum(stage[clock] for stage in others) for clock in ("wall_seconds", "cpu_seconds"))) | {
        "peak_memory_mib": str(most["peak_memory_mib"]),
        "peak_in": most["stage"],
        "planned_memory_mib": str(planned.memory // 2**20),
        "disk_mb": f"{sum(path.stat().st_size for path in folder.rglob('*') if path.is_file()) / 1e6:.0f}",
        "planned_disk_mb": f"{planned.disk / 1e6:.0f}",
        "encoding_ms_each": f"{sum(seconds[name] for name in ENCODING):.2f}" if count == first else "",
        "prototypes_ms_each": f"{seconds['prototypes']:.3f}",
        "chosen_ms_each": f"{seconds['chosen']:.3f}",
    }


def _audit(data: Path, count: int, out: Path, _: int) -> dict[str, str]:
    """Return the cost of the audit against `count` training scenes."""
    scenes = open_scenes(data)
    config = load_config(ipc=10).model_copy(update={"reproducible": True})
    given = distill(scenes.train, config, method="random").save(out / "random")
    many = replace(scenes, train=_repeated(scenes.train, count))
    start, clock = time.perf_counter(), time.process_time()
    audit(given, many, out=out / f"audit-{count}")
    return _cost(count, time.perf_counter() - start, time.process_time() - clock) | {
        "peak_memory_mib": str(peak_memory_mib())
    }


def _cost(count: int, wall: float, cpu: float) -> dict[str, str]:
    return {"wall_seconds": f"{wall:.0f}", "cpu_seconds": f"{cpu:.0f}", "ms_each": f"{1000 * cpu / count:.3f}"}


def _repeated(scenes: Scenes, count: int) -> Scenes:
    """Return `count` scenes: those of `scenes` in turn, as often as needed."""
    return scenes.subset(torch.arange(count) % len(scenes))


def _copy_encoded(scenes: Scenes, config: Config, folder: Path, whole: Path, first: int) -> None:
    """Make stages `latents` and `features` of the run in `folder` from those in `whole`, of `first` scenes."""

    def parts_of(stage: str) -> Iterator[Tensor]:
        known = Rows(whole / stage / f"{stage}.safetensors", stage)
        for which in (torch.arange(len(scenes)) % first).split(_TOGETHER):
            yield known[which, : views_of(len(scenes), config)] if stage == LATENTS.name else known[which]

    def build(stage: str, partial: Path) -> None:
        save_rows(parts_of(stage), stage, partial / f"{stage}.safetensors")

    with Run(folder, run_settings("dpd", config, scenes), "") as run:
        copying: Any = _Copying(run, build)
        context = Context(scenes, config, copying, METHODS["dpd"])
        encode(context, load_base(context))
        scene_features(context)


class _Copying:
    """A run whose stages are made by another function than their own."""

    def __init__(self, run: Run, build: Any) -> None:
        self._run, self._build = run, build

    def make(self, stage: Any, _: Any, load: Any, *, given: Any) -> Any:
        """Return what `Run.make` returns, with the stage's folder filled by the function."""
        return self._run.make(stage, lambda partial: self._build(stage.name, partial), load, given=given)


if __name__ == "__main__":
    main()
