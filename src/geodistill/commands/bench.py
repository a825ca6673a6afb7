"""What a classifier and its exported files cost on this machine, and how well they predict real scenes."""

import csv
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.table import Table

from geodistill.deployment.formats import FORMATS
from geodistill.deployment.latency import RUNS, measure_latency
from geodistill.deployment.predictors import Predictor, load_predictor
from geodistill.devices import on_device
from geodistill.errors import SceneError
from geodistill.evaluation.classifier import WEIGHTS, Classifier
from geodistill.evaluation.measures import measure
from geodistill.progress import progress
from geodistill.run import explain_os_errors, write_atomic
from geodistill.scenes.scenes import SceneData, Scenes

_TORCH = "torch"


@dataclass(frozen=True)
class Row:
    """One format of a model on this machine, always one image at a time.

    size: bytes on disk. median_1, high_1: milliseconds with one thread, the median and what 95 % of the runs stay
    below. median_all, high_all: the same with `threads`, all of the machine's that this process may use. memory: peak
    in MiB of a process that runs the model with one thread, with Python and the runtime. accuracy: overall, on the real
    test scenes. same: share of these that get the class that torch gives them. largest: largest difference of a logit
    from torch's. The last three are None without scenes.
    """

    format: str
    size: int
    median_1: float
    high_1: float
    median_all: float
    high_all: float
    threads: int
    memory: int
    accuracy: float | None = None
    same: float | None = None
    largest: float | None = None


_Judged = Callable[[Row, Predictor], Row]


def bench(model: Path | str, data: SceneData | None = None, *, runs: int = RUNS) -> list[Row]:
    """Measure the classifier in the folder `model` and each file that `export` wrote there, on the CPU.

    Args:
        model: a folder that `train` wrote, with its exported files under their own names.
        data: real scenes with the model's classes; accuracy is measured on their test part. They are read as the
            model's training images were.
        runs: images per measurement of latency.

    Raises:
        ConfigError: no usable model.
        ExportError: a file cannot be run.
        SceneError: the scenes have no test part, or other classes.
    """
    with on_device("cpu"):
        folder = Path(model)
        original = Classifier.load(folder)
        judged = _judge(original, _test_scenes(original, data)) if data is not None else _unjudged
        found = {_TORCH: folder} | {name: folder / one.file for name, one in FORMATS.items()}
        return list(_rows({name: path for name, path in found.items() if path.exists()}, original, judged, runs))


def _rows(paths: dict[str, Path], original: Classifier, judged: _Judged, runs: int) -> Iterator[Row]:
    with progress("formats", len(paths)) as advance:
        for done, (name, path) in enumerate(paths.items()):
            advance(done, name)
            predictor: Predictor = original if name == _TORCH else load_predictor(path)
            yield judged(_cost(name, path, predictor, runs), predictor)
        advance(len(paths))


def _unjudged(cost: Row, predictor: Predictor) -> Row:
    return cost


def _judge(original: Classifier, scenes: Scenes) -> _Judged:
    """Return a function that adds to a row how a predictor does on `scenes`, alone and beside the original."""
    images = scenes.pixels(size=original.about.size)
    expected = original.logits(images)

    def judged(cost: Row, predictor: Predictor) -> Row:
        logits = predictor.logits(images)
        return replace(
            cost,
            accuracy=measure(logits.argmax(1), scenes.labels, len(scenes.classes)).oa,
            same=float((logits.argmax(1) == expected.argmax(1)).double().mean()),
            largest=float((logits - expected).abs().max()),
        )

    return judged


def _cost(name: str, path: Path, predictor: Predictor, runs: int) -> Row:
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    side, takes = predictor.about.size, getattr(predictor, "takes", "float")
    asked = {"runs": runs, "channels": predictor.about.channels}
    one = measure_latency(path, 1, side, takes, **asked)
    every = one if threads == 1 else measure_latency(path, threads, side, takes, **asked)
    size = (path / WEIGHTS if path.is_dir() else path).stat().st_size
    return Row(name, size, one.median, one.high, every.median, every.high, threads, one.memory)


def _test_scenes(original: Classifier, data: SceneData) -> Scenes:
    about = original.about
    if data.test is None or not len(data.test):
        raise SceneError("the data has no test images: add test/<class>/<image> beside train")
    if data.test.classes != about.classes:
        differ = sorted(set(about.classes) ^ set(data.test.classes))
        where = "the data has" if differ[0] in data.test.classes else "the model has"
        raise SceneError(f"{where} class {differ[0]!r}, and the other has not: give data of the model's classes")
    return data.test.read_by(about.reading)


def write_csv(rows: list[Row], path: Path) -> None:
    """Write `rows` to the CSV file at `path`; its columns are the fields of `Row`."""
    text = io.StringIO()
    lines = [asdict(row) for row in rows]
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    with explain_os_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text.getvalue())


def bench_table(rows: list[Row]) -> Table:
    """Return `rows` as a table for the terminal."""
    threads = rows[0].threads
    caption = "milliseconds for one image: median (95 %)"
    if rows[0].accuracy is not None:
        caption += "; same: share of test scenes with torch's class; logits: largest difference from torch's"
    table = Table(title="on the CPU, one image at a time", caption=caption)
    table.add_column("format")
    many = (f"{threads} threads",) if threads > 1 else ()
    for name in ("MB", "1 thread", *many, "memory", "OA %", "same %", "logits"):
        table.add_column(name, justify="right")
    for row in rows:
        times = [f"{row.median_1:.2f} ({row.high_1:.2f})", f"{row.median_all:.2f} ({row.high_all:.2f})"]
        told = [f"{row.size / 1e6:.2f}", *times[: 1 + len(many)], f"{row.memory} MiB"]
        shares = ["" if one is None else f"{100 * one:.1f}" for one in (row.accuracy, row.same)]
        table.add_row(row.format, *told, *shares, "" if row.largest is None else f"{row.largest:.1g}")
    return table
