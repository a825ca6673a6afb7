import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from geodistill import refinement
from geodistill.config import RefinementSettings
from geodistill.errors import TrainingError
from geodistill.evaluation.protocols import crop
from geodistill.networks import backbone_features, embed, pretrained
from geodistill.prior.base import Prior, load_prior
from geodistill.privacy.noisy import SecretNoise, noisy_moments
from geodistill.refinement import RIDGE, MeansLoss, MomentsLoss, RefinementLoss, random_loss, refine
from geodistill.scenes import Scenes


def error_as_written(features: Tensor, labels: Tensor, real: Tensor, real_labels: Tensor) -> float:
    """Squared error on the real scenes of a ridge regression over the axes of the features, in float64."""
    real, features = real.double(), features.double()
    classes = int(real_labels.max()) + 1
    targets = torch.eye(classes, dtype=torch.float64) - 1 / classes
    points, known = features - real.mean(dim=0), real - real.mean(dim=0)
    ridge = RIDGE * torch.eye(points.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(points.T @ points + ridge, points.T @ targets[labels])
    left = (known @ weights - targets[real_labels]).square().sum()
    return float(left / targets[real_labels].square().sum())


def gain_at_best_scale(features: Tensor, labels: Tensor, real: Tensor, real_labels: Tensor) -> float:
    """How much of the squared error as above the weights take away, scaled so that it is least; negative where the
    best scale is negative."""
    real, features = real.double(), features.double()
    targets = torch.eye(int(real_labels.max()) + 1, dtype=torch.float64)
    targets = targets - targets.mean()
    points, known = features - real.mean(dim=0), real - real.mean(dim=0)
    ridge = RIDGE * torch.eye(points.shape[1], dtype=torch.float64)
    named = known @ torch.linalg.solve(points.T @ points + ridge, points.T @ targets[labels])
    wanted = targets[real_labels]
    scale = float((named * wanted).sum() / named.square().sum())
    gain = 1 - float((scale * named - wanted).square().sum() / wanted.square().sum())
    return math.copysign(gain, scale)


class TestRefinementLoss:
    @settings(max_examples=30)
    @given(st.integers(0, 100_000), st.integers(2, 4), st.integers(1, 4))
    def test_is_the_error_of_a_ridge_regression(self, seed: int, classes: int, each: int):
        noise = torch.Generator().manual_seed(seed)
        labels, real_labels = torch.arange(classes).repeat_interleave(each), torch.arange(classes).repeat(5)
        features, real = (
            F.normalize(torch.randn(len(one), 6, generator=noise), dim=1) for one in (labels, real_labels)
        )
        error = RefinementLoss(pretrained(), labels, real, real_labels)(features)
        assert float(error) == pytest.approx(error_as_written(features, labels, real, real_labels), rel=1e-4)

    def test_nothing_is_learned_from_the_mean(self):
        real, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
        loss = RefinementLoss(pretrained(), torch.tensor([0, 1]), real, labels)
        assert float(loss(real.mean(dim=0).repeat(2, 1))) == 1.0

    def test_class_means_teach_more_than_the_wrong_class(self):
        real, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
        loss = RefinementLoss(pretrained(), torch.tensor([0, 1]), real, labels)
        means = torch.stack([real[:2].mean(dim=0), real[2:].mean(dim=0)])
        assert float(loss(means)) < 1 < float(loss(means.flip(0)))


class TestMomentsLoss:
    @settings(max_examples=30)
    @given(st.integers(0, 100_000), st.integers(2, 4), st.integers(1, 4))
    def test_without_noise_it_is_the_lesson_on_the_scenes(self, seed: int, classes: int, each: int):
        random = torch.Generator().manual_seed(seed)
        labels, real_labels = torch.arange(classes).repeat_interleave(each), torch.arange(3 * classes) % classes
        features, real = (
            F.normalize(torch.randn(len(one), 6, generator=random), dim=1) for one in (labels, real_labels)
        )
        silent = SecretNoise(lambda count: bytes(count))
        moments = noisy_moments(real, real_labels, classes, noise=0.0, by=silent)
        found = float(MomentsLoss(pretrained(), labels, moments)(features))
        # The best weights on these scenes have an error of 0, no knowledge has 1.
        known, targets = (real - real.mean(dim=0)).double(), torch.eye(classes, dtype=torch.float64)[real_labels]
        targets = targets - 1 / classes
        best = known @ torch.linalg.pinv(known) @ targets
        least = float((best - targets).square().sum() / targets.square().sum())
        gain = gain_at_best_scale(features, labels, real, real_labels)
        assert found == pytest.approx(1 - gain / (1 - least), abs=1e-3)

    def test_directions_that_noise_hides_are_not_free(self):
        # Features of two classes that differ along one axis; noise is large.
        real_labels = torch.arange(200) % 2
        real = F.normalize(torch.randn(200, 50, generator=torch.Generator().manual_seed(0)), dim=1)
        real[:, 0] += torch.where(real_labels == 1, 0.5, -0.5)
        noisy = noisy_moments(F.normalize(real, dim=1), real_labels, 2, noise=5.0, by=SecretNoise())
        loss = MomentsLoss(pretrained(), torch.tensor([0, 1]), noisy)
        # What is learned from the true axis is worth something, from noise nothing.
        axis = torch.zeros(2, 50)
        axis[:, 0] = torch.tensor([-1.0, 1.0])
        other = F.normalize(torch.randn(2, 50, generator=torch.Generator().manual_seed(1)), dim=1)
        assert float(loss(axis)) < float(loss(other))

    def test_every_direction_has_at_least_the_floor_of_the_noise(self):
        real_labels = torch.arange(60) % 3
        real = F.normalize(torch.randn(60, 20, generator=torch.Generator().manual_seed(0)), dim=1)
        noisy = noisy_moments(real, real_labels, 3, noise=2.0, by=SecretNoise())
        loss = MomentsLoss(pretrained(), torch.arange(3), noisy)
        mean = noisy.sums.sum(dim=0) / noisy.counts.sum()
        before = torch.linalg.eigvalsh(noisy.second - noisy.counts.sum() * torch.outer(mean, mean))
        floor = refinement._FLOOR * noisy.deviation * 20**0.5
        assert (before < 0).sum() > 3  # noise has made directions of negative variance
        found = torch.linalg.eigvalsh(loss._scatter.double())
        assert torch.allclose(found, before.clamp_min(0) + floor, rtol=1e-4)


class TestMeansLoss:
    LABELS, REAL = torch.tensor([0, 0, 1, 1]), torch.tensor([[0.0, 1.0], [0.0, 3.0], [4.0, 0.0], [0.0, 0.0]])

    def loss(self) -> MeansLoss:
        return MeansLoss(pretrained(), torch.tensor([1, 0]), self.REAL, self.LABELS)

    def test_by_hand(self):
        # Real means (0, 2) and (2, 0), 4 in all from their mean (1, 1); one image a class counts for a tenth.
        assert float(self.loss()(torch.tensor([[2.0, 0.0], [0.0, 2.0]]))) == 0.0
        assert float(self.loss()(torch.ones(2, 2))) == pytest.approx(0.1)
        assert float(self.loss()(torch.tensor([[2.0, 2.0], [0.0, 1.0]]))) == pytest.approx(0.1 * (4 + 1) / 4)

    @pytest.mark.parametrize(("each", "weight"), [(3, 0.3), (10, 1.0), (50, 1.0)])
    def test_few_images_count_less(self, each: int, weight: float):
        loss = MeansLoss(pretrained(), torch.arange(2).repeat_interleave(each), self.REAL, self.LABELS)
        assert float(loss(torch.ones(2 * each, 2))) == pytest.approx(weight)

    def test_the_largest_class_decides_how_much_few_images_count(self):
        labels = torch.tensor([0] * 10 + [1])
        loss = MeansLoss(pretrained(), labels, self.REAL, self.LABELS)
        assert float(loss(torch.ones(11, 2))) == pytest.approx(1.0)

    def test_is_the_mean_that_counts(self):
        loss = MeansLoss(pretrained(), self.LABELS, self.REAL, self.LABELS)
        assert float(loss(self.REAL[[1, 0, 3, 2]])) == pytest.approx(0.0, abs=1e-6)


class TestRandomLoss:
    def test_same_seed_same_network_and_images(self, pair: Scenes):
        pixels = pair.pixels(size=32)
        one, same, other = (random_loss(pixels, pair.labels, torch.tensor([0, 1]), seed=seed) for seed in (1, 1, 2))
        assert torch.equal(one.real, same.real)
        assert not torch.equal(one.real, other.real)
        made = embed(one.network, pixels[:2].float() / 127.5 - 1)
        assert torch.equal(made, embed(same.network, pixels[:2].float() / 127.5 - 1))
        assert not torch.allclose(made, embed(other.network, pixels[:2].float() / 127.5 - 1))

    def test_shows_some_real_images_of_each_class(self, pair: Scenes, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(refinement, "_REAL", 3)
        pixels = pair.pixels(size=32)
        loss = random_loss(pixels, pair.labels, torch.tensor([0, 1]), seed=0)
        assert loss.real_labels.tolist() == [0, 0, 0, 1, 1, 1]
        for label in (0, 1):
            known = embed(loss.network, pixels[pair.labels == label].float() / 127.5 - 1)
            for row in loss.real[loss.real_labels == label]:
                assert (known - row).norm(dim=1).min() < 1e-5

    def test_whole_classes_agree_with_themselves(self, pair: Scenes):
        pixels = pair.pixels(size=32)
        loss = random_loss(pixels, pair.labels, pair.labels, seed=0)
        features = embed(loss.network, pixels.float() / 127.5 - 1)
        assert float(loss(features)) < 0.01 < float(loss(features.flip(0)))


@pytest.fixture(scope="module")
def prior(sd_folder: Path) -> Prior:
    return load_prior(str(sd_folder), "f32")


@pytest.fixture
def latents(prior: Prior, pair: Scenes) -> Tensor:
    return prior.encode(pair.pixels(torch.tensor([0, 1, 30, 31]), size=32))


@pytest.fixture(scope="module")
def loss(pair: Scenes) -> RefinementLoss:
    return RefinementLoss(
        pretrained(), torch.tensor([0, 0, 1, 1]), backbone_features(pair.pixels(size=32)), pair.labels
    )


def refined(prior: Prior, latents: Tensor, loss: RefinementLoss, folder: Path, steps: int = 4) -> Tensor:
    folder.mkdir(exist_ok=True)
    moved, _ = refine(prior, latents, lambda _: loss, RefinementSettings(steps=steps, lr=0.05), seed=0, folder=folder)
    return moved


def test_error_falls(prior: Prior, latents: Tensor, loss: RefinementLoss, tmp_path: Path):
    moved, facts = refine(
        prior, latents, lambda _: loss, RefinementSettings(steps=12, lr=0.05), seed=0, folder=tmp_path
    )

    def error(of: Tensor) -> float:
        return float(loss(embed(pretrained(), prior.render(of)).detach()))

    assert error(moved) < error(latents) - 0.01
    assert facts["last_loss"] < facts["first_loss"]
    assert facts["moved"] == pytest.approx(float((moved - latents).square().mean().sqrt()), abs=1e-4)
    assert 0 < facts["moved"] < 12 * 0.05


def test_latents_are_held_near_their_start(
    prior: Prior, latents: Tensor, loss: RefinementLoss, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    free = (refined(prior, latents, loss, tmp_path / "free", steps=12) - latents).square().mean()
    monkeypatch.setattr(refinement, "_HELD", 1e6)
    held = (refined(prior, latents, loss, tmp_path / "held", steps=12) - latents).square().mean()
    assert held < free / 2


def test_each_step_crops_in_its_own_way(
    prior: Prior, latents: Tensor, loss: RefinementLoss, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: list[Tensor] = []

    def watched(images: Tensor, maps: Tensor) -> Tensor:
        seen.append(maps)
        return crop(images, maps)

    monkeypatch.setattr(refinement, "crop", watched)
    monkeypatch.setattr(refinement, "free_memory", lambda _: 10**12)
    refined(prior, latents, loss, tmp_path / "run", steps=3)
    assert len(seen) == 3
    assert len({tuple(maps.flatten().tolist()) for maps in seen}) == 3
    assert len({tuple(one.flatten().tolist()) for one in seen[0]}) == len(latents)


def alike(one: Tensor, other: Tensor) -> bool:
    """Say whether nearly all elements agree: Adam moves one whose gradient is nearly 0 by the sign of its rounding."""
    return bool(((one - other).abs() < 1e-3).float().mean() > 0.99)


def test_parts_have_the_gradient_of_the_whole(
    prior: Prior, latents: Tensor, loss: RefinementLoss, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = refined(prior, latents, loss, tmp_path / "whole", steps=2)
    monkeypatch.setattr(refinement, "images_together", lambda side: 96 // side)
    assert (whole - latents).abs().max() > 0.03
    for free in (0, 10**12):  # one part kept, all of them kept
        monkeypatch.setattr(refinement, "free_memory", lambda _, free=free: free)
        assert alike(whole, refined(prior, latents, loss, tmp_path / f"parts of {free}", steps=2))


@pytest.mark.parametrize(("free", "kept"), [([0, 0], 1), ([800, 700], 4), ([600, 500], 3), ([10**12, 10**12 - 1], 99)])
def test_parts_are_kept_while_half_of_the_free_memory_has_room(
    free: list[int], kept: int, monkeypatch: pytest.MonkeyPatch
):
    answers = iter(free)
    monkeypatch.setattr(refinement, "free_memory", lambda _: next(answers))
    together, parts = refinement._ImagesTogether(2, torch.device("cpu")), [slice(i, i + 2) for i in range(0, 10, 2)]
    for _ in range(2):  # asked once
        assert len(together.keep(lambda part: torch.tensor([part.start]), parts)) == min(kept, len(parts))
        answers = iter([0])
    together.relieve()
    answers = iter([0])
    assert len(together.keep(lambda part: torch.tensor([part.start]), parts)) == 1


def test_gradient_is_that_of_the_loss_as_written(
    prior: Prior, latents: Tensor, loss: RefinementLoss, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(refinement, "crop", lambda images, _: images)
    free = latents.clone().requires_grad_()
    loss(embed(pretrained(), prior.render(free))).backward()
    # The first step of Adam goes by the sign of the gradient alone.
    moved = refined(prior, latents, loss, tmp_path / "one", steps=1)
    assert free.grad is not None
    clear = free.grad.abs() > free.grad.abs().mean() / 10
    assert torch.equal((moved - latents).sign()[clear], -free.grad.sign()[clear])


class Watched(RefinementLoss):
    """Calls `watch` before each error is told; its answer, where there is one, takes the error's place."""

    def __init__(self, loss: RefinementLoss, watch: Callable[[], float | None]) -> None:
        super().__init__(loss.network, loss.labels, loss.real, loss.real_labels)
        object.__setattr__(self, "watch", watch)

    def __call__(self, features: Tensor) -> Tensor:
        told = self.watch()  # type: ignore[attr-defined]
        return super().__call__(features) if told is None else features.sum() * told


def test_killed_ends_with_the_same_latents(prior: Prior, latents: Tensor, loss: RefinementLoss, tmp_path: Path):
    whole = refined(prior, latents, loss, tmp_path / "whole", steps=24)
    calls = []

    def dying() -> None:
        calls.append(1)
        if len(calls) == 14:
            raise KeyboardInterrupt

    watched = Watched(loss, dying)
    with pytest.raises(KeyboardInterrupt):
        refined(prior, latents, watched, tmp_path / "killed", steps=24)
    assert torch.equal(refined(prior, latents, watched, tmp_path / "killed", steps=24), whole)
    assert len(calls) == 14 + 14  # ten steps of the first start were kept


def test_out_of_memory_goes_on_with_fewer_together(
    prior: Prior, latents: Tensor, loss: RefinementLoss, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = refined(prior, latents, loss, tmp_path / "whole", steps=2)
    asked: list[int] = []

    def full(network: nn.Module, images: Tensor) -> Tensor:
        asked.append(len(images))
        if len(images) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate a lot.")
        return embed(network, images)

    monkeypatch.setattr(refinement, "embed", full)
    fewer = refined(prior, latents, loss, tmp_path / "fewer", steps=2)
    assert asked[:3] == [4, 2, 1]
    assert alike(whole, fewer)


def test_each_step_has_its_lesson(prior: Prior, latents: Tensor, loss: RefinementLoss, tmp_path: Path):
    order: list[str] = []
    losses = [Watched(loss, lambda name=name: order.append(name)) for name in ("a", "b", "c")]  # type: ignore[misc]
    settings = RefinementSettings(steps=4)
    refine(prior, latents, lambda step: losses[step % 3], settings, seed=0, folder=tmp_path)
    assert order == ["a", "b", "c", "a"]


def test_no_number(prior: Prior, latents: Tensor, loss: RefinementLoss, tmp_path: Path):
    with pytest.raises(TrainingError, match=r"^the loss of 'refinement' became nan at step 0"):
        refined(prior, latents, Watched(loss, lambda: math.nan), tmp_path / "run")
