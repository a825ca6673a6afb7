"""Stages as small as they go."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from geodistill.provenance import Stage
from geodistill.run import Run


def counting(calls: list[int]) -> Any:
    def build(folder: Path) -> dict[str, int]:
        calls.append(1)
        (folder / "result.txt").write_text("whole")
        return {"calls": len(calls)}

    return build


def make_stage(run: Run, build: Any, name: str, version: int = 1, given: Sequence[Any] = ()) -> Path:
    stage = Stage(name, version, lent=name in ("base", "latents"))
    return run.make(stage, build, lambda folder: folder, given=given).value
