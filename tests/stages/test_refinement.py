import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from geodistill.commands.distill import distill
from geodistill.config import Config
from geodistill.networks import PRETRAINED, backbone_features, normalise, pretrained
from geodistill.refinement import MeansLoss, RefinementLoss
from geodistill.run import records, save_tensors
from geodistill.scenes import Scenes
from geodistill.seeding import derive_seed
from geodistill.stages import refinement as stage
from geodistill.stages import students as teaching
from geodistill.stages.refinement import _Rounds, steps_of_rounds
from geodistill.stages.students import Shown, students

SET = torch.tensor([0, 1])


def _losses(scenes: Scenes) -> list[RefinementLoss]:
    return [RefinementLoss(pretrained(), SET, torch.zeros(len(scenes), 4), scenes.labels) for _ in range(3)]


def _rounds(scenes: Scenes, config: Config) -> _Rounds:
    shown = Shown(scenes.pixels(size=config.size), torch.empty(0), scenes.labels, 2, SET, Path("nowhere"))
    return _Rounds(None, shown, config)  # type: ignore[arg-type]


def test_random_networks_take_every_fourth_turn(pair: Scenes, tiny: Config):
    losses = _losses(pair)
    loss_at = _rounds(pair, tiny)._in_turn(losses, 0)
    for step, known in ((0, 0), (1, 1), (2, 2), (4, 0), (5, 1), (6, 2), (8, 0)):
        assert loss_at(step) is losses[known]
    one, again, next_one = loss_at(3), loss_at(3), loss_at(7)
    assert isinstance(one, MeansLoss)
    assert torch.equal(one.real, again.real)  # whenever it is asked: a run that goes on ends with the same latents
    assert not torch.equal(one.real, next_one.real)


def test_without_random_networks(pair: Scenes, tiny: Config):
    losses = _losses(pair)
    config = tiny.model_copy(update={"refinement": tiny.refinement.model_copy(update={"random": False})})
    loss_at = _rounds(pair, config)._in_turn(losses, 0)
    for step, known in enumerate((0, 1, 2, 0, 1)):
        assert loss_at(step) is losses[known]


def test_every_round_does_its_share_of_the_steps():
    assert steps_of_rounds(160, 2) == [80, 80]
    assert steps_of_rounds(7, 3) == [3, 2, 2]
    assert steps_of_rounds(2, 5) == [1, 1]


@pytest.mark.parametrize(("scenes", "views"), [(3, 8), (1000, 8), (1001, 7), (4001, 1), (9000, 1)])
def test_fewer_scenes_are_seen_from_more_views(scenes: int, views: int):
    pixels = torch.arange(scenes * 3 * 4, dtype=torch.int64).remainder(251).to(torch.uint8).view(scenes, 3, 2, 2)
    found = teaching._real_views(pixels, seed=1)
    assert len(found) == views
    assert torch.equal(found[0], pixels)
    assert all(view.dtype == torch.uint8 and view.shape == pixels.shape for view in found)
    assert all(torch.equal(one, other) for one, other in zip(found, teaching._real_views(pixels, seed=1), strict=True))


def test_a_view_shows_only_what_is_there():
    pixels = torch.full((4, 3, 32, 32), 200, dtype=torch.uint8)
    pixels[:, :, :16] = 100
    for view in teaching._real_views(pixels, seed=0)[1:]:
        assert 100 <= int(view.min()) < int(view.max()) <= 200
        assert not torch.equal(view, pixels)


def test_students_are_one_training_as_it_is_after_some_steps(pair: Scenes, tiny: Config, tmp_path: Path):
    settings = tiny.refinement.model_copy(update={"students": (5, 3, 3)})
    labels = torch.tensor([0, 0, 1, 1])
    config = tiny.model_copy(update={"refinement": settings})
    shown = Shown(pair.pixels(size=64), torch.empty(0), pair.labels, 2, labels, tmp_path)
    images = shown.pixels[:4]
    found = students(shown, images, 1, config)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["student-1-3.safetensors", "student-1-5.safetensors"]
    early, late = (network for network, _ in found)
    last = teaching.train_classifier(
        "finetune", PRETRAINED, images, labels, classes=2, seed=derive_seed(tiny.seed, "student of round", 1), steps=5
    )
    batch = normalise(shown.pixels)
    with torch.no_grad():
        assert torch.equal(late(batch), last.eval()(batch))
        assert not torch.equal(early(batch), late(batch))
    for network, features in found:
        assert torch.equal(features, backbone_features(shown.pixels, network=network))


@pytest.mark.slow
def test_students_see_the_set_as_the_round_finds_it_and_a_kill_between_rounds_changes_nothing(
    pair: Scenes, tiny: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    moving = tiny.refinement.model_copy(update={"steps": 4, "rounds": 2, "students": (2, 3)})
    config = tiny.model_copy(update={"refinement": moving})
    seen: list[torch.Tensor] = []
    train = teaching.train_classifier

    def training(protocol: str, network: str, images: torch.Tensor, labels: torch.Tensor, **rest: Any) -> Any:
        seen.append(images)
        assert len(images) == len(labels) == 2 * len(pair.classes)  # the set, and no real scene
        return train(protocol, network, images, labels, **rest)

    monkeypatch.setattr(teaching, "train_classifier", training)
    whole = distill(pair, config, out=tmp_path / "whole").images
    assert len(seen) == 2  # one training in each round
    assert not torch.equal(seen[0], seen[1])
    (record,) = (record for record in records(tmp_path / "whole") if record["stage"] == "refined")
    assert 0 < record["facts"]["students_seconds"] < record["wall_seconds"]
    # All rounds are told of, and the distance from where the first began.
    assert (
        record["facts"]["steps"] == len(json.loads((tmp_path / "whole" / "refined" / "losses.json").read_text())) == 4
    )
    chosen, moved = (
        load_file(tmp_path / "whole" / name / "chosen.safetensors")["latents"] for name in ("chosen", "refined")
    )
    assert record["facts"]["moved"] == pytest.approx(float((moved - chosen).square().mean()) ** 0.5, abs=1e-4)
    assert {path.name for path in (tmp_path / "whole" / "refined").glob("*.safetensors")} == {"chosen.safetensors"}

    refine, calls = stage.refine, list[int]()

    def killed(*args: Any, **rest: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return refine(*args, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "refine", killed)
        with pytest.raises(KeyboardInterrupt):
            distill(pair, config, out=tmp_path / "killed")
    seen.clear()
    assert torch.equal(distill(pair, config, out=tmp_path / "killed").images, whole)
    assert not seen  # what the rounds had trained was kept


def test_rounds_from_before_losses_were_kept_leave_them_out(pair: Scenes, tiny: Config, tmp_path: Path):
    moving = tiny.refinement.model_copy(update={"steps": 4, "rounds": 2})
    shown = Shown(pair.pixels(size=32), torch.empty(0), pair.labels, 2, SET, tmp_path)
    for rank in range(2):
        save_tensors({"latents": torch.full((4, 2, 2, 2), float(rank))}, tmp_path / f"round-{rank}.safetensors")
    rounds = _Rounds(None, shown, tiny.model_copy(update={"refinement": moving}))  # type: ignore[arg-type]
    _, facts = rounds.move(torch.zeros(4, 2, 2, 2))
    assert facts == {"steps": 4, "moved": 1.0, "students_seconds": 0.0}
    assert not (tmp_path / "losses.json").exists()
