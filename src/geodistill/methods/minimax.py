"""Minimax (Gu et al., CVPR 2024): the prior fine-tuned for representativeness and diversity.

Two terms over the estimates ẑ0 of a batch are added to the diffusion loss, for each class y in the batch:

    0.002 · (1 - min_{ẑ0, m ∈ real_y} cos(ẑ0, m))    pull to the least similar real latent remembered
    0.008 · max_{ẑ0, m ∈ made_y} cos(ẑ0, m)          push from the most similar estimate remembered

They are averaged over the classes of the batch. Each class remembers its last 64 real latents and its last 64
estimates. A batch is remembered after its own terms are computed, and a class with an empty memory adds nothing.
Weights, memory size and cosine are the paper's. Deviations: the adapter and the settings of `finetune` instead of
tuning biases and norms for 8 epochs, and the settings' sampling under class prompts. So the loss is the only difference
from `template`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from geodistill.distilled import DistilledSet
from geodistill.methods.template import plain, under_class_prompts
from geodistill.provenance import Made
from geodistill.run import Stored
from geodistill.stages.context import Context

PULL, PUSH, MEMORY = 0.002, 0.008, 64


def make(context: Context) -> Made[DistilledSet]:
    """Return `config.ipc` images of each class, drawn under its class prompt."""

    def loss(latents: Stored) -> nn.Module:
        return MinimaxLoss(len(context.scenes.classes), latents[0, 0].numel())

    return under_class_prompts(context.having(plain(context.config)), loss)


class MinimaxLoss(nn.Module):
    """The two terms, with each class's memory of real latents and of estimates as buffers.

    Args:
        classes: number of classes.
        length: number of elements of a latent.
        memory: number of latents of each kind that a class remembers.
    """

    real: Tensor
    made: Tensor
    seen: Tensor

    def __init__(self, classes: int, length: int, memory: int = MEMORY) -> None:
        super().__init__()
        self.memory = memory
        self.register_buffer("real", torch.zeros(classes, memory, length))  # of unit length
        self.register_buffer("made", torch.zeros(classes, memory, length))
        self.register_buffer("seen", torch.zeros(classes, dtype=torch.int64))

    def extra_repr(self) -> str:
        """Return everything that the terms depend on."""
        return f"pull={PULL}, push={PUSH}, memory={self.memory}"

    def forward(self, estimate: Tensor, clean: Tensor, labels: Tensor) -> Tensor:
        """Return the weighted terms, a scalar, for estimates and latents [n, C, h, w] of classes `labels` [n]."""
        made, real = (F.normalize(latents.flatten(1), dim=1) for latents in (estimate, clean))
        present = labels.unique().tolist()
        terms = [self._of_class(label, made[labels == label]) for label in present if self.seen[label]]
        self._remember(real, made.detach(), labels)
        return torch.stack(terms).sum() / len(present) if terms else made.new_zeros(())

    def _of_class(self, label: int, made: Tensor) -> Tensor:
        filled = min(int(self.seen[label]), self.memory)
        # Copies: the memory is written before the gradient is computed.
        real, before = self.real[label, :filled].clone(), self.made[label, :filled].clone()
        return PULL * (1 - (made @ real.T).min()) + PUSH * (made @ before.T).max()

    def _remember(self, real: Tensor, made: Tensor, labels: Tensor) -> None:
        """Overwrite the oldest entries in the memory of each class with the batch."""
        for row, label in enumerate(labels.tolist()):
            place = int(self.seen[label]) % self.memory
            self.real[label, place], self.made[label, place] = real[row], made[row]
            self.seen[label] += 1
