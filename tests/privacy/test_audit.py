import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from geodistill.cli import app
from geodistill.distilled import DistilledSet
from geodistill.errors import ConfigError
from geodistill.privacy.audit import audit
from geodistill.scenes import SceneData, builtin_scenes, write_scenes
from geodistill.scenes.views import dihedral

SIZES = {"train_per_class": 4, "test_per_class": 1, "size": 64}


@pytest.fixture(autouse=True)
def few_leaked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geodistill.privacy.audit._LEAKED", 5)


@pytest.fixture(scope="module")
def data() -> SceneData:
    return builtin_scenes(**SIZES)


@pytest.fixture(scope="module")
def mixed_set(data: SceneData) -> DistilledSet:
    """Two fresh images a class, but that of the third class's two one is a training image turned."""
    fresh = builtin_scenes(train_per_class=2, test_per_class=1, size=64, seed=99).train
    images, labels = fresh.pixels(size=64), fresh.labels
    own = int((data.train.labels == 2).nonzero()[0])
    images[(labels == 2).nonzero()[0]] = dihedral(data.train.pixels([own], size=64), 3)
    return DistilledSet(images, labels, fresh.classes)


def test_a_planted_copy_is_named(data: SceneData, mixed_set: DistilledSet, tmp_path: Path) -> None:
    found = audit(mixed_set, data, out=tmp_path)
    own = int((data.train.labels == 2).nonzero()[0])
    assert found.copies == 1
    assert (found.images[0].name, found.images[0].nearest) == (f"{data.train.classes[2]} 0", data.train.names[own])
    assert [image.ratio for image in found.images] == sorted(image.ratio for image in found.images)
    assert found.leaked_flagged == 1
    assert found.held_out_flagged == 0
    assert found.verdict.startswith(
        "1 of 20 images are copies of training images (distance to the nearest under 0.5 of that to the second "
        "nearest; of 10 held-out real images 0.0% are taken for copies, of training images 100%); nearness ratio "
    )
    stored = json.loads((tmp_path / "audit.json").read_text())
    assert (stored["copies"], stored["images"][0]["copy"]) == (1, True)
    assert Image.open(tmp_path / "pairs.png").width > 10 * 128


def test_without_held_out_images_it_says_what_is_missing(data: SceneData, mixed_set: DistilledSet) -> None:
    found = audit(mixed_set, SceneData(data.train, None))
    assert (found.held_out_flagged, found.nearness) == (None, None)
    assert "no held-out images to check that against, of training images 100%)" in found.verdict


def test_set_of_another_data_set(data: SceneData) -> None:
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    with pytest.raises(ConfigError) as caught:
        audit(DistilledSet(images, torch.tensor([0, 1]), ("Beach", "Volcano")), data)
    assert str(caught.value) == ("the set has a class 'Volcano' that the data have not: audit it against its own data")


def test_command_fails_on_a_copy_where_asked(mixed_set: DistilledSet, tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", **SIZES)
    mixed_set.save(tmp_path / "set")
    command = ["audit", str(tmp_path / "set"), "--data", str(tmp_path / "scenes"), "--out", str(tmp_path / "found")]
    told = CliRunner().invoke(app, [*command, "--fail-on", "copy"])
    assert told.exit_code == 3
    assert "1 of 20 images are copies of training images" in told.output
    wrong = CliRunner().invoke(app, [*command, "--fail-on", "everything"])
    assert wrong.exit_code == 2
    assert "--fail-on 'everything' is unknown: 'copy' is what there is" in wrong.output
