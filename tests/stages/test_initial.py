import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from geodistill.commands.audit import audit
from geodistill.commands.distill import distill
from geodistill.config import Config, SamplingSettings, make_config
from geodistill.distilled import DistilledSet
from geodistill.prior import sample as sampling
from geodistill.prior.base import load_prior, source_of
from geodistill.prior.sample import Requests
from geodistill.provenance import Made
from geodistill.run import Run, records
from geodistill.scenes import SceneData, Scenes
from geodistill.stages import candidates
from geodistill.stages import initial as stage
from geodistill.stages.candidates import Slots, from_noise
from geodistill.stages.context import Context
from geodistill.stages.initial import Initial, initial_count, slots_from


def base_of(config: Config, **changes: object) -> Config:
    """Return `config` with candidates that start from images of the base."""
    values = config.model_dump()
    return make_config({**values, **changes, "sampling": {**values["sampling"], "follow": "base"}})


@pytest.fixture(scope="module")
def run(pair: Scenes, on_pipeline: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("initial") / "run"
    distill(pair, base_of(on_pipeline), out=folder)
    return folder


def test_candidates_start_from_what_the_base_generates_before_it_is_adapted(
    run: Path, pair: Scenes, on_pipeline: Config
) -> None:
    config = base_of(on_pipeline)
    kept = load_file(run / "initial" / "initial.safetensors")
    count = 2 * config.ipc * config.sampling.candidates
    assert kept["latents"].shape[0] == count == initial_count(pair, config)
    prior = load_prior(source_of(config.base, config.size))
    requests = stage._of_own_classes(prior, count, pair.classes, config.size)
    seed = stage.derive_seed(config.seed, "initial")
    drawn = sampling.sample_batch(prior, requests.part(slice(0, 3)), from_noise(config.sampling), seed=seed)
    assert torch.allclose(drawn, kept["latents"][:3], atol=1e-4)
    made = [record["stage"] for record in records(run)]
    assert made.index("initial") < made.index("adapter") < made.index("candidates")
    assert "following" not in made


def test_the_best_of_a_class_are_those_that_a_classifier_of_the_scenes_takes_for_it(
    pair: Scenes, on_pipeline: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = torch.tensor([[0.0, 3.0], [2.0, 0.0], [5.0, 0.0], [0.0, 1.0]])
    config = base_of(on_pipeline)
    prior = load_prior(source_of(config.base, config.size))
    drawn = torch.randn(4, *prior.latent_shape(config.size))
    asked = []

    def classify(train: Tensor, labels: Tensor, features: Tensor, classes: int) -> Tensor:
        asked.append((len(train), labels.tolist(), len(features), classes))
        return logits

    monkeypatch.setattr(stage, "sample", lambda *_, **__: drawn)
    monkeypatch.setattr(stage, "predict_from_features", classify)
    monkeypatch.setattr(stage, "_BEST", 3)
    with Run(tmp_path / "run", {}) as made:
        found = stage.initial_images(Context(pair, config, made), Made.source(prior, "prior")).value
    assert asked == [(len(pair), pair.labels.tolist(), 4, 2)]
    assert found.best.tolist() == [[2, 1, 3], [0, 3, 1]]
    assert torch.equal(found.latents, drawn)


def test_candidates_of_a_class_start_from_its_best_in_turn(pair: Scenes, on_pipeline: Config, tmp_path: Path) -> None:
    config = make_config(
        {**on_pipeline.model_dump(), "ipc": 2, "sampling": {**on_pipeline.sampling.model_dump(), "candidates": 4}}
    )
    images = Initial(torch.zeros(9, 4, 4, 4), torch.tensor([[7, 3, 1], [0, 8, 2]]))
    with Run(tmp_path / "run", {}) as made:
        texts = Made.source(["a", "b", "c", "d"], "texts")
        slots = slots_from(Context(pair, config, made), Made.source(images, "initial"), texts).value
    assert slots.starts is not None
    assert slots.starts.tolist() == [7, 7, 3, 3, 1, 1, 7, 7, 0, 0, 8, 8, 2, 2, 0, 0]
    assert slots.latents is images.latents
    assert slots.texts == ["a", "b", "c", "d"]


def test_classes_are_those_of_the_base_or_else_of_the_archive(
    on_pipeline: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = []
    prior = load_prior(source_of("compact", 64))
    monkeypatch.setattr(
        type(prior), "embed", lambda _, prompts: shown.append(prompts) or torch.zeros(len(prompts), 1, 1)
    )
    requests = stage._of_own_classes(prior, 62, ("volcano",), 64)
    assert len(requests.prompts) == 62
    assert shown[0].count("A satellite image of storage tanks") == 1
    assert len(shown[0]) == 1 + 31 - 2  # the empty prompt; "forest" and "river" are classes of two archives
    stage._of_own_classes(replace(prior, source="owner/name"), 3, ("volcano", "salt lake"), 64)
    assert shown[1][1:] == ["A satellite image of salt lake", "A satellite image of volcano"]


def test_no_image_follows_a_training_image(run: Path, pair: Scenes) -> None:
    distilled = DistilledSet.load(run / "distilled")
    assert not distilled.follows_scenes
    found, *_ = audit(run, SceneData(pair, None), out=run / "found")
    assert (found.attribution, found.replay, found.untested) == (None, None, "")


def test_a_screened_set_says_so(pair: Scenes, on_pipeline: Config, tmp_path: Path) -> None:
    config = base_of(on_pipeline, privacy="screen", reproducible=False)
    distill(pair, config, out=tmp_path / "run")
    card = (tmp_path / "run" / "distilled" / "README.md").read_text()
    assert "No image followed a training image" in card
    about = json.loads((tmp_path / "run" / "distilled" / "manifest.json").read_text())["about"]
    assert about["config"]["sampling"]["follow"] == "base"


def test_only_some_ways_start_from_an_image() -> None:
    settings = SamplingSettings(follow="base", strength=0.8)
    assert from_noise(settings).follow == "none"
    assert settings.starts
    assert not SamplingSettings(follow="none").starts


def test_every_other_candidate_is_drawn_from_text_alone(
    pair: Scenes, on_pipeline: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def sample(_: object, requests: Requests, settings: SamplingSettings, *, seed: int, folder: Path) -> Tensor:
        asked.append((settings.follow, requests.seeds.tolist(), requests.slots.tolist()))
        return torch.full((len(requests.seeds), 4, 8, 8), float(len(asked)))

    monkeypatch.setattr(candidates, "sample", sample)
    config = make_config(
        {
            **on_pipeline.model_dump(),
            "ipc": 1,
            "sampling": {**on_pipeline.sampling.model_dump(), "candidates": 4, "follow": "base"},
        }
    )
    prior = Made.source(load_prior(source_of(config.base, config.size)), "prior")
    slots = Made.source(Slots(["a", "b"], torch.zeros(9, 4, 8, 8), torch.tensor([7, 7, 3, 3, 0, 0, 8, 8])), "slots")
    with Run(tmp_path / "run", {}) as made:
        drawn = candidates.draw(Context(pair, config, made), prior, slots).value.latents
    assert asked == [("base", [0, 2, 10_000, 10_002], [7, 3, 0, 8]), ("none", [1, 3, 10_001, 10_003], [7, 3, 0, 8])]
    assert drawn[:, 0, 0, 0].tolist() == [1, 2] * 4
    assert not list((tmp_path / "run" / "candidates").glob("part*"))
