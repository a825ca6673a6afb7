"""The test bench: trains classifiers on images, predicts the real test images, and stores the predictions.

Every figure is computed from predictions kept in files. Stored predictions are read instead of training again.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from geodistill.distilled import MANIFEST, DistilledSet
from geodistill.errors import ConfigError, SceneError
from geodistill.evaluation.classifier import WEIGHTS, About
from geodistill.evaluation.fidelity import Score, fid, kid
from geodistill.evaluation.measures import Measures, measure
from geodistill.evaluation.protocols import check_protocol, recipe_steps, takes_soft_labels, train_and_predict
from geodistill.evaluation.rows import renamed
from geodistill.evaluation.similarity import nearest_similarity
from geodistill.evaluation.soft_label_teacher import VERSION as TEACHER_VERSION
from geodistill.evaluation.soft_label_teacher import (
    load_soft_label_teacher,
    save_soft_label_teacher,
    soft_labels,
    train_soft_label_teacher,
)
from geodistill.evaluation.workers import Job, train_side_by_side
from geodistill.networks import backbone_features, pooled_features
from geodistill.privacy.nearness import Nearness, RealDistances, nearness_ratio, real_distances
from geodistill.provenance import fingerprint
from geodistill.run import explain_os_errors, write_atomic
from geodistill.scenes.scenes import SceneData, Scenes

# Raise this number when the same inputs give another likeness or other figures.
VERSION = 5
# Raise a protocol's number when the same inputs give other predictions under it.
PREDICTIONS = {"probe": 5, "finetune": 5, "scratch": 7, "finetune-soft": 1, "scratch-soft": 1}


@dataclass(frozen=True)
class Training:
    """Images to train on, read only when they are needed.

    `name`: for messages and file names. `key`: identifies their content. `count`: the number of images. `read`: returns
    uint8 images [n, 3, s, s] and int64 labels [n].
    """

    name: str
    key: str
    count: int
    read: Callable[[], tuple[torch.Tensor, torch.Tensor]]

    @classmethod
    def on_set(cls, name: str, distilled: DistilledSet) -> "Training":
        """Return the training on a distilled set."""
        return cls(name, hash_of(distilled), len(distilled), lambda: (distilled.images, distilled.labels))

    @classmethod
    def on_scenes(cls, name: str, scenes: Scenes, size: int) -> "Training":
        """Return the training on real scenes at `size` pixels."""
        return cls(name, scenes.fingerprint(), len(scenes), lambda: (scenes.pixels(size=size), scenes.labels))


class Task(NamedTuple):
    """One classifier to train: `network` under `protocol` on `training`, with random numbers from `seed`."""

    training: Training
    protocol: str
    network: str
    seed: int


@dataclass(frozen=True)
class Likeness:
    """How a set relates to the real images: nearness and nearest similarity to training images, FID and KID to test.

    The fields are those of privacy.nearness, evaluation.similarity and evaluation.fidelity.
    """

    nearness: Nearness
    nearest_similarity: float
    fid: Score
    kid: Score


class Bench:
    """Real scenes that sets are tested on and compared with, at one image size.

    Args:
        data: classifiers predict `test`; nearness and similarity are measured to `train`.
        size: side in pixels at which everything is read.
        store: folder for predictions and likeness; if None, nothing is stored.
        steps: replaces the protocols' numbers of training steps.
        save: folder for the trained classifiers; if None, they are not kept. One whose predictions are stored is
            trained again if its folder is missing. The probe trains no network, so it has none.

    Raises:
        SceneError: there are no test images, or a class has none.
    """

    def __init__(
        self,
        data: SceneData,
        size: int,
        *,
        store: Path | None = None,
        steps: int | None = None,
        save: Path | None = None,
    ) -> None:
        self.train, self.test = data.train, _complete_test(data)
        self.size, self.store, self.steps, self._save = size, store, steps, save
        self._memo: dict[str, torch.Tensor] = {}

    def measure(self, task: Task) -> Measures:
        """Return how well the test images are predicted after the task's training."""
        return measure(self.logits(task).argmax(1), self.test.labels, len(self.test.classes))

    def logits(self, task: Task) -> torch.Tensor:
        """Return logits float32 [n_test, classes] after the task's training, from the store or newly trained."""
        self.train_all([task])
        return self._memo[self._key(task)]

    def train_all(self, tasks: Iterable[Task]) -> None:
        """Train, side by side, all tasks without stored predictions; `logits` and `measure` then return at once.

        Raises:
            ConfigError: a protocol or network is not known, or cannot take the images.
            TrainingError: a loss is not finite.
        """
        missing = {self._key(task): task for task in tasks}
        missing = {key: task for key, task in missing.items() if not self._known(key, task)}
        probes = {key: task for key, task in missing.items() if task.protocol == "probe"}
        for key, task in probes.items():
            self._keep(key, task, self._probe(task))
        trained = {key: task for key, task in missing.items() if key not in probes}
        if trained:
            jobs, keys = self._jobs(trained), list(trained)
            for index, logits in train_side_by_side(jobs):
                self._keep(keys[index], trained[keys[index]], logits)

    def measure_all(
        self, trainings: Mapping[str, Sequence[Training]], protocol: str, network: str, seeds: Sequence[int]
    ) -> dict[str, tuple[Measures, ...]]:
        """Return the measures for each name; its first training uses the first of `seeds`, and so on.

        All are trained side by side. A name without trainings has no measures. Raises the errors of `train_all`.
        """
        tasks = {
            name: [Task(one, protocol, network, seed) for one, seed in zip(ones, seeds, strict=False)]
            for name, ones in trainings.items()
        }
        self.train_all(chain.from_iterable(tasks.values()))
        return {name: tuple(map(self.measure, ones)) for name, ones in tasks.items()}

    def likeness(self, distilled: DistilledSet) -> Likeness:
        """Return how `distilled` relates to the real images, from the store or newly measured."""
        both = (self.train.fingerprint(), self.test.fingerprint(), self.size)
        path = self._path(f"likeness-{fingerprint(VERSION, hash_of(distilled), *both)[:16]}.json")
        if path and path.is_file():
            return _likeness_of(json.loads(path.read_text()))
        pooled = pooled_features(distilled.images)
        found = Likeness(
            nearness_ratio(distilled.images, self._real),
            nearest_similarity(F.normalize(pooled, dim=1), distilled.labels, self._real.features, self.train.labels),
            fid(pooled, self._test_pooled),
            kid(pooled, self._test_pooled),
        )
        _write(path, json.dumps(asdict(found), indent=2).encode())
        return found

    def write(self, name: str, content: str) -> None:
        """Write `content` to file `name` of the store."""
        _write(self._path(name), content.encode())

    def _key(self, task: Task) -> str:
        check_protocol(task.protocol, task.network)
        steps = recipe_steps(task.protocol, task.training.count, self.steps)
        # The probe is deterministic, so one training serves all seeds with the same images.
        seed = 0 if task.protocol == "probe" else task.seed
        cell = (task.protocol, task.network)
        version: list[Any] = [PREDICTIONS[task.protocol]]
        if takes_soft_labels(task.protocol):
            version += [TEACHER_VERSION, self.train.fingerprint()]
        return fingerprint(*version, task.training.key, self.test.fingerprint(), *cell, self.size, seed, steps)

    def _known(self, key: str, task: Task) -> bool:
        """Return whether there are predictions; they are read from the store if they are not in memory."""
        if key not in self._memo:
            # Only the key counts: another call may have stored the same images under another name.
            for path in self.store.glob(f"{_cell_of(task)}/*-{key[:16]}.safetensors") if self.store else ():
                logits = _read_logits(path, (len(self.test), len(self.test.classes)))
                if logits is not None:
                    self._memo[key] = logits
        return key in self._memo and self._is_saved(key, task)

    def _is_saved(self, key: str, task: Task) -> bool:
        """Return whether the task's classifier is kept, if it is to be."""
        path = self._saved(key, task)
        return path is None or any(path.parent.glob(f"*-{key[:16]}/{WEIGHTS}"))

    def _saved(self, key: str, task: Task) -> Path | None:
        """Return the folder for the task's classifier, None if it has none or is not to be kept."""
        if self._save is None or task.protocol == "probe":
            return None
        return self._save / _cell_of(task) / _file_of(task, key)

    def _keep(self, key: str, task: Task, logits: torch.Tensor) -> None:
        self._memo[key] = logits
        path = self._path(f"{_cell_of(task)}/{_file_of(task, key)}.safetensors")
        _write(path, save({"logits": logits, "labels": self.test.labels}, {"key": key}))

    def _probe(self, task: Task) -> torch.Tensor:
        images, labels = task.training.read()
        return train_and_predict(
            task.protocol,
            task.network,
            images,
            labels,
            self._test_pixels,
            classes=len(self.test.classes),
            seed=task.seed,
            features=self._features,
        )

    def _jobs(self, tasks: Mapping[str, Task]) -> list[Job]:
        """Return the tasks, by key, as jobs with their training images; those on the same images share them."""
        arrays: dict[tuple[str, bool], tuple[NDArray[np.uint8], NDArray[np.int64 | np.float32]]] = {}
        test, classes, jobs = self._test_pixels.numpy(), len(self.test.classes), []
        for name, task in tasks.items():
            soft = takes_soft_labels(task.protocol)
            key = (task.training.key, soft)
            if key not in arrays:
                images, labels = task.training.read()
                labels = soft_labels(self._soft_label_teacher, images) if soft else labels
                arrays[key] = (images.numpy(), labels.numpy())
            own = arrays[key]
            save = self._saved(name, task)
            about = self._about(task)
            kept = None if save is None else (save, about)
            jobs.append(Job(task.protocol, task.network, *own, test, classes, task.seed, self.steps, kept))
        return jobs

    def _about(self, task: Task) -> About:
        """Return what the file of the task's classifier says about it."""
        trained_on = f"{task.training.count:,} images ({task.training.name})"
        own = (task.network, task.protocol, self.test.classes, self.size, task.seed)
        return About(*own, reading=self.test.reading, trained_on=trained_on, channels=self.test.channels)

    def _features(self, images: torch.Tensor) -> torch.Tensor:
        """Return the backbone's features; those of the test images are computed once for all probes."""
        return F.normalize(self._test_pooled, dim=1) if images is self._test_pixels else backbone_features(images)

    @cached_property
    def _soft_label_teacher(self) -> nn.Module:
        key = fingerprint(TEACHER_VERSION, self.train.fingerprint(), self.size, self.steps)
        path = self._path(f"labeller-{key[:16]}.safetensors")
        if path and path.is_file():
            return load_soft_label_teacher(path, len(self.train.classes))
        teacher = train_soft_label_teacher(self.train, self.size, steps=self.steps)
        if path:
            with explain_os_errors(path.parent):
                save_soft_label_teacher(teacher, path)
        return teacher

    @cached_property
    def _test_pixels(self) -> torch.Tensor:
        return self.test.pixels(size=self.size)

    @cached_property
    def _test_pooled(self) -> torch.Tensor:
        return pooled_features(self._test_pixels)

    @cached_property
    def _real(self) -> RealDistances:
        return real_distances(self.train.pixels(size=self.size), self._test_pixels)

    def _path(self, name: str) -> Path | None:
        return self.store and self.store / name


def _cell_of(task: Task) -> str:
    return cell_name(task.protocol, task.network)


def _file_of(task: Task, key: str) -> str:
    return f"{task.training.name}-{task.seed}-{key[:16]}"


def cell_name(protocol: str, network: str) -> str:
    """Return the folder name for predictions of `network` under `protocol`, valid on every operating system."""
    return f"{protocol}-{network}".replace(":", "-")


def open_store(out: Path | str | None) -> Path | None:
    """Return the folder `<out>/evaluation`, created if it does not exist; None if `out` is None.

    Raises:
        ConfigError: `out` is itself a distilled set.
        RunError: the folder cannot be written.
    """
    if out is None:
        return None
    if (Path(out) / MANIFEST).is_file():
        raise ConfigError(f"{out} is a distilled set, where every folder is a class: choose another folder for results")
    folder = Path(out) / "evaluation"
    with explain_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def hash_of(distilled: DistilledSet) -> str:
    """Return a SHA-256 over images and labels; class names and other metadata do not count."""
    return distilled.content_hash()


def _complete_test(data: SceneData) -> Scenes:
    if data.test is None or not len(data.test):
        raise SceneError("the data has no test images: add test/<class>/<image> beside train")
    present = set(data.test.labels.tolist())
    for label, name in enumerate(data.test.classes):
        if label not in present:
            raise SceneError(f"the test images have no class {name!r}: add test images of it")
    return data.test


def _likeness_of(stored: dict[str, Any]) -> Likeness:
    stored = renamed(stored)
    scores = {name: Score(**stored[name]) for name in ("fid", "kid")}
    return Likeness(Nearness(**stored["nearness"]), stored["nearest_similarity"], **scores)


def _read_logits(path: Path, shape: tuple[int, int]) -> torch.Tensor | None:
    """Return stored logits, or None if the file is damaged, so that they are computed again."""
    try:
        logits = load(path.read_bytes())["logits"]
    except (SafetensorError, KeyError):
        return None
    return logits if logits.shape == shape else None


def _write(path: Path | None, content: bytes) -> None:
    if path is not None:
        with explain_os_errors(path.parent):
            path.parent.mkdir(exist_ok=True)
            write_atomic(path, content)
