"""Accuracy: plots by method and against nearness, the ablation, and the tables of all figures."""

from collections.abc import Callable, Sequence
from typing import Any

from geodistill.evaluation.columns import COLUMNS, Column
from geodistill.evaluation.rows import COPYING, Row
from geodistill.report.figures import ablation, by_bench
from geodistill.report.parts import ABSENT, Cell, Plot, Table, bench_name, percent, points, rho, seeds
from geodistill.report.plots import accuracy_plot, nearness_plot


def accuracy(rows: Sequence[Row]) -> list[Plot]:
    """Return a plot of accuracy by method and IPC for each protocol and network."""
    return [
        _accuracy_plot(f"accuracy-{k}", own)
        for k, own in enumerate(by_bench(rows).values())
        if any(not row.full for row in own)
    ]


def _accuracy_plot(name: str, rows: Sequence[Row]) -> Plot:
    bench = bench_name(rows[0])
    best, worst = max(rows, key=lambda row: row.oa_mean), min(rows, key=lambda row: row.oa_mean)
    alt = f"Overall accuracy of {len(rows)} sets ({bench}), from {_told(worst)} to {_told(best)}; see its data."
    lines = [(Cell(row.name), percent(row.oa_mean, row.oa_std), Cell(str(len(row.seeds)))) for row in rows]
    table = Table(f"Overall accuracy ({bench})", ("Set", "OA, %", "seeds"), lines, frozenset({1, 2}))
    return Plot(accuracy_plot(name, rows), f"{bench}, {seeds(rows[0])}", alt, table)


def _told(row: Row) -> str:
    return f"{row.name} with {100 * row.oa_mean:.1f} %"


def nearness(rows: Sequence[Row]) -> list[Plot]:
    """Return a plot of accuracy against nearness for each protocol and network."""
    with_rho = [row for row in rows if row.rho is not None and not row.full]
    return [_nearness_plot(f"nearness-{k}", own) for k, own in enumerate(by_bench(with_rho).values())]


def _nearness_plot(name: str, rows: Sequence[Row]) -> Plot:
    bench = bench_name(rows[0])
    copying = [row.name for row in rows if row.copying]
    told = f"copying (below {COPYING}): {'; '.join(copying)}" if copying else f"none below {COPYING}"
    alt = f"Overall accuracy against nearness ratio of {len(rows)} sets ({bench}); {told}; see its data."
    lines = [(Cell(row.name), rho(row), percent(row.oa_mean, row.oa_std)) for row in rows]
    table = Table(f"Accuracy and nearness ({bench})", ("Set", "ρ", "OA, %"), lines, frozenset({1, 2}))
    caption = (
        f"{bench}. Hatched: ρ below {COPYING}, where accuracy comes from copying. A line joins the IPCs of a method"
    )
    return Plot(nearness_plot(name, rows), caption, alt, table)


def ablation_table(rows: Sequence[Row]) -> Table | None:
    """Return what each rung of the ablation adds, or None if there are no rungs."""
    lines = [
        (
            Cell(row.method),
            Cell(bench_name(row)),
            Cell(str(row.ipc)),
            percent(row.oa_mean, row.oa_std),
            points(added),
            rho(row),
        )
        for row, added in ablation(rows)
    ]
    heads = ("Rung", "tested with", "IPC", "OA, %", "added, points", "nearness ρ")
    return Table("Ablation", heads, lines, frozenset(range(2, 6))) if lines else None


def rows_table(rows: Sequence[Row]) -> Table | None:
    """Return every row with all of its figures, or None if there are no rows."""
    if not rows:
        return None
    heads, lines = (head for head, _ in _COLUMNS), [tuple(cell(row) for _, cell in _COLUMNS) for row in rows]
    # A column without any measured value only takes up space.
    kept = [k for k in range(len(_COLUMNS)) if any(line[k] is not ABSENT for line in lines)]
    named = tuple(head for k, head in enumerate(heads) if k in kept)
    return Table(
        "All figures, one row for each set, protocol and network",
        named,
        [tuple(line[k] for k in kept) for line in lines],
        frozenset(place for place, k in enumerate(kept) if k not in _WORDS),
        sortable=True,
    )


def _measured(column: Column) -> Callable[[Row], Cell]:
    def cell(row: Row) -> Cell:
        if column.field == "rho":
            return rho(row)
        value = column.value(row)
        return ABSENT if value is None else Cell(column.text(row), value)

    return cell


_COLUMNS: tuple[tuple[str, Callable[[Row], Cell]], ...] = (
    ("Method", lambda row: Cell("all real images" if row.full else row.method)),
    ("IPC", lambda row: Cell("all", "") if row.full else Cell(str(row.ipc), row.ipc)),
    ("protocol", lambda row: Cell(row.protocol)),
    ("network", lambda row: Cell(row.network)),
    ("seeds", lambda row: Cell(str(len(row.seeds)), len(row.seeds))),
    ("images", lambda row: Cell(row.kind)),
    *((column.head, _measured(column)) for column in COLUMNS),
)
_WORDS = frozenset(k for k, (head, _) in enumerate(_COLUMNS) if head in ("Method", "images", "protocol", "network"))


def pairs_table(pairs: Sequence[dict[str, Any]]) -> Table | None:
    """Return the compared pairs with the interval of their difference, or None if there are no pairs."""
    lines = [
        (
            Cell(f"{pair['a']} against {pair['b']}"),
            Cell(str(pair["ipc"]), pair["ipc"]),
            Cell(f"{pair['protocol']}, {pair['network']}"),
            points(pair["difference"]),
            Cell(f"{100 * pair['low']:+.1f} to {100 * pair['high']:+.1f}", pair["low"]),
            Cell(str(pair["verdict"])),
        )
        for pair in pairs
    ]
    heads = ("Pair", "IPC", "tested with", "difference, points", "interval, points", "verdict")
    return (
        Table("Differences in overall accuracy", heads, lines, frozenset({1, 3, 4}), sortable=True) if lines else None
    )
