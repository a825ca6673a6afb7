import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from geodistill.commands.distill import distill
from geodistill.config import Config
from geodistill.prototypes import Prototypes
from geodistill.run import records
from geodistill.scenes import Scenes
from geodistill.stages import following


def _left_open(config: Config, **sampling: Any) -> Config:
    own = {"strength": None, "guidance": None, **sampling}
    return config.model_copy(update={"sampling": config.sampling.model_copy(update=own)})


def _told(run: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((run / "distilled" / "manifest.json").read_text())["about"]["config"]["sampling"]
    return told


def _facts(run: Path) -> list[dict[str, Any]]:
    return [record["facts"] for record in records(run) if record["stage"] == "following"]


@pytest.mark.parametrize(
    ("drawn", "given_back", "guidance", "strength", "scale"),
    [
        (0.42, 0.61, None, 0.4, 1.5),  # AID, base compact
        (0.70, 0.86, None, 0.6, 3.0),  # EuroSAT, base aid
        (0.72, 1.0, None, 0.6, 3.0),
        (0.71, 1.0, None, 0.4, 1.5),
        (0.71, 1.0, 2.0, 0.4, 2.0),  # what was asked for stays
        (0.72, 1.0, 2.0, 0.6, 2.0),
    ],
)
def test_prototypes_are_followed_closely_where_the_base_draws_them_poorly(
    drawn: float,
    given_back: float,
    guidance: float | None,
    strength: float,
    scale: float,
    tiny: Config,
    tmp_path: Path,
) -> None:
    closely = following._draws_poorly(drawn, given_back)
    (tmp_path / "following").mkdir()
    (tmp_path / "following" / "following.json").write_text(json.dumps({"closely": closely}))
    chosen = following.chosen_sampling(_left_open(tiny, guidance=guidance), tmp_path)
    assert (chosen.strength, chosen.guidance) == (strength, scale)


def test_the_set_tells_how_its_images_were_drawn(
    pair: Scenes, tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worth = iter([0.71, 1.0])
    monkeypatch.setattr(following, "_accuracy", lambda *_: next(worth))
    distill(pair, _left_open(tiny), out=tmp_path / "run")
    assert (_told(tmp_path / "run")["strength"], _told(tmp_path / "run")["guidance"]) == (0.4, 1.5)
    assert _facts(tmp_path / "run") == [{"drawn": 0.71, "given_back": 1.0, "closely": True}]


def test_what_is_drawn_is_asked_about_scenes_that_are_no_prototypes(
    pair: Scenes, tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    predict = following.predict_from_features

    def seeing(train: torch.Tensor, labels: torch.Tensor, test: torch.Tensor, classes: int) -> torch.Tensor:
        asked.append((len(train), len(test)))
        return predict(train, labels, test, classes)

    monkeypatch.setattr(following, "predict_from_features", seeing)
    monkeypatch.setattr(following, "_DRAWN", 4)
    first = distill(pair, _left_open(tiny), out=tmp_path / "run").images
    prototypes = len(pair.classes) * tiny.ipc
    assert asked == [(prototypes, len(pair) - prototypes)] * 2
    (facts,) = _facts(tmp_path / "run")
    assert all(0 <= facts[name] <= 1 for name in ("drawn", "given_back"))
    assert facts["closely"] == (facts["drawn"] < 0.72 * facts["given_back"])
    # The same command again finds the stage, and the set it led to.
    assert torch.equal(distill(pair, _left_open(tiny), out=tmp_path / "run").images, first)
    assert len(asked) == 2


def test_where_every_scene_was_drawn_from_all_are_asked_about(
    pair: Scenes, tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[tuple[int, int]] = []

    def seeing(train: torch.Tensor, labels: torch.Tensor, test: torch.Tensor, classes: int) -> torch.Tensor:
        asked.append((len(train), len(test)))
        return torch.zeros(len(test), classes)

    monkeypatch.setattr(following, "predict_from_features", seeing)
    with caplog.at_level(logging.WARNING, "geodistill"):
        distill(pair, _left_open(tiny), out=tmp_path / "run")
    assert asked == [(300, len(pair))] * 2
    assert f"only {len(pair)} scenes are left to test how closely images should follow training images" in caplog.text


@pytest.mark.parametrize("sampling", [{"strength": 0.5}, {"follow": "none"}, {"follow": "guide"}])
def test_nothing_is_tried_where_the_settings_leave_nothing_open(
    sampling: dict[str, Any], pair: Scenes, tiny: Config, tmp_path: Path
) -> None:
    distill(pair, _left_open(tiny, **sampling), out=tmp_path / "run")
    assert not _facts(tmp_path / "run")
    assert _told(tmp_path / "run")["strength"] == sampling.get("strength")


def test_drawn_images_are_compared_with_the_scenes_they_started_from(
    pair: Scenes, tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[torch.Tensor] = []
    real = following.decode

    def seeing(prior: Any, latents: torch.Tensor, *rest: Any, **named: Any) -> torch.Tensor:
        decoded.append(latents)
        return real(prior, latents, *rest, **named)

    monkeypatch.setattr(following, "decode", seeing)
    monkeypatch.setattr(following, "_DRAWN", 4)
    monkeypatch.setattr(following, "_accuracy", lambda *_: 0.25 * len(decoded))
    config = _left_open(tiny)
    distill(pair, config, out=tmp_path / "run")
    assert _facts(tmp_path / "run") == [{"drawn": 0.25, "given_back": 0.5, "closely": True}]
    starts = Prototypes.load(tmp_path / "run" / "prototypes").starts(1, config.seed, of=config.prototypes.starts)
    stored = load_file(tmp_path / "run" / "latents" / "latents.safetensors")["latents"]
    assert torch.equal(decoded[1], stored[starts, 0].float())
    assert not torch.equal(decoded[0], decoded[1])
