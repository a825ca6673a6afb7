from dataclasses import replace
from pathlib import Path

import pytest
import torch

from geodistill.evaluation.rows import FULL, Row
from geodistill.evaluation.table import Ledger, load_predictions, load_table

LABELS = torch.tensor([0, 1, 0, 1])
RIGHT, HALF, WRONG = LABELS[None].clone(), torch.tensor([[0, 1, 1, 0]]), 1 - LABELS[None]


def row(method: str, ipc: int, oa: float, seeds: tuple[int, ...] = (0,)) -> Row:
    return Row(method, ipc, "finetune", "convnet3", oa, 0.0, seeds=seeds, oa=(oa,) * len(seeds))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path, ("a", "b"), LABELS, ("random", "kmeans", "dpd"))


def test_the_own_method_is_paired_with_rows_of_its_own_cell(ledger: Ledger, tmp_path: Path) -> None:
    ledger.enter(row("random", 1, 0.0), WRONG)
    ledger.enter(row("dpd", 10, 1.0), RIGHT)
    ledger.enter(row("random", 10, 0.5), HALF)
    ledger.enter(replace(row("kmeans", 10, 0.5), network="resnet18"), HALF)
    pairs = load_table(tmp_path).pairs
    assert [(one["b"], one["ipc"], one["difference"]) for one in pairs] == [("random", 10, 0.5)]
    ledger.enter(row("dpd", 1, 0.5), HALF)
    found = {(one["b"], one["ipc"]): one["difference"] for one in load_table(tmp_path).pairs}
    assert found == {("random", 1): 0.5, ("random", 10): 0.5}


def test_a_row_of_the_same_seeds_is_replaced_and_one_of_more_is_kept(ledger: Ledger, tmp_path: Path) -> None:
    ledger.enter(row("dpd", 10, 0.5, (0, 1)), HALF.repeat(2, 1))
    ledger.enter(row("dpd", 10, 1.0), RIGHT)
    (kept,) = load_table(tmp_path).rows
    assert (kept.oa_mean, kept.seeds) == (0.5, (0, 1))
    ledger.enter(row("dpd", 10, 1.0, (0, 1)), RIGHT.repeat(2, 1))
    (kept,) = load_table(tmp_path).rows
    assert kept.oa_mean == 1.0
    assert torch.equal(load_predictions(tmp_path, kept)[0], RIGHT.repeat(2, 1))


def test_rows_are_related_to_full_and_random_of_their_cell(ledger: Ledger) -> None:
    for one in (row(FULL, 0, 0.8), row("random", 1, 0.2), row("random", 10, 0.4), row("dpd", 10, 0.6)):
        ledger.enter(one, RIGHT)
    found = {(one.method, one.ipc): one for one in ledger.rows}
    own = found["dpd", 10]
    assert (own.share_of_full, own.hlr, own.ior) == (pytest.approx(0.75), pytest.approx(0.2), pytest.approx(0.2))
    assert found["random", 1].ior == 0.0
    assert [one.method for one in ledger.rows] == [FULL, "random", "random", "dpd"]
