"""What the page is put together from: tables, plots, and figures in words."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from markupsafe import Markup

from geodistill.evaluation.rows import Row
from geodistill.report.sets import Picture


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
    rows: Sequence[tuple[Cell, ...]]
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
    lines: list[tuple[str, list[HeatCell]]]


# What was not measured.
ABSENT = Cell("–", "")


def bench_name(row: Row) -> str:
    """Return protocol and network."""
    return f"{row.protocol}, {row.network}"


def seeds(row: Row) -> str:
    """Return how many seeds."""
    return f"{len(row.seeds)} seed{'' if len(row.seeds) == 1 else 's'}"


def percent(mean: float | None, std: float | None = None) -> Cell:
    """Return fractions as per cent."""
    if mean is None:
        return ABSENT
    return Cell(f"{100 * mean:.1f}" + (f" ± {100 * std:.1f}" if std is not None else ""), mean)


def number(value: float | None, digits: int = 2) -> Cell:
    """Return a number."""
    return ABSENT if value is None else Cell(f"{value:.{digits}f}", value)


def points(value: float | None) -> Cell:
    """Return a difference of fractions in percentage points, with its sign."""
    return ABSENT if value is None else Cell(f"{100 * value:+.1f}", value)


def rho(row: Row) -> Cell:
    """Return the nearness ratio; copying rows stand out, in words too."""
    if row.rho is None:
        return ABSENT
    return Cell(f"{row.rho:.2f}{' copying' if row.copying else ''}", row.rho, flag=row.copying)


def page_file(name: str) -> str:
    """Return the text of a file that the page is made of, such as style.css."""
    return (files("geodistill.report") / name).read_text(encoding="utf-8")
