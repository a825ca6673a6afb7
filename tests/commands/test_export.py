import logging
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from models import CLASSES, classifier, images, saved

from geodistill.commands import export as module
from geodistill.commands.export import export
from geodistill.deployment.predictors import load_predictor
from geodistill.distilled import DistilledSet
from geodistill.errors import ConfigError, ExportError
from geodistill.evaluation.classifier import Classifier


def a_set(folder: Path, each: int, classes: tuple[str, ...] = CLASSES) -> Path:
    """Save a distilled set of `each` images a class."""
    labels = torch.arange(each * len(classes)) % len(classes)
    return DistilledSet(images(len(labels)), labels, classes).save(folder)


def test_a_file_is_written_beside_the_weights_and_compared(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    done = export(folder, "torchscript", takes="uint8")
    assert done.path == folder / "model.torchscript"
    assert (done.size, done.images, done.same) == (done.path.stat().st_size, 5, 1.0)
    assert done.largest < 1e-4
    assert torch.allclose(load_predictor(done.path).logits(images(2)), classifier().logits(images(2)), atol=1e-4)
    elsewhere = export(folder, "torchscript", out=tmp_path / "new" / "m.torchscript")
    assert elsewhere.path.is_file()


def test_a_file_that_predicts_otherwise_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path / "model")

    def another(own: Classifier, path: Path, takes: str) -> None:
        with torch.no_grad():
            next(own.model.parameters()).add_(0.1)
        module.write_torchscript(own, path, takes)
        with torch.no_grad():
            next(own.model.parameters()).sub_(0.1)

    monkeypatch.setitem(module._WRITERS, "torchscript", another)
    with pytest.raises(ExportError) as caught:
        export(folder, "torchscript")
    assert str(caught.value).startswith("the exported logits differ from the model's by ")
    assert str(caught.value).endswith(", more than 0.001: the file was removed; choose another format")
    assert not (folder / "model.torchscript").exists()


def test_calibration_that_cannot_serve_is_told_before_anything_is_written(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    with pytest.raises(ConfigError) as caught:
        export(folder, "onnx-int8")
    assert str(caught.value) == (
        "onnx-int8 needs images to calibrate on: give --calibrate SET, such as the set trained on"
    )
    few = a_set(tmp_path / "few", 2)
    with pytest.raises(ExportError, match=r"^6 images are too few to calibrate int8 on, at least \d+ are needed: "):
        export(folder, "onnx-int8", calibrate=few)
    other = a_set(tmp_path / "other", 30, ("Beach", "Forest"))
    with pytest.raises(ConfigError) as caught:
        export(folder, "onnx-int8", calibrate=other)
    assert str(caught.value) == (
        f"{other} and the model have different classes, 'River' first: calibrate on images of its classes"
    )
    assert not (folder / "model-int8.onnx").exists()


def test_images_to_calibrate_on_are_not_used_elsewhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    export(saved(tmp_path / "model"), "torchscript", calibrate=tmp_path / "no")
    assert [record.getMessage() for record in caplog.records if record.name == "geodistill"] == [
        f"format torchscript is not calibrated: --calibrate {tmp_path / 'no'} is not used"
    ]


@pytest.mark.slow
def test_int8_is_calibrated_on_a_set(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = saved(tmp_path / "model")
    with caplog.at_level(logging.INFO):
        done = export(folder, "onnx-int8", calibrate=a_set(tmp_path / "set", 20))
    assert (done.path, done.images) == (folder / "model-int8.onnx", 60)
    assert done.size < 0.5 * (folder / "model.safetensors").stat().st_size
    assert load_predictor(done.path).about == classifier().about
    assert not caplog.records


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a classifier that geodistill saved"):
        export(tmp_path, "torchscript")


@pytest.mark.parametrize(
    ("to", "name", "told"),
    [
        ("torchscript", "m.pt", "the name of a file in format torchscript ends in .torchscript"),
        ("litert", "m.tflite", "a LiteRT file holds no class names, so it lies in the folder of its model"),
    ],
)
def test_a_file_that_could_not_be_read_is_not_written(
    to: str, name: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "check_format", lambda _: None)  # litert may not be installed
    folder = saved(tmp_path / "model")
    with pytest.raises(ConfigError) as caught:
        export(folder, to, out=tmp_path / name)
    assert str(caught.value) == f"--out {tmp_path / name}: {told}"
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("to", ["onnx", "onnx-int8", "torchscript"])
def test_a_file_tells_nothing_of_the_machine_that_wrote_it(to: str, tmp_path: Path) -> None:
    if to != "torchscript":
        pytest.importorskip("onnxruntime")
    folder = saved(tmp_path / "model")
    done = export(folder, to, calibrate=a_set(tmp_path / "set", 40) if to == "onnx-int8" else None)
    content = [done.path.read_bytes()]
    if to == "torchscript":
        with ZipFile(done.path) as file:
            content = [name.encode() + file.read(name) for name in file.namelist()]
    for place in (sys.prefix, str(Path(module.__file__).parents[2]), str(tmp_path)):
        assert not any(place.encode() in one for one in content), place
