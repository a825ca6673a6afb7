from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from geodistill.distilled import DistilledSet
from geodistill.evaluation import bench as module
from geodistill.evaluation import soft_label_teacher
from geodistill.evaluation.bench import Bench, Task, Training
from geodistill.networks import normalise
from geodistill.scenes import SceneData, Scenes

CLASSES = ("field", "lake")


def _scenes(count: int, seed: int) -> Scenes:
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    colour = np.array([[40, 160, 40], [40, 40, 160]])[labels][:, None, None]
    images = np.clip(colour + random.integers(-30, 31, (count, 32, 32, 3)), 0, 255).astype(np.uint8)
    return Scenes.from_arrays(images, labels.tolist(), CLASSES)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geodistill.evaluation.protocols.BATCH", 8)


class _Brightness(nn.Module):
    """Gives the mean of the normalised image, and 0, as logits."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean = images.mean(dim=(1, 2, 3))
        return torch.stack([mean, torch.zeros_like(mean)], dim=1)


def test_soft_labels_are_the_softmax_of_the_teachers_logits() -> None:
    images = torch.stack([torch.zeros(3, 32, 32), torch.full((3, 32, 32), 255.0)]).to(torch.uint8)
    mean = normalise(images).mean(dim=(1, 2, 3))
    found = soft_label_teacher.soft_labels(_Brightness(), images)
    assert torch.allclose(found[:, 0], torch.sigmoid(mean))
    assert torch.allclose(found.sum(dim=1), torch.ones(2))


def test_the_teacher_is_finetuned_on_all_real_scenes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(soft_label_teacher, "train_classifier", lambda *args, **named: asked.append((*args, named)))
    train = _scenes(12, 0)
    soft_label_teacher.train_soft_label_teacher(train, 32)
    protocol, network, images, labels, named = asked[0]
    assert (protocol, network) == ("finetune", "efficientnet-lite0")
    assert torch.equal(images, train.pixels(size=32))  # type: ignore[arg-type]
    assert torch.equal(labels, train.labels)  # type: ignore[arg-type]
    assert callable(named.pop("advance"))  # type: ignore[attr-defined]
    assert named == {"classes": 2, "seed": 0, "steps": None}


def test_bench_trains_on_what_the_teacher_says_and_trains_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = SceneData(_scenes(12, 0), _scenes(6, 1))
    made: list[int] = []
    train = soft_label_teacher.train_soft_label_teacher

    def counted(*args: object, **named: object) -> torch.nn.Module:
        made.append(1)
        return train(*args, **named)  # type: ignore[arg-type]

    seen: list[torch.Tensor] = []
    label = module.soft_labels

    def watched(network: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        seen.append(label(network, images))
        return seen[-1]

    monkeypatch.setattr(module, "train_soft_label_teacher", counted)
    monkeypatch.setattr(module, "soft_labels", watched)
    pixels = data.train.pixels(size=32)[:4]
    training = Training.on_set("set", DistilledSet(pixels, data.train.labels[:4], CLASSES))
    tasks = [Task(training, protocol, "convnet3", 0) for protocol in ("scratch", "scratch-soft")]
    hard, soft = (Bench(data, 32, store=tmp_path, steps=2).logits(task) for task in tasks)
    assert made == [1]
    assert not torch.equal(hard, soft)
    # Another bench on the same store reads the teacher; another seed needs it anew.
    again = Bench(data, 32, store=tmp_path, steps=2)
    assert torch.equal(again.logits(tasks[1]), soft)
    again.logits(tasks[1]._replace(seed=1))
    assert made == [1]
    assert torch.equal(seen[0], seen[1])
