import csv
import io
from pathlib import Path

import pytest
from models import CLASSES, saved
from rich.console import Console

from geodistill.commands import bench as module
from geodistill.commands.bench import Row, bench, bench_table, write_csv
from geodistill.commands.export import export
from geodistill.deployment.latency import Latency
from geodistill.errors import SceneError
from geodistill.evaluation.classifier import Classifier
from geodistill.scenes import SceneData, Scenes, draw_scene


def data(classes: tuple[str, ...] = CLASSES, test: bool = True) -> SceneData:
    images = [draw_scene(("Beach", "Forest", "River")[k % 3], k, size=48) for k in range(9)]
    own = Scenes.from_arrays(images, [k % len(classes) for k in range(9)], classes)
    return SceneData(own, own if test else None)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int, str]]:
    """Measure nothing, which takes processes; test_latency.py measures. The calls are kept."""
    calls: list[tuple[str, int, int, str]] = []

    def fake(path: Path, threads: int, side: int, takes: str, *, runs: int, channels: int = 3) -> Latency:
        calls.append((path.name, threads, side, takes))
        return Latency(2.0 / threads, 3.0 / threads, 100 * threads)

    monkeypatch.setattr(module, "measure_latency", fake)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)
    return calls


def test_each_file_is_measured_against_the_weights(tmp_path: Path, quick: list[tuple[str, int, int, str]]) -> None:
    folder = saved(tmp_path / "model")
    export(folder, "torchscript", takes="uint8")
    first, second = bench(folder, data())
    weights, script = folder / "model.safetensors", folder / "model.torchscript"
    assert (first.format, first.size, second.format, second.size) == (
        *("torch", weights.stat().st_size),
        *("torchscript", script.stat().st_size),
    )
    assert (first.median_1, first.high_1, first.median_all, first.high_all, first.threads, first.memory) == (
        *(2.0, 3.0, 1.0, 1.5, 2, 100),
    )
    assert quick == [
        *(("model", 1, 32, "float"), ("model", 2, 32, "float")),
        *(("model.torchscript", 1, 32, "uint8"), ("model.torchscript", 2, 32, "uint8")),
    ]
    scenes = data().test
    assert scenes is not None
    right = Classifier.load(folder).logits(scenes.pixels(size=32)).argmax(1) == scenes.labels
    assert first.accuracy == second.accuracy == pytest.approx(float(right.float().mean()))
    assert (first.same, first.largest, second.same) == (1.0, 0.0, 1.0)
    assert second.largest is not None
    assert 0 <= second.largest < 1e-4


@pytest.mark.usefixtures("quick")
def test_without_scenes_there_is_no_accuracy(tmp_path: Path) -> None:
    (row,) = bench(saved(tmp_path / "model"))
    assert (row.accuracy, row.same, row.largest) == (None, None, None)


@pytest.mark.usefixtures("quick")
def test_other_scenes_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    with pytest.raises(SceneError) as caught:
        bench(folder, data(("Beach", "Forest", "Runway")))
    assert str(caught.value) == ("the model has class 'River', and the other has not: give data of the model's classes")
    with pytest.raises(SceneError) as caught:
        bench(folder, data(test=False))
    assert str(caught.value) == "the data has no test images: add test/<class>/<image> beside train"


ROWS = [
    Row("torch", 4_000_000, 2.0, 3.0, 1.0, 1.5, 2, 300, 0.8, 1.0, 0.0),
    Row("onnx", 2_000_000, 1.0, 1.5, 0.5, 0.75, 2, 60, 0.805, 0.99, 0.00012),
]


def test_rows_become_a_csv_file(tmp_path: Path) -> None:
    write_csv(ROWS, tmp_path / "new" / "b.csv")
    first, second = csv.DictReader(io.StringIO((tmp_path / "new" / "b.csv").read_text()))
    assert (first["format"], first["size"]) == ("torch", "4000000")
    assert (second["median_all"], second["largest"]) == ("0.5", "0.00012")


def test_rows_become_a_table() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(bench_table(ROWS))
    text = console.export_text()
    for told in ("2 threads", "1.00 (1.50)", "0.50 (0.75)", "60 MiB", "80.5", "99.0", "0.0001", "4.00"):
        assert told in text
