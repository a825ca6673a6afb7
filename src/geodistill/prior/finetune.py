"""The adapter: the weights that fine-tuning changes in the U-Net, in files that stock diffusers loads.

There are two kinds: LoRA on the attention projections, or the whole U-Net. LoRA cannot teach a compact base a class
name that is new to it: there the text enters every layer with the time embedding, in layers that LoRA does not reach.
"""

from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError, safe_open

from geodistill.config import FinetuneSettings
from geodistill.errors import PriorError
from geodistill.prior.base import Prior, without_path
from geodistill.seeding import derive_seed

_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
WEIGHTS = "pytorch_lora_weights.safetensors"
# Folder of a U-Net that was trained as a whole.
WHOLE = "unet"
# A U-Net with fewer weights is trained as a whole: its optimiser takes less memory than its activations.
_SMALL = 50_000_000


def trains_all(unet: Any, settings: FinetuneSettings) -> bool:
    """Return whether `settings` train all weights of `unet`."""
    if settings.weights == "auto":
        return bool(sum(p.numel() for p in unet.parameters()) < _SMALL)
    return settings.weights == "all"


def free_all(prior: Prior) -> None:
    """Make all weights of the U-Net trainable."""
    prior.unet.requires_grad_(True).to(memory_format=torch.channels_last)


def save_whole(prior: Prior, folder: Path) -> None:
    """Save the U-Net in `folder`/unet, in half precision, for `UNet2DConditionModel.from_pretrained`."""
    unet = prior.unet.half().to(memory_format=torch.contiguous_format)
    unet.save_pretrained(folder / WHOLE, safe_serialization=True)
    without_path(folder / WHOLE / "config.json")


def add_adapter(prior: Prior, *, rank: int, seed: int) -> None:
    """Add a fresh adapter of rank `rank` (Gaussian init, METHOD §2) to the U-Net; only the adapter is trainable."""
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
    """Merge the adapter in `folder` into the U-Net's weights, so that sampling has no extra cost.

    Raises:
        PriorError: there is no adapter, or it does not fit this base.
    """
    if (folder / WHOLE).is_dir():
        _load_whole(prior, folder / WHOLE)
        return
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


def _load_whole(prior: Prior, folder: Path) -> None:
    try:
        weights = UNet2DConditionModel.from_pretrained(folder, use_safetensors=True).state_dict()
        prior.unet.load_state_dict(weights)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = next(iter(str(error).splitlines()), "no reason given")
        raise PriorError(f"the U-Net in {folder} does not fit the base {prior.source!r}: {reason}") from error
    prior.unet.eval().requires_grad_(False)


def _refuse_other_layers(prior: Prior, file: Path) -> None:
    # diffusers silently skips layers that it does not find, which would leave the base unchanged.
    modules = {f"unet.{name}" for name, _ in prior.unet.named_modules()}
    with safe_open(file, "pt") as layers:
        others = sorted(name for name in layers.keys() if name.split(".lora")[0] not in modules)  # noqa: SIM118
    if others:
        raise ValueError(f"this base has no layer for {others[0]}")
