import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from geodistill.commands.profile import profile
from geodistill.config import load_config


def _record(run: Path, stage: str, seconds: float, memory: int) -> None:
    (run / "stages").mkdir(parents=True, exist_ok=True)
    record = {"stage": stage, "facts": {}, "wall_seconds": seconds, "cpu_seconds": seconds, "peak_memory_mib": memory}
    (run / "stages" / f"{stage}.json").write_text(json.dumps(record))


def test_the_longest_stages_come_first_with_what_halves_them(tmp_path: Path) -> None:
    for stage, seconds, memory in (
        ("latents", 20.0, 900),
        ("adapter", 30.0, 2000),
        ("chosen", 5.0, 800),
        ("refined", 100.0, 1500),
        ("self_test", 45.0, 700),
    ):
        _record(tmp_path, stage, seconds, memory)
    found = profile(tmp_path, load_config())
    assert found.seconds == 200
    assert list(found.lines()) == [
        "refinement took 100 s, 50 % of the time: --set refinement.steps=120 (now 240) would save about 25 % of the "
        "time",
        "self-test took 45 s, 22 % of the time: --set self_test.held_out=0 saves 22 % of the time",
        "adapter took 30 s, 15 % of the time: --set finetune.steps=500 (now 1000) would save about 8 % of the time",
        "latents took 20 s, 10 % of the time: --set latents.views=4 (now 8) would save about 5 % of the time",
        "the largest memory, 2000 MiB, was that of adapter: --set finetune.batch=32 (now 64) would halve what "
        "its batches need",
    ]


def test_refinement_takes_the_memory_that_is_free(tmp_path: Path) -> None:
    _record(tmp_path, "refined", 10.0, 4000)
    *_, told = profile(tmp_path, load_config()).lines()
    assert told == (
        "the largest memory, 4000 MiB, was that of refinement: it takes what is free, up to a half, and needs less"
    )


@pytest.mark.parametrize("setting", ["latents.views=4", "refinement.steps=120", "finetune.steps=500"])
def test_what_is_advised_is_a_setting(setting: str) -> None:
    section, name = setting.split("=")[0].split(".")
    assert str(getattr(getattr(load_config(sets=[setting]), section), name)) == setting.split("=")[1]


def test_a_setting_that_cannot_be_less(tmp_path: Path) -> None:
    _record(tmp_path, "refined", 10.0, 10)
    _record(tmp_path, "chosen", 10.0, 900)
    found = profile(tmp_path, load_config(sets=["refinement.steps=1"]))
    assert sorted(found.lines()) == [
        "refinement took 10 s, 50 % of the time",
        "selection took 10 s, 50 % of the time",
        "the largest memory, 900 MiB, was that of selection",
    ]


def test_the_settings_of_the_run_s_method_count(tmp_path: Path) -> None:
    _record(tmp_path, "candidates", 10.0, 10)
    _record(tmp_path, "labeller", 10.0, 10)
    (tmp_path / "distilled").mkdir()
    about = {"config": {"sampling": {"candidates": 1}}}
    (tmp_path / "distilled" / "manifest.json").write_text(json.dumps({"about": about}))
    assert sorted(profile(tmp_path, load_config()).lines())[:2] == [
        "candidates took 10 s, 50 % of the time",
        "soft-label teacher took 10 s, 50 % of the time: leaving --soft-labels out saves 50 % of the time",
    ]


def _noted(run: Path, stage: str, facts: dict[str, object]) -> None:
    path = run / "stages" / f"{stage}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"facts": facts}))


def test_the_part_of_a_refinement_that_trains_classifiers_does_not_depend_on_its_steps(tmp_path: Path) -> None:
    _record(tmp_path, "refined", 100.0, 10)
    _noted(tmp_path, "refined", {"students_seconds": 20.0})
    (told,) = [one.change for one in profile(tmp_path, load_config()).stages]
    assert told == "--set refinement.steps=120 (now 240) would save about 40 % of the time"
    _noted(tmp_path, "refined", {"students_seconds": 90.0})
    (told,) = [one.change for one in profile(tmp_path, load_config()).stages]
    assert told == "--set refinement.rounds=1 (now 3) would save about 60 % of the time"


@pytest.mark.parametrize(
    ("closely", "told"),
    [(False, "--set sampling.strength=0.6"), (True, "--set sampling.strength=0.4 --set sampling.guidance=1.5")],
)
def test_the_strength_that_the_test_chose_is_named(closely: bool, told: str, tmp_path: Path) -> None:
    _record(tmp_path, "following", 10.0, 10)
    _noted(tmp_path, "following", {"closely": closely})
    assert [one.change for one in profile(tmp_path, load_config()).stages] == [f"{told} saves 100 % of the time"]


@pytest.mark.parametrize(("views", "told"), [(4, "latents.views=2 (now 4)"), (1, "")])
def test_the_views_that_are_stored_count(views: int, told: str, tmp_path: Path) -> None:
    _record(tmp_path, "latents", 10.0, 10)
    (tmp_path / "latents").mkdir()
    save_file({"latents": torch.zeros(3, views, 2, 2, 2)}, tmp_path / "latents" / "latents.safetensors")
    (found,) = [one.change for one in profile(tmp_path, load_config()).stages]
    assert found == (f"--set {told} would save about 50 % of the time" if told else "")
