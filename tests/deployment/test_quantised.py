from pathlib import Path

import onnx
import pytest
import torch
from models import SIDE, classifier, images

from geodistill.deployment.graph import as_input
from geodistill.deployment.predictors import OnnxModel
from geodistill.deployment.quantised import LEAST_IMAGES, _Reader, write_int8
from geodistill.errors import ConfigError, ExportError


@pytest.mark.slow
@pytest.mark.parametrize("takes", ["float", "uint8"])
def test_weights_have_a_scale_for_each_channel(takes: str, tmp_path: Path) -> None:
    own, path = classifier("mobilenetv2"), tmp_path / "m.onnx"
    write_int8(own, path, takes, images(LEAST_IMAGES))
    graph = onnx.load(path).graph
    weights = {one.name: one for one in graph.initializer}
    nodes = [one for one in graph.node if one.op_type == "DequantizeLinear" and one.input[0] in weights]
    scales = {node.input[0]: weights[node.input[1]] for node in nodes}
    kernels = {name: scale for name, scale in scales.items() if len(weights[name].dims) == 4}
    assert len(kernels) == sum(node.op_type == "Conv" for node in graph.node) > 40
    for name, scale in kernels.items():
        assert weights[name].data_type == onnx.TensorProto.INT8
        assert list(scale.dims) == [weights[name].dims[0]]
    read = OnnxModel.load(path)
    assert (read.about, read.takes) == (own.about, takes)
    spread = float(own.logits(images(40)).std())
    assert (read.logits(images(40)) - own.logits(images(40))).abs().mean() < spread / 4


def test_all_images_are_calibrated_on() -> None:
    given = images(2 * LEAST_IMAGES + 3)
    for takes in ("float", "uint8"):
        reader, batches = _Reader(takes, given), []
        while (batch := reader.get_next()) is not None:
            batches.append(torch.from_numpy(batch["images"]))
        assert len(batches) > 1
        assert torch.equal(torch.cat(batches), as_input(given, takes))


def test_too_few_or_other_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError) as caught:
        write_int8(classifier(), tmp_path / "m.onnx", "float", images(LEAST_IMAGES - 1))
    assert str(caught.value) == (
        f"{LEAST_IMAGES - 1} images are too few to calibrate int8 on, at least {LEAST_IMAGES} are needed: give "
        "--calibrate a set with more images per class"
    )
    with pytest.raises(ConfigError) as other:
        write_int8(classifier(), tmp_path / "m.onnx", "float", images(LEAST_IMAGES, 64))
    assert str(other.value) == (
        f"the classifier takes images [n, 3, {SIDE}, {SIDE}], these are [{LEAST_IMAGES}, 3, 64, 64]"
    )
