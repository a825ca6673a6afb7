import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from geodistill.descriptions import class_prompt
from geodistill.distilled import DistilledSet
from geodistill.errors import ConfigError, SceneError
from geodistill.evaluation import bench as module
from geodistill.evaluation import workers
from geodistill.evaluation.bench import hash_of
from geodistill.evaluation.evaluate import _texts, class_table, cross_table, evaluate, summary_table
from geodistill.evaluation.measures import Measures
from geodistill.privacy.nearness import Nearness
from geodistill.scenes import SceneData, Scenes

CLASSES = ("field", "lake")


def coloured(count, seed):
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    colour = np.array([[40, 160, 40], [40, 40, 160]])[labels][:, None, None]
    return np.clip(colour + random.integers(-30, 31, (count, 32, 32, 3)), 0, 255).astype(np.uint8), labels.tolist()


def scenes(count, seed, classes=CLASSES):
    return Scenes.from_arrays(*coloured(count, seed), classes)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr("geodistill.evaluation.protocols.BATCH", 8)


@pytest.fixture
def data():
    return SceneData(scenes(12, 0), scenes(6, 1))


@pytest.fixture
def distilled():
    images, labels = coloured(4, 2)
    return DistilledSet(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels), CLASSES)


def quick(distilled, data, **options):
    return evaluate(
        distilled, data, **({"protocol": "scratch", "network": "convnet3", "seeds": 2, "steps": 2} | options)
    )


def test_whole_evaluation_from_a_folder(distilled, data, tmp_path):
    folder = distilled.save(tmp_path / "set")
    result = quick(folder, data, out=tmp_path / "run")
    assert (result.seeds, result.ipc, result.size, result.classes) == ((0, 1), 2, 32, CLASSES)
    assert len(result.distilled) == len(result.random) == len(result.full) == 2
    assert result.share == pytest.approx(result.oa / np.mean([m.oa for m in result.full]))
    assert result.ior == pytest.approx(result.oa - np.mean([m.oa for m in result.random]))
    stored = sorted((tmp_path / "run/evaluation/scratch-convnet3").glob("distilled-*.safetensors"))
    tensors = load_file(stored[0])
    assert float((tensors["logits"].argmax(1) == tensors["labels"]).float().mean()) == pytest.approx(
        result.distilled[0].oa
    )
    figures = json.loads(next((tmp_path / "run/evaluation/scratch-convnet3").glob("figures-*.json")).read_text())
    assert figures == result.as_dict() | {"set": hash_of(distilled)}


def test_second_call_uses_what_is_stored(distilled, data, tmp_path, monkeypatch):
    first = quick(distilled, data, out=tmp_path)
    monkeypatch.setattr(module, "nearness_ratio", None)
    trained = []
    real = workers.train_and_predict
    monkeypatch.setattr(workers, "train_and_predict", lambda *a, **k: trained.append(k["seed"]) or real(*a, **k))
    assert quick(distilled, data, out=tmp_path) == first
    assert trained == []
    damaged = next((tmp_path / "evaluation/scratch-convnet3").glob("full-1-*"))
    damaged.write_bytes(b"broken")
    assert quick(distilled, data, out=tmp_path) == first
    assert trained == [1]


def test_probe_trains_once_for_all_seeds(distilled, data, monkeypatch):
    trained = []
    real = module.train_and_predict
    monkeypatch.setattr(module, "train_and_predict", lambda *a, **k: trained.append(k["seed"]) or real(*a, **k))
    result = evaluate(distilled, data, protocol="probe", seeds=[7, 8], full=False)
    assert len(trained) == 3  # the distilled set once, random real images for each seed
    assert (result.oa, result.share, result.hlr) == (1.0, None, None)


def test_tables(distilled, data):
    result = quick(distilled, data, seeds=1)
    console = Console(width=200, record=True, quiet=True, file=None)
    console.quiet = False
    with console.capture() as capture:
        console.print(summary_table(result))
        console.print(class_table(result))
    text = capture.get()
    for part in ("all real images", "random real, 2 a class", "distilled, 2 a class", "nearness ρ", "lake"):
        assert part in text


def test_classes_must_agree(distilled, data):
    three = ("field", "forest", "lake")
    more = SceneData(scenes(12, 0, three), scenes(6, 1, three))
    with pytest.raises(
        SceneError, match=r"^the distilled set has no class 'forest', which the data has: distil it again$"
    ):
        quick(distilled, more)
    other = DistilledSet(distilled.images, distilled.labels, ("field", "sea"))
    with pytest.raises(SceneError, match=r"^the distilled set has no class 'lake'"):
        quick(other, data)
    wide = DistilledSet(distilled.images[:3], torch.tensor([0, 1, 2]), three)
    with pytest.raises(
        SceneError, match=r"^the data has no class 'forest', which the distilled set has: use its own data$"
    ):
        quick(wide, data)


def test_uneven_classes_are_told(distilled, data, caplog):
    uneven = DistilledSet(distilled.images[:3], distilled.labels[:3], CLASSES)
    result = quick(uneven, data, protocol="probe", network="efficientnet-lite0", full=False)
    assert result.ipc == 1
    told = (
        "class 'lake' has 1 images, class 'field' 2: are some missing? Random real images are drawn in the same numbers"
    )
    assert caplog.messages == [told]


def test_test_images_must_be_there(distilled, data):
    message = "the data has no test images: add test/<class>/<image> beside train"
    with pytest.raises(SceneError, match=f"^{re.escape(message)}$"):
        quick(distilled, SceneData(data.train, None))
    with pytest.raises(SceneError, match=r"^the test images have no class 'lake': add test images of it$"):
        quick(distilled, SceneData(data.train, data.test.subset([0, 2])))


def test_settings_that_cannot_work(distilled, data, tmp_path):
    with pytest.raises(ConfigError, match=r"^seeds is 0: give at least 1$"):
        quick(distilled, data, seeds=0)
    with pytest.raises(ConfigError, match=r"^the distilled images are 32 px, size is 64: leave size out$"):
        quick(distilled, data, size=64)
    few = SceneData(data.train.subset([0, 1]), data.test)
    with pytest.raises(SceneError, match=r"^class 'field' has 1 training images, fewer than the 2 distilled ones$"):
        quick(distilled, few)
    folder = distilled.save(tmp_path / "set")
    with pytest.raises(ConfigError, match="is a distilled set, where every folder is a class: choose another folder"):
        quick(distilled, data, out=folder)


def test_scenes_are_asked_for(distilled):
    with pytest.raises(SceneError) as caught:
        evaluate(distilled, "data")
    assert str(caught.value) == "data are str: give what open_scenes returns"


def test_each_figure_stands_in_its_row_and_column(distilled, data):
    result = quick(distilled, data, seeds=1)

    def measures(oa, per_class):
        return (Measures(oa, oa - 0.01, oa - 0.02, per_class, ()),)

    result = replace(
        result,
        distilled=measures(0.5, (0.7, 0.3)),
        random=measures(0.4, (0.6, 0.2)),
        full=measures(0.8, (0.9, 0.75)),
        likeness=replace(result.likeness, nearness=Nearness(pixel=0.91, feature=0.92, ratio=0.9)),
    )
    assert (result.share, result.hlr) == (pytest.approx(0.625), pytest.approx(0.3))
    console = Console(width=200, file=io.StringIO())
    for table in (summary_table(result), class_table(result), cross_table([result])):
        console.print(table)
    lines = [" ".join(line.replace("│", " ").split()) for line in console.file.getvalue().splitlines()]
    for wanted in (
        "all real images 80.0 ± 0.0 79.0 ± 0.0 0.780 ± 0.000",
        "random real, 2 a class 40.0 ± 0.0 39.0 ± 0.0 0.380 ± 0.000",
        "distilled, 2 a class 50.0 ± 0.0 49.0 ± 0.0 0.480 ± 0.000",
        "lake 30.0 20.0 75.0",
        "field 70.0 60.0 90.0",
        "convnet3 50.0 ± 0.0 40.0 ± 0.0 80.0 ± 0.0 62.5%",
    ):
        assert wanted in lines
    assert lines.index("lake 30.0 20.0 75.0") < lines.index("field 70.0 60.0 90.0")
    text = " ".join(lines)
    assert "nearness ρ 0.90 (pixel 0.91, feature 0.92; 1: fresh, 0: copies)" in text
    assert "62.5 % of the full data's OA (HLR 30.0 points); improvement over random (IOR) +10.0 points" in text


def test_descriptions_are_what_a_clip_score_compares(distilled):
    some = replace(distilled, records=({"description": "a pond"}, {}, {}, {}))
    assert _texts(some)[:2] == ["a pond", class_prompt("lake")]
