"""Protocols: the ways to train a classifier on a few images and to predict the test images.

The network after the last step is used; nothing is ever selected on test images.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import nn

from geodistill.devices import accelerator, dtype_for, kept_memory, mixed
from geodistill.errors import ConfigError, TrainingError, did_you_mean
from geodistill.networks import (
    PRETRAINED,
    backbone_features,
    build_network,
    check_network,
    check_side,
    compiled,
    normalise,
    trains_in_bfloat16,
)
from geodistill.seeding import derive_seed, generator

Visit = Callable[[int, nn.Module], None]
BATCH = 64
# Compiling takes about as long as it saves in this number of steps.
_WORTH_COMPILING = 100
LARGE_SET = 2000


@dataclass(frozen=True)
class Recipe:
    """How a protocol trains.

    learning_rate: peak of the one-cycle schedule. steps, steps_large: for small and for large sets. clip: largest norm
    of a gradient.
    """

    learning_rate: float
    steps: int
    steps_large: int
    clip: float


# finetune: the settings of the reference figures (docs/experiments.md). scratch: random weights need a higher learning
# rate. It was chosen on a held-out quarter of AID's training scenes (benchmarks/results/recipes.csv): 0.05 gave 38.3 %
# in 300 steps, 0.02 36.7 %, 0.1 37.4 %, clipping gradients to norm 1 36.6 %. 500 steps gave 39.8 %, and 1,000 steps
# 42.0 %, but they take too long for many sets. Clipping cost finetune 5.6 points (69.7 to 64.1 % after ten k-means
# images a class, tried by hand).
RECIPES = {"finetune": Recipe(0.02, 400, 1200, math.inf), "scratch": Recipe(0.05, 500, 1500, math.inf)}
# Suffix of the names of protocols that train on soft labels.
_SOFT = "-soft"
PROTOCOLS = ("probe", *RECIPES, *(name + _SOFT for name in RECIPES))


def train_and_predict(
    protocol: str,
    network: str,
    train_images: torch.Tensor,
    train_labels: torch.Tensor,
    test_images: torch.Tensor,
    *,
    classes: int,
    seed: int,
    steps: int | None = None,
    features: Callable[[torch.Tensor], torch.Tensor] = backbone_features,
    advance: Callable[[int], None] | None = None,
    keep: Callable[[nn.Module], None] | None = None,
) -> torch.Tensor:
    """Train `network` under `protocol` and return logits float32 [n_test, classes] of the test images.

    Images are uint8 [n, C, s, s], labels int64 [n], or probabilities float32 [n, classes] for `finetune-soft` and
    `scratch-soft`. `probe` is logistic regression on frozen pretrained features (the seed changes nothing). `finetune`
    starts from the network's own initial weights (ImageNet for efficientnet-lite0). `scratch` starts every network from
    random weights. `steps` replaces the recipe's number (400 and 500; three times as many above 2,000 images).
    `features` computes the probe's features. `advance(done)` is called after each step. `keep` gets the trained
    network; the probe has none. The same seed gives the same logits.
    Raises ConfigError for names or sizes that cannot work, TrainingError if the loss is not finite.
    """
    check_protocol(protocol, network)
    _check_sizes(train_images, test_images)
    if protocol == "probe":
        return predict_from_features(features(train_images), train_labels, features(test_images), classes)
    model = train_classifier(
        protocol, network, train_images, train_labels, classes=classes, seed=seed, steps=steps, advance=advance
    )
    if keep:
        keep(model)
    return predict(model, test_images)


def train_classifier(
    protocol: str,
    network: str,
    images: torch.Tensor,
    labels: torch.Tensor,
    *,
    classes: int,
    seed: int,
    steps: int | None = None,
    advance: Callable[[int], None] | None = None,
    visit: Visit | None = None,
) -> nn.Module:
    """Return the network that `train_and_predict` predicts with; for every protocol except probe, with the same errors.

    `visit(done, network)` is called after each step with the current network in training mode; it must leave the
    network unchanged.
    """
    check_protocol(protocol, network)
    _check_labels(protocol, labels)
    recipe = _recipe(protocol, len(images), steps)
    device = accelerator()
    model = build_network(network, classes, seed, images.shape[1])
    if protocol.removesuffix(_SOFT) == "scratch":
        _forget(model, seed)
    model.to(device)
    precision = mixed(device, dtype_for("auto", device) if trains_in_bfloat16(network) else torch.float32)
    trained = model
    if recipe.steps >= _WORTH_COMPILING:
        like = torch.zeros(BATCH, *images.shape[1:], device=device).contiguous(memory_format=torch.channels_last)
        trained = compiled(network, model, like, precision)

    def after(done: int) -> None:
        if advance:
            advance(done)
        if visit:
            visit(done, model)

    _train(trained, images, labels, recipe, seed, precision, after)
    return model


def takes_soft_labels(protocol: str) -> bool:
    """Return whether `protocol` trains on probabilities [n, classes] instead of classes [n]."""
    return protocol.endswith(_SOFT)


def check_protocol(protocol: str, network: str) -> None:
    """Raise ConfigError unless both names are known and fit each other."""
    if protocol not in PROTOCOLS:
        hint = did_you_mean(protocol, PROTOCOLS)
        raise ConfigError(f"unknown protocol {protocol!r}: {hint}known: {', '.join(PROTOCOLS)}")
    check_network(network)
    if protocol == "probe" and network != PRETRAINED:
        raise ConfigError(f"protocol probe uses the features of {PRETRAINED} alone, not of {network}: leave it out")


def recipe_steps(protocol: str, count: int, steps: int | None) -> int:
    """Return the number of steps that `protocol` takes on `count` training images; 0 for probe."""
    return 0 if protocol == "probe" else _recipe(protocol, count, steps).steps


def _check_sizes(train: torch.Tensor, test: torch.Tensor) -> None:
    if train.shape[1:] != test.shape[1:]:
        raise ConfigError(
            f"training images are {list(train.shape[1:])}, test images {list(test.shape[1:])}: read both at one size"
        )
    check_side(train.shape[-1])


def _check_labels(protocol: str, labels: torch.Tensor) -> None:
    if labels.ndim != 1 + takes_soft_labels(protocol):
        wanted = "probabilities [n, classes]" if takes_soft_labels(protocol) else "classes [n]"
        raise ConfigError(f"protocol {protocol} trains on {wanted}, the labels are {list(labels.shape)}")


def _recipe(protocol: str, count: int, steps: int | None) -> Recipe:
    recipe = RECIPES[protocol.removesuffix(_SOFT)]
    if steps is not None and steps < 2:
        raise ConfigError(f"steps is {steps}: training needs at least 2")
    return replace(recipe, steps=steps or (recipe.steps_large if count > LARGE_SET else recipe.steps))


def predict_from_features(train: torch.Tensor, labels: torch.Tensor, test: torch.Tensor, classes: int) -> torch.Tensor:
    """Return logits [m, classes] of features `test` [m, d] by logistic regression on features `train` [n, d].

    `labels` int64 [n] are the classes of `train`. A class that is not among them is never predicted.
    Raises ConfigError if there is only one class.
    """
    present = torch.unique(labels)
    if len(present) < 2:
        raise ConfigError("the training images are of one class: a classifier needs at least 2")
    model = LogisticRegression(C=100, max_iter=2000).fit(train.numpy(), labels.numpy())
    scores = torch.from_numpy(model.decision_function(test.numpy())).float()
    if scores.ndim == 1:  # two classes: one score, positive for the second
        scores = torch.stack([-scores, scores], dim=1)
    logits = torch.full((len(test), classes), -1e4)
    logits[:, present] = scores
    return logits


def _forget(model: nn.Module, seed: int) -> None:
    """Give every layer new random weights: He initialisation for convolutions, the layer's own for the others."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "scratch"))
        for module in model.modules():
            if isinstance(module, nn.Conv2d):  # He et al. 2015, fan-out; a depthwise filter feeds one channel only
                fan_out = module.weight[:, 0].numel() / module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
            elif isinstance(module, nn.Linear | nn.BatchNorm2d | nn.GroupNorm):
                module.reset_parameters()


def _train(
    model: nn.Module,
    images: torch.Tensor,
    labels: torch.Tensor,
    recipe: Recipe,
    seed: int,
    precision: torch.autocast,
    after: Callable[[int], None],
) -> None:
    optimiser = torch.optim.SGD(model.parameters(), lr=recipe.learning_rate, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, recipe.learning_rate, total_steps=recipe.steps)
    order = shuffled_batches(len(images), recipe.steps, seed)
    device = next(model.parameters()).device
    model.train()
    with torch.random.fork_rng(devices=[]), kept_memory():
        for step, chosen in enumerate(order):
            torch.manual_seed(derive_seed(seed, "dropout", step))
            batch = augment(normalise(images[chosen]), generator(seed, "augment", step)).to(device)
            with precision:
                logits = model(batch)
            loss = F.cross_entropy(logits.float(), labels[chosen].to(device))
            _check_loss(loss, step)
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
            optimiser.step()
            schedule.step()
            after(step + 1)


def _check_loss(loss: torch.Tensor, step: int) -> None:
    if not torch.isfinite(loss):
        raise TrainingError(f"the classifier's loss is {loss.item()} at step {step}: check the images and labels")


def shuffled_batches(count: int, steps: int, seed: int) -> torch.Tensor:
    """Return int64 [steps, 64] of indices below `count`: successive shuffled passes over all images."""
    passes = math.ceil(steps * BATCH / count)
    order = [torch.randperm(count, generator=generator(seed, "order", k)) for k in range(passes)]
    return torch.cat(order)[: steps * BATCH].view(steps, BATCH)


def augment(images: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Return a random resized crop of each image [n, 3, s, s] (area 0.67 to 1, ratio 3/4 to 4/3), flipped at random.

    Crop and flips are one affine map, sampled bilinearly; the crop never reaches outside the image.
    """
    return crop(images, draw_crops(len(images), random))


def draw_crops(count: int, random: torch.Generator) -> torch.Tensor:
    """Return float32 [count, 2, 3]: the affine maps of `augment`, from output positions to input positions."""
    area = torch.empty(count).uniform_(0.67, 1, generator=random)
    ratio = torch.empty(count).uniform_(math.log(3 / 4), math.log(4 / 3), generator=random).exp()
    size = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], dim=1).clamp(max=1)  # [n, 2], x and y
    centre = (torch.rand(count, 2, generator=random) * 2 - 1) * (1 - size)
    flip = torch.randint(0, 2, (count, 2), generator=random) * 2 - 1
    return torch.cat([torch.diag_embed(size * flip), centre[:, :, None]], dim=2)


def crop(images: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """Return images [n, 3, s, s], each transformed by its own of `maps` [n, 2, 3]; differentiable."""
    grid = F.affine_grid(maps, list(images.shape), align_corners=False).to(images.device)
    out = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    return out.contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def predict(model: nn.Module, images: torch.Tensor, *, batch: int = 256) -> torch.Tensor:
    """Return logits float32 [n, classes] of uint8 images [n, channels, s, s]."""
    model.eval()
    device = next((p.device for p in model.parameters()), images.device)
    with kept_memory():
        return torch.cat([model(normalise(part.to(device))).float().cpu() for part in images.split(batch)])
