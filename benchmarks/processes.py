"""Two processes of one thread against one process of two threads: the time of the stages that processes share.

    python benchmarks/processes.py --data ../shared/data --out runs/processes

A short `distill` of UC Merced, once by torchrun with as many processes as cores, once by one process with as
many threads, by turns. Steps are few, so that nothing is compiled. A row of benchmarks/results/processes.csv is one
stage: the wall seconds of both (the lowest of `--rounds`), and their ratio. Nothing else should run.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from record import ARCHIVES, UNSEEN_BY, circumstances, folder_of, merged, to_csv

from geodistill.run import records

SHEET, KEY, ARCHIVE = "processes.csv", ("archive", "stage"), "ucmerced"
STAGES = ("latents", "features", "teacher", "adapter", "candidates", "refined")
SHORT = (
    "teacher.steps=200",
    "finetune.steps=60",
    "sampling.candidates=3",
    "refinement.steps=24",
    "refinement.rounds=1",
    "refinement.students=[2]",
    "self_test.held_out=0",
)


def main() -> None:
    """Run both by turns, write the rows."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the archives")
    options.add_argument("--out", type=Path, default=Path("runs/processes"))
    options.add_argument("--rounds", type=int, default=2)
    args = options.parse_args()
    data, cores = folder_of(ARCHIVE, args.data), len(os.sched_getaffinity(0))
    found: dict[str, list[dict[str, float]]] = {"threads": [], "processes": []}
    for _ in range(args.rounds):
        for kind, made in found.items():
            made.append(_seconds(data, args.out / kind, cores if kind == "processes" else 1, cores))
    least = {kind: {stage: min(one[stage] for one in made) for stage in STAGES} for kind, made in found.items()}
    lines = []
    for stage in (*STAGES, "all of these"):
        one, several = (
            sum(least[kind].values()) if stage not in STAGES else least[kind][stage]
            for kind in ("threads", "processes")
        )
        line = {"archive": ARCHIVES[ARCHIVE], "stage": stage, "cores": str(cores)}
        line |= {"threads_seconds": f"{one:.1f}", "processes_seconds": f"{several:.1f}"}
        line |= {"threads_over_processes": f"{one / several:.2f}"}
        print(line, flush=True)
        lines.append(line | circumstances())
    to_csv(merged(lines, SHEET, KEY), SHEET)


def _seconds(data: Path, out: Path, processes: int, cores: int) -> dict[str, float]:
    """Return the wall seconds of each stage of a new run in `out`."""
    shutil.rmtree(out, ignore_errors=True)
    start = [sys.executable, "-m", "geodistill"]
    if processes > 1:
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        start += ["-m", "geodistill"]
    sets = [part for setting in SHORT for part in ("--set", setting)]
    threads = str(cores // processes)
    subprocess.run(
        [*start, "distill", str(data), "--base", UNSEEN_BY[ARCHIVE], *sets, "--out", str(out)],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
    )
    return {record["stage"]: record["wall_seconds"] for record in records(out)}


if __name__ == "__main__":
    main()
