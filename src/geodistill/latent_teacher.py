"""The teacher: a classifier of real latents, validated on scenes held out from training."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from geodistill.config import TeacherSettings
from geodistill.devices import Precision, accelerator, dtype_for, kept_memory, mixed
from geodistill.errors import TrainingError
from geodistill.processes import Processes, processes
from geodistill.progress import progress
from geodistill.run import Stored, in_parts, write_atomic
from geodistill.seeding import derive_seed, generator

log = logging.getLogger("geodistill")

_DROPOUT, _SMOOTHING, _WEIGHT_DECAY = 0.2, 0.1, 0.05
# A teacher that guesses passes with this probability.
_LEVEL, _PERMUTATIONS = 0.05, 499
# With fewer held-out scenes than this outside the largest class, one or two mistakes decide, and prove nothing.
_LEAST_OTHERS = 10


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.layers(x)
        return y


class LatentTeacher(nn.Module):
    """Residual network from latents [n, C, h, w] to logits [n, classes].

    Args:
        channels: C of the latents.
        classes: number of classes.
        width: number of channels of its first layers; a multiple of 8.
    """

    def __init__(self, channels: int, classes: int, width: int) -> None:
        super().__init__()
        self.settings = {"channels": channels, "classes": classes, "width": width}
        self.body = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            _Block(width),
            _Block(width),
            nn.Conv2d(width, 2 * width, 2, stride=2),
            _Block(2 * width),
            _Block(2 * width),
            nn.GroupNorm(8, 2 * width),
            nn.SiLU(),
        )
        self.dropout = nn.Dropout(_DROPOUT)
        self.head = nn.Linear(2 * width, classes)

    def features(self, latents: Tensor) -> Tensor:
        """Return the pooled features [n, 2 * width]."""
        pooled: Tensor = self.body(latents).mean(dim=(2, 3))
        return pooled

    def forward(self, latents: Tensor) -> Tensor:
        """Return logits."""
        logits: Tensor = self.head(self.dropout(self.features(latents)))
        return logits


def train_latent_teacher(
    latents: Stored,
    labels: Tensor,
    held: Tensor,
    settings: TeacherSettings,
    *,
    seed: int,
    folder: Path,
    precision: Precision = "auto",
) -> dict[str, Any]:
    """Train a teacher on all scenes except `held`, and save it in `folder` as teacher.safetensors and teacher.json.

    Several processes share each batch.

    Args:
        latents: [N, V, C, h, w], V views of each scene.
        labels: int64 [N].
        held: indices of the scenes held out for validation.
        settings: width and training.
        seed: of the run.
        folder: where the teacher is saved.
        precision: of the training; f16 becomes f32, because its gradients would need scaling.

    Returns:
        facts: accuracy on the held-out scenes (view 0) after the last step, accuracy of always predicting the largest
        class, number of the held-out scenes.

    Raises:
        TrainingError: the balanced accuracy on held-out scenes is no better than that of guessing. If they are too few
            to tell, a warning is logged instead.
    """
    classes = int(labels.max()) + 1
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "teacher"))
        teacher = _channels_last(LatentTeacher(latents.shape[2], classes, settings.width)).to(accelerator())
        dtype = dtype_for("f32" if precision == "f16" else precision, accelerator())
        _fit(teacher, latents, labels, _all_but(len(labels), held), settings, seed, dtype)
    teacher.eval()
    predicted = predict(teacher, latents[held, 0])[0].argmax(dim=1) if len(held) else labels[held]
    _refuse_guessing(predicted, labels[held])
    if processes().main:
        save_latent_teacher(teacher, folder)
    accuracy = float((predicted == labels[held]).float().mean()) if len(held) else 0.0
    chance = float(torch.bincount(labels).max()) / len(labels)
    return {"held_out_accuracy": round(accuracy, 4), "chance": round(chance, 4), "held_out_scenes": len(held)}


def save_latent_teacher(teacher: LatentTeacher, folder: Path) -> None:
    """Save `teacher` in `folder` as teacher.safetensors and teacher.json."""
    weights = {name: value.cpu().contiguous() for name, value in teacher.state_dict().items()}
    save_file(weights, folder / "teacher.safetensors")
    write_atomic(folder / "teacher.json", json.dumps(teacher.settings))


def load_latent_teacher(folder: Path) -> LatentTeacher:
    """Return the frozen teacher saved in `folder`."""
    teacher = LatentTeacher(**json.loads((folder / "teacher.json").read_text()))
    teacher.load_state_dict(load_file(folder / "teacher.safetensors"))
    return _channels_last(teacher).to(accelerator()).eval().requires_grad_(False)


@torch.inference_mode()
def predict(teacher: LatentTeacher, latents: Stored, batch: int = 500) -> tuple[Tensor, Tensor]:
    """Return logits [n, classes] and L2-normalised features [n, D] of latents [n, C, h, w]."""
    device = teacher.head.weight.device
    features = torch.cat([teacher.features(part.to(device).float()) for part in in_parts(latents, batch)])
    return teacher.head(features).cpu(), F.normalize(features, dim=1).cpu()


def _channels_last(teacher: LatentTeacher) -> LatentTeacher:
    # The memory layout in which convolutions are fastest; torch's type hints do not allow it in `to`.
    return teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _all_but(count: int, held: Tensor) -> Tensor:
    kept = torch.ones(count, dtype=torch.bool)
    kept[held] = False
    return kept.nonzero()[:, 0]


def _fit(
    teacher: LatentTeacher,
    latents: Stored,
    labels: Tensor,
    kept: Tensor,
    settings: TeacherSettings,
    seed: int,
    dtype: torch.dtype,
) -> None:
    optimiser = torch.optim.AdamW(teacher.parameters(), lr=settings.lr, weight_decay=_WEIGHT_DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, settings.lr, total_steps=settings.steps)
    device = teacher.head.weight.device
    # A batch with fewer latents than there are processes: each does all of it.
    group = processes() if settings.batch >= processes().count else Processes()
    teacher.train()
    with progress("teacher", settings.steps) as advance, kept_memory():
        for step in range(settings.steps):
            g = generator(seed, "teacher step", step)
            chosen = kept[torch.randint(0, len(kept), (settings.batch,), generator=g)]
            views = torch.randint(0, latents.shape[1], (settings.batch,), generator=g)
            own = slice(group.rank, None, group.count)
            batch = latents[chosen[own], views[own]].float().contiguous(memory_format=torch.channels_last)
            with mixed(device, dtype):
                features = teacher.features(batch.to(device))
                # The units that are dropped are drawn for the whole batch, so that any number of processes drops the
                # same ones.
                stays = teacher.dropout(features.new_ones(settings.batch, features.shape[1]))[own]
                logits = teacher.head(features * stays)
            loss = F.cross_entropy(logits.float(), labels[chosen[own]].to(device), label_smoothing=_SMOOTHING)
            loss = loss * (len(batch) / settings.batch)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            total = loss.detach()
            group.add([total, *(p.grad for p in teacher.parameters() if p.grad is not None)])
            optimiser.step()
            schedule.step()
            advance(step + 1, f"loss {total.item():.3f}")


def _refuse_guessing(predicted: Tensor, labels: Tensor) -> None:
    """Raise TrainingError if `predicted` [n] is no better than guessing `labels` [n]; log if n is too small to tell."""
    if guessing_p_value(predicted, labels) <= _LEVEL:
        return
    others = len(labels) - (int(labels.bincount().max()) if len(labels) else 0)
    if others < _LEAST_OTHERS or guessing_p_value(labels, labels) > _LEVEL:
        log.warning(
            "%d held-out scenes are too few to tell whether the teacher is better than guessing: more images, or a "
            "larger teacher.held_out, would show it",
            len(labels),
        )
        return
    found, guessed = balanced_accuracy(predicted, labels), 1 / len(labels.unique())
    raise TrainingError(
        f"the teacher gets a balanced accuracy of {found:.1%} on {len(labels)} held-out scenes, no better than "
        f"guessing ({guessed:.1%}): check that the class folders hold what they are named, or raise teacher.steps"
    )


def balanced_accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Return the mean over the classes of the share of their scenes that `predicted` [n] has right.

    >>> balanced_accuracy(torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1]))
    0.75
    """
    return float((_weights(labels) * (predicted == labels)).sum())


def guessing_p_value(predicted: Tensor, labels: Tensor) -> float:
    """Return the probability of a balanced accuracy at least as high if predictions were dealt at random.

    The permutation test of Ojala and Garriga (JMLR 2010) keeps the numbers of predictions of each class. It is exact
    but for the number of permutations, 499, and needs no assumption on n or on the balance of the classes.
    """
    if not len(labels):
        return 1.0
    weights, observed = _weights(labels), balanced_accuracy(predicted, labels)
    random = generator(0, "permutations of predictions")
    dealt = (predicted[torch.randperm(len(labels), generator=random)] for _ in range(_PERMUTATIONS))
    # Sums of the same weights in another order differ in their last bits.
    as_high = sum(float((weights * (one == labels)).sum()) >= observed - 1e-9 for one in dealt)
    return (1 + as_high) / (1 + _PERMUTATIONS)


def _weights(labels: Tensor) -> Tensor:
    """Return the weight of each scene in the balanced accuracy, float64 [n]."""
    counts = torch.bincount(labels).double()
    return 1 / (counts[labels] * (counts > 0).sum())
