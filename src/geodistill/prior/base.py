"""Loading a base: one code path for every Stable-Diffusion-type pipeline, from a folder or by hub name."""

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils import logging as diffusers_logging
from torch import Tensor
from transformers.utils import logging as transformers_logging

from geodistill.devices import Precision, accelerator, dtype_for, mixed
from geodistill.errors import PriorError
from geodistill.pipeline import BASE
from geodistill.prior.catalogue import FACTS, SCRATCH, check_drawn, folder_of, missing_part, unknown_base
from geodistill.prior.noising import PROCESSES
from geodistill.provenance import fingerprint
from geodistill.run import write_atomic

# Pixels in one autoencoder pass: 128 images of 64 px or 8 of 256 px, about 2 GB with Stable Diffusion's autoencoder.
_PIXELS_TOGETHER = 2**19
_NEEDED = ("vae", "tokenizer", "text_encoder", "unet", "scheduler")
# Parts of a Stable Diffusion pipeline that are neither loaded nor downloaded.
_UNUSED = ("safety_checker", "feature_extractor", "image_encoder")


@dataclass
class Prior:
    """The parts of a text-to-image latent diffusion model, all in float32 and frozen.

    Images are uint8 [n, channels, s, s]; latents are float32 [n, C, h, w], shifted and scaled by the VAE's own config.
    Both stay in CPU memory, whatever device the parts are on. `dtype` is the type used for computation.
    """

    vae: Any
    tokenizer: Any
    text_encoder: Any
    unet: Any
    scheduler: Any
    source: str
    dtype: torch.dtype = torch.float32

    @torch.inference_mode()
    def encode(self, images: Tensor) -> Tensor:
        """Return latents `(mean of the posterior - shift) * scale`."""
        return torch.cat([self._encode(part) for part in images.split(images_together(images.shape[-1]))])

    def _encode(self, images: Tensor) -> Tensor:
        with self._mixed_vae():
            mean = self.vae.encode(images.to(self.device).float() / 127.5 - 1).latent_dist.mean.float()
        latents: Tensor = (mean - self._shift) * self._scale
        return latents.cpu()

    @torch.inference_mode()
    def decode(self, latents: Tensor, *, draft: bool = False) -> Tensor:
        """Return uint8 images; a `draft` uses the prior's dtype, is faster and may be off by a grey level in places."""
        parts = latents.split(images_together(latents.shape[-1] * self.downscale))
        return torch.cat([self._decode(part, draft=draft) for part in parts])

    def _decode(self, latents: Tensor, *, draft: bool) -> Tensor:
        with self._mixed_vae() if draft else mixed(self.device, torch.float32):
            images = self._images(latents)
        return ((images + 1) * 127.5).round().to(torch.uint8).cpu()

    def render(self, latents: Tensor) -> Tensor:
        """Return differentiable drafts on the device, float32 images [n, channels, s, s] in [-1, 1]."""
        with self._mixed_vae():
            return self._images(latents)

    def _images(self, latents: Tensor) -> Tensor:
        sample: Tensor = self.vae.decode(latents.to(self.device) / self._scale + self._shift).sample.float()
        return sample.clamp(-1, 1)

    @torch.inference_mode()
    def embed(self, prompts: Sequence[str], batch: int = 256) -> Tensor:
        """Return the text encoder's hidden states [n, tokens, width] of `prompts`, padded as in the pipeline."""
        states = []
        for start in range(0, len(prompts), batch):
            tokens = self.tokenizer(
                list(prompts[start : start + batch]),
                padding="max_length",
                max_length=self.tokenizer.model_max_length,
                truncation=True,
                return_tensors="pt",
            )
            states.append(self.text_encoder(tokens.input_ids.to(self.device))[0].cpu())
        return torch.cat(states)

    @property
    def device(self) -> torch.device:
        """Return the device that the parts are on."""
        device: torch.device = self.vae.device
        return device

    def mixed(self) -> torch.autocast:
        """Return the context in which the U-Net computes."""
        return mixed(self.device, self.dtype)

    def fits(self, prompt: str) -> bool:
        """Return whether the text encoder takes all of `prompt`; `embed` drops what exceeds its limit."""
        return self.tokens(prompt) <= self.token_limit

    def _mixed_vae(self) -> torch.autocast:
        # bf16 is four times as fast on CPUs that support it; in f16 the autoencoders of some bases overflow.
        return mixed(self.device, torch.float32 if self.dtype == torch.float16 else self.dtype)

    def tokens(self, prompt: str) -> int:
        """Return the number of tokens in `prompt`, including the start and end tokens."""
        return len(self.tokenizer(prompt).input_ids)

    @property
    def token_limit(self) -> int:
        """Return the largest number of tokens that the text encoder takes."""
        return int(self.tokenizer.model_max_length)

    @property
    def channels(self) -> int:
        """Return the number of channels of the images: 3 for RGB."""
        return channels_of(self.vae)

    @property
    def downscale(self) -> int:
        """Return the number of pixels per latent element along one side."""
        return pixels_per_latent(self.vae.config)

    def latent_shape(self, size: int) -> tuple[int, int, int]:
        """Return (C, h, w), the shape of the latent of an image of side `size`."""
        return latent_shape(self.vae.config, size)

    def blank(self, count: int, size: int) -> Tensor:
        """Return latents of zeros, float32 [count, C, h, w], in the shape of latents of images of side `size`.

        They take the place of prototypes when images are drawn from text alone.
        """
        return torch.zeros(count, *self.latent_shape(size))

    @property
    def _scale(self) -> float:
        return float(self.vae.config.scaling_factor)

    @property
    def _shift(self) -> float:
        return float(getattr(self.vae.config, "shift_factor", None) or 0.0)


def pixels_per_latent(vae_config: Any) -> int:
    """Return the number of pixels per latent element along one side; each block but the last halves the resolution."""
    return int(2 ** (len(vae_config.block_out_channels) - 1))


def latent_shape(vae_config: Any, size: int) -> tuple[int, int, int]:
    """Return (C, h, w), the shape of the latent of an image of side `size`, by the config of an autoencoder."""
    side = size // pixels_per_latent(vae_config)
    return int(vae_config.latent_channels), side, side


def channels_of(vae: Any) -> int:
    """Return the number of channels of the images that the autoencoder `vae` takes."""
    return int(getattr(vae.config, "in_channels", None) or 3)


def images_together(side: int) -> int:
    """Return how many images of `side` pixels the autoencoder processes together: each layer holds all of them."""
    return max(1, _PIXELS_TOGETHER // side**2)


def load_prior(source: str, precision: Precision = "auto") -> Prior:
    """Return the prior from pipeline folder or hub name `source`; safetensors only, no remote code.

    Its parts are on the accelerator if there is one.

    Raises:
        PriorError: not a pipeline, of another family, or not available.
        ConfigError: the device does not support that precision.
    """
    device = accelerator()
    dtype = dtype_for(precision, device)
    _check_folder(source)
    with _loading(source):
        index = StableDiffusionPipeline.load_config(source)
    check_family(source, index)
    with _loading(source):
        # Always loaded as this class: the index of some bases names a class that diffusers does not have.
        pipeline = StableDiffusionPipeline.from_pretrained(source, use_safetensors=True, **dict.fromkeys(_UNUSED))
    parts = {name: pipeline.components[name] for name in _NEEDED}
    check_channels(source, parts["unet"].config, parts["vae"].config)
    prediction = parts["scheduler"].config.get("prediction_type", "epsilon")
    if not hasattr(parts["scheduler"], "alphas_cumprod"):
        kind = type(parts["scheduler"]).__name__
        raise PriorError(
            f"the base {source!r} has the scheduler {kind}: geodistill needs a noise schedule, as DDPM has"
        )
    if prediction not in PROCESSES:
        raise PriorError(
            f"the base {source!r} predicts {prediction!r}: geodistill needs one that predicts epsilon or v_prediction"
        )
    with quiet_libraries():
        for name in ("vae", "text_encoder", "unet"):
            parts[name] = parts[name].float().to(device).eval().requires_grad_(False)
    return Prior(**parts, source=source, dtype=dtype)


def check_family(source: str, index: Mapping[str, Any]) -> None:
    """Raise PriorError unless the model_index.json of base `source` describes a supported family."""
    classes = {name: part[1] for name, part in index.items() if isinstance(part, list | tuple) and len(part) == 2}
    missing = [name for name in _NEEDED if not classes.get(name)]
    # Stable Diffusion XL has all of these, but also a second text encoder that its U-Net requires.
    second = bool(classes.get("text_encoder_2"))
    if missing or second or classes["unet"] != UNet2DConditionModel.__name__:
        raise PriorError(
            f"the base {source!r} is a {index.get('_class_name')}"
            + (f" without {', '.join(missing)}" if missing else " with two text encoders" if second else "")
            + ": geodistill needs a Stable-Diffusion-type pipeline (vae, tokenizer, text_encoder, unet, scheduler), "
            "such as Stable Diffusion 1.x and 2.x, Text2Earth or a compact base"
        )


def check_channels(source: str, unet: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
    """Raise PriorError unless the input channels of the U-Net config equal the latent channels of the VAE config."""
    if unet["in_channels"] != vae["latent_channels"]:
        raise PriorError(
            f"the U-Net of the base {source!r} takes {unet['in_channels']} channels where latents have "
            f"{vae['latent_channels']}, as for inpainting, depth or editing: give a text-to-image base"
        )


@contextmanager
def _loading(source: str) -> Iterator[None]:
    try:
        with quiet_libraries():
            yield
    except (OSError, ValueError, AttributeError, ImportError, KeyError, TypeError) as error:
        raise PriorError(_unloadable(source, str(error))) from error


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hide diffusers' notes on parts that are not loaded or change their type, and the bars of both libraries."""
    library = logging.getLogger("diffusers")
    level = library.level
    bars = [one for one in (diffusers_logging, transformers_logging) if one.is_progress_bar_enabled()]
    library.setLevel(logging.ERROR)
    for one in bars:
        one.disable_progress_bar()
    try:
        yield
    finally:
        library.setLevel(level)
        for one in bars:
            one.enable_progress_bar()


def source_of(base: str, size: int) -> str:
    """Return the folder of `base` if it names an installed base, else `base` itself (a folder or hub name).

    Raises:
        PriorError: the base does not exist, its package is broken, or it does not draw images of side `size`.
    """
    if base == SCRATCH:
        return base
    source = str(folder_of(base) or base)
    _check_folder(source)
    check_drawn(base, source, size)
    return source


def _may_be_had(source: str) -> bool:
    """Return whether `source` is an existing folder or could be a hub name."""
    return Path(source).is_dir() or (source.count("/") == 1 and not source.startswith((".", "/")))


def check_size(size: int, vae_config: Any, unet_config: Any, source: str) -> None:
    """Raise PriorError unless images of side `size` fit the autoencoder and the U-Net of base `source`."""
    # Each down block of the U-Net except the last halves the resolution.
    step = pixels_per_latent(vae_config) * 2 ** (len(unet_config.down_block_types) - 1)
    refuse_odd_size(size, step, f"the base {source!r}")


def refuse_odd_size(size: int, step: int, base: str) -> None:
    """Raise PriorError unless `size` is a multiple of `step`, as `base` requires."""
    if size % step:
        near = max(step, round(size / step) * step)
        raise PriorError(f"size {size} does not fit {base}, which needs a multiple of {step}: use --size {near}")


def without_path(config: Path) -> None:
    """Remove the source path that diffusers notes in a model's config file: it would identify this machine."""
    values = json.loads(config.read_text())
    if values.pop("_name_or_path", None):
        write_atomic(config, json.dumps(values, indent=2, sort_keys=True) + "\n")


def fingerprint_of_base(source: str) -> str:
    """Return a fingerprint of the base's files, or of its name if it is not a folder."""
    folder = Path(source)
    if not folder.is_dir():
        return fingerprint("hub", source)
    own = (path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors", ".txt"))
    # Terms and sizes in base.json do not change what the base draws.
    files = sorted(path for path in own if path != folder / FACTS)
    return fingerprint([[str(path.relative_to(folder)), _digest(path)] for path in files])


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unloadable(source: str, why: str) -> str:
    reason = next(iter(why.splitlines()), "no reason given")
    if Path(source).is_dir():
        return f"cannot load the base {source!r}: {reason}"
    return (
        f"there is no folder {source!r} here, and the hub did not give a base of that name ({reason}): "
        "point --base to a folder saved by diffusers' save_pretrained"
    )


def _check_folder(source: str) -> None:
    folder = Path(source)
    missing = missing_part(folder) if folder.is_dir() else ""
    if missing:
        # `pretrain --out RUN` leaves its base in RUN/base.
        inside = folder / BASE.name
        hint = "Point --base to a folder saved by diffusers' save_pretrained"
        if not missing_part(inside):
            hint = f"Did you mean {inside}?"
        raise PriorError(f"the base folder {source} is not a whole pipeline: {missing}. {hint}")
    if not _may_be_had(source):
        raise unknown_base(source)
