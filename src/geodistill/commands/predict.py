"""Classes of new images: a table for a folder, a map for a raster."""

import csv
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from geodistill.deployment.predictors import Predictor, load_predictor
from geodistill.deployment.tiles import Grid, check_range, fitting_reading, map_raster, with_mask
from geodistill.errors import ConfigError, SceneError
from geodistill.progress import progress
from geodistill.run import written_whole
from geodistill.scenes.folder import images_in, log_skipped
from geodistill.scenes.images import bands_to_square
from geodistill.scenes.readers import Info, RasterReader, info_of, open_raster, reader_of
from geodistill.scenes.reading import Reading
from geodistill.scenes.scenes import WORKERS

_BATCH = 64

log = logging.getLogger("geodistill")


@dataclass(frozen=True)
class Predicted:
    """What `predict` wrote: the file, how many images or tiles got each class, and how many images were unreadable."""

    path: Path
    counts: dict[str, int]
    unreadable: int = 0


def predict(
    model: Path | str | Predictor,
    source: Path | str,
    *,
    out: Path | str,
    tile: int | None = None,
    stride: int | None = None,
    top: int = 1,
    bands: str | None = None,
    scale: str | None = None,
) -> Predicted:
    """Classify `source` with a model: a folder of images as a CSV file, a raster as a GeoTIFF of class numbers.

    Args:
        model: a folder that `train` wrote, an exported file, or what `load_predictor` read from one of them: a program
            that calls this often should load its model once.
        source: a folder (with its subfolders), or a raster: TIFF, JPEG 2000 or VRT of any size. Another image file is
            classified as a whole.
        out: the file, which is replaced if it exists; it cannot be `source` itself. `deployment.tiles.map_raster`
            describes a map. A row of the CSV file has an image, its class and the probability of this class, and so on
            for the `top` most probable classes.
        tile: side in pixels of the squares of a raster that are classified, which should show as much ground as a
            training scene; by default the side of the model's images.
        stride: pixels between tiles; by default no tile overlaps another.
        bands, scale: replace what the model was trained with.

    Raises:
        ConfigError: no usable model, no such tiles, or a name of `out` that is not that of such a file, or is `source`.
        ExportError: a package that runs the model is missing.
        SceneError: no images, a raster that cannot be read, or other bands or values than the model was trained on.
        RunError: `out` cannot be written.
    """
    predictor = load_predictor(model) if isinstance(model, Path | str) else model
    path, out = Path(source), Path(out)
    if not path.exists():
        raise SceneError(f"{path}: no such file or folder: give a folder of images or a raster")
    if out.exists() and out.samefile(path):
        raise ConfigError(f"--out {out} is the input itself: give another name")
    if path.is_file() and path.suffix.lower() in RasterReader.suffixes:
        side = predictor.about.size if tile is None else tile
        _check_name(out, ("tif", "tiff"), "the map of a raster is a GeoTIFF")
        return _map(predictor, path, out, (side, side if stride is None else stride), (bands, scale))
    _check_name(out, ("csv",), "the classes of images are a CSV table")
    return _table(predictor, path, out, top, (bands, scale))


def _check_name(out: Path, suffixes: tuple[str, ...], what: str) -> None:
    if out.suffix.lower().removeprefix(".") not in suffixes:
        raise ConfigError(f"--out {out}: {what}: give a name that ends in .{suffixes[0]}")


def _map(
    predictor: Predictor, path: Path, out: Path, tiles: tuple[int, int], own: tuple[str | None, str | None]
) -> Predicted:
    """Map the raster at `path` by tiles of side and stride `tiles`; `own` are bands and scale."""
    with open_raster(path) as raster:
        info = info_of(raster)
    reading = _reading(predictor.about.reading, path, info, own)
    if info.crs is None:
        log.warning("%s has no georeference, so its map has none", path)
    counts = map_raster(predictor, path, out, Grid(info.width, info.height, *tiles), reading)
    if not sum(counts.values()):
        log.warning("less than half of each tile of %d pixels is measured: the map has no class", tiles[0])
    return Predicted(out, counts)


def _table(predictor: Predictor, source: Path, out: Path, top: int, own: tuple[str | None, str | None]) -> Predicted:
    """Write the CSV file for an image, or for the images in a folder; `own` are bands and scale."""
    classes = predictor.about.classes
    if not 1 <= top <= len(classes):
        raise ConfigError(f"--top {top}: give 1 to {len(classes)}, the number of classes")
    paths = [source] if source.is_file() else images_in(source)
    root = source.parent if source.is_file() else source
    readings = _Readings(predictor.about.reading, own)
    readings.check(paths)
    with written_whole(out) as aside, aside.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["file", *_header(top)])
        counts, skipped = dict.fromkeys(classes, 0), list[str]()
        for path, values in _predictions(predictor, paths, readings, top, skipped):
            rows.writerow([path.relative_to(root).as_posix(), *values])
            counts[values[0]] += 1
    log_skipped(skipped)
    return Predicted(out, counts, len(skipped))


def _predictions(
    predictor: Predictor, paths: Sequence[Path], readings: "_Readings", top: int, skipped: list[str]
) -> Iterator[tuple[Path, list[str]]]:
    """Yield each readable image of `paths` with its row; a batch of them is in memory at a time.

    Why the others are not readable is added to `skipped`.
    """
    with progress("images", len(paths)) as advance:
        for first in range(0, len(paths), _BATCH):
            batch = paths[first : first + _BATCH]
            images, kept = _read(batch, readings, predictor.about.size, skipped)
            yield from zip(kept, _best(predictor, images, top), strict=True)
            advance(first + len(batch))


def _header(top: int) -> list[str]:
    marks = ["", *(f"_{rank}" for rank in range(2, top + 1))]
    return [f"{name}{mark}" for mark in marks for name in ("class", "probability")]


def _reading(model: Reading, path: Path, info: Info, own: tuple[str | None, str | None]) -> Reading:
    """Return how the file at `path`, which holds `info`, is read; raise SceneError if it does not fit the model."""
    reading = fitting_reading(info, model, path, bands=own[0], scale=own[1])
    check_range(path, reading)
    return with_mask(path, info, reading)


class _Readings:
    """How files become images for a model: files of one kind are read alike, by what the first of them holds."""

    def __init__(self, model: Reading, own: tuple[str | None, str | None]) -> None:
        self.channels, self._model, self._own = model.channels, model, own
        self._known: dict[tuple[object, ...], Reading | SceneError] = {}

    def check(self, paths: Sequence[Path]) -> None:
        """Raise SceneError if not even one of the files at `paths` can be read for the model."""
        failed: SceneError | None = None
        for path in paths:
            try:
                self.of(path)
            except SceneError as error:
                failed = failed or error
            else:
                return
        raise failed or SceneError("no images")

    def of(self, path: Path) -> Reading:
        """Return the reading of the file at `path`; raise SceneError if it cannot be read or does not fit the model."""
        info = reader_of(path).info(path)
        kind = (info.dtype, info.colours, info.names)
        if kind not in self._known:
            try:
                self._known[kind] = _reading(self._model, path, info, self._own)
            except SceneError as error:
                self._known[kind] = error
        found = self._known[kind]
        if isinstance(found, SceneError):
            raise found
        return found


def _read(paths: Sequence[Path], readings: _Readings, size: int, skipped: list[str]) -> tuple[Tensor, list[Path]]:
    """Return the readable images as uint8 [n, channels, size, size], and their paths; others are added to `skipped`."""

    def one(path: Path) -> Tensor | SceneError:
        try:
            return bands_to_square(readings.of(path).pixels(path), size)
        except SceneError as error:
            return error

    with ThreadPoolExecutor(WORKERS) as pool:
        found = list(zip(paths, pool.map(one, paths), strict=True))
    for path, result in found:
        if isinstance(result, SceneError):
            skipped.append(str(result) if str(path) in str(result) else f"{path}: as {result}")
    kept = [(path, result) for path, result in found if isinstance(result, Tensor)]
    none = torch.empty(0, readings.channels, size, size, dtype=torch.uint8)
    images = torch.stack([image for _, image in kept]) if kept else none
    return images, [path for path, _ in kept]


def _best(predictor: Predictor, images: Tensor, top: int) -> Iterator[list[str]]:
    """Yield class and probability of the `top` most probable classes of each image, the first first."""
    if not len(images):
        return
    found = predictor.logits(images).softmax(1).topk(top, dim=1)
    for values, labels in zip(found.values.tolist(), found.indices.tolist(), strict=True):
        pairs = zip(labels, values, strict=True)
        yield [text for label, value in pairs for text in (predictor.about.classes[label], f"{value:.4f}")]
