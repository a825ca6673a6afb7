"""A sheet of images: one row per class."""

import torch
from PIL import Image, ImageDraw, ImageFont

_GAP, _FONT = 4, 13
# Smallest and largest side of an image on the sheet: smaller images are magnified, larger ones reduced.
_LEAST, _MOST = 96, 128


def draw_sheet(
    images: torch.Tensor, labels: torch.Tensor, classes: tuple[str, ...], *, per_class: int = 10
) -> Image.Image:
    """Return a picture with a row of at most `per_class` images for each class and its name on the left.

    `images` are uint8 RGB [n, 3, s, s], `labels` int64 [n].
    """
    font = ImageFont.load_default(_FONT)
    margin = 2 * _GAP + max(int(font.getlength(name)) for name in classes)
    columns = min(per_class, int(torch.bincount(labels).max()))
    shown = min(max(_LEAST, images.shape[-1]), _MOST)
    cell = shown + _GAP
    sheet = Image.new("RGB", (margin + columns * cell, len(classes) * cell + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for label, name in enumerate(classes):
        top = _GAP + label * cell
        pen.text((_GAP, top + shown // 2), name, fill="black", font=font, anchor="lm")
        for column, image in enumerate(images[labels == label][:columns]):
            tile = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
            sheet.paste(tile.resize((shown, shown), Image.Resampling.BICUBIC), (margin + column * cell, top))
    return sheet
