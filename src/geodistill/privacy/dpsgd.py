"""DP-SGD (Abadi et al., CCS 2016) with Opacus: each image's gradient is clipped, and noise is added to their sum."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from geodistill.privacy.accounting import needed
from geodistill.privacy.noisy import SecretNoise
from geodistill.progress import progress

# A private step uses this many times more images than a step without noise, because noise is added once per step.
LARGER = 8
# Norm to which each image's gradient is clipped.
CLIP = 1.0


@dataclass(frozen=True)
class PrivateTraining:
    """Settings of DP-SGD: `steps` on random batches of about `batch` out of `count` images.

    `lr`: the peak learning rate. `micro_batch`: largest number of images whose gradients are in memory at once.
    """

    count: int
    steps: int
    batch: int
    lr: float
    micro_batch: int = 32

    @classmethod
    def instead_of(cls, count: int, steps: int, batch: int, lr: float, micro_batch: int = 32) -> "PrivateTraining":
        """Return settings that use about as many images as `steps` of `batch` images, in fewer and larger batches.

        The learning rate grows by the square root of LARGER, as is usual for Adam.
        """
        return cls(count, max(1, steps // LARGER), min(count, batch * LARGER), lr * LARGER**0.5, micro_batch)

    @property
    def rate(self) -> float:
        """The probability that an image is in a batch."""
        return self.batch / self.count


def train_privately(
    model: nn.Module,
    loss_of: Callable[[Tensor], Tensor],
    training: PrivateTraining,
    *,
    noise: float,
    by: SecretNoise,
    title: str,
) -> None:
    """Train the parameters of `model` that require gradients, in place, by AdamW on private gradients.

    The learning rate falls to zero. `loss_of(images)` returns the mean loss of the images with indices int64 [n]; each
    image's part of the loss must depend on no other image. The training is a mechanism with noise multiplier `noise`
    on batches that contain each image with probability `training.rate`.
    """
    watched = needed("opacus.grad_sample").GradSampleModule(model, strict=False)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = needed("opacus.optimizers").DPOptimizer(
        torch.optim.AdamW(parameters, lr=training.lr, weight_decay=0.0),
        noise_multiplier=0.0,
        max_grad_norm=CLIP,
        expected_batch_size=training.batch,
    )
    # Opacus would draw its noise from a generator that can be reproduced, so secret noise is added here instead.
    optimiser.attach_step_hook(lambda _: _add_noise(parameters, noise * CLIP / training.batch, by))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser.original_optimizer, training.steps)
    with progress(title, training.steps) as advance:
        for step in range(training.steps):
            drawn = (by.uniform(training.count) <= training.rate).nonzero()[:, 0]
            _step(optimiser, loss_of, drawn.split(training.micro_batch), parameters)
            schedule.step()
            advance(step + 1)
    watched.remove_hooks()
    for p in parameters:
        p.grad_sample = None  # type: ignore[attr-defined]


def _add_noise(parameters: Sequence[Tensor], deviation: float, by: SecretNoise) -> None:
    for p in parameters:
        assert p.grad is not None
        p.grad += (deviation * by.gaussian(*p.shape)).to(p)


def _step(
    optimiser: torch.optim.Optimizer,
    loss_of: Callable[[Tensor], Tensor],
    parts: tuple[Tensor, ...],
    of: Sequence[Tensor],
) -> None:
    """Add up the clipped gradients of the images in `parts`, then take a step along their noisy sum."""
    for rank, part in enumerate(parts):
        if len(part):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Full backward hook is firing")
                loss_of(part).backward()
        else:  # An empty batch is a step of noise alone.
            for p in of:
                p.grad_sample = p.new_zeros((0, *p.shape))  # type: ignore[attr-defined]
        optimiser.signal_skip_step(do_skip=rank + 1 < len(parts))  # type: ignore[attr-defined]
        optimiser.step()
        optimiser.zero_grad()
