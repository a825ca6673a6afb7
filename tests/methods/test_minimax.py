from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from geodistill.config import Config
from geodistill.methods import METHODS, minimax, template
from geodistill.methods.minimax import MinimaxLoss
from geodistill.prior import training
from geodistill.prior.base import load_prior
from geodistill.prior.training import TrainingData, TrainingPlan, train_denoiser
from geodistill.run import Run
from geodistill.scenes import Scenes
from geodistill.stages.context import Context


def _cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a * b).sum() / ((a * a).sum() * (b * b).sum()).sqrt()


def test_loss_against_a_plain_loop() -> None:
    g = torch.Generator().manual_seed(0)
    loss, real, made = MinimaxLoss(3, 8, memory=3), {0: [], 1: [], 2: []}, {0: [], 1: [], 2: []}
    compared = 0
    for _ in range(12):
        estimate = torch.randn(4, 2, 2, 2, generator=g, requires_grad=True)
        clean, labels = torch.randn(4, 2, 2, 2, generator=g), torch.randint(0, 3, (4,), generator=g)
        present = sorted(set(labels.tolist()))
        expected = torch.zeros(())
        for label in present:
            own = [estimate[i] for i in range(4) if labels[i] == label]
            if real[label]:
                least = min((_cosine(one, other) for one in own for other in real[label]), key=torch.Tensor.item)
                most = max((_cosine(one, other) for one in own for other in made[label]), key=torch.Tensor.item)
                expected = expected + (0.002 * (1 - least) + 0.008 * most) / len(present)
        value = loss(estimate, clean, labels)
        assert torch.allclose(value, expected, atol=1e-7)
        if value.requires_grad:
            mine, theirs = (torch.autograd.grad(term, estimate)[0] for term in (value, expected))
            assert torch.allclose(mine, theirs, atol=1e-7)
            compared += 1
        for i, label in enumerate(labels.tolist()):
            real[label] = [*real[label], clean[i]][-3:]
            made[label] = [*made[label], estimate[i].detach()][-3:]
    assert compared >= 10
    assert (loss.seen > 3).all()  # every memory has wrapped round


def test_memory_holds_64_of_each_class() -> None:
    loss = MinimaxLoss(2, 4)
    assert loss.real.shape == loss.made.shape == (2, 64, 4)
    assert repr(loss) == "MinimaxLoss(pull=0.002, push=0.008, memory=64)"


def _trained(folder: Path, sd_folder: Path, stop_at: int | None = None) -> dict[str, torch.Tensor]:
    prior = load_prior(str(sd_folder))
    prior.unet.requires_grad_(True)
    g = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1, 0, 1, 0, 1])
    latents = torch.randn(6, 1, 4, 8, 8, generator=g)
    data = TrainingData(latents, labels, labels[:, None] + 1, prior.embed(["", "beach", "river"]))
    plan = TrainingPlan(
        seed=0,
        steps=6,
        batch=4,
        lr=1e-3,
        warmup=1,
        gamma=5.0,
        ema=0.9,
        drop_prompt=0.1,
        auxiliary=MinimaxLoss(2, 256, memory=3),
        checkpoint_every=2,
    )
    folder.mkdir(exist_ok=True)
    draw, losses, steps = TrainingData.batch, training._losses, list[int]()

    def drawing(*args: Any) -> tuple[torch.Tensor, ...]:
        steps.append(args[-1])
        return draw(*args)

    def stopping(*args: Any) -> Iterator[torch.Tensor]:
        values = list(losses(*args))
        if steps[-1] == stop_at:
            raise RuntimeError("killed")
        return iter(values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingData, "batch", drawing)
        patch.setattr(training, "_losses", stopping)
        train_denoiser(prior.unet, prior.scheduler, data, plan, folder, "adapter")
    return load_file(folder / training._CHECKPOINT)


def test_killed_twice_ends_with_the_same_weights_and_memory(tmp_path: Path, sd_folder: Path) -> None:
    expected = _trained(tmp_path / "whole", sd_folder)
    for moment in (3, 5):
        with pytest.raises(RuntimeError, match="killed"):
            _trained(tmp_path / "killed", sd_folder, stop_at=moment)
    resumed = _trained(tmp_path / "killed", sd_folder)
    assert {"auxiliary.real", "auxiliary.made", "auxiliary.seen"} < resumed.keys() == expected.keys()
    assert all(torch.equal(resumed[name], expected[name]) for name in expected)
    assert int(resumed["auxiliary.seen"].sum()) == 24


def test_the_terms_are_what_sets_it_apart_from_template(
    pair: Scenes, on_pipeline: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(method: Any, folder: str) -> torch.Tensor:
        with Run(tmp_path / folder, {}) as run:
            method.make(Context(pair, on_pipeline, run, METHODS[method.__name__.rsplit(".", 1)[1]]))
        weights: torch.Tensor = load_file(tmp_path / folder / "candidates" / "candidates.safetensors")["latents"]
        return weights

    plain = made(template, "template")
    assert not torch.equal(made(minimax, "minimax"), plain)
    monkeypatch.setattr(minimax, "PULL", 0.0)
    monkeypatch.setattr(minimax, "PUSH", 0.0)
    assert torch.equal(made(minimax, "weightless"), plain)
