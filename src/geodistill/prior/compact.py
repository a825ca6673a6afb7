"""The compact base: a small pipeline built from the training scenes alone, in the same format as any other base."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from geodistill.config import CompactSettings
from geodistill.devices import Precision, accelerator, compiled_in_place, dtype_for
from geodistill.errors import PriorError
from geodistill.prior.autoencoder import AutoencoderLoss, ConvAutoencoder, PatchAutoencoder, SharpeningLoss
from geodistill.prior.base import Prior, quiet_libraries, refuse_odd_size, without_path
from geodistill.prior.noising import spread
from geodistill.prior.training import (
    Ahead,
    Mixture,
    Optimisation,
    TrainingData,
    TrainingPlan,
    apportion,
    batches,
    forget_checkpoint,
    prompt_table,
    train,
    train_denoiser,
)
from geodistill.progress import progress
from geodistill.run import write_atomic
from geodistill.scenes.views import dihedral, nearer, resized
from geodistill.seeding import derive_seed, generator, seed_of_member

_TOKENS, _WIDTH = 48, 256
_END, _MOST_MERGES = "</w>", 2000
# Compiling on a CPU takes as long as about 300 steps and then halves the time of each step.
_WORTH_COMPILING = 2000
_WARMUP, _GAMMA, _DROP_PROMPT = 200, 5.0, 0.1
# Approximate number of prompts used to set the text encoder's last normalisation.
_TOLD_APART = 1000
# The autoencoder after each of its trainings, kept until the whole base is saved, with the facts of the training.
_SMOOTH, _SHARP, _FACTS = ".smooth", ".sharp", "facts.json"
# Peak learning rate of the sharpening, and the largest standard deviation of the noise added to its latents, whose own
# deviation is 1.
_SHARPENING_LR, _DISTURBANCE = 5e-4, 0.3
# Weight of the critics at the first and the last step. Up to this weight images become more useful to a classifier,
# above it less useful again (docs/experiments.md).
_PRESSURE = (0.1, 0.6)
# Pixels along a side of the linear autoencoder's patches.
_PATCH = 8


@dataclass(frozen=True)
class Archive:
    """Scenes that a base is trained on.

    pixels: uint8 [N, C, s, s], whole scenes. labels: int64 [N], their classes. prompts: for each scene, the texts that
    may describe it. larger: the same scenes at higher resolution, uint8 [N, 3, t, t], for zoomed-in views. share: the
    archive's part of every batch, relative to those of other archives.
    """

    pixels: Tensor
    labels: Tensor
    prompts: list[list[str]]
    larger: Tensor | None = None
    share: float = 1.0


def build_compact(
    archives: Sequence[Archive],
    settings: CompactSettings,
    *,
    seed: int,
    folder: Path,
    start: Prior | None = None,
    precision: Precision = "auto",
) -> dict[str, Any]:
    """Build and train a base from scenes, and save it in `folder` as a half-precision pipeline; resumable there.

    Args:
        archives: the training scenes; images of all archives have the same side s.
        settings: architecture and training.
        seed: of the run.
        folder: where the pipeline is saved; holds the checkpoint during training.
        start: a base whose U-Net is trained further in place, with all other parts unchanged; the architecture and
            autoencoder in `settings` are then ignored.
        precision: number type of the U-Net's training; that of `start` if there is one.

    Returns:
        facts: losses, number of parameters, PSNR of the autoencoder on the scenes.

    Raises:
        PriorError: s is not a multiple of 16.
        TrainingError: the loss is not finite.
    """
    prior, facts = start, dict[str, Any]()
    if prior is None:
        every = [text for archive in archives for row in archive.prompts for text in row]
        channels, size = archives[0].pixels.shape[1], archives[0].pixels.shape[-1]
        prior = new_compact(sorted(set(every)), settings, size=size, seed=seed, channels=channels)
        prior = replace(prior, dtype=dtype_for(precision, prior.device))
        # An odd step: an even one would skip one of two alternating texts per scene.
        _tell_apart(prior, every[:: len(every) // _TOLD_APART | 1])
        facts = _make_autoencoder(prior, archives, settings, seed, folder)
    data = _training_data(prior, archives, settings, seed)
    plan = TrainingPlan(
        seed=derive_seed(seed, "compact"),
        steps=settings.steps,
        batch=settings.batch,
        lr=settings.lr,
        warmup=min(_WARMUP, settings.steps // 4),
        gamma=_GAMMA,
        ema=settings.ema,
        drop_prompt=_DROP_PROMPT,
        dtype=prior.dtype,
    )
    prior.unet.requires_grad_(True).to(memory_format=torch.channels_last)
    compiling = prior.device.type == "cuda" or settings.steps >= _WORTH_COMPILING
    with compiled_in_place(*[prior.unet] if compiling else []):
        facts |= train_denoiser(prior.unet, prior.scheduler, data, plan, folder, "base")
    facts["doubled"] = data.doubled is not None
    facts["unet_parameters"] = sum(p.numel() for p in prior.unet.parameters())
    psnr = [_psnr(prior, archive.pixels) for archive in archives]
    facts["autoencoder_psnr_db"] = round(sum(psnr) / len(psnr), 2)
    _save(prior, folder)
    forget_checkpoint(folder)
    for name in (_SMOOTH, _SHARP):
        shutil.rmtree(folder / name, ignore_errors=True)
    return facts


def new_compact(corpus: list[str], settings: CompactSettings, *, size: int, seed: int, channels: int = 3) -> Prior:
    """Return an untrained compact prior for images of `channels` channels, whose tokenizer knows the words of `corpus`.

    The text encoder keeps its random weights except for its last normalisation, which is set once the prompts are
    known. The U-Net attends to the text at half the latent resolution, where attention is cheap.

    Raises:
        PriorError: `size` is not a multiple of 16, or the convolutional autoencoder is to take other images than RGB.
    """
    check_compact_size(size)
    linear = settings.autoencoder == "linear"
    if channels != 3 and not linear:
        raise PriorError(
            f"the images have {channels} channels, and the convolutional autoencoder takes RGB alone: use "
            "--set compact.autoencoder=linear"
        )
    components = channels * _PATCH**2
    if linear and settings.channels > components:
        raise PriorError(
            f"compact.channels is {settings.channels}: patches of {channels} bands have {components} principal "
            "components; give at most as many"
        )
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "compact weights"))
        tokenizer = make_tokenizer(corpus)
        text_encoder = CLIPTextModel(_text_config(len(tokenizer), tokenizer.eos_token_id)).eval().requires_grad_(False)
        # The words of a prompt matter more than their positions.
        _text_model(text_encoder).embeddings.position_embedding.weight.mul_(0.1)
        unet = UNet2DConditionModel(
            sample_size=size // 8,
            in_channels=settings.channels,
            out_channels=settings.channels,
            block_out_channels=settings.width,
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=_WIDTH,
            attention_head_dim=4,  # diffusers' name for the number of heads
            # The pooled text joins the time embedding in every layer: through attention alone it is hardly learned.
            addition_embed_type="text",
            addition_embed_type_num_heads=8,
            resnet_time_scale_shift="scale_shift",
        )
        width = settings.channels
        vae = PatchAutoencoder(width, in_channels=channels) if linear else ConvAutoencoder(latent_channels=width)
    scheduler = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type=settings.prediction, clip_sample=False, steps_offset=1
    )
    device = accelerator()
    parts = (vae.eval().to(device), tokenizer, text_encoder.to(device), unet.to(device), scheduler)
    return Prior(*parts, source="compact", dtype=dtype_for("auto", device))


@torch.no_grad()
def _tell_apart(prior: Prior, prompts: list[str]) -> None:
    """Set the text encoder's last normalisation so that each channel has mean 0 and deviation 1 over `prompts`.

    With random weights, what all prompts share (positions, first words, padding) is a hundred times as large as what
    distinguishes the classes, and the U-Net learned nothing from the latter in 2,000 steps.
    """
    norm = _text_model(prior.text_encoder).final_layer_norm
    states = torch.cat([prior.embed(prompts[part]).flatten(0, 1) for part in batches(len(prompts), 256)])
    states = states.to(prior.device)
    deviation = states.std(dim=0)
    norm.bias.copy_(-states.mean(dim=0) / deviation)
    norm.weight.copy_(1 / deviation)


def _text_model(text_encoder: Any) -> Any:
    """Return the module that holds the layers; older versions of transformers wrap it once more."""
    return getattr(text_encoder, "text_model", text_encoder)


def check_compact_size(size: int) -> None:
    """Raise PriorError unless images of side `size` fit a base built from scenes, which needs a multiple of 16."""
    refuse_odd_size(size, 16, "a base built from scenes")


def _text_config(vocabulary: int, end: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=_WIDTH,
        intermediate_size=2 * _WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=_TOKENS,
        pad_token_id=end,
        bos_token_id=end - 1,
        eos_token_id=end,
    )


def make_tokenizer(corpus: Iterable[str]) -> CLIPTokenizer:
    """Return a CLIP tokenizer that knows the words of `corpus` as whole tokens and spells other text in bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    marks = ["<|startoftext|>", "<|endoftext|>"]
    letters = [*alphabet, *(letter + _END for letter in alphabet)]

    def tokenizer(merges: list[tuple[str, str]]) -> CLIPTokenizer:
        tokens = [*letters, *dict.fromkeys(one + other for one, other in merges), *marks]
        return CLIPTokenizer(
            vocab={token: index for index, token in enumerate(tokens)}, merges=merges, model_max_length=_TOKENS
        )

    # CLIP's own normaliser and splitter define what a word is.
    backend = tokenizer([]).backend_tokenizer
    normal = (backend.normalizer.normalize_str(text) for text in corpus)
    words = Counter(word for text in normal for word, _ in backend.pre_tokenizer.pre_tokenize_str(text))
    return tokenizer(_byte_pairs(words))


def _byte_pairs(words: Counter[str]) -> list[tuple[str, str]]:
    """Return the merges of byte-pair encoding (Sennrich et al., ACL 2016), with ties broken alphabetically.

    The trainer in `tokenizers` breaks ties by the order of a hash table, which differs in every process.
    """
    spelled = {word: [*word[:-1], word[-1] + _END] for word in words}
    merges: list[tuple[str, str]] = []
    while len(merges) < _MOST_MERGES:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in spelled.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        if not pairs:
            break
        merges.append(max(pairs, key=lambda pair: (pairs[pair], pair)))
        spelled = {word: _merged(parts, merges[-1]) for word, parts in spelled.items()}
    return merges


def _merged(parts: list[str], pair: tuple[str, str]) -> list[str]:
    joined: list[str] = []
    for part in parts:
        if joined and (joined[-1], part) == pair:
            joined[-1] += part
        else:
            joined.append(part)
    return joined


def _scaled(pixels: Tensor, device: torch.device) -> Tensor:
    return pixels.to(device).float() / 127.5 - 1


def _make_autoencoder(
    prior: Prior, archives: Sequence[Archive], settings: CompactSettings, seed: int, folder: Path
) -> dict[str, Any]:
    """Fit the autoencoder of `prior`, or train it in two parts that are each saved in `folder` and made only once."""

    def scenes() -> Iterator[Tensor]:
        for archive in archives:
            for part in batches(len(archive.pixels), 500):
                yield _scaled(archive.pixels[part], prior.device)

    if isinstance(prior.vae, PatchAutoencoder):
        prior.vae.fit(scenes())
        return {}
    draw = _Batches(archives, settings, seed)

    def smooth() -> dict[str, Any]:
        with _compiled_if_long(prior.vae, settings.autoencoder_steps):
            facts = _train_autoencoder(prior.vae, draw, settings, seed, folder)
            prior.vae.standardise(scenes())
        return {f"autoencoder_{name}": value for name, value in facts.items()}

    def sharp() -> dict[str, Any]:
        with _compiled_if_long(prior.vae, settings.sharpening_steps):
            facts = _sharpen(prior.vae, draw, settings.sharpening_steps, seed, folder)
        return {f"sharpening_{name}": value for name, value in facts.items()}

    facts = _kept(prior, folder, _SMOOTH, smooth)
    if settings.sharpening_steps:
        facts |= _kept(prior, folder, _SHARP, sharp)
    return facts


def _kept(prior: Prior, folder: Path, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Train the autoencoder of `prior` with `make` unless `folder` has it under `name`; return the training's facts."""
    kept = folder / name
    if not (kept / _FACTS).exists():
        facts = make()
        prior.vae.save_pretrained(kept, safe_serialization=True)
        write_atomic(kept / _FACTS, json.dumps(facts))
        forget_checkpoint(folder)
    prior.vae = ConvAutoencoder.from_pretrained(kept).to(prior.device).eval().requires_grad_(False)
    read: dict[str, Any] = json.loads((kept / _FACTS).read_text())
    return read


class _Batches:
    """Draws batches to train the autoencoder: half whole scenes, half zoomed-in views, one symmetry per batch.

    Archives without larger images give only whole scenes. The number of images per archive follows its share.
    """

    def __init__(self, archives: Sequence[Archive], settings: CompactSettings, seed: int) -> None:
        self.archives, self.seed, self.device = archives, seed, accelerator()
        self.size = archives[0].pixels.shape[-1]
        self.counts = apportion(settings.autoencoder_batch, [archive.share for archive in archives])
        self.shape = (settings.channels, self.size // 8, self.size // 8)

    def named(self, name: str) -> Callable[[int], tuple[Tensor, Tensor, Tensor]]:
        """Return a function from a step of training `name` to its batch.

        A batch is images float [n, 3, s, s] in [-1, 1], normal noise in their latents' shape, and n numbers uniform
        in [0, 1).
        """
        drawn = Ahead(lambda step: self._draw(name, step), self.device)

        def seen(step: int) -> tuple[Tensor, Tensor, Tensor]:
            *pairs, noise, shares = drawn(step)
            g = generator(self.seed, f"{name}: windows", step)
            views = [
                torch.cat([whole, nearer(large, self.size, g)])
                for whole, large in zip(pairs[::2], pairs[1::2], strict=True)
            ]
            images = torch.cat(views)
            return _scaled(dihedral(images, int(torch.randint(0, 8, (), generator=g))), self.device), noise, shares

        return seen

    def _draw(self, name: str, step: int) -> tuple[Tensor, ...]:
        """Return whole and larger images for each archive, then the noise and the uniform numbers of all."""
        drawn, noise, shares = list[Tensor](), list[Tensor](), list[Tensor]()
        for index, (archive, count) in enumerate(zip(self.archives, self.counts, strict=True)):
            g = generator(self.seed, f"{name} of archive {index}" if index else name, step)
            chosen = torch.randint(0, len(archive.pixels), (count,), generator=g)
            half = count if archive.larger is None else count // 2
            larger = archive.pixels if archive.larger is None else archive.larger
            drawn += [archive.pixels[chosen[:half]], larger[chosen[half:]]]
            noise.append(torch.randn(count, *self.shape, generator=g))
            shares.append(torch.rand(count, generator=g))
        return (*drawn, torch.cat(noise), torch.cat(shares))


def _train_autoencoder(
    vae: ConvAutoencoder, draw: _Batches, settings: CompactSettings, seed: int, folder: Path
) -> dict[str, Any]:
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "autoencoder weights"))
        learner = AutoencoderLoss(vae).train().to(draw.device)
    learner.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    seen = draw.named("autoencoder step")

    def loss(step: int) -> Tensor:
        images, noise, _ = seen(step)
        return learner(images, noise)  # type: ignore[no-any-return]

    steps = settings.autoencoder_steps
    plan = Optimisation(steps=steps, lr=settings.autoencoder_lr, warmup=min(100, steps // 4), ema=0.998)
    return train(learner, loss, plan, folder, "autoencoder")


def _compiled_if_long(vae: ConvAutoencoder, steps: int) -> AbstractContextManager[None]:
    # The ImageNet backbone is left out: its depthwise convolutions are ten times slower when compiled on a CPU.
    return compiled_in_place(*(vae.encoder, vae.decoder) if steps >= _WORTH_COMPILING else ())


def _sharpen(vae: ConvAutoencoder, draw: _Batches, steps: int, seed: int, folder: Path) -> dict[str, Any]:
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "critic weights"))
        learner = SharpeningLoss(vae).to(draw.device)
    learner.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    seen = draw.named("sharpening step")

    def loss(step: int) -> Tensor:
        images, noise, shares = seen(step)
        first, last = _PRESSURE
        pressure = first + (last - first) * step / steps
        return learner(images, noise * spread(_DISTURBANCE * shares), pressure)  # type: ignore[no-any-return]

    plan = Optimisation(steps=steps, lr=_SHARPENING_LR, warmup=min(50, steps // 4), ema=0.995)
    return train(learner, loss, plan, folder, "sharpening", dict(learner.critics.named_buffers()))


def _training_data(prior: Prior, archives: Sequence[Archive], settings: CompactSettings, seed: int) -> Mixture:
    """Encode the views of each scene (see `_views`); if `settings` ask for it, also at twice the size."""
    texts, rows = prompt_table([row for archive in archives for row in archive.prompts])
    own = rows.split([len(archive.pixels) for archive in archives])
    embeddings, size = prior.embed(texts).half(), archives[0].pixels.shape[-1]

    def mixed(chosen: Sequence[int], side: int, doubled: Mixture | None = None) -> Mixture:
        parts = []
        for index in chosen:
            latents = _views(
                prior, archives[index], side, settings.nearer_views, seed_of_member(seed, "archive", index)
            )
            parts.append(TrainingData(latents, archives[index].labels, own[index], embeddings))
        return Mixture(tuple(parts), tuple(archives[index].share for index in chosen), doubled)

    large = [i for i, one in enumerate(archives) if one.larger is not None and one.larger.shape[-1] >= 2 * size]
    doubled = mixed(large, 2 * size) if settings.doubled and large else None
    return mixed(range(len(archives)), size, doubled)


def _views(prior: Prior, archive: Archive, side: int, nearer_views: int, seed: int) -> Tensor:
    """Return latents float16 [N, V, C, h, w] of views of `side` pixels: eight of whole scenes, then zoomed-in ones."""
    pixels, larger = archive.pixels, archive.larger
    kinds = 8 if larger is None else 8 + nearer_views

    def encoded(view: int) -> Tensor:
        g = generator(seed, "view", view)
        parts = []
        for part in batches(len(pixels), 500):
            if larger is None or (view < 8 and side == pixels.shape[-1]):
                seen = pixels[part]
            elif view < 8:
                seen = resized(larger[part].to(prior.device), side)
            else:
                seen = nearer(larger[part].to(prior.device), side, g)
            parts.append(prior.encode(dihedral(seen, view % 8)).half())
        return torch.cat(parts)

    with progress("views", kinds) as advance:
        latents = []
        for view in range(kinds):
            latents.append(encoded(view))
            advance(view + 1)
    return torch.stack(latents, dim=1)


def _psnr(prior: Prior, pixels: Tensor) -> float:
    """Return the mean peak signal-to-noise ratio in dB of fewer than 1000 images after encoding and decoding."""
    some = pixels[:: max(1, len(pixels) // 500)]
    error = (prior.decode(prior.encode(some)).float() - some.float()).square().mean(dim=(1, 2, 3))
    error = error.clamp_min(255**2 / 1e10)  # at most 100 dB: an exact autoencoder's is infinite
    return float((10 * torch.log10(255**2 / error)).mean())


def _save(prior: Prior, folder: Path) -> None:
    with quiet_libraries():
        pipeline = StableDiffusionPipeline(
            vae=prior.vae.half(),
            text_encoder=prior.text_encoder.half(),
            tokenizer=prior.tokenizer,
            unet=prior.unet.half().to(memory_format=torch.contiguous_format),
            scheduler=prior.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.save_pretrained(folder, safe_serialization=True)
    for path in folder.glob("*/config.json"):
        without_path(path)
