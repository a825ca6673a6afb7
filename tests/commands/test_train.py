from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rasters import archive

from geodistill.commands.train import labelled_images, train
from geodistill.distilled import DistilledSet, tell_of_source
from geodistill.errors import ConfigError, DistilledSetError, SceneError
from geodistill.evaluation.bench import Bench, Task, Training
from geodistill.evaluation.classifier import Classifier
from geodistill.scenes import SceneData, write_scenes
from geodistill.scenes.reading import Reading


@pytest.fixture(scope="module")
def distilled(data: SceneData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images of each of ten classes, 32 px."""
    chosen = torch.cat([(data.train.labels == label).nonzero()[:2, 0] for label in range(10)])
    pixels, labels = data.train.pixels(chosen, size=32), data.train.labels[chosen]
    about = {"method": "kmeans", "real_pixels": True, "base": {"name": "b", "archives": [], "terms": "academic use"}}
    made = DistilledSet(pixels, labels, data.train.classes, (), about)
    return made.save(tmp_path_factory.mktemp("set") / "distilled")


def test_it_is_the_classifier_that_evaluate_reports(data: SceneData, distilled: Path, tmp_path: Path) -> None:
    made = train(distilled, "convnet3", out=tmp_path / "model", seed=3, steps=3)
    training = Training.on_set("distilled", DistilledSet.load(distilled))
    expected = Bench(data, 32, steps=3).logits(Task(training, "scratch", "convnet3", 3))
    assert data.test is not None
    assert torch.equal(made.logits(data.test.pixels(size=32)), expected)
    assert torch.equal(Classifier.load(tmp_path / "model").logits(data.test.pixels(size=32)), expected)


def test_the_card_names_images_terms_and_licence(distilled: Path, tmp_path: Path) -> None:
    tell_of_source(distilled, "Scenes", "CC-BY-4.0")
    about = train(distilled, "convnet3", out=tmp_path / "model", steps=2).about
    assert about.trained_on == "20 real images, a set that geodistill made by method kmeans"
    assert about.licence == "CC-BY-4.0; base: academic use"
    card = (tmp_path / "model" / "README.md").read_text()
    assert 'license_name: "CC-BY-4.0; base: academic use"\n' in card
    assert "from random weights, trained under protocol `scratch`\nwith seed 0 on 20 real images" in card
    assert "0. Beach\n1. DenseResidential\n" in card
    own = train(distilled, "convnet3", out=tmp_path / "own", steps=2, licence="mine").about
    assert own.licence == "mine"


def test_labelled_images_are_taken_whole_unless_they_have_splits(tmp_path: Path) -> None:
    write_scenes(tmp_path / "split", train_per_class=3, test_per_class=2, size=32)
    assert len(labelled_images(tmp_path / "split", size=32).labels) == 30
    found = labelled_images(tmp_path / "split" / "test", size=32)
    assert (len(found.labels), found.what, tuple(found.images.shape)) == (20, "20 labelled images", (20, 3, 32, 32))


def test_bands_and_range_go_into_the_model(tmp_path: Path) -> None:
    root = archive(tmp_path / "in", lambda label, random: random.integers(0, 900 + label, (4, 36, 36), np.uint16))
    about = train(root, "convnet3", out=tmp_path / "model", size=32, bands="3,2,1", scale="0,900", steps=2).about
    assert about.reading == Reading(bands=(3, 2, 1), scale=((0.0, 900.0),) * 3)
    assert Classifier.load(tmp_path / "model").about == about
    card = (tmp_path / "model" / "README.md").read_text()
    assert "An RGB image: bands 3, 2, 1 of 4, values from 0 to 900 become 0 to 255." in card


def test_bad_input_is_told_before_training(distilled: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^unknown network 'resnet': did you mean 'resnet18'\? "):
        train(distilled, "resnet", out=tmp_path / "model")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").touch()
    with pytest.raises(ConfigError) as caught:
        train(distilled, "convnet3", out=tmp_path / "full")
    assert str(caught.value) == f"{tmp_path / 'full'} is not empty: choose a new folder for the model"
    with pytest.raises(ConfigError) as caught:
        train(distilled, "convnet3", out=tmp_path / "full" / "notes")
    assert str(caught.value) == f"{tmp_path / 'full' / 'notes'} is a file: choose a new folder for the model"
    with pytest.raises(ConfigError) as caught:
        train(distilled, "convnet3", out=tmp_path / "full" / "notes" / "model")
    told = f"{tmp_path / 'full' / 'notes'} is a file: choose a new folder for the model"
    assert str(caught.value) == f"{tmp_path / 'full' / 'notes' / 'model'} cannot be a folder, {told}"
    with pytest.raises(ConfigError) as caught:
        train(distilled, "convnet3", out=tmp_path / "model", size=16)
    assert str(caught.value) == "images of 16 px are too small for the networks: use 32 px or more"
    assert not (tmp_path / "model").exists()


def test_a_set_of_one_class_is_refused(distilled: Path, tmp_path: Path) -> None:
    (tmp_path / "one" / "Beach").mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(tmp_path / "one" / "Beach" / "0.png")
    Image.new("RGB", (32, 32), "red").save(tmp_path / "one" / "Beach" / "1.png")
    with pytest.raises(SceneError, match="only one class, 'Beach': a classifier needs at least 2"):
        train(tmp_path / "one", "convnet3", out=tmp_path / "model")
    manifest = distilled / "manifest.json"
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "manifest.json").write_text(manifest.read_text().replace('"classes": [', '"klasses": ['))
    with pytest.raises(DistilledSetError, match="not the manifest of a distilled set"):
        train(broken, "convnet3", out=tmp_path / "model")
