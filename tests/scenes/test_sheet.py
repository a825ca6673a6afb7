import torch

from geodistill.scenes.sheet import draw_sheet


def test_a_row_for_each_class() -> None:
    images = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    images[0, 0] = 255
    images[2, 2] = 255
    sheet = draw_sheet(images, torch.tensor([0, 1, 1]), ("Beach", "Pond"))
    # Two columns of 96 px with gaps of 4 px, to the right of the names.
    left = sheet.width - 2 * 100
    assert sheet.height == 2 * 100 + 4
    assert sheet.getpixel((left + 50, 50)) == (255, 0, 0)
    assert sheet.getpixel((left + 150, 50)) == (255, 255, 255)
    assert sheet.getpixel((left + 150, 150)) == (0, 0, 255)
