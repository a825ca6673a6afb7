"""The seconds that `geodistill plan` predicts for each stage of a run, against those that the stages took.

    python benchmarks/plan.py --data ../shared/data/aid --run runs/aid-bench/selection

The run has to be of the same machine, with as many threads as this script. A row of benchmarks/results/plan.csv has a
stage's operations, its seconds, and the share of a residual block's rate that it reached, which is what geodistill.plan
counts with.
"""

import argparse
from pathlib import Path

from record import circumstances, merged, parsed, parser, to_csv

from geodistill.commands.plan import SHARES
from geodistill.commands.plan import plan as make_plan
from geodistill.config import load_config
from geodistill.run import records
from geodistill.scenes import open_scenes

SHEET = "plan.csv"


def main() -> None:
    """Plan, compare, write the rows."""
    args = _arguments()
    found = make_plan(open_scenes(args.data).train, load_config(args.run / "config.toml"), args.run)
    made = {record["stage"]: record for record in records(args.run)}
    took = {name: record["wall_seconds"] for name, record in made.items()}
    if "refined" in made:
        took["students"] = made["refined"]["facts"]["students_seconds"]
        took["refined"] -= took["students"]
    lines = []
    for stage in found.stages:
        rate = stage.operations / (stage.seconds * SHARES[stage.name])
        measured = took[stage.name]
        line = {"stage": stage.name, "work": stage.work, "operations": f"{stage.operations:.4g}"}
        line |= {"seconds": f"{measured:.1f}", "planned_seconds": f"{stage.seconds:.1f}", "block_rate": f"{rate:.4g}"}
        line |= {"share_of_rate": f"{stage.operations / measured / rate:.3f}"}
        print(line, flush=True)
        lines.append(line | circumstances())
    to_csv(merged(lines, SHEET, ("stage", "hardware")), SHEET)


def _arguments() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--run", type=Path, default=Path("runs/aid-bench/selection"))
    return parsed(options)


if __name__ == "__main__":
    main()
