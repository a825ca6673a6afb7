import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from models import CLASSES, SIDE, classifier, images
from torch import nn

from geodistill.deployment.graph import Deployed, as_input, metadata, write_litert, write_onnx, write_torchscript
from geodistill.deployment.predictors import OnnxModel, TorchScriptModel
from geodistill.errors import ExportError
from geodistill.evaluation.classifier import Classifier
from geodistill.networks import build_network
from geodistill.scenes.reading import Reading


def test_preprocessing_in_the_graph_is_ours() -> None:
    own = classifier()
    outside, inside = (Deployed(own.model, takes) for takes in ("float", "uint8"))
    pixels = images(4)
    with torch.no_grad():
        assert torch.allclose(outside(as_input(pixels, "float")), own.logits(pixels), atol=1e-5)
        assert torch.allclose(inside(as_input(pixels, "uint8")), own.logits(pixels), atol=1e-5)
    assert as_input(pixels, "uint8").shape == (4, SIDE, SIDE, 3)


def test_a_network_that_is_in_training_is_deployed_in_evaluation() -> None:
    """Batch norms must not see the other images of a batch."""
    own = classifier("mobilenetv2")
    expected, pixels = own.logits(images(4)), as_input(images(4), "float")
    own.model.train()
    deployed = Deployed(own.model, "float")
    with torch.no_grad():
        assert torch.allclose(deployed(pixels), expected, atol=1e-5)
        assert torch.allclose(deployed(pixels[:1]), expected[:1], atol=1e-4)
    assert own.model.training  # the network itself is left as it was


def test_all_bands_are_normalised_in_the_graph(tmp_path: Path) -> None:
    bands = Reading((1, 2, 3, 4, 5), dtype="uint8", names=tuple("abcde"))
    about = replace(classifier().about, reading=bands, channels=5)
    own = Classifier(build_network("convnet3", len(CLASSES), 0, 5).eval(), about)
    pixels = images(3).repeat(1, 2, 1, 1)[:, :5]
    write_torchscript(own, tmp_path / "m.torchscript", "uint8")
    assert torch.allclose(
        TorchScriptModel.load(tmp_path / "m.torchscript").logits(pixels), own.logits(pixels), atol=1e-4
    )


def test_metadata_serve_other_programs() -> None:
    about = replace(classifier().about, reading=Reading(bands=(3, 2, 1), scale=((0.0, 900.0),) * 3))
    told = metadata(about, "float")
    assert json.loads(told["classes"]) == list(CLASSES)
    assert (told["size"], told["license"], told["bands"]) == ("32", "CC0", "[3, 2, 1]")
    assert json.loads(told["scale"]) == [[0.0, 900.0]] * 3
    assert told["layout"] == "float32 [n, 3, size, size], normalised"
    assert json.loads(told["mean"]) == [0.485, 0.456, 0.406]
    inside = metadata(about, "uint8")
    assert inside["layout"] == "uint8 RGB [n, size, size, 3]"
    assert "mean" not in inside


def test_onnx_takes_any_number_of_images(tmp_path: Path) -> None:
    own, path = classifier(), tmp_path / "m.onnx"
    write_onnx(own, path, "uint8")
    (entry,) = onnx.load(path).graph.input
    assert entry.type.tensor_type.shape.dim[0].dim_param  # a name, no number
    session = onnxruntime.InferenceSession(path)
    assert (session.get_inputs()[0].type, session.get_inputs()[0].shape[1:]) == ("tensor(uint8)", [SIDE, SIDE, 3])
    for count in (1, 5):
        (logits,) = session.run(None, {"images": as_input(images(count), "uint8").numpy()})
        assert torch.allclose(torch.from_numpy(logits), own.logits(images(count)), atol=1e-4)
    read = OnnxModel.load(path)
    assert (read.about, read.takes) == (own.about, "uint8")
    assert [one.name for one in tmp_path.iterdir()] == ["m.onnx"]


def test_torchscript_takes_any_number_of_images(tmp_path: Path) -> None:
    own, path = classifier(), tmp_path / "m.torchscript"
    write_torchscript(own, path, "float")
    read = TorchScriptModel.load(path)
    assert (read.about, read.takes) == (own.about, "float")
    for count in (1, 5, 70):
        assert torch.allclose(read.logits(images(count)), own.logits(images(count)), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["efficientnet-lite0", "resnet18", "mobilenetv2"])
def test_networks_agree_in_every_float_format(network: str, tmp_path: Path) -> None:
    own = classifier(network)
    write_onnx(own, tmp_path / "m.onnx", "float")
    write_torchscript(own, tmp_path / "m.torchscript", "uint8")
    for read in (OnnxModel.load(tmp_path / "m.onnx"), TorchScriptModel.load(tmp_path / "m.torchscript")):
        assert (read.logits(images(3)) - own.logits(images(3))).abs().max() < 1e-3


@pytest.mark.slow
def test_litert_agrees(tmp_path: Path) -> None:
    pytest.importorskip("litert_torch")
    from geodistill.deployment.predictors import LiteRtModel

    own = classifier()
    own.save(tmp_path)
    write_litert(own, tmp_path / "model.tflite", "float")
    read = LiteRtModel.load(tmp_path / "model.tflite")
    assert (read.about, read.takes) == (own.about, "float")
    assert torch.allclose(read.logits(images(3)), own.logits(images(3)), atol=1e-4)


class Eigenvalues(nn.Module):
    """Has an operator that ONNX lacks."""

    def forward(self, images: Any) -> Any:
        return torch.linalg.eigvals(images).real.mean(2)


@pytest.mark.slow
def test_an_operator_that_onnx_lacks_is_named(tmp_path: Path) -> None:
    own = Classifier(Eigenvalues(), classifier().about)
    with pytest.raises(ExportError) as caught:
        write_onnx(own, tmp_path / "m.onnx", "float")
    assert str(caught.value) == (
        "convnet3 cannot be written as ONNX: it has no operator aten.linalg_eig: choose another format, or train "
        "another network"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_cannot_be_traced_is_named(tmp_path: Path) -> None:
    class Refuses(nn.Module):
        def forward(self, images: Any) -> Any:
            raise ValueError("no such shape\nand more")

    own = Classifier(Refuses(), classifier().about)
    with pytest.raises(ExportError) as caught:
        write_torchscript(own, tmp_path / "m.torchscript", "float")
    assert str(caught.value) == (
        "convnet3 cannot be written as TorchScript: no such shape: choose another format, or train another network"
    )
