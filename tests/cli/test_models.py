"""The commands on classifiers, called in this process; one path through all of them."""

import csv
import re
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from geodistill.cli import app
from geodistill.scenes import write_scenes


def _call(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.mark.parametrize("command", ["train", "export", "bench", "predict"])
def test_help_teaches_with_an_example(command: str) -> None:
    told = _call(command, "--help")
    assert told.exit_code == 0
    assert f"Example: geodistill {command} " in told.stdout


@pytest.mark.slow
def test_train_export_bench_predict(tmp_path: Path) -> None:
    data, model = tmp_path / "data", tmp_path / "model"
    write_scenes(data, train_per_class=6, test_per_class=2, size=32)
    done = _call("train", data, "--network", "convnet3", "--size", 32, "--out", model, "--license", "CC0")
    assert done.exit_code == 0, done.output
    assert "convnet3, 10 classes, trained on 60 labelled images" in done.stdout
    for name in ("onnx", "onnx-int8", "torchscript"):
        done = _call("export", model, "--to", name, "--calibrate", data, *(["--raw-input"] if name == "onnx" else []))
        assert done.exit_code == 0, done.output
        assert re.search(r"logits differ by at most \S+, \d+\.\d% get the same class", done.stdout)
    done = _call("bench", model, "--data", data, "--csv", tmp_path / "bench.csv")
    assert done.exit_code == 0, done.output
    with (tmp_path / "bench.csv").open() as file:
        rows = {row["format"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["torch", "onnx", "onnx-int8", "torchscript"]
    assert rows["onnx"]["accuracy"] == rows["torch"]["accuracy"]
    # ONNX Runtime alone takes much less memory than a process with torch.
    assert int(rows["onnx"]["memory"]) < int(rows["torchscript"]["memory"])
    for source in (model, model / "model.onnx", model / "model-int8.onnx"):
        done = _call("predict", source, data / "test", "--out", tmp_path / "out.csv")
        assert done.exit_code == 0, done.output
        assert f"written: {tmp_path / 'out.csv'}" in done.stdout
        assert len((tmp_path / "out.csv").read_text().splitlines()) == 21


def test_errors_are_one_sentence(tmp_path: Path) -> None:
    failed = _call("export", tmp_path, "--to", "onix")
    assert failed.exit_code == 2
    assert failed.stderr.strip() == (
        "error: unknown format 'onix': did you mean 'onnx'? known: onnx, onnx-int8, torchscript, litert"
    )
    (tmp_path / "data" / "a").mkdir(parents=True)
    inside = _call("train", tmp_path / "data", "--out", tmp_path / "data" / "model")
    assert inside.stderr.startswith(
        f"error: --out {tmp_path / 'data' / 'model'} is in {tmp_path / 'data'}, which is only read"
    )


def test_outputs_that_cannot_be_written_are_told_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name, why in (("file/bench.csv", f"{tmp_path / 'file'} is a file"), ("", f"{tmp_path} is a folder")):
        told = _call("bench", tmp_path / "none", "--csv", tmp_path / name)
        assert told.exit_code == 2
        assert told.stderr == f"error: {tmp_path / name} cannot be a file: {why}\n"


@pytest.mark.parametrize("command", ["train", "predict"])
def test_a_device_that_is_not_there_is_told(command: str, tmp_path: Path) -> None:
    given = [tmp_path, tmp_path] if command == "predict" else [tmp_path]
    told = _call(command, *given, "--out", tmp_path / "out", "--device", "tpu")
    assert told.exit_code == 2
    assert told.stderr.strip() == "error: unknown device 'tpu': use cpu, cuda, cuda:N or mps"
