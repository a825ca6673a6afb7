"""Readers of image files: rasterio for TIFF, JPEG 2000 and VRT, Pillow for JPEG, PNG, WebP and BMP.

A reader says what a file holds, and returns the values of some of its bands with a mask of the valid pixels. What
becomes of the values is decided for the whole data set (`scenes.reading`).
"""

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image, ImageOps
from rasterio.enums import ColorInterp, MaskFlags, PhotometricInterp
from rasterio.errors import NotGeoreferencedWarning

from geodistill.errors import GeodistillError, SceneError
from geodistill.scenes.images import decode_image, opened, read_bytes

# Most scenes have no georeference, and need none. Set once: files are opened in threads, where a filter cannot be set
# for a while.
warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)

RGB = ("red", "green", "blue")
_CONVERTED = (PhotometricInterp.cmyk, PhotometricInterp.cielab)
# Tag of TIFF and Exif that says how an image is turned.
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Info:
    """What a file holds.

    width, height: in pixels. dtype: NumPy's name of the type of its values. colours: the meaning of each band, such as
    "red", "gray", "alpha" or "undefined". names: the file's own names of its bands, "" where it has none. nodata: the
    value that stands for no measurement, if there is one. resolution: width and height of a pixel in units of `crs`.
    crs: the coordinate system, such as "EPSG:32629"; None without a georeference. bounds: left, bottom, right, top.
    degrees: whether these are degrees of longitude and latitude. metres: length of a unit of `crs`, if they are not.
    """

    width: int
    height: int
    dtype: str
    colours: tuple[str, ...]
    names: tuple[str, ...] = ()
    nodata: float | None = None
    resolution: tuple[float, float] | None = None
    crs: str | None = None
    bounds: tuple[float, float, float, float] | None = None
    degrees: bool = False
    metres: float = 1.0

    @property
    def bands(self) -> int:
        """Return the number of bands."""
        return len(self.colours)

    @property
    def alpha(self) -> int | None:
        """Return the number of the band that is tagged as transparency, counted from 1, if there is one."""
        return self.colours.index("alpha") + 1 if "alpha" in self.colours else None


@dataclass(frozen=True)
class Values:
    """Values of some bands of a file, [bands, h, w], and where they are measurements, bool [h, w]."""

    bands: NDArray[Any]
    valid: NDArray[np.bool_]


class Reader(Protocol):
    """Reads the files with certain suffixes. Errors are SceneErrors that name the file."""

    suffixes: frozenset[str]

    def info(self, path: Path) -> Info:
        """Return what the file at `path` holds."""

    def values(self, path: Path, bands: Sequence[int], *, alpha: bool = False) -> Values:
        """Return the values of `bands`, counted from 1, in physical units where the file says how to get them.

        With `alpha`, pixels where the transparency band is 0 are not valid.
        """


class PillowReader:
    """JPEG, PNG, WebP and BMP. All but PNGs and greyscale of more than 8 bits is read as 8-bit RGB.

    Pillow keeps only the upper 8 bits of PNGs in colour with 16: rasterio reads these.
    """

    suffixes = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".webp", ".bmp"})

    def info(self, path: Path) -> Info:
        """Return what the file at `path` holds, by its header alone."""
        data, deep = read_bytes(path), {"I": "int32", "F": "float32"}
        if _is_deep_colour(data):
            with _opened(path) as file:
                return info_of(file)
        with opened(data, str(path)) as image:
            kind = next((dtype for mode, dtype in deep.items() if image.mode == mode), "")
            kind = kind or ("uint16" if image.mode.startswith("I;") else "uint8")
            return Info(image.width, image.height, kind, RGB if kind == "uint8" else ("gray",))

    def values(self, path: Path, bands: Sequence[int], *, alpha: bool = False) -> Values:
        """Return the values of `bands`, of all if none is given. Transparency is already laid on black."""
        data = read_bytes(path)
        if _is_deep_colour(data):
            with _opened(path) as file:
                _check_bands(path, bands, file.count)
                return values_of(file, bands, alpha=alpha)
        found = _decoded(data, str(path))
        _check_bands(path, bands, len(found))
        chosen = found if not bands else found[[band - 1 for band in bands]]
        return Values(chosen, _finite(chosen))


def _is_deep_colour(data: bytes) -> bool:
    """Return whether `data` is a PNG in colour (2) or colour with transparency (6) of 16 bits (PNG specification)."""
    return data[:8] == b"\x89PNG\r\n\x1a\n" and data[24:26] in (b"\x10\x02", b"\x10\x06")


def is_mask(opacity: NDArray[Any]) -> bool:
    """Return whether the values of a transparency band are a mask: 0 and at most one other value, such as 255.

    >>> is_mask(np.array([0, 255, 255])), is_mask(np.array([0, 31, 255]))
    (True, False)
    """
    shown = opacity[opacity != 0]
    return not shown.size or bool((shown == shown.flat[0]).all())


def _check_bands(path: Path, bands: Sequence[int], count: int) -> None:
    if bands and max(bands) > count:
        raise SceneError(f"{path}: band {max(bands)} is asked for, the file has {count}")


def _finite(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Return where all bands of `values` [bands, h, w] are finite; integers always are."""
    if np.issubdtype(values.dtype, np.integer):
        return np.ones(values.shape[1:], np.bool_)
    finite: NDArray[np.bool_] = np.isfinite(values).all(axis=0)
    return finite


def _decoded(data: bytes, name: str) -> NDArray[Any]:
    """Return uint8 [3, h, w], or [1, h, w] of the file's own type if it is greyscale of more than 8 bits."""
    image = decode_image(data, name)
    pixels = np.asarray(image)
    return pixels[None] if image.mode != "RGB" else pixels.transpose(2, 0, 1)


class RasterReader:
    """TIFF (GeoTIFF, COG), JPEG 2000 and VRT by rasterio. Palettes and CMYK are converted by Pillow."""

    suffixes = frozenset({".tif", ".tiff", ".jp2", ".j2k", ".vrt"})

    def info(self, path: Path) -> Info:
        """Return what the file at `path` holds."""
        with _opened(path) as file:
            found = info_of(file)
            # Place and nodata hold for the converted image too.
            return replace(found, dtype="uint8", colours=RGB, names=()) if _is_pillows(file) else found

    def values(self, path: Path, bands: Sequence[int], *, alpha: bool = False) -> Values:
        """Return the values of `bands`, of all if none is given, times the file's scale plus its offset."""
        with _opened(path) as file:
            if _is_pillows(file):
                return _converted(path, bands, file)
            _check_bands(path, bands, file.count)
            return values_of(file, bands, alpha=alpha)


def _converted(path: Path, bands: Sequence[int], file: Any) -> Values:
    """Return the values of `bands` of a raster that Pillow converts to RGB, and where GDAL's mask has measurements."""
    found = _decoded(read_bytes(path), str(path))
    _check_bands(path, bands, len(found))
    mask = file.dataset_mask() != 0
    # Pillow turns an image as its orientation says, and the mask does not turn with it.
    valid = mask if mask.shape == found.shape[1:] else np.ones(found.shape[1:], np.bool_)
    return Values(found if not bands else found[[band - 1 for band in bands]], valid)


@contextmanager
def open_raster(path: Path) -> Iterator[Any]:
    """Open the raster at `path`, of any size, for `info_of` and `values_of`; it is a dataset of rasterio.

    Raises:
        SceneError: the file, or a part of it that is read within the block, cannot be read, or its values are numbers
            of a palette.
    """
    with _opened(path, most_pixels=0) as file:
        if _is_pillows(file):
            raise SceneError(f"{path}: its values are no plain RGB (palette, CMYK or single bits): convert it to RGB")
        yield file


def info_of(file: Any) -> Info:
    """Return what the opened raster `file` holds."""
    nodata = None if file.nodata is None else float(file.nodata)
    colours = tuple(colour.name for colour in file.colorinterp)
    names = tuple(name or "" for name in file.descriptions)
    info = Info(file.width, file.height, _dtype(file), colours, names, nodata)
    if file.crs is None:
        return info
    (width, height), (left, bottom, right, top) = file.res, file.bounds
    return replace(
        info,
        resolution=(width, height),
        crs=file.crs.to_string(),
        bounds=(left, bottom, right, top),
        degrees=file.crs.is_geographic,
        metres=1.0 if file.crs.is_geographic else float(file.crs.linear_units_factor[1]),
    )


def values_of(file: Any, bands: Sequence[int], *, alpha: bool = False, window: Any = None) -> Values:
    """Return the values of `bands` (all if there is none) of the opened raster `file`, times its scale plus its offset.

    With `alpha`, pixels where the transparency band is 0 are not valid. `window`: a window of rasterio within the
    raster; None reads all of it.
    """
    chosen = list(bands) or list(file.indexes)
    found = file.read(chosen, window=window)
    valid = _valid(file, found, chosen, alpha, window)
    scales, offsets = ([own[band - 1] for band in chosen] for own in (file.scales, file.offsets))
    if any(scale != 1 for scale in scales) or any(offsets):
        scale, offset = (np.array(own, np.float64)[:, None, None] for own in (scales, offsets))
        found = (found * scale + offset).astype(np.float32)
    return Values(found, valid)


def _valid(file: Any, found: NDArray[Any], bands: Sequence[int], alpha: bool, window: Any) -> NDArray[np.bool_]:
    """Return where all of the values `found` of `bands` in `window` are measurements.

    A nodata value that could be measured, such as 0, counts only where all bands have theirs, as in GDAL's mask of a
    data set; any other, such as -9999, counts where one band has it.
    """
    valid, everywhere = _finite(found), np.ones(found.shape[1:], np.bool_)
    for values, band in zip(found, bands, strict=True):
        nodata = file.nodatavals[band - 1]
        missing = np.zeros(valid.shape, np.bool_)
        if nodata is not None and np.isfinite(nodata):
            missing = values == nodata
            if not _measurable(nodata, values.dtype):
                valid &= ~missing
        everywhere &= missing
    valid &= ~everywhere
    flags = file.mask_flag_enums[bands[0] - 1]
    transparency = [index for index, colour in enumerate(file.colorinterp, start=1) if colour == ColorInterp.alpha]
    if alpha and transparency:
        valid &= file.read(transparency[0], window=window) != 0
    elif MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags:
        valid &= file.dataset_mask(window=window) != 0
    return valid


def _measurable(nodata: float, dtype: np.dtype[Any]) -> bool:
    """Return whether `nodata` could be the value of a measured pixel in one band: 0, or any of an unsigned type."""
    return nodata == 0 or np.issubdtype(dtype, np.unsignedinteger)


def _dtype(file: Any) -> str:
    if any(scale != 1 for scale in file.scales) or any(file.offsets):
        return "float32"
    return str(np.result_type(*file.dtypes))


def _is_pillows(file: Any) -> bool:
    """Return whether Pillow knows better what the 8-bit values mean: palette, CMYK, bits, white as 0."""
    if file.dtypes[0] != "uint8" or file.driver != "GTiff":
        return False
    structure = {**file.tags(ns="IMAGE_STRUCTURE"), **file.tags(1, ns="IMAGE_STRUCTURE")}
    if int(structure.get("NBITS", 8)) < 8 or structure.get("MINISWHITE") == "YES":
        return True
    # GDAL converts the YCbCr of JPEG by itself, and reads its mask.
    if "SOURCE_COLOR_SPACE" in structure and structure.get("COMPRESSION") != "YCbCr JPEG":
        return True
    return ColorInterp.palette in file.colorinterp or file.photometric in _CONVERTED


@contextmanager
def _opened(path: Path, most_pixels: int | None = None) -> Iterator[Any]:
    """Open the raster at `path`; errors within the block become SceneErrors that name it, unless they are ours.

    A raster of more than `most_pixels` is refused: twice Pillow's limit by default, any number if it is 0.
    """
    if not path.is_file():
        raise SceneError(f"{path}: cannot be opened (No such file or directory)")
    if not path.stat().st_size:
        raise SceneError(f"{path}: the file is empty")
    # Within an Env, GDAL's messages go to Python's logging instead of standard error, in each thread.
    with rasterio.Env():
        try:
            file = rasterio.open(path)
        except Exception as error:  # GDAL's messages on broken files need not even be text
            raise SceneError(f"{path}: not a TIFF, JPEG 2000 or VRT image ({_reason(error)})") from error
        with file:
            if any(str(kind).startswith("complex") for kind in file.dtypes):
                raise SceneError(f"{path}: complex values are not read: convert them to amplitude or decibels first")
            limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) if most_pixels is None else most_pixels
            if limit and file.width * file.height > limit:
                raise SceneError(f"{path}: more than {limit:,} pixels: cut it into scenes first")
            try:
                yield file
            except GeodistillError:
                raise
            except Exception as error:
                raise SceneError(f"{path}: cannot be decoded ({_reason(error)})") from error


def _reason(error: Exception) -> str:
    """Return the cause of a GDAL error in one line, without the path."""
    deepest: BaseException = error
    while deepest.__cause__ is not None:
        deepest = deepest.__cause__
    text = next(iter(str(deepest).splitlines()), "")
    return text.split(": ", 1)[-1].strip().rstrip(".") or type(deepest).__name__


@contextmanager
def undecodable_messages_ignored() -> Iterator[None]:
    """Within the block, print nothing where rasterio cannot decode a message of GDAL's on a damaged file.

    Rasterio passes this error to `sys.excepthook` and goes on.
    """
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, UnicodeDecodeError):
            before(kind, error, trace)

    sys.excepthook = hook
    try:
        yield
    finally:
        sys.excepthook = before


def upright(image: Image.Image, path: Path) -> Image.Image:
    """Return `image`, turned as the TIFF at `path` says; GDAL does not look at this tag."""
    try:
        with Image.open(path, formats=("TIFF",)) as file:
            turned = file.getexif().get(_ORIENTATION, 1)
    except Exception:  # files that Pillow cannot read are not turned
        return image
    if turned == 1:
        return image
    image.getexif()[_ORIENTATION] = turned
    return ImageOps.exif_transpose(image)


READERS: tuple[Reader, ...] = (PillowReader(), RasterReader())
SUFFIXES = frozenset().union(*(reader.suffixes for reader in READERS))


def reader_of(path: Path) -> Reader:
    """Return the reader of the file at `path`, by its suffix; raise SceneError if there is none."""
    found = next((reader for reader in READERS if path.suffix.lower() in reader.suffixes), None)
    if found is None:
        raise SceneError(f"{path}: no reader for files {path.suffix!r}: known are {', '.join(sorted(SUFFIXES))}")
    return found
