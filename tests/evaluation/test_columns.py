import doctest
from dataclasses import fields, replace

import pytest

from geodistill.evaluation import columns
from geodistill.evaluation.columns import BY_FIELD, COLUMNS, Column
from geodistill.evaluation.rows import Row
from geodistill.evaluation.table import _sheet

ROW = Row(
    "dpd",
    10,
    "finetune",
    "resnet18",
    oa_mean=0.7362,
    oa_std=0.0049,
    kappa_mean=0.7234,
    share_of_full=0.8241,
    hlr=0.1567,
    ior=0.0927,
    rho=0.756,
    nearest_similarity=0.8127,
    fid=450.31,
    kid=0.1934,
    wall_seconds=1610.4,
    peak_memory_mib=2912,
)


def test_doctests() -> None:
    assert doctest.testmod(columns).failed == 0


def test_every_column_is_of_a_field_of_its_own() -> None:
    known = {field.name for field in fields(Row)}
    assert len(BY_FIELD) == len(COLUMNS)
    own = [column for column in COLUMNS if column.of is None]
    assert {column.field for column in own} | {column.spread for column in own if column.spread} <= known
    assert len({column.title for column in COLUMNS}) == len(COLUMNS)
    assert all(column.means for column in COLUMNS)


@pytest.mark.parametrize(
    ("field", "head", "narrow", "text"),
    [
        ("oa_mean", "OA, %", "OA %", "73.6 ± 0.5"),
        ("aa_mean", "AA, %", "AA, %", ""),
        ("kappa_mean", "kappa", "kappa", "0.723"),
        ("share_of_full", "share of full, %", "share", "82.4"),
        ("hlr", "lost, points", "HLR", "15.7"),
        ("ior", "over random, points", "IOR", "+9.3"),
        ("rho", "nearness ρ", "ρ", "0.76"),
        ("nearest_similarity", "nearest similarity", "nearest similarity", "0.813"),
        ("fid", "FID", "FID", "450.3"),
        ("kid", "KID", "KID", "0.193"),
        ("wall_seconds", "time to make, s", "time, s", "1610"),
        ("peak_memory_mib", "peak memory, MiB", "memory, MiB", "2912"),
    ],
)
def test_text(field: str, head: str, narrow: str, text: str) -> None:
    column = BY_FIELD[field]
    assert (column.head, column.narrow, column.text(ROW)) == (head, narrow, text)


def test_what_looks_at_real_images_is_named() -> None:
    assert {column.field for column in COLUMNS if column.needs} == {
        "rho",
        "rho_pixel",
        "rho_feature",
        "nearest_similarity",
        "fid",
        "kid",
    }


def test_a_measure_is_one_entry_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new measure touches one file: rows, CSV and tables follow from its column."""

    def worst(row: Row) -> float | None:
        return min(row.per_class, default=None)

    column = Column("worst", "worst class", unit="%", factor=100, digits=1, means="Lowest accuracy.", of=worst)
    monkeypatch.setattr(columns, "COLUMNS", (*COLUMNS, column))
    row = replace(ROW, per_class=(0.75, 0.25))
    assert (column.text(row), column.text(ROW)) == ("25.0", "")
    head, first, second = _sheet([row, ROW]).splitlines()
    assert (head.split(",")[-1], first.split(",")[-1], second.split(",")[-1]) == ("worst", "0.25", "")
