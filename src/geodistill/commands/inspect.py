"""`geodistill inspect`: what a data folder holds, how it would be read, and a contact sheet."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from geodistill.distilled import DistilledSet
from geodistill.scenes.reading import PLAIN, Reading
from geodistill.scenes.scenes import Leak, SceneData, SceneFile, Scenes

# Images of each class on the contact sheet, and the side in pixels at which they are read.
SHOWN, _SIDE = 8, 128


@dataclass(frozen=True)
class Inspection:
    """What a data folder holds.

    classes: for each, its name, and its numbers of training, test and validation images. kinds: one line for each kind
    of file, with their number. sizes: the smallest and the largest width and height in pixels. located: a sentence on
    the georeference. missing: the number of files with pixels that are no measurement, and the share of these pixels in
    all files. duplicates: groups of names of files with the same content. leaks: the scenes that
    are in two parts, as files, pictures or ground. skipped: the unreadable files, with reasons.
    reading: how the files become images.
    """

    classes: tuple[tuple[str, int, int, int], ...]
    kinds: tuple[tuple[str, int], ...]
    sizes: tuple[int, int, int, int]
    located: str
    missing: tuple[int, float]
    duplicates: tuple[tuple[str, ...], ...]
    leaks: tuple[Leak, ...]
    skipped: tuple[str, ...]
    reading: Reading

    def read_as(self) -> str:
        """Return in words how `distill` reads the files."""
        if self.reading == PLAIN:
            return "8-bit images, in their own colours"
        bands = ", ".join(map(str, self.reading.bands)) or "their own colours"
        parts = [f"RGB from bands {bands}" if len(self.reading.bands) != 1 else f"grey from band {bands}"]
        if self.reading.dtype:
            parts = [f"{self.reading.channels} bands of {self.reading.dtype} ({bands}), the first shown as RGB"]
        if self.reading.scale:
            ends = ", ".join(f"{low:g} to {high:g}" for low, high in self.reading.scale)
            how = "1st and 99th percentile of the training scenes" if self.reading.measured else "as given by --scale"
            parts.append(f"black to white: {ends} ({how})")
        if self.reading.alpha:
            parts.append("transparent pixels are masked out")
        return "; ".join(parts)


def inspect(data: SceneData) -> Inspection:
    """Return what `data`, as `open_scenes` returns it, holds.

    >>> import geodistill, tempfile
    >>> from geodistill.scenes import write_scenes
    >>> folder = tempfile.mkdtemp()
    >>> write_scenes(folder, train_per_class=2, test_per_class=1)
    >>> found = geodistill.inspect(geodistill.open_scenes(folder))
    >>> found.classes[0], found.kinds, found.read_as()
    (('Beach', 2, 1, 0), (('3 bands of uint8, png', 30),), '8-bit images, in their own colours')
    """
    infos = [file.info for file in data.files if file.info is not None]
    widths, heights = [info.width for info in infos] or [0], [info.height for info in infos] or [0]
    return Inspection(
        classes=tuple(_classes(data)),
        kinds=tuple(Counter(map(_kind, data.files)).most_common()),
        sizes=(min(widths), max(widths), min(heights), max(heights)),
        located=_located(data.files),
        missing=_missing(data.files),
        duplicates=tuple(_duplicates(data.files)),
        leaks=data.leaks,
        skipped=data.skipped,
        reading=data.train.reading,
    )


def _classes(data: SceneData) -> Iterable[tuple[str, int, int, int]]:
    def counts(part: Scenes | None) -> list[int]:
        length = len(data.train.classes)
        return [0] * length if part is None else torch.bincount(part.labels, minlength=length).tolist()

    return zip(data.train.classes, *map(counts, (data.train, data.test, data.val)), strict=True)


def _kind(file: SceneFile) -> str:
    info, suffix = file.info, file.path.suffix.lower().removeprefix(".")
    if info is None:
        return suffix
    names = f" ({', '.join(name or '?' for name in info.names)})" if any(info.names) else ""
    nodata = "" if info.nodata is None else f", nodata {info.nodata:g}"
    return f"{info.bands} band{'s' if info.bands > 1 else ''}{names} of {info.dtype}, {suffix}{nodata}"


def _located(files: Iterable[SceneFile]) -> str:
    every = list(files)
    infos = [file.info for file in every if file.info is not None and file.info.crs is not None]
    if not infos:
        return "no file has a georeference"
    systems = Counter(info.crs or "" for info in infos).most_common()
    shown = ", ".join(f"{_short(name)} ({count})" for name, count in systems[:3]) + (", …" if len(systems) > 3 else "")
    sizes = [abs(info.resolution[0]) for info in infos if info.resolution is not None]
    return f"{len(infos)} of {len(every)} files: {shown}; pixels of {_span(sizes)}"


def _span(sizes: Sequence[float]) -> str:
    """Return the smallest and the largest of `sizes`, or the only one, in units of the coordinate systems."""
    low, high = f"{min(sizes):.4g}", f"{max(sizes):.4g}"
    return f"{low} units" if low == high else f"{low} to {high} units"


def _short(crs: str) -> str:
    """Return the name of a coordinate system that is written out as WKT."""
    return crs.split('"')[1] if crs.startswith(("PROJCS", "GEOGCS")) and '"' in crs else crs


def _missing(files: Iterable[SceneFile]) -> tuple[int, float]:
    """Return how many files have pixels without a measurement, and the share of these among all pixels."""
    pixels, without, count = 0, 0.0, 0
    for file in files:
        size = file.info.width * file.info.height if file.info is not None else 0
        pixels, without, count = pixels + size, without + file.missing * size, count + (file.missing > 0)
    return count, without / max(pixels, 1)


def _duplicates(files: Iterable[SceneFile]) -> Iterable[tuple[str, ...]]:
    names: dict[str, list[str]] = {}
    for file in files:
        names.setdefault(file.key, []).append(f"{file.path.parent.parent.name}/{file.name}")
    return (tuple(group) for group in names.values() if len(group) > 1)


def contact_sheet(scenes: Scenes) -> DistilledSet:
    """Return the first SHOWN images of each class, of the training scenes `scenes`, for `report.grid.draw_grid`."""
    own = [(scenes.labels == label).nonzero()[:SHOWN, 0] for label in range(len(scenes.classes))]
    chosen = torch.cat(own)
    side = min(_SIDE, scenes.typical_side())
    return DistilledSet(
        scenes.pixels(chosen, size=side), scenes.labels[chosen], scenes.classes, (), {"real_pixels": True}
    )
