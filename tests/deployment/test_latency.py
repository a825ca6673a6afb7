from pathlib import Path

import pytest
from models import SIDE, classifier, saved

from geodistill.deployment.graph import write_torchscript
from geodistill.deployment.latency import measure_latency
from geodistill.errors import ExportError


def test_a_model_is_measured_in_a_process_of_its_own(tmp_path: Path) -> None:
    write_torchscript(classifier(), tmp_path / "m.torchscript", "float")
    found = measure_latency(tmp_path / "m.torchscript", 1, SIDE, "float", runs=20)
    assert 0 < found.median <= found.high
    assert 50 < found.memory < 1000  # MiB: Python, torch and a small network


@pytest.mark.slow
def test_a_folder_is_measured_too(tmp_path: Path) -> None:
    found = measure_latency(saved(tmp_path / "model"), 1, SIDE, "float", runs=5)
    assert 0 < found.median <= found.high


def test_a_failure_is_told(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    with pytest.raises(ExportError) as caught:
        measure_latency(path, 1, SIDE, "float", runs=1)
    assert str(caught.value).startswith(f"{path} cannot be measured (")
    assert str(caught.value).endswith("): export it again")
