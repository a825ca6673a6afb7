import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from making import make_stage

from geodistill.run import (
    Run,
)


def test_cost_is_written_down_while_a_stage_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geodistill.run.cost._HEARTBEAT_SECONDS", 0.01)
    record = tmp_path / "run" / "stages" / "base.json"

    def build(folder: Path) -> None:
        while not record.exists():
            time.sleep(0.01)
        assert json.loads(record.read_text())["facts"] is None

    with Run(tmp_path / "run", {}) as run:
        make_stage(run, build, "base")
    assert json.loads(record.read_text())["facts"] == {}


def test_processor_time_includes_worker_processes_that_ended(tmp_path: Path) -> None:
    busy = "import time; start = time.process_time()\nwhile time.process_time() < start + 0.5: pass"

    def build(folder: Path) -> None:
        subprocess.run([sys.executable, "-c", busy], check=True)

    with Run(tmp_path / "run", {}) as run:
        make_stage(run, build, "base")
    assert json.loads((tmp_path / "run" / "stages" / "base.json").read_text())["cpu_seconds"] >= 0.5
