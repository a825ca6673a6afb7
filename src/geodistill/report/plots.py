"""SVG plots for a page: text stays text, and colours come from the page's style, so light and dark mode both work.

Matplotlib draws with placeholder colours, which are replaced by CSS variables; the plots load nothing from elsewhere.
"""

import io
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence
from itertools import count, cycle
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from geodistill.evaluation.rows import COPYING, Row
from geodistill.report.parts import page_file

SERIES = 8
_INK, _FAINT = "#010001", "#010002"
_COLOURS = tuple(f"#0101{k:02x}" for k in range(1, SERIES + 1))
_CSS = {_INK: "currentColor", _FAINT: "var(--faint)"} | {
    colour: f"var(--series-{k})" for k, colour in enumerate(_COLOURS, start=1)
}
_MARKERS = "os^DvPX*"
_LINES = ("-", "--", "-.", ":")
# Inches: narrow, so that text stays large enough when a phone shrinks the plot.
_WIDTH = 4.0
# CSS pixels, for a plot in its own file.
_FILE_WIDTH = 560
_SVG = "http://www.w3.org/2000/svg"
_XLINK = "{http://www.w3.org/1999/xlink}href"

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "geodistill",
    # A class named "a$b" is not a formula.
    "text.parse_math": False,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "hatch.color": _FAINT,
    "hatch.linewidth": 0.6,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK),
    "grid.color": _FAINT,
    "grid.linewidth": 0.5,
}


def _draw(name: str, height: float, paint: Callable[[Axes], None]) -> Markup:
    """Return the SVG of what `paint` draws; `name` makes its ids unique in the page."""
    buffer = io.BytesIO()
    # Glyphs missing in matplotlib do not matter here: the reader's browser draws the text.
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        figure = Figure(figsize=(_WIDTH, height))
        paint(figure.add_subplot())
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return Markup(_for_page(buffer.getvalue(), name))


def _for_page(svg: bytes, name: str) -> str:
    """Return matplotlib's SVG without size, metadata and fixed colours, with ids that start with `name`."""
    root = ET.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    for element in root.iter():
        _rewrite(element, name)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    # The surrounding figure has the text alternative.
    root.set("aria-hidden", "true")
    ET.register_namespace("", _SVG)
    return ET.tostring(root, encoding="unicode")


def _rewrite(element: ET.Element, name: str) -> None:
    if "id" in element.attrib:
        element.set("id", f"{name}-{element.get('id')}")
    if _XLINK in element.attrib:
        element.set("href", element.attrib.pop(_XLINK).replace("#", f"#{name}-"))
    if "clip-path" in element.attrib:
        element.set("clip-path", element.attrib["clip-path"].replace("#", f"#{name}-"))
    style = element.get("style")
    if style:
        style = style.replace("url(#", f"url(#{name}-")
        for colour, css in _CSS.items():
            style = style.replace(colour, css)
        element.set("style", style)


def standalone(plot: Markup) -> str:
    """Return `plot` as a self-contained SVG file in the page's colours, light or dark like the reader's system."""
    css = page_file("style.css")
    palette = css[: css.index("* {")] + "svg { background: var(--page); color: var(--ink); font-family: sans-serif; }"
    return str(plot).replace(">", f' width="{_FILE_WIDTH}"><style>{palette}</style>', 1)


def accuracy_plot(name: str, rows: Sequence[Row]) -> Markup:
    """Return overall accuracy by method (lines) and IPC (marks) with standard deviations; `rows` share one bench."""
    methods = list(dict.fromkeys(row.method for row in rows if not row.full))
    ipcs = sorted({row.ipc for row in rows if not row.full})

    def paint(axes: Axes) -> None:
        for k, (ipc, colour, mark) in enumerate(zip(ipcs, cycle(_COLOURS), cycle(_MARKERS))):
            shift = (k - (len(ipcs) - 1) / 2) * min(0.22, 0.7 / len(ipcs))
            own = [row for row in rows if row.ipc == ipc and not row.full]
            axes.errorbar(
                [100 * row.oa_mean for row in own],
                [methods.index(row.method) + shift for row in own],
                xerr=[100 * row.oa_std for row in own],
                fmt=mark,
                color=colour,
                markersize=5,
                capsize=3,
                label=f"IPC {ipc}",
            )
        for row in (row for row in rows if row.full):
            axes.axvline(100 * row.oa_mean, color=_INK, linestyle="--", linewidth=1, label="all real images")
        axes.set_yticks(range(len(methods)), methods)
        axes.set_ylim(len(methods) - 0.4, -0.6)
        axes.set_xlabel("overall accuracy, %")
        axes.grid(axis="x")
        _legend_below(axes)

    return _draw(name, 1.3 + 0.34 * len(methods) * max(1, len(ipcs) / 3), paint)


def nearness_plot(name: str, rows: Sequence[Row]) -> Markup:
    """Return overall accuracy against the nearness ratio of rows that have one; crosses mark rows that copy.

    A line joins the rows of one method; the method's name is at its largest IPC.
    """
    methods = {row.method: sorted((r for r in rows if r.method == row.method), key=lambda r: r.ipc) for row in rows}

    def paint(axes: Axes) -> None:
        right = max(1.1, *(1.05 * _rho(row) for row in rows))
        axes.set_xlim(-0.04 * right, 1.3 * right)
        low, high = min(row.oa_mean for row in rows), max(row.oa_mean for row in rows)
        room = max(4.0, 12 * (high - low))
        axes.set_ylim(100 * low - room, 100 * high + room)
        axes.axvspan(-0.04 * right, COPYING, facecolor="none", edgecolor=_FAINT, hatch="//", linewidth=0)
        axes.axvline(1, color=_INK, linestyle=":", linewidth=1, label="fresh real images (ρ = 1)")
        for copying, mark, colour in ((True, "X", _COLOURS[4]), (False, "o", _COLOURS[0])):
            own = [row for row in rows if row.copying is copying]
            if not own:
                continue
            label = f"copying (ρ < {COPYING})" if copying else f"not copying (ρ ≥ {COPYING})"
            values = [100 * row.oa_mean for row in own]
            axes.plot([_rho(row) for row in own], values, mark, color=colour, markersize=6, label=label)
        for own in methods.values():
            axes.plot([_rho(row) for row in own], [100 * row.oa_mean for row in own], color=_FAINT, zorder=1)
        named = [row.method if row is methods[row.method][-1] else "" for row in rows]
        _label_points(
            axes, [(_rho(row), _rho(row), 100 * row.oa_mean, text) for row, text in zip(rows, named, strict=True)]
        )
        axes.set_xlabel("nearness ratio ρ (0: copies, 1: as fresh real images)")
        axes.set_ylabel("overall accuracy, %")
        _legend_below(axes)

    return _draw(name, 3.9, paint)


def _rho(row: Row) -> float:
    return 0.0 if row.rho is None else row.rho


def _label_points(axes: Axes, marks: Sequence[tuple[float, float, float, str]]) -> None:
    """Write each (left, right, y, text) beside its mark, or above or below it if both sides are taken."""
    # adjustText 1.4 left names on top of marks where rows lie close together (AID, IPC 50).
    width, height = _letter(axes)
    edge, _ = axes.get_xlim()
    placed = [(left - width, right + width, y) for left, right, y, _ in marks]
    for left, right, y, text in sorted((mark for mark in marks if mark[3]), key=lambda mark: -mark[2]):
        near, long, middle = 1.5 * width, (1 + len(text)) * width, (left + right) / 2
        # Alignment as in matplotlib: (x of the mark, x where the text starts).
        sides = {
            "left": (right, right + near),
            "right": (left, left - near - long),
            "center": (middle, middle - long / 2),
        }
        lines = {
            side: _free_line(placed, start, start + long, y, height)
            for side, (_, start) in sides.items()
            if start > edge
        }
        # Prefer beside the mark at its height, then above or below it, then beside it at another height.
        side = min(lines, key=lambda one: abs(lines[one] - y) + height * (one != "center" and lines[one] != y))
        (mark, start), line = sides[side], lines[side]
        placed.append((start, start + long, line))
        where = {"left": start, "right": start + long, "center": mark}[side], line
        arrow = {"arrowstyle": "-", "color": _INK, "linewidth": 0.4, "shrinkA": 0, "shrinkB": 3}
        moved = arrow if abs(line - y) > height else None
        axes.annotate(text, (mark, y), where, fontsize=7, ha=side, va="center", arrowprops=moved)


def _letter(axes: Axes) -> tuple[float, float]:
    """Return the approximate width of a letter and height of a line of the smallest text, in data units."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    return (right - left) / 48, (top - bottom) / 24


def _free_line(
    placed: Sequence[tuple[float, float, float]], start: float, end: float, y: float, height: float
) -> float:
    """Return the y nearest to `y` at which [start, end] overlaps none of `placed`, given as (start, end, y)."""
    offsets = (sign * step * height / 4 for step in count() for sign in (1, -1))
    return next(
        y + offset
        for offset in offsets
        if not any(start < e and s < end and abs(y + offset - other) < height for s, e, other in placed)
    )


def curves_plot(name: str, curves: Mapping[str, Sequence[float]]) -> Markup:
    """Return training losses against steps, each curve averaged to at most 100 points."""

    def paint(axes: Axes) -> None:
        for k, (label, losses) in enumerate(curves.items()):
            steps, values = thin(losses, 100)
            style = _LINES[k // SERIES % len(_LINES)]
            axes.plot(steps, values, style, color=_COLOURS[k % SERIES], linewidth=1.4, label=label)
        axes.set_xlabel("training step")
        axes.set_ylabel("loss")
        axes.grid(axis="y")
        if len(curves) > 1:
            _legend_below(axes)

    return _draw(name, 2.6 + 0.1 * len(curves), paint)


def thin(values: Sequence[float], points: int) -> tuple[list[int], list[float]]:
    """Return last steps (from 1) and means of at most `points` equal segments of `values`, one value per step.

    The segments' lengths differ by at most one step.
    """
    parts = np.array_split(np.asarray(values, dtype=np.float64), min(points, len(values)))
    ends = np.cumsum([len(part) for part in parts])
    return ends.tolist(), [float(part.mean()) for part in parts]


def map_plot(
    name: str,
    points: npt.NDArray[np.float64],
    labels: npt.NDArray[np.int64],
    real: npt.NDArray[np.bool_],
    classes: Sequence[str],
) -> Markup:
    """Return `points` [n, 2]: real images as dots, distilled ones as stars, class names amid their real images."""

    def paint(axes: Axes) -> None:
        for label in range(len(classes)):
            colour, own = _COLOURS[label % SERIES], labels == label
            axes.plot(*points[own & real].T, ".", color=colour, markersize=4, alpha=0.8)
            axes.plot(
                *points[own & ~real].T, "*", color=colour, markersize=8, markeredgecolor=_INK, markeredgewidth=0.5
            )
        _name_groups(axes, [(name, points[(labels == k) & real]) for k, name in enumerate(classes)])
        for mark, size, label_text in ((".", 4, "real image"), ("*", 8, "distilled image")):
            axes.plot([], [], mark, color=_INK, markersize=size, label=label_text)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
        _legend_below(axes)

    return _draw(name, 4.4, paint)


def distances_plot(name: str, groups: Mapping[str, Sequence[float]], words: str) -> Markup:
    """Return the cumulative distribution of each group's distances: the share of its images at or below x."""

    def paint(axes: Axes) -> None:
        for label, colour, line in zip(groups, cycle(_COLOURS), cycle(_LINES)):
            values = np.sort(np.asarray(groups[label]))
            shares = 100 * np.arange(1, len(values) + 1) / max(len(values), 1)
            axes.step(values, shares, line, where="post", color=colour, linewidth=1.4, label=label)
        axes.set_xlim(left=0)
        axes.set_ylim(0, 101)
        axes.set_xlabel(words)
        axes.set_ylabel("images, %")
        axes.grid(axis="y")
        _legend_below(axes)

    return _draw(name, 2.9, paint)


def roc_plot(name: str, curves: Mapping[str, Sequence[tuple[float, float]]]) -> Markup:
    """Return log-log ROC curves, training images found against false-positive rate, with a line for guessing."""

    def paint(axes: Axes) -> None:
        least = min(x for curve in curves.values() for x, _ in curve)
        for label, colour, line in zip(curves, cycle(_COLOURS), cycle(_LINES)):
            points = [(x, max(y, least)) for x, y in curves[label]]
            axes.plot(*zip(*points, strict=True), line, color=colour, linewidth=1.4, label=label)
        axes.plot([least, 1], [least, 1], color=_INK, linestyle=":", linewidth=1, label="guessing")
        for axis, scale, words in (
            (axes.xaxis, axes.set_xscale, "false positives"),
            (axes.yaxis, axes.set_yscale, "training images found"),
        ):
            scale("log")
            axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
            axis.set_label_text(words)
        axes.grid()
        _legend_below(axes)

    return _draw(name, 3.6, paint)


def utility_plot(
    name: str, points: Mapping[str, tuple[float, float]], spreads: Mapping[str, tuple[float, float]]
) -> Markup:
    """Return accuracy against the share of images that expose a training image; `points` are (share, accuracy).

    `spreads` are intervals of that share.
    """

    def paint(axes: Axes) -> None:
        values = [100 * y for _, y in points.values()]
        # Leaves room for names to the right of the intervals.
        axes.set_xlim(-3, 130)
        axes.set_xticks(range(0, 101, 20))
        axes.set_ylim(min(values) - 6, max(values) + 6)
        for label, (x, y) in points.items():
            low, high = spreads[label]
            axes.errorbar(
                [100 * x], [100 * y], xerr=[[100 * (x - low)], [100 * (high - x)]], fmt="o", color=_COLOURS[0]
            )
        ends = {label: (100 * low, 100 * high) for label, (low, high) in spreads.items()}
        _label_points(axes, [(*ends[label], 100 * y, label) for label, (_, y) in points.items()])
        axes.set_xlabel("images that expose a training image, %")
        axes.set_ylabel("overall accuracy, %")

    return _draw(name, 3.4, paint)


def _name_groups(axes: Axes, groups: Sequence[tuple[str, npt.NDArray[np.float64]]]) -> None:
    """Write each name at the median of its points [n, 2], moved if it would overlap another name."""
    width, height = _letter(axes)
    placed: list[tuple[float, float, float]] = []
    for name, points in groups:
        if len(points):
            x, y = np.median(points, axis=0)
            half = len(name) * width / 2
            line = _free_line(placed, x - half, x + half, y, height)
            placed.append((x - half, x + half, line))
            axes.text(x, line, name, fontsize=7, ha="center", va="center")


def _legend_below(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    axes.get_figure(root=True).legend(  # type: ignore[union-attr]
        handles, labels, loc="outside lower center", ncols=2, fontsize=8, handlelength=2.2
    )
