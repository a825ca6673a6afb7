from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from geodistill.distilled import DistilledSet
from geodistill.evaluation import bench as module
from geodistill.evaluation import workers
from geodistill.evaluation.bench import Bench, Task, Training
from geodistill.evaluation.classifier import About, Classifier
from geodistill.networks import PRETRAINED, backbone_features, pooled_features
from geodistill.progress import reported_to
from geodistill.scenes import SceneData, Scenes

CLASSES = ("field", "lake")


def scenes(count: int, seed: int) -> Scenes:
    images = np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return Scenes.from_arrays(images, [k % 2 for k in range(count)], CLASSES)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(SceneData(scenes(12, 0), scenes(6, 1)), 32, store=tmp_path, steps=2)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets the seed of each training."""
    seeds: list[int] = []
    real = workers.train_and_predict
    monkeypatch.setattr(workers, "train_and_predict", lambda *a, **k: seeds.append(k["seed"]) or real(*a, **k))
    return seeds


def on(name: str, images: Scenes, seed: int) -> Task:
    return Task(Training.on_scenes(name, images, 32), "scratch", "convnet3", seed)


def test_equal_tasks_are_trained_once_whatever_their_name(bench: Bench, trained: list[int]) -> None:
    some, other = scenes(4, 2), scenes(4, 3)
    bench.train_all([on("some", some, 0), on("some", some, 1), on("again", some, 0), on("other", other, 0)])
    assert trained == [0, 1, 0]
    assert torch.equal(bench.logits(on("again", some, 0)), bench.logits(on("some", some, 0)))
    assert not torch.equal(bench.logits(on("other", other, 0)), bench.logits(on("some", some, 0)))
    later = Bench(SceneData(bench.train, bench.test), 32, store=bench.store, steps=2)
    assert torch.equal(later.logits(on("renamed", some, 1)), bench.logits(on("some", some, 1)))
    assert trained == [0, 1, 0]


def test_classifiers_are_kept_where_asked(bench: Bench, trained: list[int], tmp_path: Path) -> None:
    some, data = scenes(4, 2), SceneData(bench.train, bench.test)
    wanted = bench.logits(on("some", some, 1))
    for _ in range(2):  # trained once more for its file, then no more
        later = Bench(data, 32, store=bench.store, steps=2, save=tmp_path / "kept")
        assert torch.equal(later.logits(on("some", some, 1)), wanted)
        assert trained == [1, 1]
    later.train_all([on("again", some, 1), Task(Training.on_scenes("some", some, 32), "probe", PRETRAINED, 0)])
    assert trained == [1, 1]
    (file,) = (tmp_path / "kept").rglob("*.safetensors")
    assert file.parents[1].name == "scratch-convnet3"
    found = Classifier.load(file.parent)
    assert found.about == About("convnet3", "scratch", CLASSES, 32, seed=1, trained_on="4 images (some)")
    # On one thread, as it was trained and tested.
    torch.testing.assert_close(found.logits(later.test.pixels(size=32)), wanted, rtol=1e-3, atol=1e-3)


def test_real_scenes_and_a_set_of_them_train_alike(bench: Bench) -> None:
    some = scenes(4, 2)
    distilled = DistilledSet(some.pixels(size=32), some.labels, CLASSES)
    as_set = Task(Training.on_set("set", distilled), "scratch", "convnet3", 0)
    assert torch.equal(bench.logits(as_set), bench.logits(on("scenes", some, 0)))


def test_seeds_share_the_images_in_memory(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[workers.Job] = []
    monkeypatch.setattr(module, "train_side_by_side", lambda given: jobs.extend(given) or ())
    some, other = scenes(4, 2), scenes(4, 3)
    bench.train_all([on("some", some, 0), on("some", some, 1), on("other", other, 0)])
    assert jobs[0].images is jobs[1].images
    assert jobs[0].test is jobs[2].test
    assert np.array_equal(jobs[2].images, other.pixels(size=32).numpy())


def test_progress_counts_the_steps_of_all_trainings(bench: Bench) -> None:
    told: list[tuple[str, int, int]] = []
    with reported_to(lambda *now: told.append(now)):
        bench.train_all([on("some", scenes(4, 2), seed) for seed in range(3)])
    assert told[-1] == ("training 3 classifiers", 6, 6)


def test_the_key_of_a_prediction_has_all_that_it_depends_on(bench: Bench) -> None:
    some, data = scenes(4, 2), SceneData(bench.train, bench.test)
    task = on("some", some, 0)
    other_test, other_train = SceneData(bench.train, scenes(6, 9)), SceneData(scenes(12, 9), bench.test)
    keys = [
        bench._key(task),
        bench._key(task._replace(seed=1)),
        bench._key(task._replace(network="resnet18")),
        bench._key(task._replace(protocol="finetune", network=PRETRAINED)),
        bench._key(task._replace(training=Training.on_scenes("some", scenes(4, 3), 32))),
        Bench(data, 32, steps=3)._key(task),
        Bench(data, 40, steps=2)._key(task),
        Bench(other_test, 32, steps=2)._key(task),
    ]
    assert len({*keys}) == len(keys)
    # Real scenes count only where a soft-label teacher learns from them.
    assert Bench(other_train, 32, steps=2)._key(task) == keys[0]
    soft = task._replace(protocol="scratch-soft")
    assert Bench(other_train, 32, steps=2)._key(soft) != bench._key(soft)
    # The seed of a probe changes nothing.
    probe = task._replace(protocol="probe", network=PRETRAINED)
    assert bench._key(probe) == bench._key(probe._replace(seed=1))


def test_a_set_is_measured_against_the_right_images(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: dict[str, tuple[object, ...]] = {}
    for name in ("fid", "kid", "nearest_similarity", "nearness_ratio"):
        real = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, n=name, f=real: compared.update({n: a}) or f(*a))
    made = [DistilledSet(scenes(4, seed).pixels(size=32), torch.tensor([0, 0, 1, 1]), CLASSES) for seed in (5, 6)]
    first = bench.likeness(made[0])
    pooled, test = pooled_features(made[0].images), pooled_features(bench.test.pixels(size=32))
    for name in ("fid", "kid"):
        torch.testing.assert_close(compared[name], (pooled, test))
    own, labels, real, real_labels = compared["nearest_similarity"]
    torch.testing.assert_close(own, F.normalize(pooled, dim=1))
    torch.testing.assert_close(real, backbone_features(bench.train.pixels(size=32)))
    assert torch.equal(labels, made[0].labels)
    assert torch.equal(real_labels, bench.train.labels)
    # Another set has figures of its own in the same store.
    assert bench.likeness(made[1]) != first
    assert bench.likeness(made[0]) == first


def test_the_features_of_test_images_are_those_of_the_probe(bench: Bench) -> None:
    images = bench._test_pixels
    torch.testing.assert_close(bench._features(images), backbone_features(images), rtol=1e-4, atol=1e-5)
