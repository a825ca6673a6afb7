from pathlib import Path

import pytest
import torch

from geodistill.config import TeacherSettings
from geodistill.errors import TrainingError
from geodistill.latent_teacher import load_latent_teacher, predict, train_latent_teacher

SETTINGS = TeacherSettings(steps=60, batch=16, width=16)
HELD = torch.arange(0, 90, 9)


def _latents(separable: bool) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    latents = torch.randn(90, 2, 4, 4, 4, generator=g)
    if separable:
        latents[torch.arange(90), :, labels] += 3
    return latents.half(), labels


def test_learns_what_can_be_learned(tmp_path: Path) -> None:
    latents, labels = _latents(True)
    facts = train_latent_teacher(latents, labels, HELD, SETTINGS, seed=0, folder=tmp_path)
    assert facts == {"held_out_accuracy": 1.0, "chance": 0.3333, "held_out_scenes": 10}
    logits, features = predict(load_latent_teacher(tmp_path), latents[:, 1])
    assert (logits.argmax(1) == labels).float().mean() > 0.95
    assert torch.allclose(features.norm(dim=1), torch.ones(90), atol=1e-5)


def test_same_seed_same_teacher(tmp_path: Path) -> None:
    latents, labels = _latents(True)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        train_latent_teacher(latents, labels, HELD, SETTINGS, seed=3, folder=tmp_path / name)
    one, other = (predict(load_latent_teacher(tmp_path / name), latents[:, 0])[0] for name in ("a", "b"))
    assert torch.equal(one, other)


def test_refuses_what_is_no_better_than_chance(tmp_path: Path) -> None:
    latents, labels = _latents(False)
    held = torch.arange(0, 90, 2)
    with pytest.raises(TrainingError) as caught:
        train_latent_teacher(latents, labels, held, TeacherSettings(steps=3, batch=8, width=8), seed=0, folder=tmp_path)
    text = str(caught.value)
    assert text.startswith("the teacher gets ")
    assert text.endswith(
        "on held-out scenes, no better than chance (33.3%): check that the class folders hold what they are named, "
        "or raise teacher.steps"
    )
    assert not (tmp_path / "teacher.safetensors").exists()


def test_held_out_scenes_are_not_trained_on(tmp_path: Path) -> None:
    clean, labels = _latents(True)
    spoilt = clean.clone()
    spoilt[HELD, 1:] += 9  # view 0 is what the accuracy is measured on
    weights = []
    for name, latents in (("clean", clean), ("spoilt", spoilt)):
        (tmp_path / name).mkdir()
        train_latent_teacher(latents, labels, HELD, SETTINGS, seed=0, folder=tmp_path / name)
        weights.append(load_latent_teacher(tmp_path / name).head.weight)
    assert torch.equal(*weights)


def test_nothing_held_out(tmp_path: Path) -> None:
    latents, labels = _latents(True)
    nothing = torch.zeros(0, dtype=torch.long)
    with pytest.raises(TrainingError) as caught:
        train_latent_teacher(latents, labels, nothing, SETTINGS, seed=0, folder=tmp_path)
    assert str(caught.value) == (
        f"none of the {len(labels)} scenes falls into the teacher's validation part: "
        "raise teacher.held_out or add images"
    )
