import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from geodistill.config import SamplingSettings
from geodistill.errors import PriorError
from geodistill.prior.base import Prior, load_prior
from geodistill.prior.sample import Requests, covering_strengths, sample, sample_batch


@pytest.fixture(scope="module")
def prior(sd_folder: Path) -> Prior:
    return load_prior(str(sd_folder))


@pytest.fixture(scope="module")
def requests(prior: Prior) -> Requests:
    g = torch.Generator().manual_seed(1)
    return Requests(
        prompts=torch.tensor([1, 1, 2, 2, 1]),
        embeddings=prior.embed(["", "a beach", "a forest"]),
        prototypes=torch.randn(2, 4, 8, 8, generator=g),
        slots=torch.tensor([0, 0, 1, 1, 0]),
        seeds=torch.tensor([0, 1, 10, 11, 2]),
    )


@pytest.mark.parametrize("noisy", [0.0, 0.5, 2.0, 1e3])
def test_strength_covers_the_noise_that_is_there(prior: Prior, noisy: float) -> None:
    settings = SamplingSettings(steps=20, strength=0.3, solver="ddim")
    (strength,) = covering_strengths(prior, settings, [noisy])
    alphas, steps = prior.scheduler.alphas_cumprod, len(prior.scheduler.alphas_cumprod)

    def covered(share: int) -> bool:
        # DDIM's times with `share` of 20 steps left, spaced from the front.
        level = float(alphas[round((share - 1) * steps / 20) + prior.scheduler.config.steps_offset])
        return (1 - level) / level >= 2 * noisy**2

    enough = [share for share in range(6, 20) if covered(share)]
    assert strength == (enough[0] / 20 if enough else 1.0)


@pytest.mark.parametrize("solver", ["ddim", "dpmsolver++", "pndm"])
@pytest.mark.parametrize("follow", ["none", "start", "guide"])
def test_an_image_does_not_depend_on_its_neighbours(prior: Prior, requests: Requests, solver: str, follow: str) -> None:
    settings = SamplingSettings(solver=solver, follow=follow, steps=5)
    together = sample_batch(prior, requests, settings, seed=0)
    assert together.shape == (5, 4, 8, 8)
    assert torch.isfinite(together).all()
    alone = sample_batch(prior, requests.part(slice(2, 3)), settings, seed=0)
    assert torch.allclose(alone[0], together[2], atol=2e-2)  # bf16 sums differ by batch
    assert not torch.allclose(together[2], together[3], atol=0.1)


def test_guiding_comes_nearer_to_the_prototype(prior: Prior, requests: Requests) -> None:
    def distance(**settings: object) -> torch.Tensor:
        drawn = sample_batch(prior, requests, SamplingSettings(steps=10, guidance=1, **settings), seed=0)
        return (drawn - requests.prototypes[requests.slots]).flatten(1).norm(dim=1)

    free, pulled = distance(follow="none"), distance(follow="guide", scale=3.0)
    assert (pulled < free).all()
    assert (distance(follow="start", strength=0.2) < distance(follow="start", strength=0.9)).all()


def test_other_seed_other_images(prior: Prior, requests: Requests) -> None:
    settings = SamplingSettings(follow="none", steps=2)
    assert not torch.equal(
        sample_batch(prior, requests, settings, seed=0), sample_batch(prior, requests, settings, seed=1)
    )


def test_drawing_goes_on_where_it_stopped(prior: Prior, requests: Requests, tmp_path: Path) -> None:
    settings = SamplingSettings(steps=2, batch=2)
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    whole.mkdir()
    halves.mkdir()
    expected = sample(prior, requests, settings, seed=0, folder=whole)
    sample(prior, requests, settings, seed=0, folder=halves)
    (halves / ".part-00001.safetensors").unlink()
    kept = (halves / ".part-00002.safetensors").stat().st_mtime_ns
    assert torch.equal(sample(prior, requests, settings, seed=0, folder=halves), expected)
    assert (halves / ".part-00002.safetensors").stat().st_mtime_ns == kept


def test_out_of_memory_is_answered_by_halves(
    prior: Prior,
    requests: Requests,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = SamplingSettings(steps=2, guidance=1)
    forward, most = prior.unet.forward, 2

    def limited(noisy: torch.Tensor, *args: Any, **named: Any) -> Any:
        if len(noisy) > most:
            raise torch.OutOfMemoryError("device full. Tried to allocate 2 GiB")
        return forward(noisy, *args, **named)

    expected = sample_batch(prior, requests, settings, seed=0)
    monkeypatch.setattr(prior.unet, "forward", limited)
    assert torch.allclose(sample(prior, requests, settings, seed=0, folder=tmp_path), expected, atol=2e-2)
    assert [record.getMessage() for record in caplog.records] == [
        "out of memory: drawing 3 images at a time, not 5 (--set sampling.batch=…)",
        "out of memory: drawing 2 images at a time, not 3 (--set sampling.batch=…)",
    ]
    most = 0
    (tmp_path / "none").mkdir()
    with pytest.raises(PriorError) as caught:
        sample(prior, requests, settings, seed=0, folder=tmp_path / "none")
    assert str(caught.value) == (
        "out of memory with one image at a time (device full): use a smaller --size or base, or free the device"
    )


@pytest.mark.parametrize(("strength", "calls"), [(1.0, 10), (0.6, 6), (0.05, 1)])
def test_strength_is_the_share_of_steps_done(
    prior: Prior, requests: Requests, monkeypatch: pytest.MonkeyPatch, strength: float, calls: int
) -> None:
    seen = []
    forward = prior.unet.forward
    monkeypatch.setattr(prior.unet, "forward", lambda *args, **named: seen.append(1) or forward(*args, **named))
    settings = SamplingSettings(steps=10, solver="ddim", follow="start", strength=strength)
    sample_batch(prior, requests, settings, seed=0)
    assert len(seen) == calls


class _Oracle:
    """A U-Net that always sees the one clean latent in what it is given, and counts how often it is asked."""

    config = SimpleNamespace(num_class_embeds=None)

    def __init__(self, clean: torch.Tensor, alphas: torch.Tensor) -> None:
        self.clean, self.alphas, self.calls = clean, alphas, 0

    def __call__(self, noisy: torch.Tensor, time: torch.Tensor, *_: Any, **__: Any) -> SimpleNamespace:
        self.calls += 1
        level = self.alphas[time]
        return SimpleNamespace(sample=(noisy - level.sqrt() * self.clean) / (1 - level).sqrt())


@pytest.mark.parametrize(("strength", "asked"), [(1.0, 10), (0.75, 8), (0.5, 5), (0.1, 1)])
@pytest.mark.parametrize("solver", ["ddim", "dpmsolver++", "pndm"])
def test_every_solver_goes_all_the_way_from_every_strength(
    prior: Prior, requests: Requests, solver: str, strength: float, asked: int
) -> None:
    oracle = _Oracle(requests.prototypes[requests.slots], prior.scheduler.alphas_cumprod)
    settings = SamplingSettings(solver=solver, strength=strength, steps=10, guidance=1)
    drawn = sample_batch(dataclasses.replace(prior, unet=oracle), requests, settings, seed=0)
    # What is left is the noise of the last level, of deviation 0.03; a step missed would leave 0.3.
    assert (drawn - oracle.clean).abs().max() < 0.15
    assert oracle.calls == (asked + 1 if solver == "pndm" and asked > 1 else asked)
