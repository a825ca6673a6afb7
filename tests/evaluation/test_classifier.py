import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from geodistill.errors import ConfigError
from geodistill.evaluation.classifier import About, Classifier
from geodistill.networks import build_network

ABOUT = About("convnet3", "scratch", ("Beach", "Öde"), 32, seed=4)


def test_what_is_read_is_what_was_saved(tmp_path: Path) -> None:
    trained = Classifier(build_network("convnet3", 2, seed=4).eval(), ABOUT)
    trained.save(tmp_path / "beach.safetensors")
    read = Classifier.load(tmp_path / "beach.safetensors")
    assert read.about == ABOUT
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    assert read.logits(images).shape == (3, 2)
    assert torch.equal(read.logits(images), trained.logits(images))


def test_images_of_another_size_are_refused(tmp_path: Path) -> None:
    trained = Classifier(build_network("convnet3", 2, seed=4).eval(), ABOUT)
    with pytest.raises(ConfigError) as caught:
        trained.logits(torch.zeros(5, 3, 64, 64, dtype=torch.uint8))
    assert str(caught.value) == "the classifier takes images [n, 3, 32, 32], these are [5, 3, 64, 64]"


def test_other_files_are_refused(tmp_path: Path) -> None:
    save_file({"weights": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"1234")
    for name in ("other", "cut", "missing"):
        path = tmp_path / f"{name}.safetensors"
        with pytest.raises(ConfigError, match=re.escape(f"{path} is not a classifier that geodistill saved (")):
            Classifier.load(path)
