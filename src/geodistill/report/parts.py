"""Building blocks of the page: tables, plots, and formatted figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from markupsafe import Markup

from geodistill.evaluation.rows import Row
from geodistill.report.sets import Picture


@dataclass(frozen=True)
class Cell:
    """A table cell; `sort` is its sort key ("" goes last, None means its text); `flag` highlights it."""

    text: str
    sort: float | str | None = None
    flag: bool = False
    picture: Picture | None = None


@dataclass(frozen=True)
class Table:
    """A table whose first column names its rows; `numeric` columns are right-aligned."""

    caption: str
    heads: tuple[str, ...]
    rows: Sequence[tuple[Cell, ...]]
    numeric: frozenset[int] = frozenset()
    sortable: bool = False
    title: str = ""


@dataclass(frozen=True)
class Plot:
    """A drawing with its text alternative and the table of its figures."""

    svg: Markup
    caption: str
    alt: str
    table: Table


@dataclass(frozen=True)
class HeatCell:
    """A cell of a confusion matrix; `level` 0 to 10 is its share of its true class, rounded up."""

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


# The cell of a value that was not measured.
ABSENT = Cell("–", "")


def bench_name(row: Row) -> str:
    """Return protocol and network as text."""
    return f"{row.protocol}, {row.network}"


def seeds(row: Row) -> str:
    """Return the number of seeds as text."""
    return f"{len(row.seeds)} seed{'' if len(row.seeds) == 1 else 's'}"


def percent(mean: float | None, std: float | None = None) -> Cell:
    """Return a fraction as per cent, with its standard deviation if given."""
    if mean is None:
        return ABSENT
    return Cell(f"{100 * mean:.1f}" + (f" ± {100 * std:.1f}" if std is not None else ""), mean)


def number(value: float | None, digits: int = 2) -> Cell:
    """Return a number with `digits` decimals."""
    return ABSENT if value is None else Cell(f"{value:.{digits}f}", value)


def points(value: float | None) -> Cell:
    """Return a difference of fractions in percentage points, with its sign."""
    return ABSENT if value is None else Cell(f"{100 * value:+.1f}", value)


def rho(row: Row) -> Cell:
    """Return the nearness ratio; rows that copy are flagged and labelled."""
    if row.rho is None:
        return ABSENT
    return Cell(f"{row.rho:.2f}{' copying' if row.copying else ''}", row.rho, flag=row.copying)


def page_file(name: str) -> str:
    """Return the text of a file that is part of the page, such as style.css."""
    return (files("geodistill.report") / name).read_text(encoding="utf-8")
