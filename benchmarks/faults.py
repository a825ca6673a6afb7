"""Kills and full disks at random moments of whole runs: does the same command then end with the same bytes?

    python benchmarks/faults.py --out runs/faults --kills 25 --disks 20

A tiny run of each command on the built-in scenes is killed (SIGKILL) at random moments and started again until it ends.
What it leaves is compared, file by file, with what an undisturbed run leaves; records of time and cost do not count. A
full disk is a file system in memory of a random size, which a run fills and which is then enlarged (it needs the right
to mount). A row of benchmarks/results/faults.csv has one command under one kind of fault; docs/faults.md shows them.
"""

import argparse
import random
import sys
from pathlib import Path

from record import circumstances, merged, to_csv

from geodistill.run import write_atomic

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from spoiling import COMMANDS, Bench, Outcome, told

SHEET, KEY = "faults.csv", ("what", "fault")
PAGE = Path(__file__).parents[1] / "docs" / "faults.md"
# Several processes take long to start, and the disk is theirs all the same.
_FEW = 5


def main() -> None:
    """Spoil runs of each command, merge the rows into the CSV file, write the page."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, default=Path("runs/faults"))
    options.add_argument("--commands", nargs="+", default=list(COMMANDS), choices=list(COMMANDS))
    options.add_argument("--kills", type=int, default=25, help="of each command; a fifth of it with two processes")
    options.add_argument("--disks", type=int, default=20, help="full disks that `distill` meets")
    args = options.parse_args()
    bench = Bench(args.out)
    bench.prepare()
    for name in args.commands:
        command, chance = COMMANDS[name], random.Random(name)
        kills = args.kills if command.processes == 1 else max(1, args.kills // _FEW)
        _note(name, "killed", bench.spoil_by_kills(command, kills, chance))
        if name == "distill" and args.disks:
            _note(name, "full disk", bench.spoil_by_full_disk(command, args.disks, chance))


def _note(name: str, fault: str, found: Outcome) -> None:
    print(f"{name}, {fault}: {found.faults} faults in {found.runs} runs", told(found), flush=True)
    line = {"what": name, "fault": fault, "faults": str(found.faults), "runs": str(found.runs)}
    line |= {"different": str(len(found.different)), "failures": str(len(found.failures))}
    to_csv(merged([line | circumstances()], SHEET, KEY), SHEET)
    write_atomic(PAGE, _page(merged([], SHEET, KEY)))


_INTRODUCTION = """# Kills and full disks

Tiny runs of each command on the built-in scenes were interrupted at random moments and started again by the same
command. "Different" counts files that are not, byte for byte, what an undisturbed run leaves (records of time and cost
apart). "Failures" counts attempts that ended with an error after the cause was gone, or with a traceback. Both should
be 0.

Source: `benchmarks/results/faults.csv` (hardware, versions, command), made by `benchmarks/faults.py`.

| command | fault | faults | runs | different | failures |
|---|---|---|---|---|---|
"""


def _page(lines: list[dict[str, str]]) -> str:
    columns = ("what", "fault", "faults", "runs", "different", "failures")
    return _INTRODUCTION + "".join("| " + " | ".join(line[name] for name in columns) + " |\n" for line in lines)


if __name__ == "__main__":
    main()
