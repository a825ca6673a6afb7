import itertools
import re
from pathlib import Path

import pytest
import torch

from geodistill.config import TeacherSettings
from geodistill.errors import TrainingError
from geodistill.latent_teacher import (
    _refuse_guessing,
    balanced_accuracy,
    guessing_p_value,
    load_latent_teacher,
    predict,
    train_latent_teacher,
)

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


def test_refuses_what_is_no_better_than_guessing(tmp_path: Path) -> None:
    latents, labels = _latents(False)
    held, settings = torch.arange(0, 90, 2), TeacherSettings(steps=3, batch=8, width=8)
    told: list[str] = []
    for seed in range(4):
        try:
            train_latent_teacher(latents, labels, held, settings, seed=seed, folder=tmp_path)
        except TrainingError as error:
            told.append(str(error))
    # One in twenty passes by luck.
    assert len(told) >= 2
    for text in told:
        assert re.fullmatch(
            r"the teacher gets a balanced accuracy of \d+\.\d% on 45 held-out scenes, no better than guessing "
            r"\(33\.3%\): check that the class folders hold what they are named, or raise teacher\.steps",
            text,
        )


@pytest.mark.parametrize(
    ("counts", "told"),
    [((1, 1), True), ((2, 2), True), ((4, 4), False), ((60, 1), False), ((37, 0), True), ((99, 1), False)],
)
def test_a_perfect_teacher_is_never_refused(
    counts: tuple[int, int], told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    labels = torch.tensor([0] * counts[0] + [1] * counts[1])
    _refuse_guessing(labels, labels)
    wanted = (
        f"{len(labels)} held-out scenes are too few to tell whether the teacher is better than guessing: more images"
    )
    assert [message.startswith(wanted) for message in caplog.messages] == [True] * told


def test_always_the_largest_class_is_guessing(caplog: pytest.LogCaptureFixture) -> None:
    labels = torch.tensor([0] * 60 + [1] * 10)
    with pytest.raises(TrainingError, match=r"a balanced accuracy of 50\.0% on 70 held-out scenes, no better than"):
        _refuse_guessing(torch.zeros_like(labels), labels)
    # A few scenes of the other class, and as many mistakes, are no evidence.
    _refuse_guessing(torch.zeros(69, dtype=torch.int64), labels[:69])
    assert "too few to tell" in caplog.text


def test_p_value_of_guessing_against_all_permutations() -> None:
    predicted, labels = torch.tensor([0, 0, 1, 0, 1, 1]), torch.tensor([0, 0, 0, 1, 1, 1])
    observed = balanced_accuracy(predicted, labels)
    dealt = [balanced_accuracy(predicted[list(order)], labels) for order in itertools.permutations(range(6))]
    exact = sum(one >= observed - 1e-9 for one in dealt) / len(dealt)
    assert observed == pytest.approx(2 / 3)
    assert guessing_p_value(predicted, labels) == pytest.approx(exact, abs=0.06)


@pytest.mark.parametrize("counts", [(12, 12), (600, 8)])
def test_few_scenes_and_uneven_classes_run(counts: tuple[int, int], tmp_path: Path) -> None:
    labels = torch.tensor([0] * counts[0] + [1] * counts[1])
    latents = torch.randn(len(labels), 1, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    latents[labels == 1, :, 0] += 3
    for rank in range(5):
        held = torch.randperm(len(labels), generator=torch.Generator().manual_seed(rank))[: len(labels) // 10]
        facts = train_latent_teacher(latents, labels, held, SETTINGS, seed=0, folder=tmp_path)
        assert facts["held_out_scenes"] == len(labels) // 10


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


def test_nothing_held_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    latents, labels = _latents(True)
    nothing = torch.zeros(0, dtype=torch.long)
    facts = train_latent_teacher(latents, labels, nothing, SETTINGS, seed=0, folder=tmp_path)
    assert facts["held_out_scenes"] == 0
    assert "0 held-out scenes are too few to tell" in caplog.text
    assert load_latent_teacher(tmp_path)
