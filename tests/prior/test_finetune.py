from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import save_tiny_pipeline
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file

from geodistill.config import FinetuneSettings, SamplingSettings
from geodistill.errors import PriorError
from geodistill.prior.base import Prior, load_prior
from geodistill.prior.finetune import (
    WEIGHTS,
    WHOLE,
    add_adapter,
    free_all,
    merge_adapter,
    save_adapter,
    save_whole,
    trains_all,
)
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


@pytest.mark.parametrize(
    ("weights", "parameters", "whole"),
    [("auto", 49_999_999, True), ("auto", 50_000_000, False), ("all", 10**9, True), ("lora", 10, False)],
)
def test_a_small_unet_is_trained_whole_unless_told_otherwise(weights: Any, parameters: int, whole: bool) -> None:
    unet = torch.nn.Linear(parameters, 1, bias=False, device="meta")
    assert trains_all(unet, FinetuneSettings(weights=weights)) is whole


def test_a_whole_unet_is_read_again_by_us_and_by_diffusers(sd_folder: Path, tmp_path: Path) -> None:
    trained, ours = load_prior(str(sd_folder)), load_prior(str(sd_folder))
    before = _output(ours.unet)
    free_all(trained)
    with torch.no_grad():
        for p in trained.unet.parameters():
            p.add_(0.02)
    save_whole(trained, tmp_path)
    merge_adapter(ours, tmp_path)
    stock = UNet2DConditionModel.from_pretrained(tmp_path / WHOLE, torch_dtype=torch.float32).eval()
    assert torch.equal(_output(stock), _output(ours.unet))
    assert not torch.allclose(before, _output(ours.unet), atol=1e-2)
    assert not any(p.requires_grad for p in ours.unet.parameters())
    (weights,) = (tmp_path / WHOLE).glob("*.safetensors")
    assert {value.dtype for value in load_file(weights).values()} == {torch.float16}
    assert str(sd_folder) not in (tmp_path / WHOLE / "config.json").read_text()


def test_a_whole_unet_of_another_base_is_refused(sd_folder: Path, tmp_path: Path) -> None:
    save_whole(load_prior(str(save_tiny_pipeline(tmp_path / "other", class_embeddings=3))), tmp_path)
    with pytest.raises(PriorError, match=rf"^the U-Net in {tmp_path / WHOLE} does not fit the base '{sd_folder}': "):
        merge_adapter(load_prior(str(sd_folder)), tmp_path)
