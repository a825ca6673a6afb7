import json
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
