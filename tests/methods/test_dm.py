from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from geodistill.config import Config
from geodistill.methods import METHODS, dm
from geodistill.networks import normalise
from geodistill.run import Run
from geodistill.scenes import Scenes
from geodistill.seeding import derive_seed, generator
from geodistill.stages.context import Context


def _convnet3(image: torch.Tensor, weights: dict[str, torch.Tensor]) -> np.ndarray:
    """Return the features of one image [3, s, s], layer by layer in float64."""
    x = image.double()[None]
    for layer in (1, 5, 9):  # layer 0 only lays the image out
        x = F.conv2d(x, weights[f"{layer}.weight"].double(), weights[f"{layer}.bias"].double(), padding=1)
        x = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), unbiased=False, keepdim=True) + 1e-5).sqrt()
        x = F.avg_pool2d(x.relu(), 2)
    pooled = x.unflatten(2, (4, -1)).unflatten(4, (4, -1)).mean((3, 5))  # [1, 128, 4, k, 4, k] -> [1, 128, 4, 4]
    return pooled.flatten().numpy()


def test_mismatch_against_an_independent_formula() -> None:
    embed = dm.random_embedding(7)
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features = np.stack([_convnet3(image, embed.state_dict()) for image in images])
    expected = ((features[:3].mean(0) - features[3:].mean(0)) ** 2).sum()
    assert features.shape == (5, 2048)
    assert dm.mismatch(embed, images, 3).item() == pytest.approx(expected, rel=1e-4)


def test_first_step_goes_down_the_gradient(pair: Scenes) -> None:
    real = pair.pixels(range(12), size=32)
    made = dm.condense(real, 2, seed=3, steps=1)
    start = normalise(real[torch.randperm(12, generator=generator(3, "first images"))[:2]]).requires_grad_()
    g = generator(3, "step", 0)
    batch = normalise(real[torch.randperm(12, generator=g)])
    together = dm.siamese(torch.cat([batch, start]), g)
    features = dm.random_embedding(derive_seed(3, "network", 0))(together)
    loss = (features[:12].detach().mean(0) - features[12:].mean(0)).pow(2).sum()
    moved = start - torch.autograd.grad(loss, start)[0]  # learning rate 1
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((moved * std[:, None, None] + mean[:, None, None]) * 255).clamp(0, 255)
    assert (made.float() - pixels).abs().max() <= 0.51  # rounded to whole values
    assert (pixels - ((start * std[:, None, None] + mean[:, None, None]) * 255)).abs().max() > 5


def test_images_come_nearer_to_the_class_in_networks_never_seen(pair: Scenes) -> None:
    real = pair.pixels(range(30), size=32)

    def away(images: torch.Tensor) -> float:
        both = torch.cat([normalise(real), normalise(images)])
        with torch.no_grad():
            return sum(dm.mismatch(dm.random_embedding(10**6 + k), both, 30).item() for k in range(5))

    start, made = (dm.condense(real, 2, seed=0, steps=steps) for steps in (0, 20))
    assert all(any(torch.equal(image, other) for other in real) for image in start)
    assert away(made) < 0.7 * away(start)


def test_all_images_of_a_step_are_augmented_alike(pair: Scenes) -> None:
    images = normalise(pair.pixels(range(4), size=32))
    views = set()
    for seed in range(20):
        together = dm.siamese(images, torch.Generator().manual_seed(seed))
        alone = dm.siamese(images[2:3], torch.Generator().manual_seed(seed))
        assert torch.allclose(together[2], alone[0], atol=1e-6)
        views.add(alone.numpy().tobytes())
    assert len(views) == 20


def test_killed_after_a_class_ends_with_the_same_bytes(
    pair: Scenes, on_pipeline: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dm, "STEPS", 2)
    condense, done = dm.condense, list[int]()

    def made(folder: str, dies_at: int) -> torch.Tensor:
        def dying(real: torch.Tensor, count: int, *, seed: int, steps: int, fast: bool) -> torch.Tensor:
            if len(done) == dies_at:
                raise KeyboardInterrupt
            done.append(len(real))
            return condense(real, count, seed=seed, steps=steps, fast=fast)

        monkeypatch.setattr(dm, "condense", dying)
        with Run(tmp_path / folder, {}) as run:
            return dm.make(Context(pair, on_pipeline, run, METHODS["dm"])).value.images

    whole = made("whole", -1)
    done.clear()
    with pytest.raises(KeyboardInterrupt):
        made("killed", 1)
    assert torch.equal(made("killed", -1), whole)
    assert done == [30, 30]  # each class once: the first was kept
    assert not list((tmp_path / "killed" / "distilled").glob(".part*"))


def test_a_compiled_network_makes_the_same_images(pair: Scenes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling itself is left out: it takes a minute. What is tested is that each step's weights get there."""
    monkeypatch.setattr(dm, "compiled", lambda name, network, batch, precision: network)
    monkeypatch.setattr(dm, "_compiled_embedding", dm._CompiledEmbedding)
    real = pair.pixels(range(12), size=32)
    assert torch.equal(dm.condense(real, 2, seed=3, steps=3, fast=True), dm.condense(real, 2, seed=3, steps=3))
