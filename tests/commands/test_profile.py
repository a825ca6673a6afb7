import json
from pathlib import Path

import pytest

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
        "refinement took 100 s, 50 % of the time: --set refinement.steps=120 (now 240) would halve it, and save about "
        "25 % of the time",
        "self-test took 45 s, 22 % of the time: --set self_test.held_out=0 saves 22 % of the time",
        "adapter took 30 s, 15 % of the time: --set finetune.steps=500 (now 1000) would halve it, and save about 8 % "
        "of the time",
        "latents took 20 s, 10 % of the time: --set latents.views=4 (now 8) would halve it, and save about 5 % "
        "of the time",
        "the largest memory, 2000 MiB, was that of adapter: --set finetune.batch=32 (now 64) would halve what "
        "its batches need",
    ]


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
