"""The soft-label teacher: a classifier trained on all real training scenes, which gives any image its soft label.

The protocols finetune-soft and scratch-soft train on its probabilities instead of classes (Hinton et al. 2015; as a
part of distilled sets: Qin et al., "A Label is Worth a Thousand Images", NeurIPS 2024). All methods use the same
teacher, so it gives none of them an advantage.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from geodistill.evaluation.protocols import predict, recipe_steps, train_classifier
from geodistill.networks import PRETRAINED, restored
from geodistill.progress import progress
from geodistill.run import save_tensors
from geodistill.scenes.scenes import Scenes

# Raise this number when the same scenes give another teacher.
VERSION = 1


def train_soft_label_teacher(scenes: Scenes, size: int, *, steps: int | None = None) -> nn.Module:
    """Return the pretrained network finetuned on all `scenes` at `size` pixels, under the protocol finetune, seed 0.

    Raises the errors of `train_classifier`.
    """
    images = scenes.pixels(size=size)
    with progress("soft-label teacher", recipe_steps("finetune", len(scenes), steps)) as advance:
        return train_classifier(
            "finetune",
            PRETRAINED,
            images,
            scenes.labels,
            classes=len(scenes.classes),
            seed=0,
            steps=steps,
            advance=advance,
        )


def soft_labels(teacher: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return class probabilities float32 [n, classes] of uint8 images [n, channels, s, s]."""
    return predict(teacher, images).softmax(dim=1)


def save_soft_label_teacher(teacher: nn.Module, path: Path) -> None:
    """Write the teacher's weights to `path`, 14 MB."""
    save_tensors(dict(teacher.state_dict()), path)


def load_soft_label_teacher(path: Path, classes: int) -> nn.Module:
    """Return the teacher for `classes` classes that `save_soft_label_teacher` wrote to `path`."""
    return restored(load_file(path), classes)
