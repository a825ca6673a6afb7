"""Tiles: windows of a raster at labelled points and polygons, as files that are read like any other scenes.

The raster may be larger than memory: nothing but the windows is read.
"""

import json
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil, floor
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import rasterio
import rasterio.warp
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.windows import Window

from geodistill.errors import SceneError
from geodistill.lazy import optional
from geodistill.progress import progress
from geodistill.run import explain_os_errors
from geodistill.scenes.lists import LABELS, SPLITS, column_named
from geodistill.scenes.scenes import check_class_name

SUFFIXES = frozenset({".gpkg", ".geojson"})
OUTSIDE, EDGE = "are outside the raster", "reach over the raster's edge"
UNLABELLED, EMPTY = "have no class", "have no geometry"
UNMEASURED = "show nodata alone"
LINES, SMALL = "are neither points nor polygons", "are too small for a tile"
# Share of a pixel by which the edge of a polygon may miss the border between two pixels, and still lie on it.
_EXACT = 1e-3
# Side in pixels below which a polygon's box shows no scene.
_LEAST_SIDE = 2


@dataclass
class Cut:
    """What `cut_tiles` wrote: the number of tiles of each class, and the features it left out, by reason, by number."""

    classes: Counter[str] = field(default_factory=Counter)
    left_out: dict[str, list[int]] = field(default_factory=dict)

    def told(self) -> list[str]:
        """Return one sentence for each reason why features were left out, with the first ones by their numbers."""
        return [self._told(reason, own) for reason, own in self.left_out.items()]

    def _told(self, reason: str, own: Sequence[int]) -> str:
        features = list(dict.fromkeys(own))
        shown = ", ".join(map(str, features[:5])) + (", …" if len(features) > 5 else "")
        return f"{len(features)} feature(s) {reason}, and give no tile there: {shown}"

    def leave_out(self, reason: str, features: Sequence[int]) -> None:
        """Count features, by their numbers, that give no tile."""
        if len(features):
            self.left_out.setdefault(reason, []).extend(int(one) for one in features)


@dataclass(frozen=True)
class _Place:
    """The size of the raster in pixels, and where features that give no tile are counted."""

    width: int
    height: int
    cut: Cut


# First column, first row, width and height, in pixels of the raster.
_Window: TypeAlias = tuple[int, int, int, int]


@dataclass(frozen=True)
class _Tile:
    """A window of the raster, and the feature that it belongs to."""

    window: _Window
    feature: int
    label: str
    split: str


@dataclass(frozen=True)
class _Features:
    """Features with a class: numbers int64 [n], shapely geometries [n] in pixels of the raster, classes, parts."""

    numbers: NDArray[np.int64]
    shapes: NDArray[np.object_]
    labels: Sequence[str]
    splits: Sequence[str]


def cut_tiles(labels: Path, raster: Path, out: Path, *, tile: int | None = None, column: str = "") -> Cut:
    """Write windows of `raster` to `out`/<class>/<feature>.tif, and return how many.

    A point is the centre of a tile. A polygon gives the tiles of a grid from its upper left corner that lie in it,
    or, without `tile`, its bounding box. Tiles keep bands, type, nodata, mask, colours, scale and coordinate system of
    the raster. If `labels` has a column split, set, subset or partition, its values go to `out`/metadata.jsonl.

    Args:
        labels: GeoPackage (its only layer) or GeoJSON; another coordinate system than the raster's is reprojected.
        raster: any georeferenced raster that GDAL reads, of any size.
        out: a folder that does not exist, or is empty.
        tile: side of a tile in pixels of the raster. Points need it.
        column: the column with the classes; by default label, class, class_name or category.

    Raises:
        SceneError: a file cannot be read, has no georeference or no such column; no feature gives a tile; or `out` has
            files in it.
    """
    if tile is not None and tile < _LEAST_SIDE:
        raise SceneError(f"--tile {tile}: a tile has {_LEAST_SIDE} pixels or more on a side")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SceneError(f"{out} exists and is not empty: choose another --out")
    cut = Cut()
    with _raster(raster) as file:
        place = _Place(file.width, file.height, cut)
        features = _features(labels, column, file, cut)
        tiles = list(_inside(_windows(labels, features, tile, place), place))
        if not tiles:
            reasons = "; ".join(cut.told()) or "there are no features"
            raise SceneError(f"{labels}: no feature gives a tile of {raster}: {reasons}")
        _write_whole(file, tiles, out, cut)
    return cut


@contextmanager
def _raster(path: Path) -> Iterator[Any]:
    with rasterio.Env():
        try:
            file = rasterio.open(path)
        except Exception as error:  # GDAL's messages on broken files need not even be text
            raise SceneError(f"{path}: not a raster that GDAL reads ({_reason(error)})") from error
        with file:
            if file.crs is None:
                raise SceneError(f"{path}: the raster has no coordinate system: assign one (gdal_edit.py -a_srs)")
            yield file


def _reason(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _features(labels: Path, column: str, file: Any, cut: Cut) -> _Features:
    """Return the features of `labels` that have a class and a geometry, in pixels of the raster `file`."""
    libraries = _libraries(labels)
    about, numbers, shapes, columns = _read(labels, libraries)
    if not about["crs"]:
        raise SceneError(f"{labels}: the layer has no coordinate system: assign one")
    label = _label_column(labels, columns, column)
    classes = [_text(value) for value in columns[label]]
    split = column_named(labels, columns, SPLITS, needed=False)
    splits = [_text(value) for value in columns[split]] if split else [""] * len(classes)
    empty = libraries.is_missing(shapes) | libraries.is_empty(shapes)
    unlabelled = np.array([not name for name in classes], bool)
    cut.leave_out(EMPTY, numbers[empty])
    cut.leave_out(UNLABELLED, numbers[unlabelled & ~empty])
    kept = np.flatnonzero(~empty & ~unlabelled)
    for name in {classes[k] for k in kept}:
        check_class_name(name)
    pixels = _in_pixels(labels, libraries, shapes[kept], about["crs"], file)
    return _Features(numbers[kept], pixels, [classes[k] for k in kept], [splits[k] for k in kept])


def _libraries(labels: Path) -> Any:
    """Return shapely; raise SceneError if it or pyogrio is missing."""
    what = f"{labels}: a layer of vector data"
    optional("pyogrio.raw", what, "vector", SceneError)
    return optional("shapely", what, "vector", SceneError)


def _read(labels: Path, shapely: Any) -> tuple[Any, NDArray[np.int64], Any, dict[str, Any]]:
    """Return about the layer, the numbers of its features, their geometries, and its columns by name."""
    import pyogrio.raw

    try:
        with warnings.catch_warnings():
            # On odd versions of files that are read all the same.
            warnings.simplefilter("ignore", RuntimeWarning)
            layers = [str(name) for name, _ in pyogrio.list_layers(labels)]
            if len(layers) != 1:
                raise SceneError(f"{labels}: {len(layers)} layers ({', '.join(layers)}): keep one in a file of its own")
            about, numbers, geometry, values = pyogrio.raw.read(labels, return_fids=True, force_2d=True)
        shapes = shapely.from_wkb(geometry)
    except SceneError:
        raise
    except Exception as error:  # damaged files make the libraries raise almost anything
        raise SceneError(f"{labels}: not a GeoPackage or GeoJSON file ({_reason(error)})") from error
    return about, numbers, shapes, dict(zip(about["fields"], values, strict=True))


def _label_column(labels: Path, columns: dict[str, Any], asked: str) -> str:
    if not asked:
        return column_named(labels, columns, LABELS, needed=True)
    if asked not in columns:
        raise SceneError(f"{labels}: no column {asked!r}: the columns are {', '.join(columns)}")
    return asked


def _text(value: Any) -> str:
    """Return a class as text, "" for none; whole numbers, which a column with gaps holds as floats, without a point."""
    if value is None or (isinstance(value, (float, np.floating)) and np.isnan(value)):
        return ""
    if isinstance(value, (float, np.floating)):
        return str(int(value)) if float(value).is_integer() else repr(float(value))
    return str(value).strip()


def _in_pixels(labels: Path, shapely: Any, shapes: Any, crs: str, file: Any) -> Any:
    """Return geometries in columns and rows of the raster; borders are straight between their reprojected corners."""

    def placed(points: NDArray[np.float64]) -> NDArray[np.float64]:
        x, y = rasterio.warp.transform(crs, file.crs, points[:, 0], points[:, 1])
        inverse = np.array(~file.transform).reshape(3, 3)[:2]
        with np.errstate(invalid="ignore"):
            columns_rows = np.stack([x, y, np.ones(len(x))], axis=1) @ inverse.T
        # Places that do not exist in the raster's system are far outside.
        found: NDArray[np.float64] = np.nan_to_num(columns_rows, nan=-1e12, posinf=1e12, neginf=-1e12)
        return found

    try:
        return shapely.transform(shapes, placed) if len(shapes) else shapes
    except Exception as error:
        raise SceneError(f"{labels}: {crs} cannot be reprojected to {file.crs} ({_reason(error)})") from error


def _windows(labels: Path, features: _Features, tile: int | None, place: _Place) -> Iterator[_Tile]:
    """Yield the windows of all features; those of points and boxes may lie outside the raster."""
    shapely = _libraries(labels)
    for k, shape in enumerate(features.shapes):
        number, parts = int(features.numbers[k]), shapely.get_parts(shape)
        kinds = {one.geom_type for one in parts}
        if not kinds <= {"Point", "Polygon"}:
            place.cut.leave_out(LINES, [number])
            continue
        if "Point" in kinds and tile is None:
            raise SceneError(f"{labels}: feature {number} is a point: give --tile, the side of its tile in pixels")
        windows = [window for part in parts for window in _of_part(shapely, part, tile, place)]
        if not windows:
            outside = not shapely.intersects(shape, shapely.box(0, 0, place.width, place.height))
            place.cut.leave_out(OUTSIDE if outside else SMALL, [number])
        yield from (_Tile(window, number, features.labels[k], features.splits[k]) for window in windows)


def _of_part(shapely: Any, part: Any, tile: int | None, place: _Place) -> list[_Window]:
    """Return the windows of a point or a polygon, which is given in pixels."""
    left, top, right, bottom = map(_snapped, shapely.bounds(part).tolist())
    if part.geom_type == "Point" and tile is not None:
        return [(round(left - tile / 2), round(top - tile / 2), tile, tile)]
    if tile is None:
        column, row = floor(left), floor(top)
        width, height = ceil(right) - column, ceil(bottom) - row
        return [(column, row, width, height)] if min(width, height) >= _LEAST_SIDE else []
    columns, rows = _grid(left, right, tile, place.width), _grid(top, bottom, tile, place.height)
    x, y = (axis.flatten() for axis in np.meshgrid(columns, rows))
    within = shapely.covers(part, shapely.box(x, y, x + tile, y + tile))
    return [(column, row, tile, tile) for column, row in zip(x[within].tolist(), y[within].tolist(), strict=True)]


def _snapped(edge: float) -> float:
    """Return `edge`, a column or row, exact if rounding errors alone keep it from the border between two pixels."""
    return float(round(edge)) if abs(edge - round(edge)) < _EXACT else edge


def _grid(low: float, high: float, tile: int, size: int) -> NDArray[np.int64]:
    """Return where tiles between `low` and `high` begin, in steps from `low`, as far as they lie in 0 to `size`."""
    first = ceil(low)
    first += tile * max(0, ceil(-first / tile))
    return np.arange(first, min(floor(high), size) - tile + 1, tile)


def _inside(tiles: Iterator[_Tile], place: _Place) -> Iterator[_Tile]:
    """Yield the tiles that lie in the raster wholly."""
    for one in tiles:
        column, row, width, height = one.window
        if column >= place.width or row >= place.height or column + width <= 0 or row + height <= 0:
            place.cut.leave_out(OUTSIDE, [one.feature])
        elif column < 0 or row < 0 or column + width > place.width or row + height > place.height:
            place.cut.leave_out(EDGE, [one.feature])
        else:
            yield one


def _write_whole(file: Any, tiles: Sequence[_Tile], out: Path, cut: Cut) -> None:
    """Write the tiles to `out`, completely or not at all, and count them in `cut`."""
    aside = out.with_name(f".{out.name}.partial")
    with explain_os_errors(out):
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        _write_tiles(file, tiles, aside, cut)
        if not cut.classes:
            shutil.rmtree(aside)
            raise SceneError(f"{file.name}: no tile shows a measurement (all are nodata or masked)")
        if out.exists():
            out.rmdir()
        aside.replace(out)


def _write_tiles(file: Any, tiles: Sequence[_Tile], out: Path, cut: Cut) -> None:
    """Write the tiles that show a measurement, neighbours one after the other, because a raster is stored in blocks."""
    ranks: Counter[int] = Counter()
    lines = []
    with progress("cutting tiles", len(tiles)) as advance:
        for done, one in enumerate(sorted(tiles, key=lambda one: (one.window[1], one.window[0])), start=1):
            advance(done)
            window = Window(*one.window)
            if not _shows(file, window):
                cut.leave_out(UNMEASURED, [one.feature])
                continue
            cut.classes[one.label] += 1
            ranks[one.feature] += 1
            name = f"{one.label}/{one.feature}" + (f"-{ranks[one.feature]}" if ranks[one.feature] > 1 else "") + ".tif"
            (out / one.label).mkdir(parents=True, exist_ok=True)
            _write_tile(file, window, out / name)
            lines.append(json.dumps({"file_name": name, "label": one.label, "split": one.split}) + "\n")
    if any(one.split for one in tiles):
        (out / "metadata.jsonl").write_text("".join(sorted(lines)), encoding="utf-8")


def _shows(file: Any, window: Window) -> bool:
    """Return whether a pixel of the window is a measurement in some band."""
    try:
        return bool(file.dataset_mask(window=window).any())
    except Exception as error:
        raise SceneError(f"{file.name}: cannot be decoded ({_reason(error)})") from error


def _write_tile(file: Any, window: Window, path: Path) -> None:
    profile = {"driver": "GTiff", "dtype": file.dtypes[0], "count": file.count, "nodata": file.nodata}
    profile |= {"width": window.width, "height": window.height, "crs": file.crs, "compress": "deflate"}
    profile |= {"transform": file.window_transform(window), "interleave": "pixel"}
    if file.colorinterp[:3] == (ColorInterp.red, ColorInterp.green, ColorInterp.blue):
        profile["photometric"] = "RGB"
    try:
        values = file.read(window=window)
    except Exception as error:
        raise SceneError(f"{file.name}: cannot be decoded ({_reason(error)})") from error
    with rasterio.open(path, "w", **profile) as tile:
        # Before the values: GDAL ignores that a band is transparency once values are written.
        tile.colorinterp = file.colorinterp
        tile.write(values)
        tile.descriptions, tile.scales, tile.offsets = file.descriptions, file.scales, file.offsets
        if ColorInterp.palette in file.colorinterp:
            tile.write_colormap(1, file.colormap(1))
        flags = file.mask_flag_enums[0]
        if MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags:
            with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
                tile.write_mask(file.dataset_mask(window=window))
