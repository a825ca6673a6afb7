import pytest
import torch

from geodistill.evaluation.measures import measure
from geodistill.evaluation.rows import summarise


def test_a_row_has_means_over_seeds_and_the_sum_of_their_confusion():
    labels = torch.tensor([0, 0, 1, 1])
    measures = [measure(torch.tensor(predicted), labels, 2) for predicted in ([0, 0, 1, 0], [0, 1, 1, 1], [0, 0, 1, 1])]
    row = summarise("dpd", 10, "probe", "resnet18", range(3), measures, real_pixels=False, rho=0.4)
    assert row.oa == (0.75, 0.75, 1.0)
    assert row.oa_mean == pytest.approx(5 / 6)
    assert row.oa_std == pytest.approx(0.25 / 3**0.5)
    assert row.per_class == pytest.approx((5 / 6, 5 / 6))
    assert row.confusion == ((5, 1), (1, 5))
    assert (row.copying, row.full, row.name) == (True, False, "dpd, IPC 10")


@pytest.mark.parametrize(("rho", "copying"), [(None, False), (0.5, False), (0.49, True)])
def test_copying_is_a_nearness_ratio_below_one_half(rho, copying):
    measures = [measure(torch.tensor([0, 1]), torch.tensor([0, 1]), 2)]
    row = summarise("full", 0, "probe", "resnet18", [0], measures, real_pixels=True, rho=rho)
    assert row.copying is copying
    assert row.name == "all real images"
