import pytest
import torch

from geodistill.privacy.attribution import attribute
from geodistill.privacy.neighbours import grey, ssim


def test_starts_themselves_survive_whole_and_others_do_not() -> None:
    train = torch.randint(0, 256, (12, 3, 32, 32), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    labels = torch.tensor([0] * 4 + [1] * 8)
    found = attribute(train[[2, 7]], torch.tensor([2, 7]), train, labels)
    assert (found.own, found.recognised) == (pytest.approx(1, abs=1e-5), 1.0)
    assert found.chance == pytest.approx((1 / 4 + 1 / 8) / 2)
    alike = ssim(grey(train[[2, 7]]), grey(train))
    first = float(alike[0, [0, 1, 3]].mean())
    second = float(alike[1, [4, 5, 6, 8, 9, 10, 11]].mean())
    assert found.others == pytest.approx((first + second) / 2, abs=1e-5)
    strangers = attribute(train[[3, 8]], torch.tensor([2, 7]), train, labels)
    assert strangers.recognised == 0
    assert strangers.own < 0.5
