"""The compact base: a small pipeline built from the training scenes alone, in the format of any other base."""

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from geodistill.config import CompactSettings
from geodistill.prior.autoencoder import PatchAutoencoder
from geodistill.prior.base import Prior, refuse_odd_size
from geodistill.prior.training import (
    TrainingData,
    TrainingPlan,
    batches,
    forget_checkpoint,
    prompt_table,
    train_denoiser,
)
from geodistill.scenes.views import dihedral
from geodistill.seeding import derive_seed

_TOKENS, _WIDTH = 48, 256
_END, _MOST_MERGES = "</w>", 2000
_WARMUP, _GAMMA, _DROP_PROMPT = 200, 5.0, 0.1


def build_compact(
    pixels: Tensor, labels: Tensor, prompts: list[list[str]], settings: CompactSettings, *, seed: int, folder: Path
) -> dict[str, Any]:
    """Build and train a base from scenes and save it as a pipeline in `folder`; resumable there.

    Args:
        pixels: the training scenes, uint8 [N, 3, s, s].
        labels: their classes, int64 [N].
        prompts: for each scene the texts that may describe it.
        settings: architecture and training.
        seed: of the run.
        folder: where the pipeline goes; holds the checkpoint while training.

    Returns:
        facts: losses, number of parameters, PSNR of the autoencoder on the scenes.

    Raises:
        PriorError: s is not a multiple of 16.
        TrainingError: the loss is not finite.
    """
    prior = new_compact(sorted({text for row in prompts for text in row}), settings, size=pixels.shape[-1], seed=seed)
    prior.vae.fit(_scaled(pixels[part]) for part in batches(len(pixels), 500))
    data = _training_data(prior, pixels, labels, prompts)
    plan = TrainingPlan(
        seed=derive_seed(seed, "compact"),
        steps=settings.steps,
        batch=settings.batch,
        lr=settings.lr,
        warmup=min(_WARMUP, settings.steps // 4),
        gamma=_GAMMA,
        ema=settings.ema,
        drop_prompt=_DROP_PROMPT,
    )
    prior.unet.requires_grad_(True).to(memory_format=torch.channels_last)
    facts = train_denoiser(prior.unet, prior.scheduler, data, plan, folder, "base")
    _save(prior, folder)
    forget_checkpoint(folder)
    parameters = sum(p.numel() for p in prior.unet.parameters())
    return {**facts, "unet_parameters": parameters, "autoencoder_psnr_db": round(_psnr(prior, pixels), 2)}


def new_compact(corpus: list[str], settings: CompactSettings, *, size: int, seed: int) -> Prior:
    """Return an untrained compact prior whose tokenizer knows the words of `corpus`.

    The text encoder stays as it is drawn: it gives every token at every place its own direction, and the U-Net
    learns to read them. The U-Net attends to the text at half the latent resolution, where attention is cheap.

    Raises:
        PriorError: `size` is not a multiple of 16.
    """
    check_compact_size(size)
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "compact weights"))
        tokenizer = _tokenizer(corpus)
        text_encoder = CLIPTextModel(_text_config(len(tokenizer), tokenizer.eos_token_id)).eval().requires_grad_(False)
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
        )
        vae = PatchAutoencoder(latent_channels=settings.channels)
    scheduler = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type=settings.prediction, clip_sample=False, steps_offset=1
    )
    return Prior(vae.eval(), tokenizer, text_encoder, unet, scheduler, source="compact")


def check_compact_size(size: int) -> None:
    """Raise PriorError unless images of side `size` fit the compact base, which needs a multiple of 16."""
    refuse_odd_size(size, 16, "the compact base")


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


def _tokenizer(corpus: Iterable[str]) -> CLIPTokenizer:
    """Return a CLIP tokenizer that knows the words of `corpus` whole and can spell any other text byte by byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    marks = ["<|startoftext|>", "<|endoftext|>"]
    letters = [*alphabet, *(letter + _END for letter in alphabet)]

    def tokenizer(merges: list[tuple[str, str]]) -> CLIPTokenizer:
        tokens = [*letters, *dict.fromkeys(one + other for one, other in merges), *marks]
        return CLIPTokenizer(
            vocab={token: index for index, token in enumerate(tokens)}, merges=merges, model_max_length=_TOKENS
        )

    # CLIP's own normaliser and splitter say what a word is.
    backend = tokenizer([]).backend_tokenizer
    normal = (backend.normalizer.normalize_str(text) for text in corpus)
    words = Counter(word for text in normal for word, _ in backend.pre_tokenizer.pre_tokenize_str(text))
    return tokenizer(_byte_pairs(words))


def _byte_pairs(words: Counter[str]) -> list[tuple[str, str]]:
    """Return the merges of byte-pair encoding (Sennrich et al., ACL 2016), ties by alphabet.

    The trainer in `tokenizers` breaks ties by the order of a hash table, which is another one in every process.
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


def _scaled(pixels: Tensor) -> Tensor:
    return pixels.float() / 127.5 - 1


def _training_data(prior: Prior, pixels: Tensor, labels: Tensor, prompts: list[list[str]]) -> TrainingData:
    texts, rows = prompt_table(prompts)
    latents = torch.stack(
        [
            torch.cat([prior.encode(dihedral(pixels[part], view)).half() for part in batches(len(pixels), 500)])
            for view in range(8)
        ],
        dim=1,
    )
    return TrainingData(latents, labels, rows, prior.embed(texts).half())


def _psnr(prior: Prior, pixels: Tensor) -> float:
    """Return the mean peak signal-to-noise ratio in dB of at most 500 images through the autoencoder and back."""
    some = pixels[:: max(1, len(pixels) // 500)]
    error = (prior.decode(prior.encode(some)).float() - some.float()).square().mean(dim=(1, 2, 3))
    return float((10 * torch.log10(255**2 / error)).mean())


def _save(prior: Prior, folder: Path) -> None:
    pipeline = StableDiffusionPipeline(
        vae=prior.vae,
        text_encoder=prior.text_encoder,
        tokenizer=prior.tokenizer,
        unet=prior.unet.to(memory_format=torch.contiguous_format),
        scheduler=prior.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
