import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from geodistill.evaluation.rows import Row
from geodistill.report.plots import (
    _free_line,
    _label_points,
    accuracy_plot,
    curves_plot,
    distances_plot,
    map_plot,
    nearness_plot,
    roc_plot,
    standalone,
    thin,
    utility_plot,
)

SVG = "{http://www.w3.org/2000/svg}"
ROWS = [
    Row("random", 1, "probe", "n", 0.3, 0.02, rho=0.0),
    Row("random", 10, "probe", "n", 0.5, 0.02, rho=0.0),
    Row("dpd", 10, "probe", "n", 0.4, 0.01, rho=0.7),
    Row("full", 0, "probe", "n", 0.8, 0.0),
]


def _texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter(f"{SVG}text")]


def _marks(svg: str) -> list[tuple[str, float, float]]:
    """Return (colour, x, y) of all marks."""
    found = []
    for use in ET.fromstring(svg).iter(f"{SVG}use"):
        colour = re.search(r"fill: (var\(--series-\d\))", use.get("style", ""))
        if colour:
            found.append((colour[1], float(use.get("x", "nan")), float(use.get("y", "nan"))))
    return found


PLOTS = {
    "accuracy": accuracy_plot("p", ROWS),
    "nearness": nearness_plot("p", ROWS[:3]),
    "curves": curves_plot("p", {"a": [3.0, 2.0, 1.0], "b": [1.0]}),
    "distances": distances_plot("p", {"own": [0.1, 0.3], "held-out": [0.2]}, "1 - SSIM"),
    "roc": roc_plot("p", {"nearest": [(0.01, 0.05), (1.0, 1.0)], "density": [(0.01, 0.0), (1.0, 1.0)]}),
    "utility": utility_plot("p", {"a": (0.02, 0.5), "b": (0.05, 0.7)}, {"a": (0.01, 0.03), "b": (0.04, 0.06)}),
    "map": map_plot("p", np.arange(8.0).reshape(4, 2), np.array([0, 1, 0, 1]), np.array([1, 1, 0, 0]) > 0, ("x", "y")),
}


@pytest.mark.parametrize("name", PLOTS)
def test_plots_take_colours_from_the_page_and_load_nothing(name: str) -> None:
    svg = str(PLOTS[name])
    root = ET.fromstring(svg)
    assert "currentColor" in svg
    assert not re.search(r"(fill|stroke): #(0[01]){3}", svg)
    assert not re.search(r"#0100\d\d|#0101\d\d", svg)
    assert {element.get("id", "p-").split("-")[0] for element in root.iter()} == {"p"}
    references = re.findall(r'href="([^"]*)"|url\(([^)]*)\)', svg)
    assert references
    assert all((a or b).startswith("#p-") for a, b in references)
    assert not [element for element in root.iter() if element.tag.endswith(("metadata", "style", "image"))]
    assert "width" not in root.attrib
    assert "viewBox" in root.attrib


@pytest.mark.parametrize("name", PLOTS)
def test_a_file_of_its_own_defines_every_colour_it_uses(name: str) -> None:
    svg = standalone(PLOTS[name])
    root = ET.fromstring(svg)
    palette = next(root.iter(f"{SVG}style")).text or ""
    assert {*re.findall(r"var\((--[\w-]+)\)", svg)} <= {*re.findall(r"(--[\w-]+):", palette)}
    assert "prefers-color-scheme: dark" in palette
    assert root.get("width") == "560"
    assert _texts(svg) == _texts(PLOTS[name])


@pytest.mark.parametrize("name", PLOTS)
def test_references_of_a_plot_lead_to_its_own_parts(name: str) -> None:
    root = ET.fromstring(str(PLOTS[name]))
    ids = {element.get("id") for element in root.iter()}
    wanted = {reference[1:] for element in root.iter() if (reference := element.get("href", ""))}
    assert wanted
    assert wanted <= ids


def test_the_same_plot_twice_is_the_same_text() -> None:
    assert accuracy_plot("p", ROWS) == PLOTS["accuracy"]


def test_accuracy_is_drawn_to_scale() -> None:
    texts = _texts(PLOTS["accuracy"])
    assert {"random", "dpd", "IPC 1", "IPC 10", "all real images", "overall accuracy, %"} <= set(texts)
    marks = {k: [x for colour, x, _ in _marks(PLOTS["accuracy"]) if colour == f"var(--series-{k})"] for k in (1, 2)}
    # Ends of the bar and the mark of each row, then the legend's. One row at IPC 1: 30 ± 2 per cent.
    low, high = min(marks[1][:3]), max(marks[1][:3])
    percent = [28 + 4 * (x - low) / (high - low) for x in marks[2][:6]]
    assert sorted(percent) == pytest.approx([39, 40, 41, 48, 50, 52], abs=0.01)


def test_copying_rows_have_another_mark_and_are_named() -> None:
    marks = _marks(PLOTS["nearness"])
    assert [colour for colour, *_ in marks].count("var(--series-5)") == 3  # two rows and the legend
    assert {"copying (ρ < 0.5)", "not copying (ρ ≥ 0.5)", "dpd"} <= set(_texts(PLOTS["nearness"]))
    assert _texts(PLOTS["nearness"]).count("random") == 1


def test_names_are_text_and_no_formulas() -> None:
    name = "a$b_{$ <script>&"
    row = Row(name, 1, "probe", "n", 0.3, 0.0, rho=0.7)
    assert name in _texts(accuracy_plot("p", [row]))
    assert name in _texts(nearness_plot("p", [row]))
    assert name in _texts(map_plot("p", np.zeros((1, 2)), np.array([0]), np.array([True]), (name,)))


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=300), st.integers(1, 50))
def test_thinned_values_keep_length_and_mean(values: list[float], points: int) -> None:
    steps, means = thin(values, points)
    assert len(steps) == len(means) == min(points, len(values))
    assert steps[-1] == len(values)
    weights = np.diff([0, *steps])
    assert weights.max() - weights.min() <= 1
    assert np.average(means, weights=weights) == pytest.approx(np.mean(values), abs=1e-6)


def test_thinned_by_hand() -> None:
    assert thin([1, 3, 5, 7, 10], 2) == ([3, 5], [3.0, 8.5])


def test_a_label_moves_to_the_nearest_free_line() -> None:
    assert _free_line([], 0, 1, 5.0, 1.0) == 5.0
    assert _free_line([(2, 3, 5.0)], 0, 1, 5.0, 1.0) == 5.0
    assert _free_line([(0.5, 3, 5.25)], 0, 1, 5.0, 1.0) == 4.25
    assert _free_line([(0.5, 3, 5.0)], 0, 1, 5.0, 1.0) == 6.0


def test_a_label_stands_left_of_its_point_where_the_right_is_taken() -> None:
    points = [(0.5, 0.5, "alone"), (0.2, 0.8, "beside"), (0.3, 0.8, ""), (0.02, 0.1, "edge"), (0.1, 0.1, "")]
    found = _labels((x, x, y, text) for x, y, text in points)
    assert found["alone"][::2] == ("left", 0.5)
    assert found["beside"][::2] == ("right", 0.8)
    side, _, line = found["edge"]  # there is no room on the left of it
    assert side == "left"
    assert line != 0.1


def test_a_label_stands_over_or_under_a_bar_where_both_sides_are_taken() -> None:
    found = _labels([(0.5, 0.6, 0.3, "bar"), (0.65, 0.9, 0.3, ""), (0.2, 0.45, 0.3, ""), (0.5, 0.7, 0.8, "free")])
    side, at, line = found["bar"]
    assert (side, at) == ("center", pytest.approx(0.55))
    assert 0.03 < abs(line - 0.3) < 0.1
    side, at, line = found["free"]
    assert (side, line) == ("left", 0.8)
    assert 0.7 < at < 0.8


def _labels(marks: Iterable[tuple[float, float, float, str]]) -> dict[str, tuple[str, float, float]]:
    """Return how each label is aligned, and where it is, on axes from 0 to 1."""
    axes = Figure().add_subplot()
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    _label_points(axes, list(marks))
    return {text.get_text(): (text.get_ha(), *text.get_position()) for text in axes.texts}


def test_roc_is_drawn_with_percentages_and_guessing() -> None:
    texts = _texts(PLOTS["roc"])
    assert {"1 %", "10 %", "100 %", "nearest", "density", "guessing", "false positives"} <= {*texts}


def test_utility_names_every_set_at_its_place() -> None:
    assert {"a", "b", "images that expose a training image, %"} <= {*_texts(PLOTS["utility"])}
    (_, ax, ay), (_, bx, by) = _marks(PLOTS["utility"])
    assert ax < bx
    assert ay > by  # SVG counts downwards
