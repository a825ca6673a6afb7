"""A map of classes from a raster of any size, tile by tile, in bounded memory."""

import colorsys
import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.errors import RasterioError
from rasterio.windows import Window

from geodistill.deployment.predictors import Predictor
from geodistill.errors import ConfigError, RunError, SceneError
from geodistill.progress import progress
from geodistill.run import written_whole
from geodistill.scenes.images import bands_to_square
from geodistill.scenes.readers import Info, RasterReader, Values, is_mask, open_raster, reader_of, values_of
from geodistill.scenes.reading import Reading, choose_bands, with_scale

log = logging.getLogger("geodistill")

# Least share of the sampled values that must lie within the ranges that a model was trained on, and the share below
# which a warning is logged; of training scenes it is 98 %. The sample consists of squares with sides of _SAMPLED
# pixels; _PLACES of them lie along each axis of the raster.
_LEAST_INSIDE, _USUAL_INSIDE, _SAMPLED, _PLACES = 0.01, 0.5, 64, 5
# Share of a tile's pixels that have to be measurements, inside the raster.
LEAST_MEASURED = 0.5
# Tiles, and pixels of them, that are read at a time. GDAL keeps blocks of files in a cache, here of this many MB; its
# own limit is a twentieth of the machine's memory.
_TILES, _PIXELS, _CACHE = 64, 2**23, 64
# A disk with fewer free bytes counts as full: GDAL writes blocks of this size.
_FULL = 2**20
# Fraction of the colour circle between the colours of successive classes: the golden ratio spreads any number evenly.
_TURN = 0.618034


@dataclass(frozen=True)
class Grid:
    """Where tiles lie on a raster of `width` x `height` pixels: squares of `tile` pixels, `stride` pixels apart.

    The last column and row may reach over the raster's edge, so that all of it is covered.

    >>> Grid(width=1000, height=300, tile=256, stride=256).shape
    (2, 4)
    """

    width: int
    height: int
    tile: int
    stride: int

    def __post_init__(self) -> None:
        if self.tile < 1 or not 1 <= self.stride <= self.tile:
            raise ConfigError(
                f"tiles of {self.tile} pixels every {self.stride} pixels: give --tile 1 or more, and --stride from 1 "
                "to the side of a tile"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Return the numbers of rows and columns of tiles."""
        rows, columns = (1 + max(0, -(-(side - self.tile) // self.stride)) for side in (self.height, self.width))
        return rows, columns

    def transform(self, raster: Affine) -> Affine:
        """Return the georeference of the map: each pixel is the middle `stride` x `stride` pixels of its tile."""
        margin, step = (self.tile - self.stride) / 2, self.stride
        a, b, c, d, e, f = raster[:6]
        # The product of `raster`, a shift by `margin` and a scaling by `step`; affine 2 and 3 write it differently.
        return Affine(a * step, b * step, c + (a + b) * margin, d * step, e * step, f + (d + e) * margin)

    def parts(self) -> Iterator[tuple[int, range]]:
        """Yield (row, columns) of tiles that are read together."""
        rows, columns = self.shape
        step = max(1, min(_TILES, _PIXELS // self.tile**2))
        for row in range(rows):
            for first in range(0, columns, step):
                yield row, range(first, min(first + step, columns))


def fitting_reading(
    info: Info, model: Reading, path: Path, *, bands: str | None = None, scale: str | None = None
) -> Reading:
    """Return how the file at `path`, which holds `info`, becomes images for a model whose images were read by `model`.

    `bands` and `scale` replace what the model was trained with, as options of the command line give them.

    Raises:
        SceneError: the file has other bands or values than the model was trained on; both are named.
    """
    reading = model
    if bands is not None:
        asked = choose_bands([(path, info)], bands)
        reading = replace(model, bands=asked.bands, of_bands=asked.of_bands)
    if scale is not None:
        reading = with_scale(replace(reading, scale=()), info.dtype, [], scale)
    _check_bands(info, reading, path)
    if not reading.bands:
        # Transparency masks pixels; it is no colour.
        coloured = tuple(band for band in range(1, info.bands + 1) if band != info.alpha)
        reading = reading if info.alpha is None else replace(reading, bands=coloured)
    _check_values(info, reading, path)
    return reading


def _check_bands(info: Info, reading: Reading, path: Path) -> None:
    coloured = info.bands - (info.alpha is not None)
    if not reading.bands and coloured == 1:
        log.warning("%s has one band, which the model sees as grey", path)
    if reading.lacks(info):
        raise SceneError(f"{path} has {info.bands} band(s), the model was trained on {reading.told}: give --bands")
    if not reading.bands and coloured not in (1, 3):
        raise SceneError(
            f"{path} has {coloured} bands, the model was trained on images of one or three: give --bands, such as 1,2,3"
        )
    if reading.bands and reading.scale and len(reading.scale) not in (1, len(reading.bands)):
        raise SceneError(
            f"{path}: {len(reading.bands)} band(s) are read, the model was trained on ranges of {len(reading.scale)}: "
            "give --scale"
        )


def _check_values(info: Info, reading: Reading, path: Path) -> None:
    if not reading.scale and info.dtype != "uint8":
        raise SceneError(
            f"{path} has values of type {info.dtype}, the model was trained on 8-bit values: give --scale LOW,HIGH"
        )
    highest = max((high for _, high in reading.scale), default=0.0)
    if info.dtype == "uint8" and highest > 255:
        raise SceneError(
            f"{path} has 8-bit values, the model was trained on values up to {highest:g}: give a raster with values in "
            "that range, or --scale LOW,HIGH"
        )


def check_range(path: Path, reading: Reading) -> None:
    """Raise SceneError if nearly all values of the file at `path` lie outside the ranges of `reading`; log if most do.

    A sample of the file is read. Of several bands the median share counts: in other units, too, the values of one band
    can lie in its range. Reflectance from 0 to 1 given to a model that was trained on integers up to 10,000 would be
    black, and would get a class all the same.
    """
    if not reading.scale:
        return
    found = _sample(path, reading)
    values = found.bands[:, found.valid]
    if not values.size:
        return
    low, high = np.array(reading.scale, np.float64).T[..., None]
    inside = float(np.median(((values > low) & (values < high)).mean(axis=1)))
    told = (
        f"{path} has values from {values.min():g} to {values.max():g}, the model was trained on values from "
        f"{low.min():g} to {high.max():g}"
    )
    if inside < _LEAST_INSIDE:
        raise SceneError(f"{told}: give values in the same units, or --scale LOW,HIGH")
    if inside < _USUAL_INSIDE:
        log.warning(
            "%s; in the median of its bands %.0f %% of the values lie in the range: if its units are others, the "
            "classes are wrong (--scale LOW,HIGH)",
            *(told, 100 * inside),
        )


def with_mask(path: Path, info: Info, reading: Reading) -> Reading:
    """Return `reading`, with pixels masked out where the file at `path` is transparent.

    A band that is tagged as transparency counts as a mask if its values, in a sample, are 0 and one other value: near
    infrared is often tagged like that.
    """
    if info.alpha is None or info.alpha in reading.bands:
        return replace(reading, alpha=False)
    opacity = _sample(path, replace(reading, bands=(info.alpha,), alpha=False)).bands
    return replace(reading, alpha=is_mask(opacity))


def _sample(path: Path, reading: Reading) -> Values:
    """Return values of some places of the file, which may be larger than memory."""
    if path.suffix.lower() not in RasterReader.suffixes:
        return reader_of(path).values(path, reading.bands, alpha=reading.alpha)
    with open_raster(path) as raster:
        side = min(_SAMPLED, raster.width, raster.height)
        steps = np.linspace(0, 1, _PLACES)
        parts = [
            values_of(raster, reading.bands, alpha=reading.alpha, window=Window(column, row, side, side))
            for column in np.unique((steps * (raster.width - side)).astype(int)).tolist()
            for row in np.unique((steps * (raster.height - side)).astype(int)).tolist()
        ]
    return Values(*(np.concatenate([getattr(one, name) for one in parts], axis=-1) for name in ("bands", "valid")))


def map_raster(predictor: Predictor, path: Path, out: Path, grid: Grid, reading: Reading) -> dict[str, int]:
    """Write a GeoTIFF with the class number of each tile of the raster at `path`; return the number of tiles by class.

    The map has one pixel for each tile, the raster's georeference, a colour table and the names of the classes as tags
    (CLASS_0, CLASS_1, ...). A tile gets nodata if less than half of it is measured: 255, or 65535 if there are more
    than 255 classes. Memory does not depend on the raster's size.

    Raises:
        SceneError: the raster cannot be read.
        RunError: `out` cannot be written.
    """
    classes = predictor.about.classes
    counts = np.zeros(len(classes), np.int64)
    with (
        rasterio.Env(GDAL_CACHEMAX=_CACHE),
        written_whole(out) as aside,
        open_raster(path) as raster,
        _new_map(aside, out, raster, grid, classes) as write,
        progress("rows of tiles", grid.shape[0]) as advance,
    ):
        source = _Source(raster, path, reading)
        for row, columns in grid.parts():
            labels = _labels(predictor, source, source.tiles(grid, row, columns))
            write(labels, Window(columns.start, row, len(columns), 1))
            counts += np.bincount(labels, minlength=len(classes))[: len(classes)]
            advance(row + 1)
    return {name: int(count) for name, count in zip(classes, counts, strict=True)}


def nodata_of(classes: Sequence[str]) -> int:
    """Return the value of a map's pixels that have no class: the largest of the smallest fitting type."""
    return 255 if len(classes) <= 255 else 65535


@dataclass(frozen=True)
class _Source:
    """An opened raster, its path for messages, and how its values become images."""

    raster: Any
    path: Path
    reading: Reading

    def tiles(self, grid: Grid, row: int, columns: range) -> list[Values]:
        """Return the values of the tiles of `row` in `columns`; what lies outside the raster is not valid."""
        side, top, left = grid.tile, row * grid.stride, columns.start * grid.stride
        width = (len(columns) - 1) * grid.stride + side
        inside = Window(left, top, min(width, grid.width - left), min(side, grid.height - top))
        found = values_of(self.raster, self.reading.bands, alpha=self.reading.alpha, window=inside)
        missing = ((0, side - found.valid.shape[0]), (0, width - found.valid.shape[1]))
        bands, valid = np.pad(found.bands, ((0, 0), *missing)), np.pad(found.valid, missing)
        places = [slice(first, first + side) for first in range(0, len(columns) * grid.stride, grid.stride)]
        return [Values(bands[:, :, place], valid[:, place]) for place in places]

    def image(self, tile: Values, size: int) -> torch.Tensor:
        """Return a tile as uint8 [channels, size, size]."""
        return bands_to_square(self.reading.of_values(tile, self.path), size)


def _labels(predictor: Predictor, source: _Source, tiles: Sequence[Values]) -> NDArray[Any]:
    """Return the class number of each of `tiles`, or nodata, in the type of the map."""
    nodata = nodata_of(predictor.about.classes)
    labels = np.full(len(tiles), nodata, np.min_scalar_type(nodata))
    used = [k for k, tile in enumerate(tiles) if tile.valid.mean() >= LEAST_MEASURED]
    if used:
        images = torch.stack([source.image(tiles[k], predictor.about.size) for k in used])
        labels[used] = predictor.logits(images).argmax(1).numpy()
    return labels


@contextmanager
def _new_map(
    path: Path, out: Path, raster: Any, grid: Grid, classes: Sequence[str]
) -> Iterator[Callable[[NDArray[Any], Window], None]]:
    """Make a GeoTIFF at `path` for a map of `grid` on `raster`, with colours and names of `classes`.

    Yields the function that writes labels [n] to a window. Errors name `out`, which the file will become.
    """
    nodata, (height, width) = nodata_of(classes), grid.shape
    size = {"width": width, "height": height, "count": 1, "dtype": np.min_scalar_type(nodata), "nodata": nodata}
    place = {"crs": raster.crs, "transform": grid.transform(raster.transform)}
    with _told_of_output(out):
        made = rasterio.open(path, "w", driver="GTiff", compress="deflate", BIGTIFF="IF_SAFER", **size, **place)

    def write(labels: NDArray[Any], window: Window) -> None:
        with _told_of_output(out):
            made.write(labels[None], 1, window=window)

    with made:
        with _told_of_output(out):
            made.write_colormap(1, {label: colour_of(label) for label in range(len(classes))})
            made.set_band_description(1, "class")
            made.update_tags(**{f"CLASS_{label}": name for label, name in enumerate(classes)})
        yield write
    # Closing writes the rest, and says nothing if it cannot.
    with _told_of_output(out), rasterio.open(path) as file:
        file.checksum(1)


@contextmanager
def _told_of_output(out: Path) -> Iterator[None]:
    """Turn GDAL's errors on the file that is written into a RunError: they do not say that the disk is full."""
    try:
        yield
    except RasterioError as error:
        full = shutil.disk_usage(out.parent).free < _FULL
        why = f"the disk that holds {out.parent} is full" if full else f"it cannot be written ({error})"
        raise RunError(f"{out}: {why}: free some space or choose another --out") from error


def colour_of(label: int) -> tuple[int, int, int, int]:
    """Return a colour for class `label`, as red, green, blue and opacity from 0 to 255; the same in every map."""
    shade = colorsys.hsv_to_rgb(label * _TURN % 1, (0.85, 0.5)[label // 2 % 2], (0.95, 0.6)[label % 2])
    red, green, blue = (round(255 * part) for part in shade)
    return red, green, blue, 255
