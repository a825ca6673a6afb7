"""The students of a round of refinement: a classifier trained on the set, as it is after some numbers of steps."""

from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

from geodistill.config import Config
from geodistill.devices import accelerator
from geodistill.evaluation.protocols import train_classifier
from geodistill.evaluation.workers import kept_memory
from geodistill.networks import PRETRAINED, backbone_features, build_network
from geodistill.progress import progress
from geodistill.run import save_tensors
from geodistill.seeding import derive_seed


@dataclass(frozen=True)
class Shown:
    """What every round of refinement looks at.

    pixels: uint8 [N, 3, s, s], the scenes in one view after the other, the first as they are. seen: float [N, 1280],
    the pretrained backbone's features of them. real_labels: int64 [N], their classes, below `classes`. labels: int64
    [m], those of the set. folder: where parts are kept until the stage is done.
    """

    pixels: Tensor
    seen: Tensor
    real_labels: Tensor
    classes: int
    labels: Tensor
    folder: Path


def students(shown: Shown, images: Tensor, rank: int, config: Config) -> list[tuple[nn.Module, Tensor]]:
    """Return each student of round `rank`, and its features [N, 1280] of all scenes; kept in the folder until the end.

    The pretrained network is finetuned on `images`, uint8 [m, 3, s, s], under the protocol finetune. The students are
    what it is after each of `refinement.students` steps.
    """
    counts = sorted(set(config.refinement.students))
    files = {steps: shown.folder / f"student-{rank}-{steps}.safetensors" for steps in counts}

    def keep(done: int, network: nn.Module) -> None:
        if done in files:
            student = deepcopy(network).eval()
            weights = {f"network.{name}": value for name, value in student.state_dict().items()}
            save_tensors({**weights, "features": backbone_features(shown.pixels, network=student)}, files[done])

    if not all(file.exists() for file in files.values()):
        with progress(f"students {rank + 1}", counts[-1]) as advance, kept_memory():
            train_classifier(
                "finetune",
                PRETRAINED,
                images,
                shown.labels,
                classes=shown.classes,
                seed=derive_seed(config.seed, "student of round", rank),
                steps=counts[-1],
                progress=lambda done, _: advance(done),
                visit=keep,
            )
    return [_load(file, shown.classes) for file in files.values()]


def _load(file: Path, classes: int) -> tuple[nn.Module, Tensor]:
    tensors = load_file(file)
    known = tensors.pop("features")
    network = build_network(PRETRAINED, classes, 0)
    network.load_state_dict({name.removeprefix("network."): value for name, value in tensors.items()})
    return network.to(accelerator()).eval().requires_grad_(False), known
