"""benchmarks/record.py: the rows of the CSV files that the documentation's figures come from."""

import csv
from pathlib import Path

import pytest
import record
import torch

from geodistill.evaluation.pairs import Pair

NAMES = ("ahead", "ahead_low", "ahead_high")
BEFORE = {"method": "dpd", "oa": "0.7330", "hardware": "a", "versions": "b", "commit": "c0", "command": "run"}
NOW = {"hardware": "other", "versions": "new", "commit": "c1", "command": "run again"}


@pytest.fixture
def sheet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a CSV file with the one row BEFORE."""
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    record.to_csv([BEFORE], "sheet.csv")
    return "sheet.csv"


def test_a_row_that_was_read_again_keeps_the_circumstances_of_its_measurement(sheet: str) -> None:
    again = {**BEFORE, **NOW, "oa": "0.73304", "copies": "7"}

    (line,) = record.merged([again], sheet, ("method",))

    assert line == {**again, **{name: BEFORE[name] for name in record.CIRCUMSTANCES}}


def test_a_row_with_another_figure_has_new_circumstances(sheet: str) -> None:
    again = {**BEFORE, **NOW, "oa": "0.7350"}

    assert record.merged([again], sheet, ("method",)) == [again]


def test_a_row_with_another_key_is_added(sheet: str) -> None:
    other = {**BEFORE, **NOW, "method": "random"}

    assert record.merged([other], sheet, ("method",)) == [BEFORE, other]


def test_a_new_column_of_the_key_is_empty_in_older_rows(sheet: str) -> None:
    other = {**BEFORE, **NOW, "settings": "a=1"}

    assert record.merged([other], sheet, ("method", "settings")) == [BEFORE, other]


def test_columns_of_all_rows_are_written(sheet: str, tmp_path: Path) -> None:
    record.to_csv(record.merged([{**NOW, "method": "random", "rho": "0.8"}], sheet, ("method",)), sheet)

    rows = list(csv.DictReader((tmp_path / sheet).open()))

    assert [(row["method"], row["oa"], row["rho"]) for row in rows] == [("dpd", "0.7330", ""), ("random", "", "0.8")]


@pytest.mark.parametrize(("low", "told"), [(-0.03249, "-3.2"), (-0.03251, "-3.3")])
def test_a_difference_is_rounded_once(low: float, told: str) -> None:
    line = record.difference_columns(Pair(0.0111, low, 0.16453, "no difference"), NAMES)

    assert record.told_difference(line, NAMES) == f"+1.1 ({told} to +16.5)"


def test_no_difference_is_told_without_a_pair() -> None:
    assert record.told_difference(record.difference_columns(None, NAMES), NAMES) == ""


def test_rows_of_one_set_are_its_classifiers_and_of_several_their_means() -> None:
    one, other = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 0.0], [1.0, 0.0]])

    assert record.rows_to_compare([one]).tolist() == [[1.0, 0.0], [1.0, 1.0]]
    assert record.rows_to_compare([one, other]).tolist() == [[1.0, 0.5], [0.5, 0.0]]
