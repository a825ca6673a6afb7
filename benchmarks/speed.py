"""The adapter's training step and the drawing of candidates against the scripts people use, in one run.

    python benchmarks/speed.py --data ../shared/data/aid

Training: a pipeline at 256 px whose parts have the proportions of Stable Diffusion 1.5 at a quarter of its widths, with
random weights. The other side does what diffusers' example train_text_to_image_lora.py does at each step, in its
default precision: encode the images, encode the texts, denoise, step.

Drawing: the compact base (in rows of commits before be9fbe0 the one that is now called `aid`), AID, a candidate for
each of the prototypes of an IPC 10 run. The other side draws them one prototype after the other, encodes the prompt
each time, and takes PNDM's 50 steps from the same strength, in float32. What both draw is then judged: OA of a
classifier trained on one candidate of each prototype (finetune, three seeds), and FID to the test images of five, as
fewer images have none. For this the other side's are drawn together, which makes the same images sooner.

Encoding: 1,000 and 6,000 of AID's training images, decoded, resized, encoded in eight views, in a process of their own;
the other side reads an image, encodes it, takes the next, in float32. The peak memory of each is in the row.

Our side computes in bf16 on a CPU that has units for it, in float32 on another: each machine has its rows.
Rounds of the two sides alternate, each in a process of its own (encoding: one round); a row of
benchmarks/results/speed.csv has the median of each, their ratio, the least and the largest ratio of a round, the share
that our side reaches of the rate of a large matrix product in the same precision and run, and which kinds of operations
our side's time goes to, as torch's profiler tells.
"""

import argparse
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from record import circumstances, merged, parsed, parser, to_csv
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from transformers import CLIPTextConfig, CLIPTextModel

from geodistill.commands.plan import LORA_STEP, denoising_operations, encoding_operations, passes
from geodistill.config import load_config
from geodistill.descriptions import class_prompt
from geodistill.devices import dtype_for
from geodistill.distilled import DistilledSet
from geodistill.evaluation.bench import Bench, Training
from geodistill.evaluation.measures import mean_std
from geodistill.networks import backbone_features
from geodistill.pipeline import LATENTS
from geodistill.prior.base import Prior, fingerprint_of_base, load_prior, source_of
from geodistill.prior.catalogue import SHIPPED
from geodistill.prior.compact import make_tokenizer
from geodistill.prior.finetune import add_adapter
from geodistill.prior.sample import Requests, sample_batch
from geodistill.prior.training import TrainingData, TrainingPlan, batches, train_denoiser
from geodistill.prototypes import find_prototypes
from geodistill.provenance import Made
from geodistill.run import Run, peak_memory_mib
from geodistill.scenes import SceneData, Scenes, open_scenes
from geodistill.scenes.views import dihedral
from geodistill.stages.context import Context
from geodistill.stages.latents import encode

WORKING = dtype_for("auto", torch.device("cpu"))
SIZE, BATCH = 256, 8
WARM, TIMED, ROUNDS, CANDIDATES = 2, 8, 5, 5
MORE = ("time_goes_to", "oa", "script_oa", "fid", "script_fid", "peak_mib", "script_peak_mib")
# Kinds of operations, by what is in their names; the first that fits counts.
KINDS = {
    "convolutions": ("conv",),
    "attention": ("attention", "bmm", "softmax"),
    "norms": ("norm",),
    "linear layers": ("mm", "linear"),
}
PROMPTS = ["a satellite image of dense residential, mostly built-up land, grey and white, strong fine texture"]


def main() -> None:
    """Time both pairs, write the CSV file."""
    args = _arguments()
    data = open_scenes(args.data)
    rows = [_training()] if "training" in args.parts else []
    rows += [_drawing(data, args.seeds)] if "drawing" in args.parts else []
    rows += [_encoding(args.data, count) for count in (1000, 6000)] if "encoding" in args.parts else []
    to_csv(merged([row | circumstances() for row in rows], "speed.csv", ["what", "precision", "hardware"]), "speed.csv")


def _arguments() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--parts", nargs="+", default=["training", "drawing", "encoding"])
    options.add_argument("--seeds", type=int, default=3)
    return parsed(options)


def _row(name: str, ours: list[float], theirs: list[float], operations: float, **more: str) -> dict[str, str]:
    """Return a row from images per second of each round, and the operations that an image takes on our side."""
    mine, other = statistics.median(ours), statistics.median(theirs)
    share = mine * operations / _peak_rate()
    row = {"what": name, "precision": str(WORKING).removeprefix("torch.")}
    row |= {"images_per_second": f"{mine:.3g}", "script_images_per_second": f"{other:.3g}"}
    each = sorted(one / another for one, another in zip(ours, theirs, strict=True))
    row |= {"ratio": f"{mine / other:.2f}", "least_ratio": f"{each[0]:.2f}", "largest_ratio": f"{each[-1]:.2f}"}
    row |= {"share_of_peak": f"{share:.3f}"}
    row |= {name: more.get(name, "") for name in MORE}
    print(row, flush=True)
    return row


def _peak_rate() -> float:
    """Return the floating-point operations a second of a large product in our precision, the quickest of twenty."""
    side = 2048
    left = torch.linspace(-1, 1, side, dtype=WORKING).expand(side, side).contiguous()
    seconds = []
    for _ in range(20):
        start = time.perf_counter()
        left @ left
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / min(seconds)


def _kinds(call: Callable[[], Any]) -> Counter[str]:
    """Return the microseconds of `call` by the kind of operation; "the rest" goes element by element, or copies."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        call()
    spent: Counter[str] = Counter()
    for event in found.key_averages():
        kind = next((kind for kind, marks in KINDS.items() if any(mark in event.key for mark in marks)), "the rest")
        spent[kind] += round(event.self_cpu_time_total)
    return spent


def _shares(spent: Counter[str]) -> str:
    return ", ".join(f"{kind} {time / spent.total():.0%}" for kind, time in spent.most_common())


def _alone(call: Callable[..., Any], *args: Any) -> Any:
    """Return what `call` does in a new process: its memory, and how it keeps it, say nothing about the next."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(call, *args).result()


# --- training


def _training() -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        source = _save_proportional(Path(folder) / "base")
        ours, theirs = [], []
        for _ in range(ROUNDS):
            ours.append(_alone(_rate, _our_training, source))
            theirs.append(_alone(_rate, _script_training, source))
        operations = LORA_STEP * denoising_operations(str(source), SIZE)
        spent = _kinds(lambda: _our_training(source, WARM + TIMED))
        spent.subtract(_kinds(lambda: _our_training(source, WARM)))
    return _row("training", ours, theirs, operations, time_goes_to=_shares(spent))


def _rate(train: Callable[[Path, int], float], source: Path) -> float:
    """Return images per second of the steps after the first; `train` returns the seconds that so many take."""
    return BATCH * TIMED / (train(source, WARM + TIMED) - train(source, WARM))


def _our_training(source: Path, steps: int) -> float:
    prior = load_prior(str(source))
    add_adapter(prior, rank=4, seed=0)
    latents = torch.randn(64, 1, 4, SIZE // 8, SIZE // 8).half()
    rows = torch.ones(64, 1, dtype=torch.int64)
    data = TrainingData(latents, torch.zeros(64, dtype=torch.int64), rows, prior.embed(["", *PROMPTS]))
    plan = TrainingPlan(
        steps=steps,
        lr=5e-4,
        warmup=1,
        ema=0.0,
        seed=0,
        batch=BATCH,
        gamma=5.0,
        drop_prompt=0.1,
        checkpoint_every=10**6,
        dtype=prior.dtype,
    )
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        train_denoiser(prior.unet, prior.scheduler, data, plan, Path(folder), "ours")
        return time.perf_counter() - start


def _script_training(source: Path, steps: int) -> float:
    """Return the seconds of steps as diffusers' train_text_to_image_lora.py makes them."""
    pipeline = StableDiffusionPipeline.from_pretrained(source, safety_checker=None)
    prior = load_prior(str(source))
    add_adapter(prior, rank=4, seed=0)
    unet = prior.unet.to(memory_format=torch.contiguous_format).train()
    vae, text_encoder, scheduler = (
        pipeline.vae,
        pipeline.text_encoder,
        DDPMScheduler.from_config(prior.scheduler.config),
    )
    trained = [p for p in unet.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=5e-4)
    pixels = torch.rand(BATCH, 3, SIZE, SIZE) * 2 - 1
    tokens = pipeline.tokenizer(PROMPTS * BATCH, padding="max_length", return_tensors="pt").input_ids
    start = time.perf_counter()
    for _ in range(steps):
        with torch.no_grad():
            latents = vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor
            states = text_encoder(tokens)[0]
        noise = torch.randn_like(latents)
        times = torch.randint(0, 1000, (BATCH,))
        output = unet(scheduler.add_noise(latents, noise, times), times, states).sample
        loss = F.mse_loss(output.float(), noise.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()
        optimiser.zero_grad()
    return time.perf_counter() - start


def _save_proportional(folder: Path) -> Path:
    """Save a pipeline of Stable Diffusion 1.5's layers at a quarter of their widths, with random weights."""
    torch.manual_seed(0)
    tokenizer = make_tokenizer(PROMPTS)
    width, end = 192, tokenizer.eos_token_id
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=end - 1,
        eos_token_id=end,
        pad_token_id=end,
    )
    unet = UNet2DConditionModel(
        sample_size=SIZE // 8,
        block_out_channels=(80, 160, 320, 320),
        norm_num_groups=8,
        cross_attention_dim=width,
        attention_head_dim=2,  # as many heads as keep their width, 40 to 160
    )
    vae = AutoencoderKL(
        block_out_channels=(32, 64, 128, 128),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        norm_num_groups=8,
    )
    scheduler = PNDMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, skip_prk_steps=True, steps_offset=1
    )
    StableDiffusionPipeline(
        vae=vae,
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder


# --- drawing


def _drawing(data: SceneData, seeds: int) -> dict[str, str]:
    config = load_config()
    prior = load_prior(source_of(SHIPPED, config.size))
    pixels = data.train.pixels(size=config.size)
    found = find_prototypes(
        backbone_features(pixels), data.train.labels, classes=data.train.classes, per_class=10, seed=0
    )
    latents = prior.encode(pixels[found.indices])
    prompts = [class_prompt(data.train.classes[label]) for label in found.labels]
    rates, script = [], []
    for _ in range(ROUNDS):
        rates.append(_alone(_timed, _our_candidates, latents, prompts))
        script.append(_alone(_timed, _script_candidates, latents[::10], prompts[::10]))
    operations = passes(config.sampling) * denoising_operations(prior.source, config.size)
    spent = _shares(_kinds(lambda: _our_candidates(prior, latents, prompts)))
    again = latents.repeat(CANDIDATES, 1, 1, 1), prompts * CANDIDATES
    drawn = {"": _our_candidates(prior, *again), "script_": _script_candidates(prior, *again, together=64)}
    judged = _judged(drawn, found.labels, data, seeds)
    return _row("drawing", rates, script, operations, time_goes_to=spent, **judged)


def _timed(draw: Callable[..., Tensor], latents: Tensor, prompts: list[str]) -> float:
    """Return images per second, the base's loading and a first image left out."""
    prior = load_prior(source_of(SHIPPED, load_config().size))
    draw(prior, latents[:1], prompts[:1])
    start = time.perf_counter()
    draw(prior, latents, prompts)
    return len(prompts) / (time.perf_counter() - start)


def _our_candidates(prior: Prior, latents: Tensor, prompts: list[str]) -> Tensor:
    """Return latents drawn as `distill` does, in its batches."""
    settings = load_config().sampling
    table = sorted(set(prompts))
    rows = torch.tensor([1 + table.index(prompt) for prompt in prompts])
    count = torch.arange(len(prompts))
    requests = Requests(rows, prior.embed(["", *table]), latents, count, count)
    parts = [
        sample_batch(prior, requests.part(which), settings, seed=0) for which in batches(len(prompts), settings.batch)
    ]
    return torch.cat(parts)


def _script_candidates(prior: Prior, latents: Tensor, prompts: list[str], together: int = 1) -> Tensor:
    """Return latents drawn one after the other as a plain image-to-image loop does, in float32."""
    settings = load_config().sampling
    random = torch.Generator().manual_seed(0)
    drawn = []
    with torch.inference_mode():
        for which in batches(len(prompts), together):
            scheduler = PNDMScheduler.from_config(prior.scheduler.config, skip_prk_steps=True)
            scheduler.set_timesteps(50)
            text = prior.embed([""] * len(prompts[which]) + prompts[which])
            begin = round((1 - settings.noise_strength) * len(scheduler.timesteps))
            times = scheduler.timesteps[begin:]
            noise = torch.randn(latents[which].shape, generator=random)
            image = scheduler.add_noise(latents[which], noise, times[:1])
            for moment in times:
                output = prior.unet(torch.cat([image, image]), moment, text).sample
                without, with_text = output.chunk(2)
                guided = without + settings.guidance_scale * (with_text - without)
                image = scheduler.step(guided, moment, image).prev_sample
            drawn.append(image)
    return torch.cat(drawn)


def _judged(candidates: dict[str, Tensor], labels: Tensor, data: SceneData, seeds: int) -> dict[str, str]:
    config = load_config()
    prior = load_prior(source_of(SHIPPED, config.size))
    bench = Bench(data, config.size)
    classes = data.train.classes
    images = {name: prior.decode(latents) for name, latents in candidates.items()}
    firsts = {name: DistilledSet(own[: len(labels)], labels, classes) for name, own in images.items()}
    trainings = {name: [Training.on_set(name or "ours", one)] * seeds for name, one in firsts.items()}
    measured = bench.measure_all(trainings, "finetune", "efficientnet-lite0", range(seeds))
    found = {}
    for name, own in images.items():
        mean, deviation = mean_std([m.oa for m in measured[name]])
        found[f"{name}oa"] = f"{mean:.4f} ± {deviation:.4f}"
        whole = DistilledSet(own, labels.repeat(CANDIDATES), classes)
        found[f"{name}fid"] = f"{bench.likeness(whole).fid.value:.4g}"
    return found


# --- encoding


def _encoding(data: Path, count: int) -> dict[str, str]:
    rates: dict[str, list[float]] = {"ours": [], "script": []}
    peaks = {}
    for name, call in (("ours", _our_encoding), ("script", _script_encoding)):
        rate, peaks[name] = _alone(call, data, count)
        rates[name].append(rate)
    operations = 8 * encoding_operations(source_of(SHIPPED, 64), 64)
    peak = {"peak_mib": str(peaks["ours"]), "script_peak_mib": str(peaks["script"])}
    return _row(f"encoding {count} images", rates["ours"], rates["script"], operations, **peak)


def _our_encoding(data: Path, count: int) -> tuple[float, int]:
    """Return images per second and the peak memory in MiB of stage `latents`."""
    scenes, config = _some(data, count), load_config()
    prior = load_prior(source_of(SHIPPED, config.size))
    with tempfile.TemporaryDirectory() as folder, Run(Path(folder) / "run", {}) as run:
        encode(Context(scenes, config, run), Made.source(prior, fingerprint_of_base(prior.source)))
        record = run.record_of(LATENTS)
    return count / record["wall_seconds"], record["peak_memory_mib"]


def _script_encoding(data: Path, count: int) -> tuple[float, int]:
    scenes, prior = _some(data, count), load_prior(source_of(SHIPPED, 64), "f32")
    start, kept = time.perf_counter(), []
    for index in range(count):
        image = scenes.pixels([index], size=64)
        kept.append(torch.cat([prior.encode(dihedral(image, view)) for view in range(8)]))
    torch.stack(kept)
    return count / (time.perf_counter() - start), peak_memory_mib()


def _some(data: Path, count: int) -> Scenes:
    train = open_scenes(data).train
    return train.subset(torch.linspace(0, len(train) - 1, count).long())


if __name__ == "__main__":
    main()
