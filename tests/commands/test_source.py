"""What the record of a run or of a set says of its scenes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from geodistill.commands.source import Source, base_from, recorded_base, recorded_reading, warn_of_other_scenes
from geodistill.config import load_config
from geodistill.scenes import builtin_scenes
from geodistill.scenes.reading import PLAIN, Reading

_BANDS = Reading((4, 3, 2), ((0.0, 900.0),) * 3)


@pytest.mark.parametrize(("name", "part"), [("run.json", "settings"), ("manifest.json", "about")])
def test_a_record_without_a_reading_is_one_of_plain_images(name: str, part: str, tmp_path: Path) -> None:
    assert recorded_reading(tmp_path) is None
    (tmp_path / name).write_text(json.dumps({part: {"method": "dpd"}}))
    assert recorded_reading(tmp_path) == PLAIN
    (tmp_path / name).write_text(json.dumps({part: {"method": "dpd", "reading": _BANDS.as_dict()}}))
    assert recorded_reading(tmp_path) == _BANDS
    (tmp_path / name).write_text("{")
    assert recorded_reading(tmp_path) is None


def test_other_scenes_are_told_of_a_run_and_of_its_set(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train = builtin_scenes(train_per_class=1, test_per_class=1, size=32).train
    (tmp_path / "distilled").mkdir()
    for scenes, told in ((train.fingerprint(), False), ("other", True)):
        (tmp_path / "run.json").write_text(json.dumps({"settings": {"scenes": scenes}}))
        for what in (tmp_path, tmp_path / "distilled"):
            caplog.clear()
            warn_of_other_scenes(what, train)
            assert (f"{what} was made from other training scenes than these" in caplog.text) == told
    # An updated set stands for scenes of several archives.
    (tmp_path / "updated").mkdir()
    caplog.clear()
    warn_of_other_scenes(tmp_path, train)
    assert not caplog.records


def test_a_relative_base_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bases" / "own" / "base").mkdir(parents=True)
    run = tmp_path / "runs" / "aid"
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"settings": {"config": {"base": "bases/own/base"}}}))
    monkeypatch.chdir(tmp_path)
    assert recorded_base(run) == "bases/own/base"
    monkeypatch.chdir("/")
    assert recorded_base(run) == str(tmp_path / "bases" / "own" / "base")
    assert base_from(run, "owner/name") == "owner/name"
    assert base_from(run, "compact") == "compact"
    assert base_from(run, "scratch") == str(run / "base")


def test_a_run_reads_files_with_as_many_bands_as_its_set_was_made_from(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"settings": {"reading": _BANDS.settings()}}))
    assert recorded_reading(tmp_path).of_bands == 0
    (tmp_path / "distilled").mkdir()
    about = {"reading": replace(_BANDS, of_bands=13).as_dict()}
    (tmp_path / "distilled" / "manifest.json").write_text(json.dumps({"about": about}))
    assert recorded_reading(tmp_path).of_bands == 13
    assert recorded_reading(tmp_path / "distilled").of_bands == 13


def test_a_set_without_its_run_names_its_base(tmp_path: Path) -> None:
    for base, known in (("compact", "compact"), ("not-installed", None), ("scratch", None)):
        (tmp_path / "manifest.json").write_text(json.dumps({"about": {"config": {"base": base}}}))
        assert recorded_base(tmp_path) == known


@pytest.mark.parametrize(
    ("settings", "closely", "strength"),
    [
        ([], None, 0.6),
        ([], False, 0.6),
        ([], True, 0.4),
        (["sampling.strength=0.8"], True, 0.8),
        (["sampling.follow=none"], None, None),
        (["privacy=screen"], None, None),
        (["privacy=screen", "sampling.strength=0.7"], None, None),
        (["privacy=screen", "sampling.follow=start", "sampling.strength=0.7"], None, 0.7),
    ],
)
def test_the_noise_level_that_candidates_started_from(
    settings: list[str], closely: bool | None, strength: float | None, tmp_path: Path
) -> None:
    if closely is not None:
        (tmp_path / "following").mkdir()
        (tmp_path / "following" / "following.json").write_text(json.dumps({"closely": closely}))
    config = load_config(sets=settings)
    assert Source(tmp_path, "dpd", config, secret=True).strength == strength
    assert Source(tmp_path, "d4m", config, secret=True).strength is None
