import math
import re

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import nn

from geodistill.errors import ConfigError, TrainingError
from geodistill.evaluation import protocols
from geodistill.evaluation.protocols import (
    Recipe,
    _check_loss,
    augment,
    draw_crops,
    recipe_steps,
    shuffled_batches,
    train_and_predict,
)
from geodistill.networks import build_network, normalise
from geodistill.seeding import generator

GREEN = torch.tensor([40, 160, 40])[:, None, None]
BLUE = torch.tensor([40, 40, 160])[:, None, None]


def coloured(count, seed=0):
    """Two classes, green and blue, with noise."""
    random = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    noise = torch.randint(-30, 31, (count, 3, 32, 32), generator=random)
    return (torch.where(labels[:, None, None, None] == 0, GREEN, BLUE) + noise).to(torch.uint8), labels


@pytest.mark.parametrize(
    ("protocol", "network", "steps"),
    [("probe", "efficientnet-lite0", None), ("finetune", "efficientnet-lite0", 2), ("scratch", "convnet3", 12)],
)
def test_learns_and_repeats(protocol, network, steps, monkeypatch):
    monkeypatch.setattr("geodistill.evaluation.protocols.BATCH", 8)
    (train, labels), (test, truth) = coloured(8), coloured(8, seed=1)
    runs = [
        train_and_predict(protocol, network, train, labels, test, classes=2, seed=seed, steps=steps)
        for seed in (3, 3, 4)
    ]
    assert runs[0].shape == (8, 2)
    # two steps are too few for finetune: the running statistics of its batch norm still are ImageNet's
    assert protocol == "finetune" or (runs[0].argmax(1) == truth).float().mean() == 1
    assert torch.equal(runs[0], runs[1])
    assert torch.equal(runs[0], runs[2]) == (protocol == "probe")


def test_scratch_forgets_imagenet_and_reports_progress(monkeypatch):
    monkeypatch.setattr("geodistill.evaluation.protocols.BATCH", 8)
    train, labels = coloured(8)
    seen = []
    options = {"classes": 2, "seed": 0, "steps": 2, "advance": seen.append}
    scratch = train_and_predict("scratch", "efficientnet-lite0", train, labels, train, **options)
    assert torch.isfinite(scratch).all()
    assert seen == [1, 2]
    started = {}
    for protocol in ("scratch", "finetune"):
        monkeypatch.setattr(protocols, "_train", lambda model, *_, p=protocol: started.update({p: model}))
        protocols.train_classifier(protocol, "efficientnet-lite0", train, labels, classes=2, seed=0, steps=2)
    own = build_network("efficientnet-lite0", 2, 0).state_dict()
    for name in ("_conv_stem.weight", "_blocks.3._depthwise_conv.weight", "_conv_head.weight"):
        assert torch.equal(started["finetune"].state_dict()[name], own[name])
        assert not torch.equal(started["scratch"].state_dict()[name], own[name])


def test_forgotten_weights_have_the_deviation_of_he():
    dense, depthwise = nn.Conv2d(40, 60, 3), nn.Conv2d(512, 512, 5, groups=512)
    model = nn.Sequential(dense, depthwise, nn.BatchNorm2d(512))
    model[2].weight.data.fill_(7)
    protocols._forget(model, 0)
    assert float(dense.weight.detach().std()) == pytest.approx((2 / (60 * 9)) ** 0.5, rel=0.02)
    assert float(depthwise.weight.detach().std()) == pytest.approx((2 / 25) ** 0.5, rel=0.02)
    assert bool((model[2].weight == 1).all())


def test_recipes_are_those_of_the_reference_figures():
    assert protocols.RECIPES["finetune"] == Recipe(0.02, 400, 1200, math.inf)
    assert protocols.RECIPES["scratch"] == Recipe(0.05, 500, 1500, math.inf)
    assert (protocols.BATCH, protocols.LARGE_SET) == (64, 2000)


def test_a_training_is_that_of_a_plain_loop(monkeypatch):
    """SGD with momentum and weight decay, a one-cycle schedule, new views at each step, new orders at each pass."""
    monkeypatch.setattr(protocols, "BATCH", 4)
    images, labels = coloured(6)
    model, plain = (build_network("convnet3", 2, 5) for _ in range(2))
    recipe = Recipe(0.05, 6, 6, math.inf)
    protocols._train(model, images, labels, recipe, 9, torch.autocast("cpu", enabled=False), lambda done: None)
    order = torch.cat([torch.randperm(6, generator=generator(9, "order", k)) for k in range(4)]).view(6, 4)
    momentum = [torch.zeros_like(p) for p in plain.parameters()]
    plain.train()
    for step, chosen in enumerate(order):
        # Two phases, of 0.3 of the steps and the rest, as torch's OneCycleLR has them by default.
        peak, last = 0.3 * 6 - 1, 6 - 1
        if step <= peak:
            share = (1 + math.cos(math.pi * step / peak)) / 2
            rate, beta = 0.05 + (0.05 / 25 - 0.05) * share, 0.85 + 0.1 * share
        else:
            share = (1 + math.cos(math.pi * (step - peak) / (last - peak))) / 2
            rate, beta = 0.05 / 25e4 + (0.05 - 0.05 / 25e4) * share, 0.95 - 0.1 * share
        batch = augment(normalise(images[chosen]), generator(9, "augment", step))
        loss = F.cross_entropy(plain(batch), labels[chosen])
        slopes = torch.autograd.grad(loss, list(plain.parameters()))
        with torch.no_grad():
            for k, (p, slope) in enumerate(zip(plain.parameters(), slopes, strict=True)):
                decayed = slope + 5e-4 * p
                momentum[k] = decayed if step == 0 else beta * momentum[k] + decayed
                p -= rate * momentum[k]
    for found, wanted in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5)


def test_the_probe_is_scikit_learns_logistic_regression():
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(30) % 3
    train, test = (F.normalize(torch.randn(30, 8, generator=random) + labels[:, None], dim=1) for _ in range(2))
    wanted = LogisticRegression(C=100, max_iter=2000).fit(train.numpy(), labels.numpy()).decision_function(test.numpy())
    found = protocols.predict_from_features(train, labels, test, 3)
    torch.testing.assert_close(found, torch.from_numpy(wanted).float(), rtol=1e-4, atol=1e-4)


def test_crops_lie_anywhere_and_flip_each_axis_on_its_own():
    maps = draw_crops(4000, torch.Generator().manual_seed(0))
    sides, centres = maps[:, [0, 1], [0, 1]], maps[:, :, 2]
    assert maps[:, 0, 1].abs().max() == maps[:, 1, 0].abs().max() == 0
    area = sides.abs().prod(dim=1)
    assert 0.6 < float(area.min()) < 0.69
    assert float(area.max()) <= 1
    # The crop never reaches outside, and its centre lies on both sides alike.
    assert float((centres.abs() + sides.abs()).max()) <= 1 + 1e-6
    assert centres.mean(dim=0).abs().max() < 0.01
    assert torch.quantile(centres, 0.05, dim=0).max() < -0.03
    flips = (sides < 0).float()
    assert flips.mean(dim=0).tolist() == pytest.approx([0.5, 0.5], abs=0.03)
    assert float(flips.prod(dim=1).mean()) == pytest.approx(0.25, abs=0.03)


@pytest.mark.parametrize(
    ("network", "auto", "dtype"),
    [
        ("convnet3", torch.bfloat16, torch.bfloat16),
        ("convnet3", torch.float32, torch.float32),
        ("efficientnet-lite0", torch.bfloat16, torch.float32),
    ],
)
def test_dense_networks_train_in_bfloat16_and_all_predict_in_float32(network, auto, dtype, monkeypatch):
    monkeypatch.setattr(protocols, "BATCH", 8)
    monkeypatch.setattr(protocols, "dtype_for", lambda *_: auto)
    seen, build = [], protocols.build_network

    def watched(*args):
        model = build(*args)
        model.register_forward_hook(lambda model, _, logits: seen.append((model.training, logits.dtype)))
        return model

    monkeypatch.setattr(protocols, "build_network", watched)
    train, labels = coloured(8)
    train_and_predict("scratch", network, train, labels, train, classes=2, seed=0, steps=2)
    assert seen == [(True, dtype), (True, dtype), (False, torch.float32)]


@pytest.mark.parametrize(("steps", "joined"), [(99, []), (100, [(64, 3, 32, 32)])])
def test_long_trainings_are_compiled_for_their_batches(steps, joined, monkeypatch):
    seen, trained = [], []

    def compiled(name, model, batch, precision):
        seen.append(tuple(batch.shape))
        return model

    monkeypatch.setattr(protocols, "compiled", compiled)
    monkeypatch.setattr(protocols, "_train", lambda model, *_: trained.append(model))
    train, labels = coloured(8)
    model = protocols.train_classifier("scratch", "convnet3", train, labels, classes=2, seed=0, steps=steps)
    assert (seen, trained) == (joined, [model])


def test_probe_never_predicts_an_absent_class():
    train, labels = coloured(8)
    logits = train_and_predict("probe", "efficientnet-lite0", train, labels * 2, train, classes=4, seed=0)
    assert set(logits.argmax(1).tolist()) == {0, 2}


def test_augmentation_keeps_shape_range_and_constant_images():
    images = torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    out = augment(images, torch.Generator().manual_seed(1))
    assert out.shape == images.shape
    assert images.min() - 1e-5 <= out.min()
    assert out.max() <= images.max() + 1e-5
    assert torch.equal(out, augment(images, torch.Generator().manual_seed(1)))
    assert not torch.equal(out, augment(images, torch.Generator().manual_seed(2)))
    assert torch.allclose(augment(torch.full((4, 3, 16, 16), 0.3), torch.Generator()), torch.tensor(0.3))


def test_augmentation_flips_about_half_each_way():
    ramp = torch.linspace(0, 1, 16).expand(2000, 3, 16, 16)
    out = augment(ramp, torch.Generator().manual_seed(0))
    flipped = (out[:, 0, 8, 0] > out[:, 0, 8, -1]).float().mean()
    assert 0.45 < flipped < 0.55
    spread = (out[:, 0, 8, 0] - out[:, 0, 8, -1]).abs()
    # widths from sqrt(0.67 * 3/4) to 1
    assert 0.65 < spread.min() < 0.75
    assert spread.max() <= 1


def test_batches_pass_over_all_images():
    order = shuffled_batches(10, 5, seed=0)
    assert order.shape == (5, 64)
    assert sorted(order.flatten()[:10].tolist()) == list(range(10))
    assert torch.bincount(order.flatten()).tolist() == [32] * 10


def test_steps_follow_the_size_of_the_set():
    assert [recipe_steps("finetune", n, None) for n in (300, 6000)] == [400, 1200]
    assert [recipe_steps("scratch", n, None) for n in (300, 6000)] == [500, 1500]
    assert (recipe_steps("probe", 300, None), recipe_steps("finetune", 300, 7)) == (0, 7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"protocol": "fine-tune"},
            "unknown protocol 'fine-tune': did you mean 'finetune'? "
            "known: probe, finetune, scratch, finetune-soft, scratch-soft",
        ),
        (
            {"protocol": "probe", "network": "resnet18"},
            "protocol probe uses the features of efficientnet-lite0 alone, not of resnet18: leave it out",
        ),
        (
            {"test_images": torch.zeros(2, 3, 48, 48, dtype=torch.uint8)},
            "training images are [3, 32, 32], test images [3, 48, 48]: read both at one size",
        ),
        ({"steps": 1}, "steps is 1: training needs at least 2"),
        (
            {"protocol": "scratch-soft"},
            "protocol scratch-soft trains on probabilities [n, classes], the labels are [4]",
        ),
        (
            {"train_labels": torch.eye(2).repeat(2, 1)},
            "protocol finetune trains on classes [n], the labels are [4, 2]",
        ),
    ],
)
def test_bad_settings(change, message):
    train, labels = coloured(4)
    options = {"protocol": "finetune", "network": "convnet3", "test_images": train, "steps": 2} | change
    options = {"train_labels": labels} | options
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        train_and_predict(train_images=train, classes=2, seed=0, **options)


def test_soft_labels_that_are_sure_teach_what_hard_ones_do_and_others_something_else(monkeypatch):
    monkeypatch.setattr(protocols, "BATCH", 8)
    train, labels = coloured(8)
    options = {"test_images": train, "classes": 2, "seed": 0, "steps": 4}
    hard = train_and_predict("scratch", "convnet3", train, labels, **options)
    sure = torch.nn.functional.one_hot(labels, 2).float()
    soft = train_and_predict("scratch-soft", "convnet3", train, sure, **options)
    assert torch.allclose(soft, hard, atol=1e-3)
    unsure = train_and_predict("scratch-soft", "convnet3", train, torch.full((8, 2), 0.5), **options)
    assert (unsure[:, 0] - unsure[:, 1]).abs().max() < 0.5 * (hard[:, 0] - hard[:, 1]).abs().max()


def test_small_images_and_broken_losses_are_refused():
    tiny = torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
    with pytest.raises(ConfigError, match=r"^images of 16 px are too small for the networks: use 32 px or more$"):
        train_and_predict("scratch", "convnet3", tiny, torch.arange(4) % 2, tiny, classes=2, seed=0)
    with pytest.raises(TrainingError, match=r"^the classifier's loss is nan at step 3: check the images and labels$"):
        _check_loss(torch.tensor(float("nan")), 3)
