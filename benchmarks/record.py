"""Under what circumstances a benchmark's figures came about, and the CSV file they go to."""

import argparse
import csv
import io
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geodistill.evaluation.pairs import Pair
from geodistill.run import versions, write_atomic

# Archives in the folder that --data names, as they are called in tables, and for each a base that has not seen it.
ARCHIVES = {"aid": "AID", "ucmerced": "UC Merced", "eurosat": "EuroSAT"}
UNSEEN_BY = {"aid": "compact", "ucmerced": "aid", "eurosat": "aid"}
RESULTS = Path(__file__).parent / "results"
# Columns that say under what circumstances a row was measured.
CIRCUMSTANCES = ("hardware", "versions", "commit", "command")


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser that shows `doc` as its help and knows where AID lies."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--data", type=Path, default=Path("../shared/data/aid"), help="AID as train/ and test/")
    return made


def parsed(known: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the arguments of the command line; end here, by name, where the data is not."""
    args = known.parse_args()
    if not args.data.is_dir():
        sys.exit(f"benchmark skipped: AID is not at {args.data}")
    return args


def folder_of(archive: str, data: Path) -> Path:
    """Return the folder of one of ARCHIVES below `data`; end here, by name, where it is not."""
    folder = data / archive
    if not folder.is_dir():
        sys.exit(f"benchmark skipped: {ARCHIVES[archive]} is not at {folder}")
    return folder


@cache  # one script, one answer for all its rows
def circumstances() -> dict[str, str]:
    """Return hardware, versions, commit and command: what is needed to make a row again."""
    installed = " ".join(f"{name}={version}" for name, version in versions().items())
    return dict(zip(CIRCUMSTANCES, (hardware(), installed, commit(), command()), strict=True))


def hardware() -> str:
    """Return processor, number of threads, and the GPU if there is one."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{platform.machine()} {_processor()}, {torch.get_num_threads()} threads{gpu}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


def commit() -> str:
    """Return the short name of the commit that runs; with "-dirty" if code differs from it (results may)."""
    asked = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", "*.py", "*.toml")
    return (asked or "unknown") + ("-dirty" if changed else "")


def _git(*words: str) -> str:
    """Return what git says of the repository that this file is in; "" outside one."""
    asked = subprocess.run(
        ["git", *words], capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent
    )
    return asked.stdout.strip()


def command() -> str:
    """Return the command line that runs."""
    return shlex.join(["python", *sys.argv])


def merged(lines: Sequence[dict[str, Any]], name: str, key: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of benchmarks/results/<name> with `lines` in the place of those that have the same key.

    A line that only repeats the figures of its predecessor, because a finished run was read again, keeps the
    predecessor's hardware, versions, commit and command: those under which it was measured.
    """
    path = RESULTS / name
    kept = list(csv.DictReader(path.open())) if path.is_file() else []
    found = {tuple(line.get(column, "") for column in key): line for line in kept}
    for line in lines:
        own = tuple(line.get(column, "") for column in key)
        before = found.get(own)
        measured = {name: before[name] for name in CIRCUMSTANCES} if before and _repeats(line, before) else {}
        found[own] = line | measured
    return list(found.values())


def _repeats(line: dict[str, Any], before: dict[str, Any]) -> bool:
    """Return whether `line` has each figure of `before`, up to its last digit."""
    if not before.keys() >= set(CIRCUMSTANCES):
        return False
    figures = {name: value for name, value in before.items() if value and name not in CIRCUMSTANCES}
    return all(_same(str(line.get(name, "")), value) for name, value in figures.items())


def _same(one: str, other: str) -> bool:
    try:
        return abs(float(one) - float(other)) <= 1e-4
    except ValueError:
        return one == other


def rows_to_compare(right: Sequence[Tensor]) -> Tensor:
    """Return what `compare_shares` takes, [rows, n], for whether each classifier of each set is right, [seeds, n].

    A row is a set, the mean of its classifiers. With one set a row is a classifier: their mean would hide how much they
    differ, and the interval would cover the test images alone.
    """
    return right[0] if len(right) == 1 else torch.stack([own.mean(dim=0) for own in right])


def difference_columns(pair: Pair | None, names: Sequence[str]) -> dict[str, str]:
    """Return a difference and the ends of its interval as columns with three `names`; empty ones without a pair."""
    if pair is None:
        return dict.fromkeys(names, "")
    # Six digits: the pages round to three, and rounding twice could change the last.
    return {key: f"{value:.6f}" for key, value in zip(names, (pair.difference, pair.low, pair.high), strict=True)}


def told_difference(line: dict[str, str], names: Sequence[str]) -> str:
    """Return in points what `difference_columns` wrote: "+1.2 (-0.3 to +2.7)"; "" for empty columns."""
    if not line[names[0]]:
        return ""
    ahead, low, high = (100 * float(line[name]) for name in names)
    return f"{ahead:+.1f} ({low:+.1f} to {high:+.1f})"


def to_csv(lines: list[dict[str, Any]], name: str) -> None:
    """Write `lines` to benchmarks/results/<name>; a column that older lines have not is empty there."""
    text = io.StringIO()
    columns = list(dict.fromkeys(column for line in lines for column in line))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    RESULTS.mkdir(exist_ok=True)
    write_atomic(RESULTS / name, text.getvalue())
