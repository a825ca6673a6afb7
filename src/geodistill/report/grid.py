"""The sample grid: one row per class."""

from pathlib import Path

from geodistill.distilled import DistilledSet
from geodistill.scenes.sheet import draw_sheet
from geodistill.scenes.views import as_rgb


def draw_grid(distilled: DistilledSet, path: Path, *, per_class: int = 10) -> None:
    """Write a PNG with a row of at most `per_class` images for each class and its name on the left."""
    draw_sheet(as_rgb(distilled.images), distilled.labels, distilled.classes, per_class=per_class).save(path)
