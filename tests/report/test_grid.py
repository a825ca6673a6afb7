from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from geodistill.distilled import DistilledSet
from geodistill.report.grid import draw_grid

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def plain(colours: list[tuple[int, int, int]]) -> torch.Tensor:
    return torch.tensor(colours, dtype=torch.uint8)[:, :, None, None].expand(-1, -1, 8, 8).contiguous()


def test_a_row_for_each_class_in_the_set_s_order(tmp_path: Path) -> None:
    images = plain([BLUE, RED, GREEN, RED])
    draw_grid(DistilledSet(images, torch.tensor([1, 0, 0, 0]), ("Beach", "Pond")), tmp_path / "grid.png", per_class=2)
    sheet = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB"))
    assert sheet.shape[0] == 2 * 100 + 4
    left = sheet.shape[1] - 2 * 100
    # 96 pixels and a gap of 4 for each image: the third of the first class is left out, the second row has but one.
    assert tuple(sheet[4 + 48, left + 48]) == RED
    assert tuple(sheet[4 + 48, left + 148]) == GREEN
    assert tuple(sheet[104 + 48, left + 48]) == BLUE
    assert tuple(sheet[104 + 48, left + 148]) == (255, 255, 255)


def test_the_names_stand_beside_the_images(tmp_path: Path) -> None:
    classes = ("DenseResidential", "Pond")
    draw_grid(DistilledSet(plain([RED, RED]), torch.tensor([0, 1]), classes), tmp_path / "grid.png")
    sheet = np.asarray(Image.open(tmp_path / "grid.png").convert("L"))
    beside = sheet[:, : sheet.shape[1] - 100] < 100
    rows = beside.any(1).nonzero()[0]
    assert rows.min() > 4 + 48 - 10
    assert rows.max() < 104 + 48 + 10
    assert beside[:100].any(0).sum() > beside[100:].any(0).sum() > 0


@pytest.mark.parametrize(("side", "shown"), [(64, 96), (112, 112), (128, 128), (256, 128)])
def test_large_images_are_shown_larger_up_to_128_pixels(side: int, shown: int, tmp_path: Path) -> None:
    images = plain([RED, BLUE]).repeat(1, 1, side // 8, side // 8)
    draw_grid(DistilledSet(images, torch.tensor([0, 1]), ("Beach", "Pond")), tmp_path / "grid.png")
    assert Image.open(tmp_path / "grid.png").size[1] == 2 * (shown + 4) + 4
