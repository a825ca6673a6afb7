from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from geodistill.config import Config
from geodistill.methods import METHODS, mgd3
from geodistill.prior import sample
from geodistill.run import Run
from geodistill.scenes import Scenes
from geodistill.seeding import derive_seed, generator
from geodistill.stages.context import Context


def test_sampling_against_a_plain_loop(
    pair: Scenes, on_pipeline: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A denoiser with a simple rule, DDIM and the mode guidance written out in float64."""
    config = on_pipeline.model_copy(update={"ipc": 1})
    guidances = set()

    def denoise(unet: Any, latents: torch.Tensor, time: Any, text: torch.Tensor, guidance: float) -> torch.Tensor:
        guidances.add(guidance)
        return 0.9 * latents

    monkeypatch.setattr(sample, "_denoise", denoise)
    with Run(tmp_path, {}) as run:
        mgd3.make(Context(pair, config, run, METHODS["mgd3"]))
    assert guidances == {4.0}
    drawn = load_file(tmp_path / "candidates" / "candidates.safetensors")["latents"]
    latents = load_file(tmp_path / "latents" / "latents.safetensors")["latents"][:, 0].double()
    alphas = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, dim=0)
    times = list(range(981, 0, -20))
    assert len(times) == 50
    for label, slot in enumerate((0, 10_000)):
        mode = latents[pair.labels == label].mean(dim=0)
        g = generator(derive_seed(config.seed, "candidates"), "image", slot)
        z = torch.randn(4, 8, 8, generator=g).double()
        for index, time in enumerate(times):
            now = alphas[time]
            following = alphas[times[index + 1]] if index < 49 else alphas[0]
            noise = 0.9 * z
            clean = (z - (1 - now).sqrt() * noise) / now.sqrt()
            z = following.sqrt() * clean + (1 - following).sqrt() * noise
            if index < 25:
                deviation = ((1 - following) / (1 - now) * (1 - now / following)).sqrt()
                z = z + 0.1 * deviation * (mode - clean)
        assert torch.allclose(drawn[label].double(), z, atol=1e-3)


def test_the_prior_is_left_as_it_is(pair: Scenes, on_pipeline: Config, tmp_path: Path) -> None:
    with Run(tmp_path, {}) as run:
        mgd3.make(Context(pair, on_pipeline, run, METHODS["mgd3"]))
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {
        "latents",
        "prototypes",
        "candidates",
        "distilled",
        "stages",
    }
