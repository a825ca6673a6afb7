"""The sample grid: one row per class."""

from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from geodistill.distilled import DistilledSet

_GAP, _FONT = 4, 13
# Smallest and largest side of an image in the grid: smaller images are magnified, larger ones reduced.
_LEAST, _MOST = 96, 128


def draw_grid(distilled: DistilledSet, path: Path, *, per_class: int = 10) -> None:
    """Write a PNG with a row of at most `per_class` images for each class and its name on the left."""
    font = ImageFont.load_default(_FONT)
    margin = 2 * _GAP + max(int(font.getlength(name)) for name in distilled.classes)
    columns = min(per_class, int(torch.bincount(distilled.labels).max()))
    shown = min(max(_LEAST, distilled.images.shape[-1]), _MOST)
    cell = shown + _GAP
    sheet = Image.new("RGB", (margin + columns * cell, len(distilled.classes) * cell + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for label, name in enumerate(distilled.classes):
        top = _GAP + label * cell
        pen.text((_GAP, top + shown // 2), name, fill="black", font=font, anchor="lm")
        for column, image in enumerate(distilled.images[distilled.labels == label][:columns]):
            tile = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
            sheet.paste(tile.resize((shown, shown), Image.Resampling.BICUBIC), (margin + column * cell, top))
    sheet.save(path)
