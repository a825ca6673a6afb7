import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from geodistill.commands.audit import audit as audit_folder
from geodistill.commands.distill import distill
from geodistill.commands.source import read_source
from geodistill.config import Config, make_config
from geodistill.distilled import DistilledSet
from geodistill.privacy import replay as module
from geodistill.privacy.replay import Draws, replay
from geodistill.scenes import SceneData, Scenes


@pytest.fixture(scope="module")
def unrefined(on_pipeline: Config) -> Config:
    return make_config({**on_pipeline.model_dump(), "refinement": {"steps": 0}})


@pytest.fixture(scope="module")
def secret_run(pair: Scenes, unrefined: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("replayed") / "run"
    distill(pair, make_config({**unrefined.model_dump(), "reproducible": False}), out=folder)
    return folder


def draws_of(run: Path, scenes: Scenes) -> tuple[Draws, DistilledSet]:
    distilled = DistilledSet.load(run / "distilled")
    source = read_source(run, scenes)
    prior = source.prior()
    assert prior is not None
    draws = source.draws(distilled, prior)
    assert draws is not None
    return draws, distilled


def test_an_insider_draws_every_image_again(secret_run: Path, pair: Scenes) -> None:
    draws, distilled = draws_of(secret_run, pair)
    found = replay(draws, distilled.images, pair.pixels(size=32), pair.labels)
    assert found is not None
    assert (found.images, found.suspects, found.insider) == (4, 16, 4)
    assert found.p_insider == pytest.approx(16**-4)
    assert found.guessed == 0.25


def test_with_the_wrong_secret_he_is_no_better_than_an_outsider(secret_run: Path, pair: Scenes) -> None:
    draws, distilled = draws_of(secret_run, pair)
    # From pure noise the starts do not count: what is left is the noise, which nobody else knows.
    settings = tuple(one.model_copy(update={"strength": 1.0}) for one in draws.settings)
    blind = replace(draws, settings=settings, seeds=(b"guessed" * 4,), adapted=draws.prior)
    found = replay(blind, distilled.images, pair.pixels(size=32), pair.labels)
    assert found is not None
    assert found.insider < 4
    assert found.p_insider > 0.001


@pytest.mark.slow
def test_where_the_seed_is_known_the_adapter_alone_keeps_an_outsider_away(
    pair: Scenes, unrefined: Config, tmp_path: Path
) -> None:
    config = make_config({**unrefined.model_dump(), "finetune": {"steps": 0}})
    distill(pair, config, out=tmp_path / "run")
    draws, distilled = draws_of(tmp_path / "run", pair)
    found = replay(draws, distilled.images, pair.pixels(size=32), pair.labels)
    assert found is not None
    assert (found.outsider, found.insider) == (4, 4)


@pytest.mark.slow
def test_audit_tells_of_it(secret_run: Path, pair: Scenes, tmp_path: Path) -> None:
    shutil.copytree(secret_run, tmp_path / "run")
    found, *_ = audit_folder(tmp_path / "run", SceneData(pair, None), out=tmp_path / "found")
    assert found.replay is not None
    assert "In the replay test of 4 images with 16 suspects each, an outsider identifies " in found.verdict
    assert "an insider with adapter and secret 4 (p < 0.001), and guessing 0.2." in found.verdict
    assert json.loads((tmp_path / "found" / "audit.json").read_text())["replay"]["insider"] == 4


@pytest.mark.slow
def test_images_that_began_as_noise_have_nothing_to_replay(pair: Scenes, unrefined: Config, tmp_path: Path) -> None:
    config = make_config({**unrefined.model_dump(), "sampling": {**unrefined.sampling.model_dump(), "follow": "none"}})
    distill(pair, config, out=tmp_path / "run")
    distilled, source = DistilledSet.load(tmp_path / "run" / "distilled"), read_source(tmp_path / "run", pair)
    prior = source.prior()
    assert prior is not None
    assert source.draws(distilled, prior) is None
    assert source.starts(distilled) is None


def test_no_suspects(secret_run: Path, pair: Scenes) -> None:
    draws, distilled = draws_of(secret_run, pair)
    alone = torch.arange(len(pair))
    assert replay(draws, distilled.images, pair.pixels(size=32), alone) is None


def test_an_outsider_has_the_base_and_a_guessed_seed_alone(
    secret_run: Path, pair: Scenes, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws, distilled = draws_of(secret_run, pair)
    settings = (draws.settings[0], draws.settings[0].model_copy(update={"strength": 0.9}))
    draws = replace(draws, settings=settings, seeds=(b"a" * 32, b"b" * 32), told=("what the set says",) * 4)
    used = []
    monkeypatch.setattr(
        module._Attacker,
        "names",
        lambda self, *_: used.append((self.prior, self.texts, self.settings, self.seeds)) or len(used),
    )
    found = replay(draws, distilled.images, pair.pixels(size=32), pair.labels)
    assert found is not None
    assert used[0] == (draws.prior, draws.told, settings[:1], (draws.guessed,))
    assert used[1] == (draws.adapted, draws.texts, settings, draws.seeds)
    assert (found.outsider, found.insider) == (1, 2)
    assert found.p_outsider > found.p_insider


def test_suspects_are_of_the_class_of_the_start() -> None:
    labels = torch.tensor([0, 1] * 20)
    found = module._suspects(5, labels, 16, torch.Generator().manual_seed(0))
    assert found[0] == 5
    assert labels[found].tolist() == [1] * 16
    assert len(found.unique()) == 16
