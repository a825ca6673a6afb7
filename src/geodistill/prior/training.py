"""One training loop for the autoencoder, for the denoiser of a base, and for an adapter on any base."""

import json
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft.helpers import disable_input_dtype_casting
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from geodistill.devices import kept_memory, mixed
from geodistill.errors import TrainingError
from geodistill.prefetch import Prefetch
from geodistill.prior.attention import CachedAttention
from geodistill.prior.losses import consistency_loss, diffusion_loss
from geodistill.prior.noising import NoiseProcess, noise_process
from geodistill.processes import Processes, processes
from geodistill.progress import progress
from geodistill.run import Stored, save_tensors, write_atomic
from geodistill.seeding import derive_seed, generator, seed_of_member

log = logging.getLogger("geodistill")

_CHECKPOINT = ".training.safetensors"
_LOSSES = "losses.json"


class Drawn(NamedTuple):
    """What a training step draws.

    clean: latents [n, C, h, w], one view of each scene. embedding: of one prompt each. noise: normal. times: int64 [n].
    labels: classes, int64 [n].
    """

    clean: Tensor
    embedding: Tensor
    noise: Tensor
    times: Tensor
    labels: Tensor


@dataclass(frozen=True)
class TrainingData:
    """Training data of a denoiser, all computed before the first step.

    latents: [N, V, C, h, w], any floating type, V views of each scene; in memory or in a file.
    labels: int64 [N].
    prompts: int64 [N, K], rows of `embeddings` that may describe each scene; each step draws one of them.
    embeddings: [U, tokens, width], text embeddings of all distinct prompts; row 0 is the empty prompt.
    """

    latents: Stored
    labels: Tensor
    prompts: Tensor
    embeddings: Tensor

    def batch(self, plan: "TrainingPlan", levels: int, step: int) -> tuple[Tensor, ...]:
        """Return the `draw_batch` output for `step` of `plan`, with times below `levels`."""
        chosen = _batch_indices(plan.seed, step, plan.batch, len(self.labels))
        return draw_batch(self, chosen, plan.drop_prompt, levels, generator(plan.seed, "denoiser step", step))


@dataclass(frozen=True)
class Mixture:
    """Several data sets that one denoiser is trained on, each with its share of every batch.

    parts: data sets with equal latent size and embedding width. shares: one positive weight per part.
    doubled: another mixture whose latents have twice the side; every `every`th step takes a quarter of a batch from
    it, which costs as much as a whole batch of the others.
    """

    parts: tuple[TrainingData, ...]
    shares: tuple[float, ...]
    doubled: "Mixture | None" = None
    every: int = 4

    def batch(self, plan: "TrainingPlan", levels: int, step: int) -> tuple[Tensor, ...]:
        """Return the `draw_batch` output for `step`, concatenated over the parts."""
        if self.doubled is not None and step % self.every == self.every - 1:
            quarter = replace(plan, batch=max(1, plan.batch // 4), seed=derive_seed(plan.seed, "doubled"))
            return self.doubled.batch(quarter, levels, step // self.every)
        counts = apportion(plan.batch, self.shares)
        drawn = [
            part.batch(replace(plan, batch=count, seed=seed_of_member(plan.seed, "part", index)), levels, step)
            for index, (part, count) in enumerate(zip(self.parts, counts, strict=True))
            if count
        ]
        return tuple(torch.cat(tensors) for tensors in zip(*drawn, strict=True))


def apportion(count: int, shares: Sequence[float]) -> list[int]:
    """Return how `count` items are divided by `shares`, all positive; the largest remainders round up.

    >>> apportion(10, (1, 1, 2))
    [3, 2, 5]
    """
    exact = [count * share / sum(shares) for share in shares]
    whole = [math.floor(value) for value in exact]
    by_remainder = sorted(range(len(shares)), key=lambda index: whole[index] - exact[index])
    for index in by_remainder[: count - sum(whole)]:
        whole[index] += 1
    return whole


@dataclass(frozen=True, kw_only=True)
class Optimisation:
    """AdamW with linear warm-up and cosine decay to zero, gradients clipped to norm 1, averaged weights.

    `dtype` is the type that models compute in; in f16 the loss is scaled so that small gradients do not vanish. If
    `shared`, several processes divide the parts of each step's loss among them, and all end with the same weights.
    """

    steps: int
    lr: float
    warmup: int
    ema: float
    weight_decay: float = 0.01
    dtype: torch.dtype = torch.float32
    shared: bool = False
    checkpoint_every: int = 250


@dataclass(frozen=True, kw_only=True)
class TrainingPlan(Optimisation):
    """How a denoiser is trained.

    `teacher` is a frozen classifier of latents; without it there is no consistency loss. `auxiliary` is a further loss
    term, called with the estimates ẑ0, the clean latents and their labels; its buffers are its state between steps,
    which checkpoints save.
    """

    seed: int
    batch: int
    gamma: float
    drop_prompt: float
    teacher: Callable[[Tensor], Tensor] | None = None
    consistency: float = 0.0
    cross_entropy: float = 1.0
    kl: float = 1.0
    auxiliary: nn.Module | None = None


def train_denoiser(
    unet: Any, scheduler: Any, data: TrainingData | Mixture, plan: TrainingPlan, folder: Path, title: str
) -> dict[str, Any]:
    """Train the parameters of `unet` that require gradients; returns and errors are those of `train`.

    Frozen convolution and linear weights are converted to `dtype`. If memory runs out, the U-Net keeps fewer
    activations (gradient checkpointing), then processes fewer latents at a time; the optimiser still sees the same
    batches.
    """
    process = noise_process(scheduler, unet.device)
    micro_batch = _LatentsTogether(unet, plan)
    _settle(unet, plan.dtype)
    if unet.device.type == "cpu":
        unet.set_attn_processor(CachedAttention())

    drawn = Ahead(lambda step: data.batch(plan, len(process.levels), step), unet.device)

    def losses(step: int) -> Iterator[Tensor]:
        return _losses(unet, process, plan, micro_batch.count, drawn(step))

    remembered = dict(plan.auxiliary.to(unet.device).named_buffers()) if plan.auxiliary is not None else {}
    # An adapter's layers would otherwise cast their inputs to f32, only for autocast to cast them back.
    with disable_input_dtype_casting(unet):
        return train(unet, losses, plan, folder, title, remembered, micro_batch.relieve)


def _settle(unet: nn.Module, dtype: torch.dtype) -> None:
    """Convert the frozen weights to `dtype` once, instead of letting autocast do it at every step."""
    for layer in unet.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            for p in layer.parameters(recurse=False):
                p.data = p.data if p.requires_grad else p.data.to(dtype)


class _LatentsTogether:
    """Number of a step's latents that go through the U-Net together, and what to give up if memory runs out."""

    def __init__(self, unet: Any, plan: TrainingPlan) -> None:
        self.unet, self.count = unet, -(-plan.batch // (processes().count if plan.shared else 1))
        # An auxiliary loss with state needs the whole batch at once.
        self.least = plan.batch if plan.auxiliary is not None else 1

    def relieve(self) -> str:
        """Reduce memory use; return how, or "" if no reduction is left."""
        if not self.unet.is_gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
            return "gradient checkpointing"
        if self.count <= self.least:
            return ""
        self.count = -(-self.count // 2)
        return f"{self.count} latents at a time"


def train(
    model: nn.Module,
    loss_at: Callable[[int], Tensor | Iterator[Tensor]],
    optimisation: Optimisation,
    folder: Path,
    title: str,
    remembered: dict[str, Tensor] | None = None,
    relieve: Callable[[], str] = str,
) -> dict[str, Any]:
    """Minimise `loss_at(step)` over the trainable parameters of `model`, in place; they end averaged unless `ema` is 0.

    The loss is one tensor, or an iterator of tensors that add up to it. If a step runs out of memory, `relieve` reduces
    memory use and says how, and the step is repeated. If several processes share the training, only the main one
    writes files.

    `loss_at` must draw all random numbers from the step's own generator. Model, optimiser, average and the `remembered`
    tensors that the loss itself changes are saved in `folder` every `checkpoint_every` steps and at the end, so that a
    run that was killed and restarted ends with the same weights. `forget_checkpoint` removes that checkpoint once the
    result is saved.

    Returns:
        facts: first and last losses (means over a tenth of the steps), the curve of these means, steps.

    Raises:
        TrainingError: the loss is not finite, or memory runs out and `relieve` has no remedy left.
    """
    state = _State.start(model, optimisation, folder, remembered or {})
    model.train()
    with progress(title, optimisation.steps) as advance, kept_memory():
        for step in range(state.step, optimisation.steps):
            _step(state, loss_at, step, title, relieve)
            advance(step + 1, f"loss {state.recent():.4f}")
            due = (step + 1) % optimisation.checkpoint_every == 0 or step + 1 == optimisation.steps
            if due and state.group.main:
                state.save(folder)
    model.eval()
    state.finish(folder)
    return told_losses(state.losses)


def told_losses(losses: Sequence[float]) -> dict[str, Any]:
    """Return what a record says of the losses of a training's steps: means of a tenth of the steps each."""
    tenth = max(1, len(losses) // 10)
    return {
        "steps": len(losses),
        "first_loss": _mean(losses[:tenth]),
        "last_loss": _mean(losses[-tenth:]),
        "curve": [round(_mean(losses[i : i + tenth]), 5) for i in range(0, len(losses), tenth)],
    }


def write_losses(folder: Path, losses: Sequence[float]) -> None:
    """Write the loss of each step of a training to `folder`; `read_losses` reads it."""
    write_atomic(folder / _LOSSES, json.dumps([round(value, 6) for value in losses]))


def read_losses(folder: Path) -> list[float]:
    """Return what `write_losses` wrote to `folder`; [] if there is nothing."""
    path = folder / _LOSSES
    found: list[float] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return found


def _step(
    state: "_State",
    loss_at: Callable[[int], Tensor | Iterator[Tensor]],
    step: int,
    title: str,
    relieve: Callable[[], str],
) -> None:
    """Do one optimiser step, and repeat it whenever memory ran out and there is a remedy."""
    while True:
        why = ""
        try:
            loss = _backward(state, loss_at(step), step, title)
        except torch.OutOfMemoryError as error:
            why = str(error).split(".")[0] or "no reason given"
        # Outside the handler, which would keep the step's tensors in memory. If any process ran out, all retry.
        if not state.group.any(bool(why)):
            state.update(state.gathered(loss))
            return
        torch.cuda.empty_cache()
        remedy = relieve()
        if not remedy:
            raise TrainingError(
                f"out of memory at step {step} of '{title}' ({why}), and no less can be asked for: use a smaller "
                "--size or base, or free the device"
            )
        log.warning("out of memory at step %d of '%s': going on with %s", step, title, remedy)


def _backward(state: "_State", loss: Tensor | Iterator[Tensor], step: int, title: str) -> float:
    """Accumulate the gradients of this process's parts of a loss one by one; return the sum of these parts."""
    state.optimiser.zero_grad(set_to_none=True)
    total = 0.0
    for part in [loss] if isinstance(loss, Tensor) else loss:
        _check_finite(part, step, title)
        state.scaler.scale(part).backward()
        total += part.item()
    return total


def forget_checkpoint(folder: Path) -> None:
    """Remove the checkpoint that `train` keeps in `folder`, once the trained weights are saved."""
    (folder / _CHECKPOINT).unlink(missing_ok=True)


class Ahead:
    """Draws each step's tensors on the CPU, so that every device trains on the same ones.

    With a GPU, the next step's tensors are drawn while the current step runs, into pinned memory for a fast copy.
    """

    def __init__(self, draw: Callable[[int], tuple[Tensor, ...]], device: torch.device) -> None:
        self._draw, self._device = draw, device
        self._pinned_ahead = Prefetch(self._pinned, lambda step: step + 1) if device.type == "cuda" else None

    def __call__(self, step: int) -> tuple[Tensor, ...]:
        """Return the tensors of `step` on the device."""
        if self._pinned_ahead is None:
            return tuple(tensor.to(self._device) for tensor in self._draw(step))
        return tuple(tensor.to(self._device, non_blocking=True) for tensor in self._pinned_ahead(step))

    def _pinned(self, step: int) -> tuple[Tensor, ...]:
        return tuple(tensor.pin_memory() for tensor in self._draw(step))


def _losses(
    unet: Any, process: NoiseProcess, plan: TrainingPlan, micro_batch: int, drawn: tuple[Tensor, ...]
) -> Iterator[Tensor]:
    """Yield this process's loss terms of the tensors `drawn` for a step, with up to `micro_batch` latents in each."""
    group, count = processes() if plan.shared else Processes(), len(drawn[0])
    for index, part in enumerate(batches(count, micro_batch)):
        if index % group.count != group.rank:
            continue
        own = Drawn(*(tensor[part] for tensor in drawn))
        yield denoising_loss(unet, process, plan, own) * (len(own.clean) / count)


def denoising_loss(unet: Any, process: NoiseProcess, plan: TrainingPlan, drawn: Drawn) -> Tensor:
    """Return the loss of the latents `drawn`, a mean over them."""
    clean, embedding, level = drawn.clean.float(), drawn.embedding.float(), process.levels[drawn.times]
    noisy = process.add(clean, drawn.noise, level).contiguous(memory_format=torch.channels_last)
    with mixed(noisy.device, plan.dtype):
        output = unet(noisy, drawn.times, embedding, class_labels=no_class(unet, noisy)).sample
    output = output.float()
    wanted = process.target(clean, drawn.noise, level)
    loss = diffusion_loss(process, output, wanted, level, plan.gamma)
    estimate = process.clean(output, noisy, level)
    if plan.teacher is not None and plan.consistency:
        teacher, signal = _in_dtype(plan.teacher, noisy.device, plan.dtype), process.signal(level)
        loss = loss + plan.consistency * consistency_loss(
            teacher, estimate, clean, drawn.labels, signal, cross_entropy=plan.cross_entropy, kl=plan.kl
        )
    if plan.auxiliary is not None:
        loss = loss + plan.auxiliary(estimate, clean, drawn.labels)
    return loss


def _in_dtype(
    teacher: Callable[[Tensor], Tensor], device: torch.device, dtype: torch.dtype
) -> Callable[[Tensor], Tensor]:
    """Return `teacher` computing in `dtype`, with logits in float32."""

    def logits(latents: Tensor) -> Tensor:
        with mixed(device, dtype):
            return teacher(latents).float()

    return logits


def no_class(unet: Any, noisy: Tensor) -> Tensor | None:
    """Return class 0 for each latent in `noisy` if `unet` has class embeddings (as in Text2Earth), else None."""
    return torch.zeros(len(noisy), dtype=torch.long, device=noisy.device) if unet.config.num_class_embeds else None


def _batch_indices(seed: int, step: int, batch: int, count: int) -> Tensor:
    """Return the scenes of a step: those from position `step * batch` on in an endless sequence of shuffled epochs."""
    positions = range(step * batch, (step + 1) * batch)
    epochs = {position // count for position in positions}
    orders = {epoch: torch.randperm(count, generator=generator(seed, "epoch", epoch)) for epoch in epochs}
    return torch.stack([orders[position // count][position % count] for position in positions])


def draw_batch(data: TrainingData, chosen: Tensor, drop: float, levels: int, g: torch.Generator) -> Drawn:
    """Return what a step draws for the scenes `chosen` int64 [n].

    The prompt is the empty one with probability `drop`; times are below `levels`.
    """
    count = len(chosen)
    views = torch.randint(0, data.latents.shape[1], (count,), generator=g)
    which = torch.randint(0, data.prompts.shape[1], (count,), generator=g)
    rows = data.prompts[chosen, which]
    rows = torch.where(torch.rand(count, generator=g) < drop, torch.zeros_like(rows), rows)
    clean = data.latents[chosen, views]
    noise = torch.randn(clean.shape, generator=g)
    times = torch.randint(0, levels, (count,), generator=g)
    return Drawn(clean, data.embeddings[rows], noise, times, data.labels[chosen])


def _check_finite(loss: Tensor, step: int, title: str) -> None:
    if not math.isfinite(loss.item()):
        raise TrainingError(
            f"the loss of '{title}' became {loss.item()} at step {step}: lower its lr (for the adapter "
            "--set finetune.lr=…, for the compact base --set compact.lr=…) and start in a new --out"
        )


def _laid_out_like(p: Tensor, value: Tensor) -> Tensor:
    """Return `value` on the device and in the memory layout of `p`: the fused optimiser reads both as flat arrays."""
    return torch.empty_like(p).copy_(value) if value.shape == p.shape else value.to(p.device)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)


class _State:
    """Model, optimiser, schedule and weight average of a training in progress."""

    def __init__(self, model: nn.Module, plan: Optimisation, remembered: dict[str, Tensor]) -> None:
        self.named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.plan, self.step, self.losses, self.remembered = plan, 0, list[float](), remembered
        self.average = {name: p.detach().clone() for name, p in self.named.items()}
        self.optimiser = torch.optim.AdamW(
            self.named.values(), lr=plan.lr, betas=(0.9, 0.99), weight_decay=plan.weight_decay, fused=True
        )
        self.group = processes() if plan.shared else Processes()
        device = next(iter(self.named.values())).device
        self.scaler = torch.amp.GradScaler(device.type, enabled=plan.dtype == torch.float16)
        # A process that has no part of a step scales nothing, and the scaler must know its factor all the same.
        self.scaler.scale(torch.zeros(1, device=device))

    @classmethod
    def start(cls, model: nn.Module, plan: Optimisation, folder: Path, remembered: dict[str, Tensor]) -> "_State":
        state = cls(model, plan, remembered)
        if (folder / _CHECKPOINT).exists() and state._is_own(folder):
            state._load(folder)
        return state

    def _is_own(self, folder: Path) -> bool:
        """Return whether the checkpoint in `folder` is of this training.

        A process that is killed between two trainings leaves the checkpoint of the one that it finished.
        """
        with safe_open(folder / _CHECKPOINT, "pt") as file:
            names = {name.removeprefix("model.") for name in file.keys() if name.startswith("model.")}  # noqa: SIM118
        return names == self.named.keys()

    def gathered(self, loss: float) -> float:
        """Sum the gradients over all processes; return the sum of their losses."""
        if self.group.count == 1:
            return loss
        for p in self.named.values():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        total = torch.tensor(loss, dtype=torch.float64, device=next(iter(self.named.values())).device)
        self.group.add([total, *(p.grad for p in self.named.values() if p.grad is not None)])
        return total.item()

    def update(self, loss: float) -> None:
        """Apply the current gradients as the next step, and record `loss`, the value that they belong to."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.plan.lr * self._rate(self.step)
        self.scaler.unscale_(self.optimiser)
        nn.utils.clip_grad_norm_(self.named.values(), 1.0)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.step += 1
        self.losses.append(loss)
        self._follow()

    def _rate(self, step: int) -> float:
        """Return the factor of the learning rate: linear warm-up, then cosine decay to zero."""
        # Not diffusers' schedule, whose decay begins after the warm-up: the same settings would make other sets.
        warm = min(1.0, (step + 1) / max(1, self.plan.warmup))
        return warm * 0.5 * (1 + math.cos(math.pi * step / self.plan.steps))

    @torch.no_grad()
    def _follow(self) -> None:
        # Early on the average forgets faster, so that the initial weights do not dominate it. Not diffusers' EMAModel,
        # whose warm-up is one step ahead, and which keeps a copy of the frozen weights too.
        decay = min(self.plan.ema, self.step / (10 + self.step))
        own: list[Tensor] = list(self.named.values())
        average = list(self.average.values())
        torch._foreach_lerp_(average, own, 1 - decay)

    def recent(self) -> float:
        return _mean(self.losses[-50:])

    def save(self, folder: Path) -> None:
        tensors = {f"average.{name}": value for name, value in self.average.items()}
        for name, p in self.named.items():
            tensors[f"model.{name}"] = p.detach()
            tensors |= {f"optimiser.{name}.{key}": value for key, value in self.optimiser.state[p].items()}
        tensors |= {f"auxiliary.{name}": value for name, value in self.remembered.items()}
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        tensors["scaler"] = torch.tensor(list(self.scaler.state_dict().values()), dtype=torch.float64)
        save_tensors(tensors, folder / _CHECKPOINT)

    def _load(self, folder: Path) -> None:
        tensors = load_file(folder / _CHECKPOINT)
        self.losses = tensors["losses"].tolist()
        self.step = len(self.losses)
        if self.scaler.is_enabled():
            now = self.scaler.state_dict().items()
            kept = zip(now, tensors["scaler"].tolist(), strict=True)
            self.scaler.load_state_dict({name: type(value)(before) for (name, value), before in kept})
        with torch.no_grad():
            for name, buffer in self.remembered.items():
                buffer.copy_(tensors[f"auxiliary.{name}"])
            for name, p in self.named.items():
                p.copy_(tensors[f"model.{name}"])
                self.average[name].copy_(tensors[f"average.{name}"])
                prefix = f"optimiser.{name}."
                self.optimiser.state[p] = {
                    key.removeprefix(prefix): _laid_out_like(p, value)
                    for key, value in tensors.items()
                    if key.startswith(prefix)
                }

    @torch.no_grad()
    def finish(self, folder: Path) -> None:
        if self.plan.ema:
            for name, p in self.named.items():
                p.copy_(self.average[name])
        if self.group.main:
            write_losses(folder, self.losses)


def prompt_table(prompts: list[list[str]]) -> tuple[list[str], Tensor]:
    """Return the distinct prompts, the empty one first, and for each scene the rows [N, K] of its K prompts in them."""
    distinct = sorted({prompt for row in prompts for prompt in row} - {""})
    index = {prompt: row for row, prompt in enumerate(["", *distinct])}
    return list(index), torch.tensor([[index[prompt] for prompt in row] for row in prompts])


def batches(count: int, size: int) -> Iterator[slice]:
    """Return the slices of at most `size` that cover `count` items; they depend on nothing else."""
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
