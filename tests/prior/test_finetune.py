from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import save_tiny_pipeline
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from geodistill.config import SamplingSettings
from geodistill.errors import PriorError
from geodistill.prior.base import Prior, load_prior
from geodistill.prior.finetune import WEIGHTS, add_adapter, merge_adapter, save_adapter
from geodistill.prior.sample import Requests, _noise, sample_batch


def _output(unet: torch.nn.Module) -> torch.Tensor:
    g = torch.Generator().manual_seed(0)
    noisy, text = torch.randn(2, 4, 8, 8, generator=g), torch.randn(2, 48, 32, generator=g)
    with torch.inference_mode():
        output: torch.Tensor = unet(noisy, torch.tensor([10, 500]), text).sample
    return output


def _adapted(sd_folder: Path, folder: Path) -> Prior:
    """Save an adapter with random weights, since a fresh one changes nothing."""
    prior = load_prior(str(sd_folder))
    add_adapter(prior, rank=2, seed=0)
    random = torch.Generator().manual_seed(2)
    for name, p in prior.unet.named_parameters():
        if "lora" in name:
            torch.nn.init.normal_(p, std=0.3, generator=random)
    save_adapter(prior, folder)
    return prior


def test_only_the_adapter_is_trained(sd_folder: Path) -> None:
    prior = load_prior(str(sd_folder))
    add_adapter(prior, rank=2, seed=0)
    trained = [name for name, p in prior.unet.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora" in name and any(t in name for t in ("to_q", "to_k", "to_v", "to_out.0")) for name in trained)


def test_stock_diffusers_loads_what_we_save(sd_folder: Path, tmp_path: Path) -> None:
    trained = _adapted(sd_folder, tmp_path)
    stock = StableDiffusionPipeline.from_pretrained(sd_folder, safety_checker=None)
    before = _output(stock.unet.eval())
    stock.load_lora_weights(tmp_path)
    ours = load_prior(str(sd_folder))
    merge_adapter(ours, tmp_path)
    assert torch.allclose(_output(stock.unet), _output(ours.unet), atol=1e-5)
    assert torch.allclose(_output(trained.unet), _output(ours.unet), atol=1e-5)
    assert not torch.allclose(before, _output(ours.unet), atol=1e-3)


def test_stock_diffusers_draws_the_same_image_for_the_same_noise(sd_folder: Path, tmp_path: Path) -> None:
    _adapted(sd_folder, tmp_path)
    ours = load_prior(str(sd_folder))
    merge_adapter(ours, tmp_path)
    prompt = "a beach, mostly water"
    requests = Requests(
        torch.tensor([1]), ours.embed(["", prompt]), torch.zeros(1, 4, 8, 8), torch.tensor([0]), torch.tensor([3])
    )
    settings = SamplingSettings(follow="none", steps=6, guidance=4.0, solver="ddim")
    expected = ours.decode(sample_batch(ours, requests, settings, seed=1))[0]

    stock = StableDiffusionPipeline.from_pretrained(sd_folder, safety_checker=None)
    stock.load_lora_weights(tmp_path)
    forward = stock.unet.forward

    def in_bf16(*args: Any, **named: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return forward(*args, **named)

    stock.unet.forward = in_bf16

    def gap() -> torch.Tensor:
        """Return by how many of 255 levels the stock pipeline's image is off."""
        noise = _noise(torch.Size((4, 8, 8)), torch.tensor([3]), 1)
        drawn = stock(prompt, latents=noise, num_inference_steps=6, guidance_scale=4.0, output_type="pt").images[0]
        return (drawn * 255 - expected).abs()

    # bf16 rounds the weights with the adapter merged in otherwise than side by side.
    assert gap().mean() < 0.6
    assert gap().max() < 6
    stock.unload_lora_weights()
    assert gap().mean() > 2


def test_no_adapter(sd_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PriorError, match=f"no adapter in {tmp_path}: expected a file {WEIGHTS}"):
        merge_adapter(load_prior(str(sd_folder)), tmp_path)


def test_adapter_of_another_base(sd_folder: Path, tmp_path: Path) -> None:
    _adapted(sd_folder, tmp_path)
    wider = {name: torch.cat([value, value], dim=-1) for name, value in load_file(tmp_path / WEIGHTS).items()}
    save_file(wider, tmp_path / WEIGHTS)
    with pytest.raises(PriorError, match="does not fit the base"):
        merge_adapter(load_prior(str(sd_folder)), tmp_path)


def test_base_with_class_embeddings_samples(tmp_path: Path) -> None:
    prior = load_prior(str(save_tiny_pipeline(tmp_path, class_embeddings=3)))
    from geodistill.config import SamplingSettings
    from geodistill.prior.sample import Requests, sample_batch

    zero = torch.zeros(1, dtype=torch.long)
    requests = Requests(zero, prior.embed([""]), torch.zeros(1, 4, 8, 8), zero, zero)
    assert torch.isfinite(sample_batch(prior, requests, SamplingSettings(steps=2), seed=0)).all()


def test_adapter_of_another_kind_of_model_is_not_passed_over(sd_folder: Path, tmp_path: Path) -> None:
    _adapted(sd_folder, tmp_path)
    layers = load_file(tmp_path / WEIGHTS)
    save_file({name.replace("unet.", "transformer."): value for name, value in layers.items()}, tmp_path / WEIGHTS)
    with pytest.raises(PriorError, match=r"does not fit the base .*: this base has no layer for transformer\."):
        merge_adapter(load_prior(str(sd_folder)), tmp_path)


def test_file_that_is_no_adapter(sd_folder: Path, tmp_path: Path) -> None:
    (tmp_path / WEIGHTS).write_bytes(b"torn")
    with pytest.raises(PriorError, match="does not fit the base"):
        merge_adapter(load_prior(str(sd_folder)), tmp_path)
