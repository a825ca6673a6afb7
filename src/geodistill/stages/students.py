"""The inputs of refinement: the scenes in several views, and students, which are classifiers trained on the set."""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from geodistill.config import Config
from geodistill.evaluation.protocols import augment, train_classifier
from geodistill.networks import PRETRAINED, backbone_features, restored
from geodistill.processes import alone, processes
from geodistill.progress import progress
from geodistill.run import Stored, save_tensors
from geodistill.scenes.views import dihedral
from geodistill.seeding import derive_seed, generator
from geodistill.stages.candidates import slot_labels
from geodistill.stages.context import Context
from geodistill.stages.learned import learned

# Refinement overfits 945 scenes and does not overfit 6,000 (docs/experiments.md). A small archive is therefore used in
# several views: at most one for each of the eight symmetries of the square, and at most `_ENOUGH` images in all.
_ENOUGH, _MOST_VIEWS = 8000, 8
# Number of scenes that are transformed together.
_TOGETHER = 500


@dataclass(frozen=True)
class Shown:
    """The data that every round of refinement uses.

    pixels: uint8 [N, C, s, s], the scenes in one view after the other; the first view is unchanged. seen: float [N,
    1280], their features from the pretrained backbone. real_labels: int64 [N], their classes, below `classes`. labels:
    int64 [m], the classes of the set's images. folder: where parts are kept until the stage is done.
    """

    pixels: Tensor
    seen: Tensor
    real_labels: Tensor
    classes: int
    labels: Tensor
    folder: Path


def show_scenes(context: Context, known: Stored, folder: Path) -> Shown:
    """Return the scenes that are learned from in all views; `known` [N, 1280] are the backbone's features of all."""
    scenes, config = context.scenes, context.config
    part = learned(scenes, config.seed)
    views = _real_views(scenes.pixels(part, size=config.size), config.seed)
    return Shown(
        pixels=torch.cat(views),
        seen=torch.cat([known[part], *processes().shared(views[1:], backbone_features)]),
        real_labels=scenes.labels[part].repeat(len(views)),
        classes=len(scenes.classes),
        labels=slot_labels(scenes, config),
        folder=folder,
    )


def views_of_scenes(count: int) -> int:
    """Return the number of views in which each of `count` scenes is used.

    >>> views_of_scenes(1260)
    6
    """
    return max(1, min(_MOST_VIEWS, _ENOUGH // count))


def _real_views(pixels: Tensor, seed: int) -> list[Tensor]:
    """Return the views of scenes `pixels`, uint8 [N, C, s, s]: unchanged, then under a symmetry and a random crop."""
    return [pixels, *(_real_view(pixels, view, seed) for view in range(1, views_of_scenes(len(pixels))))]


def _real_view(pixels: Tensor, view: int, seed: int) -> Tensor:
    random = generator(seed, "real view", view)
    parts = [augment(part.float(), random) for part in dihedral(pixels, view).split(_TOGETHER)]
    return torch.cat([part.round().clamp(0, 255).to(torch.uint8).contiguous() for part in parts])


def students(shown: Shown, images: Tensor, rank: int, config: Config) -> list[tuple[nn.Module, Tensor]]:
    """Return each student of round `rank` with its features [N, 1280] of all scenes; files stay in the folder.

    The pretrained network is fine-tuned on `images`, uint8 [m, C, s, s], under the protocol finetune. The students are
    its states after each number of steps in `refinement.students`. Batch normalisation sees whole batches, so one
    process trains for all.
    """
    counts = sorted(set(config.refinement.students))
    files = {steps: shown.folder / f"student-{rank}-{steps}.safetensors" for steps in counts}

    def keep(done: int, network: nn.Module) -> None:
        if done in files:
            student = deepcopy(network).eval()
            weights = {f"network.{name}": value for name, value in student.state_dict().items()}
            save_tensors({**weights, "features": backbone_features(shown.pixels, network=student)}, files[done])

    if processes().main and not all(file.exists() for file in files.values()):
        with alone(), progress(f"classifier of round {rank + 1}", counts[-1]) as advance:
            train_classifier(
                "finetune",
                PRETRAINED,
                images,
                shown.labels,
                classes=shown.classes,
                seed=derive_seed(config.seed, "student of round", rank),
                steps=counts[-1],
                advance=advance,
                visit=keep,
            )
    processes().wait()
    return [_load(file, shown.classes) for file in files.values()]


def _load(file: Path, classes: int) -> tuple[nn.Module, Tensor]:
    tensors = load_file(file)
    known = tensors.pop("features")
    weights = {name.removeprefix("network."): value for name, value in tensors.items()}
    return restored(weights, classes).requires_grad_(False), known
