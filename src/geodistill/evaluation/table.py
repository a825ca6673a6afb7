"""The table of a comparison on disk: its rows, the figures that relate rows, and the predictions."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from geodistill.errors import RunError
from geodistill.evaluation import columns
from geodistill.evaluation.bench import cell_name
from geodistill.evaluation.measures import hlr, ior, share
from geodistill.evaluation.pairs import compare_pair
from geodistill.evaluation.rows import FULL, Row, row_from_json
from geodistill.pipeline import OWN
from geodistill.run import save_tensors, write_atomic

_TABLE, _SHEET = "compare.json", "compare.csv"


@dataclass(frozen=True)
class Table:
    """A comparison so far.

    classes: their names. rows: one for each method, IPC, protocol and network. pairs: comparisons of the project's own
    method with another one: cell, methods a and b, difference with interval, verdict.
    """

    classes: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    pairs: tuple[dict[str, Any], ...] = ()


def load_table(folder: Path) -> Table:
    """Return the comparison in `folder`; an empty one if none is done yet.

    Raises:
        RunError: this version of `compare` did not write the table.
    """
    path = folder / _TABLE
    if not path.is_file():
        return Table()
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Table(tuple(found["classes"]), tuple(map(row_from_json, found["rows"])), tuple(found.get("pairs", ())))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f"{path} is no table of this version of geodistill ({error!r}): delete it and run the same compare command "
            "again, predictions are kept"
        ) from None


def load_predictions(folder: Path, row: Row) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the predicted classes of the test images, int64 [seeds, n], for `row` of the comparison in `folder`.

    The second value is the true labels, int64 [n].
    """
    kept = load_file(_predictions(folder, row))
    return kept["predicted"], kept["labels"]


def _predictions(folder: Path, row: Row) -> Path:
    return folder / "evaluation" / cell_name(row.protocol, row.network) / f"row-{row.method}-ipc{row.ipc}.safetensors"


def pair_key(pair: dict[str, Any]) -> tuple[str, int, str, str]:
    """Return the key of the row that the project's own method is compared with."""
    return pair["b"], pair["ipc"], pair["protocol"], pair["network"]


class Ledger:
    """The table on disk, with rows of this call and of earlier ones; `order` gives the order of the methods."""

    def __init__(self, folder: Path, classes: tuple[str, ...], labels: torch.Tensor, order: Sequence[str]) -> None:
        self._folder, self._classes, self._labels = folder, classes, labels
        self._order = {name: rank for rank, name in enumerate([FULL, *order])}
        table = load_table(folder)
        self._rows = {row.key: row for row in table.rows}
        self._pairs = {pair_key(pair): pair for pair in table.pairs}

    @property
    def rows(self) -> tuple[Row, ...]:
        """All rows with the figures that depend on other rows, by protocol, network, IPC (full data: 0) and method."""
        return tuple(self._related(row) for row in sorted(self._rows.values(), key=self._place))

    def _place(self, row: Row) -> tuple[str, str, int, int]:
        return row.protocol, row.network, row.ipc, self._order.get(row.method, len(self._order))

    def enter(self, row: Row, predicted: torch.Tensor) -> None:
        """Add a row with its predictions, and write the table again.

        A row that the table has with the same seeds and more is kept: it is of the same set.
        """
        if row.key in self._rows and set(row.seeds) < set(self._rows[row.key].seeds):
            return
        path = _predictions(self._folder, row)
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors({"predicted": predicted, "labels": self._labels}, path)
        self._rows[row.key] = row
        self._pair_up(row)
        about = {
            "classes": self._classes,
            "rows": [asdict(one) for one in self.rows],
            "pairs": [self._pairs[one.key] for one in self.rows if one.key in self._pairs],
        }
        write_atomic(self._folder / _TABLE, json.dumps(about, indent=1, ensure_ascii=False))
        write_atomic(self._folder / _SHEET, _sheet(self.rows))

    def _related(self, row: Row) -> Row:
        full = self._rows.get((FULL, 0, row.protocol, row.network))
        random = self._rows.get(("random", row.ipc, row.protocol, row.network))
        return replace(
            row,
            share_of_full=share(full.oa_mean, row.oa_mean) if full else None,
            hlr=hlr(full.oa_mean, row.oa_mean) if full else None,
            ior=ior(row.oa_mean, random.oa_mean) if random else None,
        )

    def _pair_up(self, row: Row) -> None:
        """Compare the project's own method with `row`, or with every other row of the cell if `row` is its own."""
        subject = self._rows.get((OWN, row.ipc, row.protocol, row.network))
        if subject is None:
            return
        for other in self._rows.values() if row is subject else [row]:
            if other.key[1:] == subject.key[1:] and other is not subject:
                self._pairs[other.key] = self._pair(subject, other)

    def _pair(self, subject: Row, other: Row) -> dict[str, Any]:
        ours, theirs = (load_predictions(self._folder, row)[0] for row in (subject, other))
        found = compare_pair(ours, theirs, self._labels, seed=0)
        cell = {"protocol": other.protocol, "network": other.network, "ipc": other.ipc}
        return {**cell, "a": subject.method, "b": other.method, **asdict(found)}


def _sheet(rows: Sequence[Row]) -> str:
    """Return the table as CSV, without the fields `per_class` and `confusion`."""
    text = io.StringIO()
    names = [field.name for field in fields(Row) if field.name not in ("per_class", "confusion")]
    computed = [column for column in columns.COLUMNS if column.of is not None]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, *(column.field for column in computed)])
    for row in rows:
        values = [*(getattr(row, name) for name in names), *(column.value(row) for column in computed)]
        writer.writerow([_cell(value) for value in values])
    return text.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, tuple):
        return " ".join(_cell(each) for each in value)
    return f"{value:.5g}" if isinstance(value, float) else str(value)
