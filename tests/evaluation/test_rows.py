import pytest
import torch

from geodistill.evaluation.measures import measure
from geodistill.evaluation.rows import row_from_json, summarise


def test_a_row_has_means_over_seeds_and_the_sum_of_their_confusion():
    labels = torch.tensor([0, 0, 1, 1])
    measures = [measure(torch.tensor(predicted), labels, 2) for predicted in ([0, 0, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1])]
    row = summarise("dpd", 10, "probe", "resnet18", range(3), measures, kind="synthetic", rho=0.4)
    assert row.oa == (0.75, 0.75, 1.0)
    assert row.oa_mean == pytest.approx(5 / 6)
    assert row.oa_std == pytest.approx(0.25 / 3**0.5)
    assert row.per_class == pytest.approx((5 / 6, 5 / 6))
    assert row.confusion == ((5, 1), (1, 5))
    assert (row.copying, row.full, row.name) == (True, False, "dpd, IPC 10")


@pytest.mark.parametrize(("rho", "copying"), [(None, False), (0.5, False), (0.49, True)])
def test_copying_is_a_nearness_ratio_below_one_half(rho, copying):
    measures = [measure(torch.tensor([0, 1]), torch.tensor([0, 1]), 2)]
    row = summarise("full", 0, "probe", "resnet18", [0], measures, kind="real", rho=rho)
    assert row.copying is copying
    assert row.name == "all real images"


def test_a_row_of_an_earlier_release_is_read() -> None:
    entry = {"method": "kmeans", "ipc": 10, "protocol": "probe", "network": "n", "oa_mean": 0.5, "oa_std": 0.0}
    row = row_from_json({**entry, "coverage": 0.7, "real_pixels": True})
    assert (row.nearest_similarity, row.kind) == (0.7, "real")
    assert row_from_json({**entry, "real_pixels": False}).kind == "synthetic"
