"""What each section of the report shows, gathered from a run: plain values, tables and plots for the template."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from geodistill.report.embedding import embed
from geodistill.report.plots import accuracy_plot, curves_plot, map_plot, nearness_plot, thin
from geodistill.report.rows import COPYING, Figures, Row, ablation, by_bench
from geodistill.report.sets import Picture, SetFolder, gallery, thumbnails
from geodistill.run import records
from geodistill.scenes.scenes import Scenes

# The stages of a `dpd` run, in order.
_STAGES = ("base", "latents", "teacher", "prototypes", "descriptions", "adapter", "candidates", "distilled")
_TRAINED = {"base": "Training of the base", "adapter": "Training of the adapter"}
_HEAT_LEVELS = 10


@dataclass(frozen=True)
class Cell:
    """Text of a table's cell; `sort`: what it is ordered by ("" goes last), its text where None; `flag`: stands out."""

    text: str
    sort: float | str | None = None
    flag: bool = False
    picture: Picture | None = None


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows; `numeric` columns are aligned right."""

    caption: str
    heads: tuple[str, ...]
    rows: list[tuple[Cell, ...]]
    numeric: frozenset[int] = frozenset()
    sortable: bool = False
    title: str = ""


@dataclass(frozen=True)
class Plot:
    """A drawing with its text alternative and the figures it shows."""

    svg: Markup
    caption: str
    alt: str
    table: Table


@dataclass(frozen=True)
class HeatCell:
    """A cell of a confusion matrix: `level` 0 to 10 is its share of its true class."""

    text: str
    count: int
    level: int
    right: bool


@dataclass(frozen=True)
class Heat:
    """A confusion matrix; each line is (true class, cells)."""

    title: str
    caption: str
    classes: tuple[str, ...]
    lines: list[tuple[str, list[HeatCell]]] = field(default_factory=list)


def _bench_name(row: Row) -> str:
    return f"{row.protocol}, {row.network}"


def _seeds(row: Row) -> str:
    return f"{len(row.seeds)} seed{'' if len(row.seeds) == 1 else 's'}"


def _percent(mean: float | None, std: float | None = None) -> Cell:
    if mean is None:
        return _ABSENT
    return Cell(f"{100 * mean:.1f}" + (f" ± {100 * std:.1f}" if std is not None else ""), mean)


def _number(value: float | None, digits: int = 2) -> Cell:
    return _ABSENT if value is None else Cell(f"{value:.{digits}f}", value)


def _points(value: float | None) -> Cell:
    return _ABSENT if value is None else Cell(f"{100 * value:+.1f}", value)


def _rho(row: Row) -> Cell:
    if row.rho is None:
        return _ABSENT
    return Cell(f"{row.rho:.2f}{' copying' if row.copying else ''}", row.rho, flag=row.copying)


_ABSENT = Cell("–", "")


# Summary


def lead(about: dict[str, Any], sets: Sequence[SetFolder]) -> str:
    """Return one sentence on what the run is."""
    if about["settings"].get("kind") == "compare":
        methods = list(dict.fromkeys(one.method for one in sets))
        return f"A comparison of {len(methods)} method{'' if len(methods) == 1 else 's'}: {', '.join(methods) or 'none yet'}."
    return f"A distilled set made by the method {about['settings'].get('method', 'unknown')}."


def missing(run: Path, about: dict[str, Any], sets: Sequence[SetFolder], figures: Figures) -> list[str]:
    """Return a line for each thing that a finished run would have and this one has not (yet)."""
    if about["settings"].get("kind") != "compare":
        lines = [f"stage {stage} is not finished: {_GO_ON}" for stage in _open_stages(run, about["settings"])]
        if not figures.rows:
            lines.append(f"no accuracy yet: run `geodistill evaluate {run} --data DATA`, with the scenes for DATA")
        return lines
    lines = [f"the images of {one.name} are not finished: {_GO_ON}" for one in sets if not one.finished]
    measured = {(row.method, row.ipc) for row in figures.rows}
    lines += [f"no accuracy of {one.name} yet: {_GO_ON}" for one in sets if (one.method, one.ipc) not in measured]
    return lines or ([] if figures.rows else [f"no images and no figures yet: {_GO_ON}"])


_GO_ON = "the run's command goes on with it"


def _open_stages(run: Path, settings: dict[str, Any]) -> list[str]:
    """Return the stages that are still to be done; of other methods than `dpd` only the last is known."""
    config = settings.get("config", {})
    expected = list(_STAGES) if settings.get("method") == "dpd" else ["distilled"]
    if config.get("base", "compact") != "compact":
        expected = [stage for stage in expected if stage != "base"]
    if config.get("finetune", {}).get("steps") == 0:
        expected = [stage for stage in expected if stage != "adapter"]
    return [stage for stage in expected if not (run / stage).is_dir()]


def facts(about: dict[str, Any], sets: Sequence[SetFolder], main: SetFolder | None) -> list[tuple[str, str]]:
    """Return names and values for the head of the page."""
    found = []
    if main is not None:
        images = main.images
        found = [
            ("Set shown", main.name if len(sets) > 1 else main.method),
            ("Images", f"{len(images)} of {images.size} × {images.size} pixels"),
            ("Classes", str(len(images.classes))),
            ("Images per class", str(images.ipc)),
        ]
    if len(sets) > 1:
        found.append(("Sets", f"{sum(one.finished for one in sets)} of {len(sets)} finished"))
    return [*found, ("geodistill", str(about.get("versions", {}).get("geodistill", "unknown version")))]


def summary(figures: Figures, main: SetFolder | None) -> Table | None:
    """Return what the main set is worth in each protocol and network."""
    rows = _rows_of(figures.rows, main)
    if not rows:
        return None
    lines = [
        (
            Cell(_bench_name(row)),
            _percent(row.oa_mean, row.oa_std),
            _percent(row.share_of_full),
            _points(row.ior),
            _rho(row),
        )
        for row in rows
    ]
    heads = ("Tested with", "OA, %", "share of full data, %", "over random, points", "nearness ρ")
    return Table(f"What {rows[0].name} is worth", heads, lines, frozenset(range(1, 5)))


def _rows_of(rows: Sequence[Row], main: SetFolder | None) -> list[Row]:
    """Return the rows of the main set; without one, those of the last set that is not the full data."""
    sets = [(row.method, row.ipc) for row in rows if not row.full]
    wanted = (main.method, main.ipc) if main is not None else (sets[-1] if sets else None)
    return [row for row in rows if (row.method, row.ipc) == wanted]


def notes(
    sets: Sequence[SetFolder],
    shown: Sequence[SetFolder],
    main: SetFolder | None,
    figures: Figures,
    train: Scenes | None,
    folders: Mapping[str, Path],
) -> dict[str, list[str]]:
    """Return for each section the sentences that explain it, or say why it is empty."""
    empty = ["No figures yet."] if not figures.rows else []
    near = any(row.rho is not None for row in figures.rows)
    return {
        "summary": [_OA, _RHO] if figures.rows else [],
        "images": _notes_on_images(sets, shown, main),
        "accuracy": empty or ["Mean over the seeds; the bars are one standard deviation to each side."],
        "nearness": [_RHO] if near else empty or ["No row has a nearness ratio."],
        "ablation": ["Each rung adds one part of the method to the rung above it."],
        "rows": empty or [_OA, _MEASURES],
        "classes": empty or ["The worst class first, with the class that its test images are most often taken for."],
        "confusion": empty
        or ["Lines are true classes, columns predictions, summed over the seeds; right ones are framed."],
        "map": _notes_on_map(main, train),
        "training": [] if training_curves(folders) else ["No training has left its losses yet."],
        "cost": [] if any(records(folder) for folder in folders.values()) else ["No stage has been begun yet."],
        "settings": [],
    }


_OA = "OA: overall accuracy of a classifier that was trained on the images and tested on real ones."
_RHO = (
    "Nearness ratio ρ: how far the images are from their nearest training images, as a share of what fresh real images "
    f"are. 1: no nearer than those; towards 0: copies. Below {COPYING} accuracy comes from copying."
)
_MEASURES = (
    "AA: mean of the classes' accuracies. Over random: difference to as many random real images (IOR). Lost: difference "
    "to all real images (HLR). Coverage: mean similarity of a training image to the nearest image of its class."
)


def _notes_on_images(sets: Sequence[SetFolder], shown: Sequence[SetFolder], main: SetFolder | None) -> list[str]:
    lines = [] if main is not None else ["There are no images to show."]
    held = [one.name for one in sets if one.finished and one not in shown]
    if held:
        lines.append(f"Not shown because the images are real ones, or may be: {'; '.join(held)}.")
    if main is not None:
        lines.insert(0, "Teacher: the probability that the run's own classifier gives the image's class.")
    return lines


def _notes_on_map(main: SetFolder | None, train: Scenes | None) -> list[str]:
    if main is None:
        return ["There are no distilled images to put on a map."]
    if train is None:
        return ["The map needs the real images: write the report again with the data."]
    return [
        "Each point is an image: features of a network pretrained on ImageNet, flattened by t-SNE. Near means alike; "
        "distances between far groups mean little."
    ]


# Images


def pictures(main: SetFolder | None, per_class: int, scenes: Scenes | None) -> dict[str, list[Picture]]:
    """Return the main set's pictures by class."""
    return {} if main is None else gallery(main, per_class, scenes)


def others(shown: Sequence[SetFolder], main: SetFolder | None, per_class: int) -> dict[str, dict[str, list[Picture]]]:
    """Return a few pictures of every other method, from its largest set."""
    largest: dict[str, SetFolder] = {}
    for one in shown:
        if main is None or one.method != main.method:
            largest[one.method] = max(one, largest.get(one.method, one), key=lambda each: each.ipc)
    return {one.name: gallery(one, per_class) for one in largest.values()}


# Accuracy


def accuracy(rows: Sequence[Row]) -> list[Plot]:
    """Return a plot of accuracy by method and IPC for each protocol and network."""
    return [
        _accuracy_plot(f"accuracy-{k}", own)
        for k, own in enumerate(by_bench(rows).values())
        if any(not row.full for row in own)
    ]


def _accuracy_plot(name: str, rows: Sequence[Row]) -> Plot:
    bench = _bench_name(rows[0])
    best, worst = max(rows, key=lambda row: row.oa_mean), min(rows, key=lambda row: row.oa_mean)
    alt = f"Overall accuracy of {len(rows)} sets ({bench}), from {_told(worst)} to {_told(best)}; figures in the table below."
    lines = [(Cell(row.name), _percent(row.oa_mean, row.oa_std), Cell(str(len(row.seeds)))) for row in rows]
    table = Table(f"Overall accuracy ({bench})", ("Set", "OA, %", "seeds"), lines, frozenset({1, 2}))
    return Plot(accuracy_plot(name, rows), f"{bench}, {_seeds(rows[0])}", alt, table)


def _told(row: Row) -> str:
    return f"{row.name} with {100 * row.oa_mean:.1f} %"


def nearness(rows: Sequence[Row]) -> list[Plot]:
    """Return a plot of accuracy against nearness for each protocol and network."""
    with_rho = [row for row in rows if row.rho is not None and not row.full]
    return [_nearness_plot(f"nearness-{k}", own) for k, own in enumerate(by_bench(with_rho).values())]


def _nearness_plot(name: str, rows: Sequence[Row]) -> Plot:
    bench = _bench_name(rows[0])
    copying = [row.name for row in rows if row.copying]
    told = f"copying (below {COPYING}): {'; '.join(copying)}" if copying else f"none below {COPYING}"
    alt = f"Overall accuracy against nearness ratio of {len(rows)} sets ({bench}); {told}; figures in the table below."
    lines = [(Cell(row.name), _rho(row), _percent(row.oa_mean, row.oa_std)) for row in rows]
    table = Table(f"Accuracy and nearness ({bench})", ("Set", "ρ", "OA, %"), lines, frozenset({1, 2}))
    caption = f"{bench}. Hatched: ρ below {COPYING}, where accuracy comes from copying"
    return Plot(nearness_plot(name, rows), caption, alt, table)


def ablation_table(rows: Sequence[Row]) -> Table | None:
    """Return what each rung of the ablation adds, or None where there are no rungs."""
    lines = [
        (
            Cell(row.method),
            Cell(_bench_name(row)),
            Cell(str(row.ipc)),
            _percent(row.oa_mean, row.oa_std),
            _points(added),
            _rho(row),
        )
        for row, added in ablation(rows)
    ]
    heads = ("Rung", "tested with", "IPC", "OA, %", "added, points", "nearness ρ")
    return Table("Ablation", heads, lines, frozenset(range(2, 6))) if lines else None


# Tables of all figures


def rows_table(rows: Sequence[Row]) -> Table | None:
    """Return every row with all of its figures."""
    if not rows:
        return None
    heads, lines = (head for head, _ in _COLUMNS), [tuple(cell(row) for _, cell in _COLUMNS) for row in rows]
    # A column in which nothing was measured only takes room.
    kept = [k for k in range(len(_COLUMNS)) if any(line[k] is not _ABSENT for line in lines)]
    named = tuple(head for k, head in enumerate(heads) if k in kept)
    return Table(
        "All figures, one row for each set, protocol and network",
        named,
        [tuple(line[k] for k in kept) for line in lines],
        frozenset(place for place, k in enumerate(kept) if k not in _WORDS),
        sortable=True,
    )


_COLUMNS = (
    ("Method", lambda row: Cell("all real images" if row.full else row.method)),
    ("IPC", lambda row: Cell("all", "") if row.full else Cell(str(row.ipc), row.ipc)),
    ("protocol", lambda row: Cell(row.protocol)),
    ("network", lambda row: Cell(row.network)),
    ("seeds", lambda row: Cell(str(len(row.seeds)), len(row.seeds))),
    ("OA, %", lambda row: _percent(row.oa_mean, row.oa_std)),
    ("AA, %", lambda row: _percent(row.aa_mean, row.aa_std)),
    ("kappa", lambda row: _number(row.kappa_mean, 3)),
    ("share of full, %", lambda row: _percent(row.share_of_full)),
    ("over random, points", lambda row: _points(row.ior)),
    ("lost, points", lambda row: _ABSENT if row.hlr is None else Cell(f"{100 * row.hlr:.1f}", row.hlr)),
    ("nearness ρ", _rho),
    ("ρ in pixels", lambda row: _number(row.rho_pixel)),
    ("ρ in features", lambda row: _number(row.rho_feature)),
    ("coverage", lambda row: _number(row.coverage, 3)),
    ("real images", lambda row: Cell("yes" if row.real_pixels or row.full else "no")),
    ("images per second", lambda row: _number(row.images_per_second)),
    ("time to make, s", lambda row: _number(row.wall_seconds, 0)),
    ("peak memory, MiB", lambda row: _number(row.peak_memory_mib, 0)),
)
_WORDS = frozenset(
    k for k, (head, _) in enumerate(_COLUMNS) if head in ("Method", "protocol", "network", "real images")
)


def pairs_table(pairs: Sequence[dict[str, Any]]) -> Table | None:
    """Return the compared pairs with the interval of their difference."""
    lines = [
        (
            Cell(f"{pair['a']} against {pair['b']}"),
            Cell(str(pair["ipc"]), pair["ipc"]),
            Cell(f"{pair['protocol']}, {pair['network']}"),
            _points(pair["difference"]),
            Cell(f"{100 * pair['low']:+.1f} to {100 * pair['high']:+.1f}", pair["low"]),
            Cell(str(pair["verdict"])),
        )
        for pair in pairs
    ]
    heads = ("Pair", "IPC", "tested with", "difference, points", "interval, points", "verdict")
    return (
        Table("Differences in overall accuracy", heads, lines, frozenset({1, 3, 4}), sortable=True) if lines else None
    )


# Classes


def class_tables(figures: Figures, main: SetFolder | None) -> list[Table]:
    """Return for each protocol and network the main set's classes, the worst first, and what they are taken for."""
    small = {} if main is None else thumbnails(main.images)
    rows = [row for row in _rows_of(figures.rows, main) if row.per_class and row.confusion]
    return [_class_table(row, figures.classes, small) for row in rows]


def _class_table(row: Row, classes: Sequence[str], small: Mapping[str, Picture]) -> Table:
    accuracies = [-1.0 if value is None or value != value else value for value in row.per_class]
    lines = []
    for label in sorted(range(len(classes)), key=lambda each: accuracies[each]):
        other, share = most_confused(row.confusion[label], label)
        lines.append(
            (
                Cell(classes[label], picture=small.get(classes[label])),
                _percent(accuracies[label]) if accuracies[label] >= 0 else _ABSENT,
                _ABSENT if other is None else Cell(classes[other], picture=small.get(classes[other])),
                _ABSENT if other is None else _percent(share),
            )
        )
    heads = ("Class", "accuracy, %", "most often taken for", "in % of its images")
    caption = f"Accuracy of each class, {row.name} ({_bench_name(row)})"
    return Table(caption, heads, lines, frozenset({1, 3}), sortable=True, title=_bench_name(row))


def most_confused(line: Sequence[int], label: int) -> tuple[int | None, float]:
    """Return the class that images of `label` are most often taken for and their share; None where none are.

    `line` holds how many images of the class are taken for each class.
    """
    wrong = [0 if other == label else count for other, count in enumerate(line)]
    other = max(range(len(wrong)), key=lambda each: wrong[each])
    return (other, wrong[other] / sum(line)) if wrong[other] else (None, 0.0)


def confusion(figures: Figures, main: SetFolder | None) -> list[Heat]:
    """Return the main set's confusion matrix for each protocol and network."""
    rows = [row for row in _rows_of(figures.rows, main) if row.confusion]
    return [_heat(row, figures.classes) for row in rows]


def _heat(row: Row, classes: tuple[str, ...]) -> Heat:
    caption = f"Confusion matrix, {row.name} ({_bench_name(row)}, {_seeds(row)})"
    lines = [
        (classes[label], [_heat_cell(count, sum(line), other == label) for other, count in enumerate(line)])
        for label, line in enumerate(row.confusion)
    ]
    return Heat(_bench_name(row), caption, classes, lines)


def _heat_cell(count: int, total: int, right: bool) -> HeatCell:
    # Rounded up, so that a single confused image is not as blank as none.
    level = -(-_HEAT_LEVELS * count // total) if total else 0
    return HeatCell(str(count), count, level, right)


def embedding_map(main: SetFolder | None, train: Scenes | None) -> Plot | None:
    """Return the map of real and distilled images, or None where one of the two is absent."""
    if main is None or train is None:
        return None
    found, classes = embed(main.images, train), train.classes
    lines = [(Cell(name), _percent(value)) for name, value in zip(classes, found.agreement, strict=True)]
    heads = ("Class", "nearest real image is of the class, %")
    table = Table("Distilled images whose nearest real image is of their own class", heads, lines, frozenset({1}))
    mean = 100 * sum(found.agreement) / len(found.agreement)
    alt = (
        f"Map of {int(found.real.sum())} real and {int((~found.real).sum())} distilled images. On average over the "
        f"classes, {mean:.0f} % of the distilled images have a nearest real image of their own class."
    )
    svg = map_plot("map", found.points, found.labels, found.real, classes)
    return Plot(svg, f"{main.name}: dots are real images, stars distilled ones", alt, table)


# Training, cost, settings


def training_curves(folders: Mapping[str, Path]) -> dict[str, dict[str, list[float]]]:
    """Return for `base` and `adapter` the losses of every folder that has them; sets that share a training count once."""
    found: dict[str, dict[str, list[float]]] = {}
    for stage in _TRAINED:
        curves: dict[str, list[float]] = {}
        for name, folder in folders.items():
            path = folder / stage / "losses.json"
            losses = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
            if losses and losses not in curves.values():
                curves[name or "this run"] = losses
        if curves:
            found[stage] = curves
    return found


def training(folders: Mapping[str, Path]) -> list[Plot]:
    """Return the training curves of the base and of the adapters."""
    return [_curves_plot(stage, curves) for stage, curves in training_curves(folders).items()]


def _curves_plot(stage: str, curves: dict[str, list[float]]) -> Plot:
    lines = []
    for name, losses in curves.items():
        for step, value in zip(*thin(losses, 10), strict=True):
            lines.append((Cell(name), Cell(str(step), step), _number(value, 4)))
    heads = ("Training", "up to step", "mean loss since the row above")
    table = Table(f"{_TRAINED[stage]}: losses", heads, lines, frozenset({1, 2}))
    told = [f"{name} from {thin(v, 10)[1][0]:.3f} to {thin(v, 10)[1][-1]:.3f}" for name, v in curves.items()]
    return Plot(curves_plot(f"training-{stage}", curves), _TRAINED[stage], f"Loss: {'; '.join(told)}.", table)


def cost(folders: Mapping[str, Path]) -> Table | None:
    """Return time and memory of every stage."""
    lines = []
    for name, folder in folders.items():
        for record in records(folder):
            lines.append(
                (
                    Cell(record["stage"] + ("" if record["facts"] is not None else " (so far)")),
                    Cell(name or "this run"),
                    Cell(f"{record['wall_seconds']:.1f}", record["wall_seconds"]),
                    Cell(f"{record['cpu_seconds']:.1f}", record["cpu_seconds"]),
                    Cell(str(record["peak_memory_mib"]), record["peak_memory_mib"]),
                )
            )
    heads = ("Stage", "of", "wall time, s", "processor time, s", "peak memory, MiB")
    return Table("Time and memory of each stage", heads, lines, frozenset({2, 3, 4}), sortable=True) if lines else None


def settings(run: Path, about: dict[str, Any]) -> str:
    """Return all settings as TOML where the run has them so, otherwise as its record has them."""
    path = run / "config.toml"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    return json.dumps(about["settings"], indent=2, sort_keys=True, ensure_ascii=False)


def versions_table(about: dict[str, Any]) -> Table:
    """Return the versions that the figures depend on."""
    lines = [(Cell(name), Cell(str(version))) for name, version in about.get("versions", {}).items()]
    return Table("Versions", ("Software", "version"), lines)
