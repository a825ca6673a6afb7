from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from geodistill.config import Config
from geodistill.methods import METHODS, d4m
from geodistill.prior import sample
from geodistill.run import Run
from geodistill.scenes import Scenes
from geodistill.seeding import derive_seed, generator
from geodistill.stages.context import Context


def test_centroids_noised_to_seven_tenths_are_denoised_in_35_steps(
    pair: Scenes, on_pipeline: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = on_pipeline.model_copy(update={"ipc": 1})
    seen: list[tuple[torch.Tensor, int, torch.Tensor, float]] = []

    def nothing(unet: Any, latents: torch.Tensor, time: Any, text: torch.Tensor, guidance: float) -> torch.Tensor:
        seen.append((latents, int(time), text, guidance))
        return torch.zeros_like(latents)

    monkeypatch.setattr(sample, "_denoise", nothing)
    with Run(tmp_path, {}) as run:
        made = d4m.make(Context(pair, config, run, METHODS["d4m"])).value
    assert made.labels.tolist() == [0, 1]
    # Of 50 steps at times 981, 961, ..., 1 the first 15 are left out.
    assert [time for _, time, _, _ in seen] == list(range(681, 0, -20))
    assert {guidance for *_, guidance in seen} == {8.0}
    latents = load_file(tmp_path / "latents" / "latents.safetensors")["latents"][:, 0].float()
    centroids = torch.stack([latents[pair.labels == label].mean(dim=0) for label in (0, 1)])
    # Stable Diffusion's schedule, written out.
    alpha_bar = float((1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2)[:682].prod())
    seed = derive_seed(config.seed, "candidates")
    noise = torch.stack([torch.randn(4, 8, 8, generator=generator(seed, "image", slot)) for slot in (0, 10_000)])
    assert torch.allclose(seen[0][0], alpha_bar**0.5 * centroids + (1 - alpha_bar) ** 0.5 * noise, atol=1e-5)


def test_a_denoiser_that_sees_the_centroid_gives_it_back(
    pair: Scenes, on_pipeline: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = on_pipeline.model_copy(update={"ipc": 1})
    alphas = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, dim=0)

    def oracle(unet: Any, latents: torch.Tensor, time: Any, text: torch.Tensor, guidance: float) -> torch.Tensor:
        level = alphas[int(time)]
        clean = load_file(tmp_path / "prototypes" / "centroids.safetensors")["centroids"]
        return (latents - level.sqrt() * clean) / (1 - level).sqrt()

    monkeypatch.setattr(sample, "_denoise", oracle)
    with Run(tmp_path, {}) as run:
        d4m.make(Context(pair, config, run, METHODS["d4m"]))
    drawn = load_file(tmp_path / "candidates" / "candidates.safetensors")["latents"]
    clean = load_file(tmp_path / "prototypes" / "centroids.safetensors")["centroids"]
    assert (drawn - clean).abs().max() < 0.15  # the noise of the last level, of deviation 0.03
    assert not (tmp_path / "adapter").exists()
