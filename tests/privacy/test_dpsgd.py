import math
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from geodistill.privacy import dpsgd
from geodistill.privacy.dpsgd import PrivateTraining, train_privately
from geodistill.privacy.noisy import SecretNoise

IMAGES, LABELS = torch.randn(24, 3, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 2


def losses(model: nn.Module, seen: list[int] | None = None):
    def loss_of(images: Tensor) -> Tensor:
        if seen is not None:
            seen.append(len(images))
        return nn.functional.cross_entropy(model(IMAGES[images]), LABELS[images])

    return loss_of


def by(seed: int = 0) -> SecretNoise:
    return SecretNoise(np.random.default_rng(seed).bytes)


def linear() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(3, 2)


def test_the_gradient_is_the_sum_of_clipped_ones_over_the_expected_batch(monkeypatch):
    # Steps of SGD, which show the gradient; without noise, and with everybody in the batch.
    monkeypatch.setattr(torch.optim, "AdamW", lambda parameters, lr, weight_decay: torch.optim.SGD(parameters, lr=lr))
    model, reference = linear(), linear()
    with torch.no_grad():
        for weights in (model, reference):
            weights.weight.mul_(4)
    training = PrivateTraining(count=24, steps=1, batch=24, lr=0.5, micro_batch=7)
    train_privately(model, losses(model), training, noise=0.0, by=by(), title="test")
    total = [torch.zeros_like(p) for p in reference.parameters()]
    lengths = []
    for index in range(24):
        own = torch.autograd.grad(losses(reference)(torch.tensor([index])), list(reference.parameters()))
        length = torch.cat([g.flatten() for g in own]).norm()
        lengths.append(float(length))
        total = [t + g * min(1.0, 1 / float(length)) for t, g in zip(total, own, strict=True)]
    assert max(lengths) > 1  # some are clipped
    for p, before, t in zip(model.parameters(), reference.parameters(), total, strict=True):
        torch.testing.assert_close(p.detach(), before.detach() - 0.5 * t / 24, atol=1e-5, rtol=1e-5)


def test_noise_has_the_deviation_it_says(monkeypatch):
    monkeypatch.setattr(torch.optim, "AdamW", lambda parameters, lr, weight_decay: torch.optim.SGD(parameters, lr=lr))
    model = nn.Linear(3000, 2, bias=False)
    before = model.weight.detach().clone()
    training = PrivateTraining(count=24, steps=1, batch=8, lr=1.0)
    train_privately(
        model, lambda images: 0 * model(torch.zeros(len(images), 3000)).sum(), training, noise=4.0, by=by(), title="t"
    )
    assert float((model.weight.detach() - before).std()) == pytest.approx(4.0 / 8, rel=0.05)


def test_each_image_is_drawn_on_its_own_in_parts_of_limited_size():
    model, seen = linear(), list[int]()
    training = PrivateTraining(count=24, steps=200, batch=6, lr=1e-3, micro_batch=4)
    train_privately(model, losses(model, seen), training, noise=1.0, by=by(), title="test")
    assert max(seen) == 4
    assert sum(seen) / 200 == pytest.approx(6, rel=0.1)


def test_batches_are_of_many_sizes_as_the_accountant_counts_them(monkeypatch):
    sizes = list[int]()
    monkeypatch.setattr(dpsgd, "_step", lambda optimiser, loss_of, parts, of: sizes.append(sum(map(len, parts))))
    training = PrivateTraining(count=400, steps=300, batch=100, lr=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no optimiser steps here before the schedule does
        train_privately(linear(), losses(linear()), training, noise=1.0, by=by(), title="test")
    assert torch.tensor(sizes).double().var() == pytest.approx(400 * 0.25 * 0.75, rel=0.3)


def test_a_step_without_anybody_is_noise_alone():
    model, seen = linear(), list[int]()
    before = model.weight.detach().clone()
    training = PrivateTraining(count=24, steps=1, batch=1, lr=0.1)
    nobody = next(seed for seed in range(100) if not (by(seed).uniform(24) <= 1 / 24).any())
    train_privately(model, losses(model, seen), training, noise=1.0, by=by(nobody), title="test")
    assert seen == []
    assert not torch.equal(model.weight, before)


def test_it_learns_and_leaves_the_model_as_any_other():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    labels = (IMAGES[:, 0] > 0).long()
    training = PrivateTraining(count=24, steps=80, batch=24, lr=0.05)
    train_privately(
        model,
        lambda i: nn.functional.cross_entropy(model(IMAGES[i]), labels[i]),
        training,
        noise=0.5,
        by=by(),
        title="t",
    )
    assert float((model(IMAGES).argmax(1) == labels).float().mean()) > 0.9
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())


def test_private_batches_are_larger_and_fewer():
    own = PrivateTraining.instead_of(6000, 1000, 64, 1e-3)
    assert (own.count, own.steps, own.batch, own.rate) == (6000, 125, 512, pytest.approx(0.0853, abs=1e-4))
    assert own.lr == pytest.approx(2.828e-3, rel=1e-3)
    small = PrivateTraining.instead_of(100, 4, 64, 1e-3)
    assert (small.steps, small.batch, small.rate) == (1, 100, 1.0)


def test_all_parameters_get_noise_and_the_sum_is_over_the_expected_batch(monkeypatch):
    monkeypatch.setattr(torch.optim, "AdamW", lambda parameters, lr, weight_decay: torch.optim.SGD(parameters, lr=lr))
    model = nn.Sequential(nn.Linear(400, 5), nn.Linear(5, 400))
    before = [p.detach().clone() for p in model.parameters()]
    training = PrivateTraining(count=24, steps=1, batch=8, lr=1.0)
    nothing = lambda images: 0 * model(torch.zeros(len(images), 400)).sum()  # noqa: E731
    train_privately(model, nothing, training, noise=4.0, by=by(), title="t")
    for p, was in zip(model.parameters(), before, strict=True):
        assert float((p.detach() - was).square().mean().sqrt()) == pytest.approx(4.0 / 8, rel=0.7)
    # Everybody is drawn, so the sum of 24 gradients of length 1 is divided by the 8 that are expected.
    monkeypatch.setattr(SecretNoise, "uniform", lambda self, *shape: torch.full(shape, 1e-9, dtype=torch.float64))
    line = nn.Linear(1, 1, bias=False)
    start = float(line.weight.detach())
    steep = lambda images: 9 * line(torch.ones(len(images), 1)).mean()  # noqa: E731
    train_privately(line, steep, training, noise=0.0, by=by(), title="t")
    assert float(line.weight.detach()) == pytest.approx(start - 24 / 8)


def test_the_rate_falls_to_zero(monkeypatch):
    monkeypatch.setattr(torch.optim, "AdamW", lambda parameters, lr, weight_decay: torch.optim.SGD(parameters, lr=lr))
    monkeypatch.setattr(SecretNoise, "uniform", lambda self, *shape: torch.full(shape, 1e-9, dtype=torch.float64))
    line = nn.Linear(1, 1, bias=False)
    seen = [float(line.weight.detach())]

    def loss(images):
        seen.append(float(line.weight.detach()))
        return 9 * line(torch.ones(len(images), 1)).mean()

    training = PrivateTraining(count=4, steps=4, batch=4, lr=1.0)
    train_privately(line, loss, training, noise=0.0, by=by(), title="t")
    moved = [a - b for a, b in zip(seen[1:], [*seen[2:], float(line.weight.detach())], strict=True)]
    # Cosine annealing over four steps.
    assert moved == pytest.approx([(1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)], abs=1e-5)
