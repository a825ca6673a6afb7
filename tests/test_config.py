from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geodistill.config import (
    Config,
    explain_settings,
    load_config,
    make_config,
    read_recorded,
    recorded,
    to_toml,
    without_self_test,
)
from geodistill.errors import ConfigError


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('ipc = 3\nseed = 1\n[sampling]\nfollow = "guide"\nsteps = 9\n')
    config = load_config(file, ["sampling.steps=12", "seed=5", "selection.by=margin"], seed=7, base=None)
    assert (config.ipc, config.seed, config.base) == (3, 7, "compact")
    assert (config.sampling.follow, config.sampling.steps, config.selection.by) == ("guide", 12, "margin")


@given(
    st.integers(1, 100),
    st.integers(0, 2**31),
    st.text(min_size=1).filter(str.isprintable),
    st.floats(0.01, 1.0),
    st.sampled_from(["start", "guide", "none"]),
)
def test_toml_round_trip(tmp_path_factory, ipc, seed, base, strength, follow) -> None:  # type: ignore[no-untyped-def]
    config = make_config({"ipc": ipc, "seed": seed, "base": base, "sampling": {"strength": strength, "follow": follow}})
    file = tmp_path_factory.mktemp("toml") / "config.toml"
    file.write_text(to_toml(config), encoding="utf-8")
    assert load_config(file) == config


def _message(*args: object, **named: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(*args, **named)  # type: ignore[arg-type]
    return str(caught.value)


def test_unknown_setting_lists_the_known() -> None:
    assert _message(None, ["selection.on=margin"]) == "unknown setting 'selection.on': known here are by"


def test_value_out_of_range() -> None:
    assert _message(ipc=0) == "setting 'ipc': input should be greater than or equal to 1, got 0"


def test_wrong_choice() -> None:
    assert _message(None, ["sampling.follow=lead"]) == (
        "setting 'sampling.follow': input should be 'start', 'guide', 'none' or 'base', got 'lead'"
    )


def test_set_without_equals() -> None:
    assert _message(None, ["ipc"]) == (
        "--set 'ipc' has no '=': write --set section.key=value, such as sampling.steps=25"
    )


def test_set_below_a_value() -> None:
    assert _message(None, ["ipc=3", "ipc.deep=1"]) == "--set 'ipc.deep=1': 'ipc' is not a section"


def test_files_that_are_not_there_or_not_toml(tmp_path: Path) -> None:
    missing, broken = tmp_path / "missing.toml", tmp_path / "broken.toml"
    broken.write_text("ipc = = 3")
    assert _message(missing) == f"cannot read the config file {missing}: No such file or directory"
    assert _message(broken).startswith(f"{broken} is not valid TOML: ")


PRESETS = Path(__file__).parents[1] / "src" / "geodistill" / "presets"


@pytest.mark.parametrize("file", sorted(PRESETS.glob("*.toml")), ids=lambda path: path.stem)
def test_presets_are_valid(file: Path) -> None:
    assert load_config(file) != Config()


def test_presets_of_the_preprint_and_of_the_released_code() -> None:
    first, revised = (load_config(PRESETS / f"{name}.toml") for name in ("paper", "paper-r1"))
    # As in the paper's code.
    assert (first.finetune.steps, first.finetune.batch, first.finetune.lr, first.finetune.warmup) == (
        20000,
        8,
        5e-4,
        200,
    )
    assert (first.sampling.follow, first.sampling.strength, first.sampling.guidance) == ("start", 0.75, 7.5)
    assert (first.sampling.steps, first.sampling.solver, first.size) == (50, "pndm", 256)
    assert (revised.sampling.follow, revised.sampling.scale, revised.sampling.until) == ("guide", 1.0, 0.8)
    assert (revised.sampling.candidates, revised.selection.by) == (5, "margin")
    # The released code has the diffusion loss alone and class prompts alone.
    assert (revised.finetune.consistency, revised.descriptions.describer) == (0, "template")
    tuned = revised.finetune.model_copy(update={"consistency": first.finetune.consistency})
    same = {"sampling": first.sampling, "selection": first.selection, "descriptions": first.descriptions}
    assert revised.model_copy(update=same | {"finetune": tuned}) == first


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("finetune.lr=inf", "setting 'finetune.lr': input should be a finite number, got inf"),
        ("teacher.width=20", "setting 'teacher.width': input should be a multiple of 8, got 20"),
        ("compact.width=[0, 64]", "setting 'compact.width.0': input should be greater than or equal to 32, got 0"),
        ("compact.width=[32, 65]", "setting 'compact.width.1': input should be a multiple of 32, got 65"),
        ("sampling.steps=1001", "setting 'sampling.steps': input should be less than or equal to 1000, got 1001"),
    ],
)
def test_values_that_would_stop_a_later_stage(setting: str, message: str) -> None:
    assert _message(None, [setting]) == message


@pytest.mark.parametrize(
    ("values", "strength", "scale"),
    [
        ({}, 0.6, 3.0),
        ({"sampling": {"guidance": 1.0}}, 0.6, 1.0),
        ({"sampling": {"strength": 0.3}}, 0.3, 3.0),
        ({"privacy": "screen"}, 0.6, 3.0),
        ({"privacy": "dp", "epsilon": 8.0, "delta": 1e-5}, 0.8, 3.0),
        ({"privacy": "screen", "sampling": {"guidance": 2.0}}, 0.6, 2.0),
    ],
)
def test_strength_and_guidance_that_are_left_open(
    values: dict[str, Any], strength: float, scale: float, tmp_path: Path
) -> None:
    config = make_config(values)
    assert (config.sampling.noise_strength, config.sampling.guidance_scale) == (strength, scale)
    (tmp_path / "config.toml").write_text(to_toml(config))
    assert load_config(tmp_path / "config.toml") == config
    assert read_recorded(recorded(config)) == config


def test_under_screening_no_image_starts_as_a_training_image_unless_it_is_asked_for() -> None:
    screened = make_config({"privacy": "screen"})
    assert (screened.sampling.follow, screened.refinement.steps, screened.refinement.rounds) == ("base", 480, 6)
    assert make_config({"privacy": "screen", "refinement": {"steps": 9}}).refinement.steps == 9
    for asked, follow in (({"strength": 0.8}, "base"), ({"follow": "start"}, "start"), ({"follow": "none"}, "none")):
        assert make_config({"privacy": "screen", "sampling": asked}).sampling.follow == follow
    assert make_config({}).sampling.follow == "start"
    assert make_config({"privacy": "dp", "epsilon": 8.0, "delta": 1e-5}).sampling.follow == "start"


def test_text_with_control_characters_comes_back(tmp_path: Path) -> None:
    config = make_config({"base": 'a "b"\\\n\t\x00\x7f é'})
    (tmp_path / "config.toml").write_text(to_toml(config), encoding="utf-8")
    assert load_config(tmp_path / "config.toml") == config


def test_file_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "image.toml").write_bytes(b"\xff\xd8\xff")
    assert _message(tmp_path / "image.toml").startswith(f"{tmp_path}/image.toml is not valid TOML: ")


def test_every_setting_is_explained_by_the_name_that_sets_it() -> None:
    told = {setting.name: setting for setting in explain_settings()}
    assert all(setting.meaning for setting in told.values())
    assert told["refinement.students"].default == "[40, 100, 200]"
    assert "dpmsolver++" in told["sampling.solver"].meaning
    assert all(
        load_config(sets=[f"{name}={one.default}"]) == Config() for name, one in told.items() if one.default != "null"
    )


def test_self_test_is_on_but_for_the_presets_that_cannot_spare_scenes_or_time() -> None:
    assert Config().self_test.held_out == 0.1
    off = {file.stem for file in PRESETS.glob("*.toml") if not load_config(file).self_test.held_out}
    assert off == {"demo", "paper", "paper-r1", "tiny"}
    assert _message(None, ["self_test.held_out=0.6"]) == (
        "setting 'self_test.held_out': input should be less than or equal to 0.5, got 0.6"
    )


def test_self_test_gives_way_to_differential_privacy_unless_it_is_asked_for() -> None:
    private = {"privacy": "dp", "epsilon": 8.0, "delta": 1e-5}
    assert load_config(**private).self_test.held_out == 0
    assert _message(None, ["self_test.held_out=0.1"], **private) == (
        "privacy 'dp' does not go with this self_test.held_out: its result is read from the scenes without noise "
        "(--set self_test.held_out=0 leaves it out)"
    )


def test_record_without_a_self_test_is_that_of_a_run_from_before_there_was_one() -> None:
    config = Config(ipc=3)
    off = without_self_test(config)
    assert off.self_test.held_out == 0
    assert "self_test" not in recorded(off)
    assert recorded(config)["self_test"] == {"held_out": 0.1}
    assert (read_recorded(recorded(off)), read_recorded(recorded(config))) == (off, config)
