"""The cost of a run before it starts: downloads and their licences, disk, memory, operations and time.

Models are built from their configs alone, on torch's meta device, where nothing is computed. Their floating-point
operations and the activations that training keeps are counted, not guessed. Time is operations divided by a rate. The
rate of a layer like those of the models is measured here; the share of it that each stage reaches is a constant
(`SHARES`), and the estimate of time is no better than this share.
"""

import json
import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from huggingface_hub import HfApi, HfFileSystem, try_to_load_from_cache
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from geodistill.config import Config, SamplingSettings
from geodistill.descriptions.models import SERVER
from geodistill.devices import accelerator, dtype_for
from geodistill.errors import PriorError
from geodistill.evaluation.protocols import BATCH, recipe_steps
from geodistill.latent_teacher import LatentTeacher
from geodistill.networks import FEATURES as WIDTH
from geodistill.networks import PRETRAINED, build_network, embed
from geodistill.pipeline import (
    ADAPTER,
    BASE,
    CANDIDATES,
    CHOSEN,
    FEATURES,
    FOLLOWING,
    INITIAL,
    LATENTS,
    REFINED,
    SCREENED,
    SELF_TEST,
    SOFT_LABEL_TEACHER,
    STUDENTS,
    TEACHER,
)
from geodistill.prior.base import (
    Prior,
    channels_of,
    check_channels,
    check_family,
    check_size,
    images_together,
    latent_shape,
    load_prior,
    quiet_libraries,
    source_of,
)
from geodistill.prior.catalogue import SCRATCH, tell_terms
from geodistill.prior.compact import check_compact_size, new_compact
from geodistill.prior.finetune import trains_all
from geodistill.privacy.overlap import told_overlap
from geodistill.prototypes import MOST_AT_ONCE
from geodistill.refinement import RandomNetwork
from geodistill.run import peak_memory_mib
from geodistill.scenes.scenes import Scenes
from geodistill.stages.candidates import from_noise
from geodistill.stages.checks import check_bands, check_counts
from geodistill.stages.following import draws_per_prototype
from geodistill.stages.held_out import Apart, set_apart
from geodistill.stages.initial import initial_count
from geodistill.stages.latents import views_of
from geodistill.stages.learned import MOST
from geodistill.stages.line import line
from geodistill.stages.refinement import steps_of_rounds
from geodistill.stages.screen import weaker
from geodistill.stages.self_test import VERDICT_PROTOCOL
from geodistill.stages.students import views_of_scenes

# Share of the rate of a residual block (`block_rate`) that each stage reached on EuroSAT, with a compact base and one
# core with matrix units (benchmarks/plan.py). Larger bases reach more, and finish earlier than planned.
SHARES = {
    LATENTS.name: 2.76,
    TEACHER.name: 0.89,
    ADAPTER.name: 0.76,
    CANDIDATES.name: 1.01,
    CHOSEN.name: 0.42,
    STUDENTS: 0.15,
    REFINED.name: 1.46,
}
# Nearly all of the time of screening is spent on drawing.
SHARES[SCREENED.name] = SHARES[CANDIDATES.name]
# Nearly all of the time of these stages, too, is spent on drawing.
SHARES[FOLLOWING.name] = SHARES[INITIAL.name] = SHARES[CANDIDATES.name]
# Its network is that of the students; frozen, it reaches the same share (53 s for 6,000 scenes of AID on one core).
SHARES[FEATURES.name] = SHARES[STUDENTS]
# The same training as the adapter's.
SHARES[BASE.name] = SHARES[ADAPTER.name]
# The same training as that of the students, two side by side.
SHARES[SELF_TEST.name] = SHARES[SOFT_LABEL_TEACHER.name] = SHARES[STUDENTS]
_PARTS = ("vae", "text_encoder", "unet", "tokenizer", "scheduler")
# Cost of a training step in forward passes. LoRA needs the forward pass and the gradients of activations; training all
# weights also needs the gradients of weights.
LORA_STEP, WHOLE_STEP = 2, 3


@dataclass(frozen=True)
class Download:
    """A model that is fetched from the hub: its name, its licence as stated on its page, the bytes to download."""

    name: str
    licence: str
    size: int


@dataclass(frozen=True)
class Work:
    """The work of one stage: what it processes, in floating-point operations and in seconds on this machine."""

    name: str
    work: str
    operations: float
    seconds: float


@dataclass(frozen=True)
class Plan:
    """The cost of a run that has not started. Memory and disk are in bytes.

    not_estimated: work whose time cannot be estimated. scenes: the number of training scenes. held_out: how many of
    them are held out for the self-test. no_test: why there is no self-test, if one was asked for. overlap: a sentence,
    without its full stop, on how many of the images the base was trained on; "" if none are known.
    """

    downloads: tuple[Download, ...]
    stages: tuple[Work, ...]
    not_estimated: tuple[str, ...]
    memory: int
    disk: int
    free_disk: int
    device: str
    scenes: int = 0
    held_out: int = 0
    no_test: str = ""
    overlap: str = ""

    @property
    def seconds(self) -> float:
        """The time of all stages together."""
        return sum(stage.seconds for stage in self.stages)


@dataclass(frozen=True)
class _Parts:
    """Models of a base on the meta device, the size of its text encoder, and its number of tokens per prompt."""

    vae: Any
    unet: Any
    text_encoder_bytes: int
    tokens: int

    @property
    def channels(self) -> int:
        """The number of channels of the images: 3 for RGB."""
        return channels_of(self.vae)

    def latents(self, size: int, count: int = 1) -> Tensor:
        return torch.empty(count, *latent_shape(self.vae.config, size), device="meta")


def plan(scenes: Scenes, config: Config, out: Path) -> Plan:
    """Return the cost of `distill(scenes, config, out=out)`; only configs of a few KB are downloaded.

    Raises:
        PriorError: the base is no base, does not draw images of the config's size or of the scenes' bands, or the hub
            cannot describe it.
        SceneError: a class has too few images.

    >>> import geodistill
    >>> data = geodistill.builtin_scenes(train_per_class=12, test_per_class=3, size=64)
    >>> found = geodistill.plan(data.train, geodistill.load_config(ipc=2), Path("."))
    >>> [work.name for work in found.stages][:2]
    ['latents', 'features']
    """
    check_counts(scenes, config.ipc, config.privacy)
    device = accelerator().type
    downloads, overlap = list[Download](), ""
    if config.base == SCRATCH:
        check_compact_size(config.size)
        parts = _of_prior(new_compact([], config.compact, size=config.size, seed=0, channels=scenes.channels))
    else:
        source = source_of(config.base, config.size)
        tell_terms(source)
        if Path(source).is_dir():
            parts = _of_prior(load_prior(source))
        else:
            parts, base = _of_hub(source)
            downloads.append(base)
        check_size(config.size, parts.vae.config, parts.unet.config, source)
        check_bands(config.base, parts.channels, scenes)
        overlap = told_overlap(scenes, Path(source))
    describer = config.descriptions.describer
    if "/" in describer and not describer.startswith(SERVER) and not Path(describer).is_dir():
        downloads.append(_hub_model(describer))
    dtype = dtype_for(config.precision, accelerator())
    apart, count = set_apart(scenes, config), len(scenes)
    scenes = apart.train
    stages = tuple(_stages(parts, apart, config, block_rate(device, dtype)))
    memory = _memory(parts, config, dtype, len(scenes.classes) * config.ipc)
    if device == "cpu":
        # The models share the memory with what is loaded by now: libraries, and the table of the scenes.
        memory += peak_memory_mib() * 2**20 + _data(scenes, config)
    disk = _disk(parts, scenes, config) + sum(one.size for one in downloads)
    return Plan(
        downloads=tuple(downloads),
        stages=stages,
        not_estimated=tuple(_not_estimated(config)),
        memory=memory,
        disk=disk,
        free_disk=_free(out),
        device=device,
        scenes=count,
        held_out=count - len(scenes),
        no_test=apart.reason,
        overlap=overlap,
    )


def _of_prior(prior: Prior) -> _Parts:
    size = _bytes(prior.text_encoder)
    return _Parts(prior.vae.to("meta"), prior.unet.to("meta"), size, prior.token_limit)


def _of_hub(name: str) -> tuple[_Parts, Download]:
    download = _hub_model(name, within=_PARTS)
    check_family(name, _config(name, "model_index.json"))
    text, unet_config, vae_config = (_config(name, f"{part}/config.json") for part in ("text_encoder", "unet", "vae"))
    check_channels(name, unet_config, vae_config)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(unet_config)
        vae = AutoencoderKL.from_config(vae_config)
        encoder = CLIPTextModel(CLIPTextConfig.from_dict(text))
    return _Parts(vae, unet.requires_grad_(False), _bytes(encoder), encoder.config.max_position_embeddings), download


def _hub_model(name: str, within: tuple[str, ...] = ()) -> Download:
    with _hub(name):
        info = _listing(name)
    files = [(one.rfilename, one.size or 0) for one in info.siblings or []]
    wanted = [(path, size) for path, size in files if _is_fetched(path, within) and not _is_here(name, path)]
    card = info.card_data
    licence = str(card.get("license") or "not told") if card else "not told"
    return Download(name, licence, sum(size for _, size in wanted))


def _is_fetched(path: str, within: tuple[str, ...]) -> bool:
    """Return whether loading fetches the file `path`: configs, and weights as safetensors in full precision."""
    folder, _, file = path.rpartition("/")
    if within and folder not in within and path != "model_index.json":
        return False
    if not within and folder:
        return False
    if path.endswith(".safetensors"):
        return not any(mark in file for mark in (".fp16.", ".bf16.", "non_ema"))
    return path.endswith((".json", ".txt", ".jinja", ".model"))


def _is_here(name: str, path: str) -> bool:
    return isinstance(try_to_load_from_cache(name, path), str)


def _listing(name: str) -> Any:
    return HfApi().model_info(name, files_metadata=True)


def _config(name: str, path: str) -> dict[str, Any]:
    with _hub(name):
        return _fetched(name, path)


def _fetched(name: str, path: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(HfFileSystem().cat_file(f"{name}/{path}"))
    return values


@contextmanager
def _hub(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whichever HTTP library the hub's client is built on; nothing else runs in here
        reason = next(iter(str(error).splitlines()), "no reason given")
        raise PriorError(
            f"the hub did not tell of {name!r} ({reason}): point to a folder, or plan where the hub can be reached"
        ) from error


def _stages(parts: _Parts, apart: Apart, config: Config, rate: float) -> Iterator[Work]:
    """Yield the stages that take long; `rate` is in operations per second."""
    scenes = apart.train
    sampling, refinement = config.sampling, config.refinement
    slots = len(scenes.classes) * config.ipc
    drawn = slots * sampling.candidates
    tested = slots * draws_per_prototype(len(scenes.classes), config)
    image, latent = _image(config.size, scenes.channels), parts.latents(config.size)
    teacher = LatentTeacher(latent.shape[1], len(scenes.classes), config.teacher.width).to("meta")
    taught_latents = config.teacher.steps * config.teacher.batch
    step = _operations(lambda: _denoised(parts, latent))
    decoding = _decoding(parts, latent)
    passes_of_training = WHOLE_STEP if trains_all(parts.unet, config.finetune) else LORA_STEP
    embedding = _operations(lambda: build_network(PRETRAINED, 2, 0, scenes.channels).eval().to("meta")(image))
    students, rounds = refinement.students, len(steps_of_rounds(refinement.steps, refinement.rounds))
    shown, views = _shown(scenes), len(scenes) * views_of(len(scenes), config)
    taught = max(students, default=0) * BATCH + len(students) * shown // 3
    works = {
        BASE.name: (config.compact.steps * config.compact.batch, "latents", WHOLE_STEP * step),
        LATENTS.name: (views, "views", _operations(lambda: parts.vae.encode(image))),
        FEATURES.name: (len(scenes), "scenes", embedding),
        TEACHER.name: (taught_latents, "latents", 3 * _operations(lambda: teacher(latent))),
        ADAPTER.name: (config.finetune.steps * config.finetune.batch, "latents", passes_of_training * step),
        INITIAL.name: (initial_count(scenes, config), "images", passes(from_noise(sampling)) * step + decoding),
        FOLLOWING.name: (tested, "images", passes(sampling) * step + 2 * decoding),
        CANDIDATES.name: (drawn, "images", passes(sampling) * step),
        # On AID most candidates are drawn once more; how many it will be on other scenes is not known in advance.
        SCREENED.name: (drawn, "images drawn again, at a guess", passes(weaker(sampling)) * step + 2 * decoding),
        CHOSEN.name: (drawn, "images decoded", decoding),
        # Each round trains a classifier on the whole set; each of its students computes features of all views once.
        STUDENTS: (rounds * taught, "images", 3 * embedding),
        # A gradient costs two further passes. If memory is short, most images are decoded once more.
        REFINED.name: (refinement.steps * slots, "images", 3 * (decoding + embedding)),
        SOFT_LABEL_TEACHER.name: (
            recipe_steps("finetune", len(scenes), None) * BATCH,
            "images",
            3 * embedding,
        ),
        # One training on the set and one on real images.
        SELF_TEST.name: (2 * recipe_steps(VERDICT_PROTOCOL, slots, None) * BATCH, "images", 3 * embedding),
    }
    asked, private = {stage.name for stage in line(config)}, config.privacy == "dp"
    # These depend on more than whether the run has the stage.
    counted = {
        FOLLOWING.name: bool(tested) and not private,
        CHOSEN.name: config.selection.by == "herding",
        STUDENTS: bool(refinement.steps) and not private,
        SELF_TEST.name: apart.test is not None,
    }
    for name in (name for name in works if counted.get(name, name in asked)):
        count, what, each = works[name]
        yield Work(name, f"{count:,} {what}", count * each, count * each / (rate * SHARES[name]))


def _not_estimated(config: Config) -> Iterator[str]:
    if config.descriptions.describer not in ("measured", "template"):
        yield f"answers of {config.descriptions.describer}"
    if config.base == SCRATCH and config.compact.autoencoder == "convolutional":
        yield "the training of the base's autoencoder"
    if config.privacy == "dp" and config.finetune.steps:
        yield "gradients of each image alone, which training under differential privacy takes"


def denoising_operations(source: str, size: int) -> float:
    """Return the operations of one U-Net pass, with the base in folder `source`, for one image of side `size`."""
    parts = _of_prior(load_prior(source))
    return _operations(lambda: _denoised(parts, parts.latents(size)))


def encoding_operations(source: str, size: int) -> float:
    """Return the operations of encoding one view of side `size` with the autoencoder of the base in folder `source`."""
    parts = _of_prior(load_prior(source))
    return _operations(lambda: parts.vae.encode(_image(size)))


def passes(sampling: SamplingSettings) -> float:
    """Return the number of U-Net passes of one candidate."""
    share = sampling.noise_strength if sampling.starts else 1.0
    if sampling.follow == "base":
        share = (share + 1) / 2
    return sampling.steps * share * (1 + (sampling.guidance_scale != 1))


def _decoding(parts: _Parts, latent: Tensor) -> float:
    return _operations(lambda: parts.vae.decode(latent))


def _denoised(parts: _Parts, latents: Tensor) -> Any:
    unet = parts.unet
    width = unet.config.cross_attention_dim
    text = torch.empty(len(latents), parts.tokens, width, device="meta", dtype=latents.dtype)
    times = torch.zeros(len(latents), dtype=torch.long, device="meta")
    return unet(latents, times, text, class_labels=times if unet.config.num_class_embeds else None).sample


def _image(size: int, channels: int = 3) -> Tensor:
    return torch.empty(1, channels, size, size, device="meta")


def _operations(call: Callable[[], Any]) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def _memory(parts: _Parts, config: Config, dtype: torch.dtype, images: int) -> int:
    """Return the bytes of the float32 weights and of what the largest backward pass keeps, to make `images` images."""
    unet = parts.unet
    # The U-Net is in memory twice while its adapter is trained.
    weights = _bytes(unet) * (2 if config.finetune.steps else 1) + _bytes(parts.vae) + parts.text_encoder_bytes
    latents = parts.latents(config.size, config.finetune.batch).to(dtype).requires_grad_()
    with quiet_libraries():
        unet.to(dtype)
        kept = _kept(lambda: _denoised(_Parts(parts.vae, unet, 0, parts.tokens), latents))
        unet.to(torch.float32)
    if config.refinement.steps:
        kept = max(kept, min(images, images_together(config.size)) * _kept_by_refining(parts, config.size))
    return weights + kept


def _kept_by_refining(parts: _Parts, size: int) -> int:
    """Return the bytes that refining one image of `size` pixels keeps, for the network that keeps most."""
    latent = parts.latents(size).requires_grad_()
    own = parts.channels
    networks = build_network(PRETRAINED, 2, 0, own).eval(), RandomNetwork(0, own)
    return max(_kept(partial(_seen, parts.vae, network.to("meta"), latent)) for network in networks)


def _seen(vae: Any, network: nn.Module, latent: Tensor) -> Tensor:
    return embed(network, vae.decode(latent).sample)


def _kept(call: Callable[[], Any]) -> int:
    """Return the bytes that `call` keeps for its backward pass, without parameters, plus the largest gradients."""
    kept = [0]

    def count(tensor: Tensor) -> Tensor:
        kept.append(0 if isinstance(tensor, nn.Parameter) else tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        call()
    # The gradients of a layer's output and of its input are in memory at the same time.
    return sum(kept) + 2 * max(kept)


def _bytes(module: Any) -> int:
    return 4 * sum(int(p.numel()) for p in module.parameters())


def _disk(parts: _Parts, scenes: Scenes, config: Config) -> int:
    """Return the bytes that the run takes at most: what is kept, and the largest of what is there for a while."""
    asked = {stage.name for stage in line(config)}
    latent, weights = math.prod(latent_shape(parts.vae.config, config.size)), _bytes(parts.unet)
    drawn = len(scenes.classes) * config.ipc * config.sampling.candidates
    latents = len(scenes) * views_of(len(scenes), config) * latent * 2 if LATENTS.name in asked else 0
    features = len(scenes) * WIDTH * 4 if FEATURES.name in asked else 0
    trains = trains_all(parts.unet, config.finetune) if config.finetune.steps else False
    kept = latents + features + drawn * latent * 4 + trains * weights // 2
    # Parts of a stage are there until they are joined; a training keeps a checkpoint, a round of refinement features.
    of_students = _shown(scenes) * WIDTH * 4 * len(config.refinement.students) if config.refinement.steps else 0
    return kept + max(latents, features, trains * 4 * weights, of_students)


def _shown(scenes: Scenes) -> int:
    """Return the number of images that each student of refinement sees: the scenes learned from, in all views."""
    count = min(len(scenes), MOST)
    return count * views_of_scenes(count)


def _data(scenes: Scenes, config: Config) -> int:
    """Return the bytes of the scenes and of their features that the stage with most of them has in memory.

    That is refinement, with the images that students see and their features in each network; without it, the choice of
    candidates or the clustering of the largest class.
    """
    # The soft-label teacher is trained on all images.
    taught = len(scenes) * scenes.channels * config.size**2 if config.soft_labels else 0
    clustered = min(int(torch.bincount(scenes.labels).max()), MOST_AT_ONCE) * WIDTH * 8
    chosen = min(len(scenes), MOST) * (WIDTH + 2 * config.teacher.width) * 4
    if not config.refinement.steps:
        return max(3 * max(clustered, chosen), taught)
    # Two copies while the error is computed, beside those of the backbone and of the students.
    networks = 1 + len(config.refinement.students) + 2
    return max(_shown(scenes) * (3 * config.size**2 + networks * WIDTH * 4), 3 * clustered, taught)


def _free(folder: Path) -> int:
    while not folder.exists():
        folder = folder.parent
    free: int = shutil.disk_usage(folder).free
    return free


def block_rate(device: str, dtype: torch.dtype) -> float:
    """Return the floating-point operations per second of a residual block in `dtype`, the median of twenty passes.

    A product of large matrices is no good measure: a processor with matrix units is six times as fast on it as another,
    but less than twice as fast on the layers of a small U-Net.
    """
    channels, side, count = (320, 64, 16) if device == "cuda" else (128, 8, 64)
    block = ResnetBlock2D(in_channels=channels, temb_channels=None).eval()
    images = torch.zeros(count, channels, side, side, device=device, dtype=dtype)
    images = images.to(memory_format=torch.channels_last)
    operations = _operations(lambda: block.to("meta")(torch.empty(count, channels, side, side, device="meta"), None))
    block = block.to_empty(device=device).to(dtype, memory_format=torch.channels_last)
    seconds = []
    with torch.inference_mode():
        for _ in range(25):
            start = time.perf_counter()
            float(block(images, None)[0, 0, 0, 0])
            seconds.append(time.perf_counter() - start)
    # The first five passes include preparation that later ones reuse.
    return operations / statistics.median(seconds[5:])
