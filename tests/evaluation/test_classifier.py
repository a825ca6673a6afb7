import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from geodistill.errors import ConfigError
from geodistill.evaluation.classifier import About, Classifier
from geodistill.networks import build_network
from geodistill.scenes.reading import Reading

ABOUT = About("convnet3", "scratch", ("Beach", "Öde"), 32, seed=4)


def trained(about: About = ABOUT) -> Classifier:
    return Classifier(build_network(about.network, len(about.classes), seed=4).eval(), about)


def test_what_is_read_is_what_was_saved(tmp_path: Path) -> None:
    reading = Reading(bands=(3, 2, 1), scale=((0.0, 900.0),) * 3, alpha=True)
    saved = trained(replace(ABOUT, reading=reading, trained_on="9 images", licence="CC0"))
    saved.save(tmp_path / "new" / "beach")
    read = Classifier.load(tmp_path / "new" / "beach")
    assert read.about == saved.about
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    assert read.logits(images).shape == (3, 2)
    assert torch.equal(read.logits(images), saved.logits(images))


def test_a_folder_serves_other_programs(tmp_path: Path) -> None:
    trained(replace(ABOUT, reading=Reading((3, 2, 1), ((0.0, 900.0),) * 3, of_bands=13))).save(tmp_path)
    assert (tmp_path / "class_map.txt").read_text(encoding="utf-8") == "Beach\nÖde\n"
    told = json.loads((tmp_path / "preprocessing.json").read_text())
    assert told == {
        "size": 32,
        "crop": "central square",
        "resize": "bicubic",
        "channels": "RGB",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "bands": [3, 2, 1],
        "of_bands": 13,
        "scale": [[0.0, 900.0]] * 3,
    }
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert card.startswith('---\nlicense: other\nlicense_name: "as the training data"\n')
    assert "# convnet3, 2 classes, 32 px\n" in card
    assert "An RGB image: bands 3, 2, 1 of 13, values from 0 to 900 become 0 to 255" in card


def test_a_model_of_many_bands_says_so(tmp_path: Path) -> None:
    names = ("B04", "B03", "B02", "B08", "B12")
    reading = Reading(bands=(3, 2, 1, 4, 5), scale=((0.0, 900.0),) * 5, dtype="uint16", names=names)
    trained(replace(ABOUT, reading=reading)).save(tmp_path)
    told = json.loads((tmp_path / "preprocessing.json").read_text())
    assert told["channels"] == list(names)
    assert told["mean"] == [0.485, 0.456, 0.406, 0.485, 0.456]
    assert told["std"] == [0.229, 0.224, 0.225, 0.229, 0.224]
    assert "An image of 5 bands: bands 3, 2, 1, 4, 5" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_a_model_of_an_earlier_version_has_plain_images() -> None:
    told = {"network": "convnet3", "protocol": "scratch", "classes": ["a", "b"], "size": 32, "seed": 4}
    assert About.from_dict(told) == About("convnet3", "scratch", ("a", "b"), 32, seed=4)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        trained().logits(torch.zeros(5, 3, 64, 64, dtype=torch.uint8))
    assert str(caught.value) == "the classifier takes images [n, 3, 32, 32], these are [5, 3, 64, 64]"


def test_other_folders_are_refused(tmp_path: Path) -> None:
    for name in ("other", "cut", "empty"):
        (tmp_path / name).mkdir()
    save_file({"weights": torch.zeros(1)}, tmp_path / "other" / "model.safetensors")
    (tmp_path / "cut" / "model.safetensors").write_bytes(b"1234")
    for name in ("other", "cut", "empty", "missing"):
        path = tmp_path / name
        with pytest.raises(ConfigError, match=re.escape(f"{path} is not a classifier that geodistill saved (")):
            Classifier.load(path)


def test_a_model_without_its_class_map_is_refused(tmp_path: Path) -> None:
    trained().save(tmp_path)
    path = tmp_path / "class_map.txt"
    for text, told in {"Beach\n": "1 classes, the weights were trained for 2", "Beach\nÖl\n": "'Öl' in line 2"}.items():
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError, match=re.escape(f"{path} is the class map of another model: it has {told}")):
            Classifier.load(tmp_path)
    path.unlink()
    with pytest.raises(ConfigError) as caught:
        Classifier.load(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} has no class_map.txt, which says which logit is which class: copy the file from where the model "
        "was made, or train the model again"
    )
