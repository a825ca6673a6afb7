import math

import pytest
import torch

from geodistill.errors import ConfigError
from geodistill.evaluation import hlr, ior, mean_std, measure, share


def test_by_hand():
    # confusion [[2, 1], [1, 4]]: OA 6/8; AA (2/3 + 4/5)/2; chance (3*3 + 5*5)/64 = 34/64; kappa (48-34)/(64-34).
    labels, predicted = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1]), torch.tensor([0, 0, 1, 0, 1, 1, 1, 1])
    found = measure(predicted, labels, 2)
    assert found.confusion == ((2, 1), (1, 4))
    assert (found.oa, found.aa) == (0.75, pytest.approx(11 / 15))
    assert found.kappa == pytest.approx(14 / 30)
    assert found.per_class == (pytest.approx(2 / 3), 0.8)


def test_edges():
    alone = measure(torch.tensor([0, 0]), torch.tensor([0, 0]), 3)
    assert (alone.oa, alone.aa, alone.kappa) == (1.0, 1.0, 0.0)
    assert math.isnan(alone.per_class[1])
    assert measure(torch.tensor([0, 1, 2]), torch.tensor([0, 1, 2]), 3).kappa == 1.0
    with pytest.raises(ConfigError, match=r"^2 predictions for 3 test images: give one for each, at least 1$"):
        measure(torch.zeros(2).long(), torch.zeros(3).long(), 2)


def test_comparisons():
    assert hlr(0.9, 0.7) == pytest.approx(0.2)
    assert ior(0.7, 0.66) == pytest.approx(0.04)
    assert share(0.9, 0.63) == pytest.approx(0.7)
    assert mean_std([1.0, 2.0, 3.0]) == (2.0, 1.0)
    assert mean_std([0.5]) == (0.5, 0.0)


def test_kappa_by_hand_where_predictions_and_classes_have_other_shares():
    # 3 of 4 right; chance: 0.75 of class 0 is true, half is predicted: 0.375 + 0.125.
    found = measure(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 0, 1]), 2)
    assert (found.oa, found.kappa) == (0.75, pytest.approx((0.75 - 0.5) / (1 - 0.5)))
