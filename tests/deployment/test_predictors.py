from pathlib import Path

import onnx
import pytest
import torch
from models import classifier, images, saved
from onnx import TensorProto, helper

from geodistill.deployment.graph import write_torchscript
from geodistill.deployment.predictors import load_predictor
from geodistill.errors import ConfigError


def test_a_folder_and_a_file_of_it_predict_alike(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    write_torchscript(classifier(), folder / "model.torchscript", "uint8")
    for path in (folder, str(folder / "model.torchscript")):
        assert torch.allclose(load_predictor(path).logits(images(3)), classifier().logits(images(3)), atol=1e-4)


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    write_torchscript(classifier(), tmp_path / "m.torchscript", "float")
    with pytest.raises(ConfigError) as caught:
        load_predictor(tmp_path / "m.torchscript").logits(images(2, 48))
    assert str(caught.value) == "the classifier takes images [n, 3, 32, 32], these are [2, 3, 48, 48]"


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_predictor(tmp_path / "m.onnx")
    assert str(caught.value) == (
        f"{tmp_path / 'm.onnx'}: no such model: give the folder that `geodistill train` wrote, or an exported file"
    )
    broken = dict.fromkeys(("m.onnx", "m.torchscript"), "cannot be loaded (")
    for name, told in {"m.pt": "no model file: known are", **broken}.items():
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(ConfigError) as caught:
            load_predictor(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name))
        assert told in str(caught.value)


def test_a_file_of_another_program_has_no_classes(tmp_path: Path) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3]) for name in ("images", "logits")]
    graph = helper.make_graph([helper.make_node("Identity", ["images"], ["logits"])], "g", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, ir_version=9, opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "m.onnx")
    with pytest.raises(ConfigError) as caught:
        load_predictor(tmp_path / "m.onnx")
    assert str(caught.value) == (
        f"{tmp_path / 'm.onnx'} does not say which classes it predicts: give a file that `geodistill export` wrote"
    )
