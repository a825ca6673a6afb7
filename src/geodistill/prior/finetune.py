"""The adapter: LoRA on the U-Net's attention projections, in the file that stock diffusers loads."""

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError, safe_open

from geodistill.errors import PriorError
from geodistill.prior.base import Prior
from geodistill.seeding import derive_seed

_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
WEIGHTS = "pytorch_lora_weights.safetensors"


def add_adapter(prior: Prior, *, rank: int, seed: int) -> None:
    """Put a fresh adapter of rank `rank` (Gaussian init, METHOD §2) on the U-Net; only it will be trained."""
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "adapter weights"))
        prior.unet.add_adapter(
            LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=_TARGETS)
        )
    prior.unet.to(memory_format=torch.channels_last)


def save_adapter(prior: Prior, folder: Path) -> None:
    """Save the U-Net's adapter in `folder` for `StableDiffusionPipeline.load_lora_weights(folder)`."""
    layers = {name: value.contiguous() for name, value in get_peft_model_state_dict(prior.unet).items()}
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers, safe_serialization=True)


def merge_adapter(prior: Prior, folder: Path) -> None:
    """Load the adapter in `folder` and add it to the U-Net's own weights, so that sampling costs nothing more.

    Raises:
        PriorError: there is no adapter, or it is for layers that this base has not.
    """
    if not (folder / WEIGHTS).is_file():
        raise PriorError(f"no adapter in {folder}: expected a file {WEIGHTS}")
    try:
        _refuse_other_layers(prior, folder / WEIGHTS)
        prior.unet.load_lora_adapter(str(folder), weight_name=WEIGHTS, prefix="unet")
        prior.unet.fuse_lora()
        prior.unet.unload_lora()
    except (ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise PriorError(f"the adapter in {folder} does not fit the base {prior.source!r}: {error}") from error
    prior.unet.eval().requires_grad_(False)


def _refuse_other_layers(prior: Prior, file: Path) -> None:
    # diffusers passes over layers that it does not find, and would leave the base as it was without a word.
    modules = {f"unet.{name}" for name, _ in prior.unet.named_modules()}
    with safe_open(file, "pt") as layers:
        others = sorted(name for name in layers.keys() if name.split(".lora")[0] not in modules)  # noqa: SIM118
    if others:
        raise ValueError(f"this base has no layer for {others[0]}")
