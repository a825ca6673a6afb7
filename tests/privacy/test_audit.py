import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from geodistill.cli import app
from geodistill.distilled import DistilledSet
from geodistill.errors import ConfigError
from geodistill.privacy.attribution import Attribution
from geodistill.privacy.audit import Known, audit
from geodistill.privacy.replay import Replay
from geodistill.scenes import SceneData, builtin_scenes, write_scenes

SIZES = {"train_per_class": 4, "test_per_class": 1, "size": 64}
pytestmark = pytest.mark.usefixtures("little_audit")


@pytest.fixture(scope="module")
def data(audited_data: SceneData) -> SceneData:
    return audited_data


def test_a_planted_copy_is_named(data: SceneData, mixed_set: DistilledSet, tmp_path: Path) -> None:
    found = audit(mixed_set, data, Known(overlap="about 3 of them"), out=tmp_path)
    own = int((data.train.labels == 2).nonzero()[0])
    assert found.copies == 1
    assert (found.images[0].name, found.images[0].nearest) == (f"{data.train.classes[2]} 0", data.train.names[own])
    ratios = [image.ratios["pixels"] for image in found.images]
    assert ratios == sorted(ratios)
    assert (found.images[0].nearest_index, found.images[0].ratios["structure"]) == (own, pytest.approx(0, abs=0.02))
    assert [reading.measure for reading in found.readings] == ["pixels", "structure", "features", "copy detection"]
    assert [len(found.readings[1].own), len(found.readings[1].held_out), len(found.readings[1].leaked)] == [20, 10, 5]
    assert max(found.readings[2].leaked) < 1e-3
    assert found.leaked_flagged == 1
    assert found.held_out_flagged == 0
    assert found.verdict.startswith(
        "1 of 20 images are copies of training images. An image is a copy if the distance to its nearest training "
        "image is below 0.5 times that to the second nearest; this rule flags 0.0% of 10 held-out real images and 100% "
        "of training images. Aligned nearness is "
    )
    assert found.verdict.endswith("(0.5: guessing). The held-out images are too few to say more.")
    stored = json.loads((tmp_path / "audit.json").read_text())
    assert (stored["copies"], stored["images"][0]["copy"], stored["overlap"]) == (1, True, "about 3 of them")


def test_without_held_out_images_it_says_what_is_missing(data: SceneData, mixed_set: DistilledSet) -> None:
    found = audit(mixed_set, SceneData(data.train, None))
    assert (found.held_out_flagged, found.nearness, found.attacks) == (None, None, ())
    assert (
        "Whether the set reveals which images were training images cannot be measured without held-out images."
        in found.verdict
    )
    assert "this rule flags 100% of training images." in found.verdict


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
    page = (tmp_path / "found" / "audit.html").read_text()
    assert page.count("data:image/png;base64,") == 2 * 10
    assert "This page shows training images." in page
    assert not re.search(r"https?://(?!www\.w3\.org/)", page)
    wrong = CliRunner().invoke(app, [*command, "--fail-on", "everything"])
    assert wrong.exit_code == 2
    assert "--fail-on 'everything' is unknown: known: copy, membership" in wrong.output


@pytest.mark.slow
def test_command_cannot_answer_for_membership_on_few_images(mixed_set: DistilledSet, tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", **SIZES)
    mixed_set.save(tmp_path / "set")
    command = ["audit", str(tmp_path / "set"), "--data", str(tmp_path / "scenes"), "--out", str(tmp_path / "found")]
    blind = CliRunner().invoke(app, [*command, "--fail-on", "membership", "copy"])
    assert blind.exit_code == 3  # what can be answered is: there is a copy
    blind = CliRunner().invoke(app, [*command, "--fail-on", "membership"])
    assert blind.exit_code == 2
    assert (
        "--fail-on membership cannot be answered: 20 images give away 50.0% of 40 training images at most, and with 10 "
        "held-out images no leak can be believed: add held-out images, or ask for copy alone"
    ) in blind.output


@pytest.mark.slow
def test_a_set_shared_with_its_report_fails(data: SceneData, mixed_set: DistilledSet, tmp_path: Path) -> None:
    mixed_set.save(tmp_path / "set")
    write_scenes(tmp_path / "scenes", **SIZES)
    command = ["audit", str(tmp_path / "set"), "--data", str(tmp_path / "scenes"), "--out"]
    inside = CliRunner().invoke(app, [*command, str(tmp_path / "set" / "audit")])
    assert inside.exit_code == 2
    told = " ".join(inside.output.split())
    assert "is in the folder of the set, which is shared: the page shows training images" in told
    assert CliRunner().invoke(app, [*command, str(tmp_path / "found")]).exit_code == 0
    for name in ("audit.html", "audit.json"):
        shutil.copy(tmp_path / "found" / name, tmp_path / "set")
    # A page that is for everybody may lie there.
    (tmp_path / "set" / "report.html").write_text("<p>accuracy</p>")
    again = CliRunner().invoke(app, [*command, str(tmp_path / "found")])
    assert again.exit_code == 3
    assert (
        "FAILED: the folder of the set holds audit.html, audit.json, for the owner of the data alone: move that "
        "elsewhere before you share the folder. 1 of 20 images are copies"
    ) in " ".join(again.output.split())


@pytest.mark.slow
def test_real_images_are_a_leak() -> None:
    data = builtin_scenes(train_per_class=10, test_per_class=11, size=32)
    chosen = torch.arange(0, 100, 4)
    found = audit(DistilledSet(data.train.pixels(chosen, size=32), data.train.labels[chosen], data.train.classes), data)
    assert found.leaks
    assert found.fails(["membership"])
    assert (
        "The set reveals which images were training images: at 9% false positives, the best of 9 attacks"
        in found.verdict
    )


def test_a_set_whose_sources_an_outsider_names_leaks(data: SceneData, mixed_set: DistilledSet) -> None:
    found = audit(mixed_set, data)
    assert not found.leaks
    attribution = Attribution(0.5, 0.2, 0.75, 0.001)
    for p_outsider, leaks in ((0.01, True), (0.011, False)):
        told = replace(found, attribution=attribution, replay=Replay(30, 16, 7, 28, p_outsider, 0.0))
        assert told.leaks == leaks
        assert told.fails(["membership"]) == leaks
        assert ("The set leaks: anyone who has the base can identify sources." in told.verdict) == leaks
        # What the membership attacks show is told for itself.
        assert "The set reveals which images" not in told.verdict


@pytest.mark.slow
def test_too_few_images_to_show_a_leak_are_no_all_clear() -> None:
    data = builtin_scenes(train_per_class=10, test_per_class=11, size=32)
    chosen = torch.arange(0, 100, 50)
    names = tuple(data.train.classes[label] for label in data.train.labels[chosen])
    found = audit(DistilledSet(data.train.pixels(chosen, size=32), torch.tensor([0, 1]), names), data)
    assert not found.leaks
    assert (
        "Whether the set reveals which images were training images cannot be measured: 2 images give away 2.0% of 100 "
        "training images at most, and with 110 held-out images a leak is believed above 18%."
    ) in found.verdict


def test_attacks_on_some_training_images_and_copies_among_all(
    data: SceneData, mixed_set: DistilledSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geodistill.privacy.audit._ATTACKED", 20)
    found = audit(mixed_set, data)
    assert found.train_count == len(data.train) == 40
    own = int((data.train.labels == 2).nonzero()[0])
    assert (found.copies, found.images[0].nearest_index) == (1, own)
    assert found.attacks[0].held_out == 10  # no more than there are
