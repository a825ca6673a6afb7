"""Under what circumstances a benchmark's figures came about, and the CSV file they go to."""

import csv
import io
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from geodistill.run import versions, write_atomic

RESULTS = Path(__file__).parent / "results"


def circumstances() -> dict[str, str]:
    """Return hardware, versions, commit and command: what is needed to make a row again."""
    return {
        "hardware": hardware(),
        "versions": " ".join(f"{name}={version}" for name, version in versions().items()),
        "commit": commit(),
        "command": command(),
    }


def hardware() -> str:
    """Return processor and number of threads."""
    return f"{platform.machine()} {_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


def commit() -> str:
    """Return the short name of the commit that runs."""
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return asked.stdout.strip() or "unknown"


def command() -> str:
    """Return the command line that runs."""
    return shlex.join(["python", *sys.argv])


def to_csv(lines: list[dict[str, Any]], name: str) -> None:
    """Write `lines`, which have the same keys, to benchmarks/results/<name>."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    RESULTS.mkdir(exist_ok=True)
    write_atomic(RESULTS / name, text.getvalue())
