"""Results per class: images, accuracy, confusion, and the position of the images among the real ones."""

from collections.abc import Mapping, Sequence

from geodistill.evaluation.rows import Row
from geodistill.report.embedding import embed
from geodistill.report.found import Found
from geodistill.report.parts import ABSENT, Cell, Heat, HeatCell, Plot, Table, bench_name, percent, seeds
from geodistill.report.plots import map_plot
from geodistill.report.sets import Picture, SetFolder, gallery, thumbnails

_HEAT_LEVELS = 10


def images(found: Found, per_class: int) -> dict[str, list[Picture]]:
    """Return the pictures of the main set by class."""
    sources = found.train if found.owner else None
    return {} if found.main is None else gallery(found.main, per_class, sources)


def others(found: Found, per_class: int) -> dict[str, dict[str, list[Picture]]]:
    """Return a few pictures of every other method, taken from its largest set."""
    largest: dict[str, SetFolder] = {}
    for one in found.shown:
        if found.main is not None and one.method != found.main.method:
            largest[one.method] = max(largest.get(one.method, one), one, key=lambda each: each.ipc)
    return {one.name: gallery(one, per_class) for one in largest.values()}


def class_tables(found: Found) -> list[Table]:
    """Return, for each protocol and network, the main set's classes, worst first, with their most common confusion."""
    small = {} if found.main is None else thumbnails(found.main.images)
    rows = [row for row in found.main_rows if row.per_class and row.confusion]
    return [_class_table(row, found.figures.classes, small) for row in rows]


def _class_table(row: Row, classes: Sequence[str], small: Mapping[str, Picture]) -> Table:
    accuracies = [-1.0 if value is None or value != value else value for value in row.per_class]
    lines = []
    for label in sorted(range(len(classes)), key=lambda each: accuracies[each]):
        other, share = most_confused(row.confusion[label], label)
        lines.append(
            (
                Cell(classes[label], picture=small.get(classes[label])),
                percent(accuracies[label]) if accuracies[label] >= 0 else ABSENT,
                ABSENT if other is None else Cell(classes[other], picture=small.get(classes[other])),
                ABSENT if other is None else percent(share),
            )
        )
    heads = ("Class", "accuracy, %", "most often taken for", "in % of its images")
    caption = f"Accuracy of each class, {row.name} ({bench_name(row)})"
    return Table(caption, heads, lines, frozenset({1, 3}), sortable=True, title=bench_name(row))


def most_confused(line: Sequence[int], label: int) -> tuple[int | None, float]:
    """Return the class that images of `label` are most often mistaken for and its share; (None, 0) if there is none.

    `line` is the row of `label` in the confusion matrix: counts of its images by predicted class.
    """
    wrong = [0 if other == label else count for other, count in enumerate(line)]
    other = max(range(len(wrong)), key=lambda each: wrong[each])
    return (other, wrong[other] / sum(line)) if wrong[other] else (None, 0.0)


def confusion(found: Found) -> list[Heat]:
    """Return the main set's confusion matrix for each protocol and network."""
    return [_heat(row, found.figures.classes) for row in found.main_rows if row.confusion]


def _heat(row: Row, classes: tuple[str, ...]) -> Heat:
    caption = f"Confusion matrix, {row.name} ({bench_name(row)}, {seeds(row)})"
    lines = [
        (classes[label], [_heat_cell(count, sum(line), other == label) for other, count in enumerate(line)])
        for label, line in enumerate(row.confusion)
    ]
    return Heat(bench_name(row), caption, classes, lines)


def _heat_cell(count: int, total: int, right: bool) -> HeatCell:
    # Rounded up, so that a single confused image differs from none.
    level = -(-_HEAT_LEVELS * count // total) if total else 0
    return HeatCell(str(count), count, level, right)


def embedding_map(found: Found) -> Plot | None:
    """Return the map of real and distilled images, or None if one of the two is missing."""
    if found.main is None or found.train is None:
        return None
    points, classes = embed(found.main.images, found.train), found.train.classes
    lines = [(Cell(name), percent(value)) for name, value in zip(classes, points.agreement, strict=True)]
    heads = ("Class", "nearest real image is of the class, %")
    table = Table("Distilled images whose nearest real image is of their own class", heads, lines, frozenset({1}))
    mean = 100 * sum(points.agreement) / len(points.agreement)
    alt = (
        f"Map of {int(points.real.sum())} real and {int((~points.real).sum())} distilled images. On average over the "
        f"classes, {mean:.0f} % of the distilled images have a nearest real image of their own class."
    )
    svg = map_plot("map", points.points, points.labels, points.real, classes)
    return Plot(svg, f"{found.main.name}: dots are real images, stars distilled ones", alt, table)
