"""How the values of a data set's files become 8-bit images: which bands, which range, what is not a measurement.

The choice is made once for a data set, and is the same for all its files. A stretch of each file by itself would hide
what distinguishes the classes, such as the level of a radar image.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image
from rasterio.enums import ColorInterp

from geodistill.errors import SceneError, did_you_mean
from geodistill.scenes.readers import RGB, Info, RasterReader, Values, reader_of, upright

log = logging.getLogger("geodistill")

# Percentiles of the training scenes' values that become black and white.
PERCENTILES = (1.0, 99.0)
# Share of pixels above which a lowest value far from all others is suspected to be a fill value.
_FREQUENT = 0.002
# Pixels whose sides differ by less than this factor count as equally large.
_SAME_SIZE = 1.05
# Numbers of files, and of pixels of each, that these are measured on.
_FILES, _PIXELS = 1000, 4096
NOTHING = "no pixel is a measurement (all are nodata, masked or not finite)"
_NATURAL, _EVERY = "rgb", "all"
# Number of bands that an image may have.
MOST_BANDS = 16
_MEASURED = "auto"
# Fields of a reading that its record has only where they say something.
_NOT_ALWAYS = ("dtype", "names", "of_bands")
# The first three channels of images with all bands, as GDAL calls them.
_MEANING = {0: ColorInterp.red, 1: ColorInterp.green, 2: ColorInterp.blue}
# Names of red, green and blue bands, as files have them.
_NAMES = (RGB, ("b4", "b3", "b2"), ("b04", "b03", "b02"), ("r", "g", "b"))
_INFRARED = ("nir", "b8", "b08")
# Names that the bands of spectral indices go by; the numbers are those of Sentinel-2.
_ROLES = {
    **{role: tuple(names[place] for names in _NAMES) for place, role in enumerate(RGB)},
    "nir": _INFRARED,
    "swir2": ("swir2", "b12"),
}
# By the number of bands of a file that does not name them: red, green and blue; near infrared; what the bands are.
_USUAL = {
    4: ((1, 2, 3), 4, "red, green, blue, near infrared"),
    12: ((4, 3, 2), 8, "the bands of Sentinel-2 L2A (B1 to B12 without B10)"),
    13: ((4, 3, 2), 8, "the bands of Sentinel-2 L1C"),
}
# The numbers of bands by which files without names are taken for Sentinel-2's.
_SENTINEL = (12, 13)


@dataclass(frozen=True)
class Reading:
    """How files become images.

    bands: numbers of one (grey) or three bands (red, green, blue), counted from 1; none if each file's own colours are
    taken. scale: for each of these bands, the values that become 0 and 255; none if values are 0 to 255 already.
    alpha: whether a transparency band masks pixels out. measured: whether the scale was measured on training scenes.
    Without `bands`, one pair of `scale` serves all of a file's.
    dtype, names: of images with all bands only, which have 2 to 16 channels: the type of the files' values, and a name
    for each band. Their first three channels are shown as red, green and blue.
    of_bands: the number of bands that the files have, 0 if it is not known. It takes no part in comparisons, because
    sets and runs made before it was recorded lack it.
    """

    bands: tuple[int, ...] = ()
    scale: tuple[tuple[float, float], ...] = ()
    alpha: bool = False
    measured: bool = False
    dtype: str = ""
    names: tuple[str, ...] = ()
    of_bands: int = field(default=0, compare=False)

    @property
    def channels(self) -> int:
        """Return the number of channels of the images: 3, or that of the bands if all of them are kept."""
        return len(self.bands) if self.dtype else 3

    def channel(self, role: str) -> int | None:
        """Return the channel of the band that `role` names ("red", "green", "blue", "nir", "swir2"), if it is known."""
        names = [name.lower() for name in self.names]
        return next((names.index(name) for name in _ROLES[role] if name in names), None)

    def pixels(self, path: Path) -> NDArray[np.uint8]:
        """Return the file at `path` as uint8 [channels, h, w]; pixels without a measurement get the mean of the others.

        Raises:
            SceneError: as `image` does.
        """
        reader = reader_of(path)
        found = self.of_values(reader.values(path, self.bands, alpha=self.alpha), path)
        if not isinstance(reader, RasterReader) or self.bands:
            return found
        return np.asarray(upright(Image.fromarray(found.transpose(1, 2, 0).copy()), path)).transpose(2, 0, 1)

    def of_values(self, found: Values, path: Path) -> NDArray[np.uint8]:
        """Return the values `found` of this reading's bands as uint8 [channels, h, w]; `path` is for errors' messages.

        Raises:
            SceneError: there are neither one nor three bands, unless all are kept; no pixel is valid; or the values
                need a range.
        """
        if len(found.bands) not in (1, 3) and not self.dtype:
            raise SceneError(f"{path}: {len(found.bands)} bands: give --bands, one (grey) or three (red, green, blue)")
        if not self.scale and found.bands.dtype != np.uint8:
            raise SceneError(f"{path}: values of type {found.bands.dtype} need a range: give --scale LOW,HIGH")
        filled = _filled(found.bands, found.valid, path)
        pixels = self._scaled(filled) if self.scale else filled
        return np.broadcast_to(pixels, (self.channels, *pixels.shape[1:])).copy() if len(pixels) == 1 else pixels

    def measurements(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        """Return `pixels`, uint8 [channels, h, w], in the type and the units of the files: what `pixels` was made from.

        A value has the precision of 256 levels of the range `scale`. Only readings of all bands have a type.
        """
        if not self.scale:
            return pixels
        low, high = _ends(self.scale)
        values = low + pixels.astype(np.float64) / 255 * (high - low)
        if np.issubdtype(np.dtype(self.dtype), np.floating):
            return values.astype(self.dtype)
        kind = np.iinfo(self.dtype)
        return values.round().clip(kind.min, kind.max).astype(self.dtype)

    def write(self, path: Path, pixels: NDArray[np.uint8]) -> None:
        """Write `pixels`, uint8 [channels, h, w], to `path` as a GeoTIFF with their type, units and names of bands.

        The bands have the order of their numbers. The file has no georeference. `of_written` reads it.
        """
        order = np.argsort(self.bands)
        values = self.measurements(pixels)[order]
        count, height, width = values.shape
        kind = {"count": count, "height": height, "width": width, "dtype": values.dtype}
        # Without a colour interpretation GDAL takes the fourth of four bands for transparency.
        with rasterio.open(path, "w", driver="GTiff", compress="deflate", photometric="minisblack", **kind) as file:
            file.write(values)
            file.colorinterp = [_MEANING.get(int(band), ColorInterp.undefined) for band in order]
            for band, place in enumerate(order, start=1):
                file.set_band_description(band, self.names[place] if self.names else f"band {band}")

    def of_written(self) -> "Reading":
        """Return the reading of files that hold the bands of this one only, in the order of their numbers."""
        ranks = {band: rank for rank, band in enumerate(sorted(self.bands), start=1)}
        return replace(self, bands=tuple(ranks[band] for band in self.bands), alpha=False, of_bands=len(self.bands))

    def image(self, path: Path) -> Image.Image:
        """Return the file at `path` as RGB; pixels without a measurement get the mean of the others, band by band.

        Raises:
            SceneError: the file cannot be read, lacks a band, has no valid pixel, or its values need a range.
        """
        shown = self.pixels(path)[list(shown_channels(self.channels))]
        return Image.fromarray(shown.transpose(1, 2, 0).copy())

    def _scaled(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        low, high = _ends(self.scale)
        return np.clip((values - low) / (high - low) * 255, 0, 255).round().astype(np.uint8)

    def as_dict(self) -> dict[str, Any]:
        """Return the reading as JSON types; `from_dict` reads it."""
        own = asdict(self) | {"bands": list(self.bands), "scale": [list(ends) for ends in self.scale]}
        own["names"] = list(self.names)
        # Left out where they say nothing, so that the record of scenes read as RGB stays what it was.
        return {key: value for key, value in own.items() if key not in _NOT_ALWAYS or value}

    def settings(self) -> dict[str, Any]:
        """Return what decides about the images as JSON types: `as_dict` without the number of bands of the files."""
        return {key: value for key, value in self.as_dict().items() if key != "of_bands"}

    def lacks(self, info: Info) -> bool:
        """Return whether a file with `info` lacks a band of this reading, or has another number of bands.

        Band 4 of a file with 13 bands is another one than band 4 of a file with 4. A mask may be absent.
        """
        known = {self.of_bands, self.of_bands - self.alpha} if self.of_bands else {info.bands}
        alike = bool(known & {info.bands, info.bands - (info.alpha is not None)})
        return bool(self.bands) and (max(self.bands) > info.bands or not alike)

    @property
    def told(self) -> str:
        """Return the numbers of the bands, and of how many, in words.

        >>> Reading((4, 3, 2), of_bands=13).told
        'bands 4, 3, 2 of 13'
        """
        numbers = f"bands {', '.join(map(str, self.bands))}"
        return f"{numbers} of {self.of_bands}" if self.of_bands else numbers

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> "Reading":
        """Return the reading that `as_dict` wrote."""
        scale = tuple((float(low), float(high)) for low, high in found["scale"])
        kept = (str(found.get("dtype", "")), tuple(found.get("names", ())), int(found.get("of_bands", 0)))
        return cls(tuple(found["bands"]), scale, bool(found["alpha"]), bool(found["measured"]), *kept)


def _ends(scale: Sequence[tuple[float, float]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the lower and the upper ends of `scale`, [bands, 1, 1] each; one pair serves all bands."""
    low, high = (np.array(ends, np.float64)[:, None, None] for ends in zip(*scale, strict=True))
    return low, high


# 8-bit images with their own colours.
PLAIN = Reading()


def shown_channels(count: int) -> tuple[int, int, int]:
    """Return the channels that are shown as red, green and blue, of images with `count` channels.

    >>> shown_channels(13), shown_channels(2)
    ((0, 1, 2), (0, 0, 0))
    """
    return (0, 1, 2) if count >= 3 else (0, 0, 0)


def read_image(path: Path, reading: Reading = PLAIN) -> Image.Image:
    """Return the image at `path` as upright RGB; raise SceneError with file and reason if it cannot be read."""
    return reading.image(path)


def _filled(values: NDArray[Any], valid: NDArray[np.bool_], path: Path) -> NDArray[Any]:
    if valid.all():
        return values
    if not valid.any():
        raise SceneError(f"{path}: {NOTHING}")
    filled = values.copy()
    for band in filled:
        mean = band[valid].mean(dtype=np.float64)
        band[~valid] = mean if np.issubdtype(band.dtype, np.floating) else round(float(mean))
    return filled


def choose_bands(files: Sequence[tuple[Path, Info]], bands: str = _NATURAL, *, masks: bool = False) -> Reading:
    """Return the reading of `files` without its scale.

    Args:
        files: all files of the data set, and what they hold.
        bands: "rgb" for what the files say are red, green and blue; "all" for all bands, if there are 2 to 16; else
            numbers or the files' own names of one or three bands, such as "4,3,2" or "B8", or of another number, the
            first three of them shown as red, green and blue.
        masks: whether the transparency bands of all files hold 0 and the largest value only.

    Raises:
        SceneError: the files are of several kinds, have no such bands, or do not say which ones are the colours.
    """
    first, info = files[0]
    if all(_is_plain(one) for _, one in files) and bands in (_NATURAL, _EVERY):
        return PLAIN
    _refuse_mixtures(files)
    if not _numbers(bands):
        _refuse_other_orders(files)
    alpha = info.alpha is not None and masks
    if info.alpha is not None and not masks and bands == _NATURAL:
        log.warning(
            "band %d is tagged as transparency, but its values are no mask: it may be near infrared, and is not used "
            "(--bands selects others)",
            info.alpha,
        )
    if bands == _NATURAL:
        return Reading(_natural(info, first), alpha=alpha, of_bands=info.bands)
    chosen = _every(info, first, masked=alpha) if bands == _EVERY else _asked(bands, info, first)
    if bands != _EVERY and len(chosen) in (1, 3):
        return Reading(chosen, alpha=alpha, of_bands=info.bands)
    return Reading(chosen, alpha=alpha, dtype=info.dtype, names=_names(info, chosen), of_bands=info.bands)


def _numbers(bands: str) -> tuple[int, ...]:
    """Return the numbers that `bands` lists; () if it has a name."""
    parts = [part.strip() for part in bands.split(",")]
    return tuple(map(int, parts)) if all(part.isdigit() for part in parts) else ()


def bands_used(info: Info, bands: str) -> tuple[int, ...]:
    """Return the numbers of the bands that a file with `info` is read by, as far as `bands` and the file say; else ().

    >>> bands_used(Info(8, 8, "uint16", ("gray",) * 4, ("b02", "b03", "b04", "b08")), "rgb")
    (3, 2, 1)
    """
    found = _named(info) if bands == _NATURAL else _numbers(bands)
    return found if all(1 <= band <= info.bands for band in found) else ()


def _every(info: Info, path: Path, *, masked: bool) -> tuple[int, ...]:
    """Return the numbers of all bands, red, green and blue first; a mask is none of them."""
    bands = [band for band in range(1, info.bands + 1) if not (masked and band == info.alpha)]
    if not 2 <= len(bands) <= MOST_BANDS:
        raise SceneError(f"{path}: --bands all takes 2 to {MOST_BANDS} bands, the file has {len(bands)}: name some")
    try:
        shown = tuple(band for band in _natural(info, path, "shown as RGB from %s") if band in bands)
    except SceneError:
        shown = tuple(bands[:3])
        log.warning("the files do not say which bands are red, green and blue: the first ones are shown as these")
    return (*shown, *(band for band in bands if band not in shown))


def _names(info: Info, bands: Sequence[int]) -> tuple[str, ...]:
    """Return a name for each of `bands`: the file's own, else what the band is, else its number."""
    known = {band: role for role, band in _roles(info).items()}
    return tuple((info.names[band - 1] if info.names else "") or known.get(band, f"band {band}") for band in bands)


def _is_plain(info: Info) -> bool:
    natural = _named(info) in ((), (1, 2, 3))
    return info.dtype == "uint8" and info.nodata is None and info.bands in (1, 3) and natural


def _refuse_mixtures(files: Sequence[tuple[Path, Info]]) -> None:
    """Raise SceneError if band counts or types differ; log if resolutions do."""
    kinds: dict[tuple[int, str], Path] = {}
    for path, info in files:
        kinds.setdefault((info.bands, info.dtype), path)
    if len(kinds) > 1:
        told = "; ".join(f"{bands} band(s) of {dtype}, {path} first" for (bands, dtype), path in kinds.items())
        raise SceneError(f"the images are of {len(kinds)} kinds: {told}: keep one kind, or convert the others")
    sizes = [(abs(info.resolution[0]), path) for path, info in files if info.resolution is not None]
    if sizes:
        (fine, first), (coarse, other) = min(sizes), max(sizes)
        if coarse > _SAME_SIZE * fine:
            log.warning("the size of a pixel differs: %.4g in %s, %.4g in %s", fine, first, coarse, other)


def _refuse_other_orders(files: Sequence[tuple[Path, Info]]) -> None:
    """Raise SceneError if red, green and blue are not the same bands in all files that say which they are."""
    coloured: dict[tuple[int, ...], Path] = {}
    for path, info in files:
        if named := _named(info):
            coloured.setdefault(named, path)
    if len(coloured) > 1:
        told = "; ".join(f"{','.join(map(str, named))} in {path}" for named, path in coloured.items())
        raise SceneError(f"red, green and blue are not the same bands in all images: {told}: give numbers as --bands")


def _natural(info: Info, path: Path, use: str = "read as RGB from %s (--bands selects others)") -> tuple[int, ...]:
    """Return the numbers of the bands that `info` says are the colours, or that usually are; `use` is what they do."""
    named = _named(info)
    if named:
        return named
    coloured = [band for band in range(1, info.bands + 1) if band != info.alpha]
    if len(coloured) in (1, 3):
        return tuple(coloured)
    if info.bands in _USUAL:
        chosen, _, what = _USUAL[info.bands]
        log.warning(
            "the %d bands have no names: they are taken for %s, and " + use,
            *(info.bands, what, ",".join(map(str, chosen))),
        )
        return chosen
    every = ", or all" if info.bands <= MOST_BANDS else f", or up to {MOST_BANDS} of them"
    raise SceneError(
        f"{path}: {info.bands} bands, and the file does not say which are red, green and blue: give --bands, one or "
        f"three of 1 to {info.bands}{every}"
    )


def _named(info: Info) -> tuple[int, ...]:
    """Return the numbers of red, green and blue by the names of the bands or by their colours; none if neither says.

    Names come first: GDAL tags the first three of 8-bit bands as red, green and blue unless it is told otherwise.
    """
    for known in (tuple(name.lower() for name in info.names), info.colours):
        for names in _NAMES:
            if set(names) <= set(known):
                return tuple(known.index(name) + 1 for name in names)
    return ()


def _asked(bands: str, info: Info, path: Path) -> tuple[int, ...]:
    """Return the numbers of the bands that `bands` lists by number or name."""
    roles = _roles(info)
    names = _usual_names(info) | roles | {name.lower(): band for band, name in enumerate(info.names, start=1) if name}
    chosen = []
    for one in (part.strip() for part in bands.split(",")):
        band = int(one) if one.isdigit() else names.get(one.lower(), 0)
        if not 1 <= band <= info.bands:
            own = {name.lower(): name for name in info.names if name}
            hint = did_you_mean(own.get(one.lower(), one), [*info.names, *roles])
            known = f"1 to {info.bands}" + (f", or {', '.join(filter(None, info.names))}" if any(info.names) else "")
            raise SceneError(f"{path} has no band {one!r}: {hint}give {known}")
        chosen.append(band)
    if len(chosen) > MOST_BANDS or (len(set(chosen)) < len(chosen) and len(chosen) != 3):
        raise SceneError(f"--bands {bands}: give at most {MOST_BANDS} bands, each of them once")
    return tuple(chosen)


def _usual_names(info: Info) -> dict[str, int]:
    """Return the numbers of Sentinel-2's bands B1 to B8 in files of 12 or 13 bands without names, under both spellings.

    Those after B8 are in one order in some files and in another in others: B8A follows B8, or comes last.
    """
    if info.bands not in _SENTINEL or any(info.names):
        return {}
    return {spelled: band for band in range(1, 9) for spelled in (f"b{band}", f"b{band:02}")}


def _roles(info: Info) -> dict[str, int]:
    """Return the numbers of the bands that can be asked for as red, green, blue and nir, as far as they are known."""
    usual, infrared, _ = _USUAL.get(info.bands, ((), 0, ""))
    lower = [name.lower() for name in info.names]
    if any(lower):
        infrared = next((lower.index(name) + 1 for name in _INFRARED if name in lower), 0)
    # Shorter if neither the file nor the number of bands says which ones are the colours.
    roles = dict(zip(RGB, _named(info) or usual, strict=False))
    return roles | ({"nir": infrared} if infrared else {})


def with_scale(reading: Reading, dtype: str, train: Sequence[Path], scale: str = _MEASURED) -> Reading:
    """Return `reading` with its scale.

    Args:
        reading: the bands.
        dtype: of the files' values.
        train: the files of the training scenes.
        scale: "auto" for percentiles of the training scenes' values, which 8-bit images do not need; else
            "LOW,HIGH", or a pair for each band, such as "0,3000" or "0,3000,0,2500,0,2000".

    Raises:
        SceneError: `scale` is not like that, or a file cannot be read.
    """
    if scale != _MEASURED:
        return replace(reading, scale=parsed_scale(scale, len(reading.bands) or 1))
    if dtype == "uint8":
        return reading
    return replace(reading, scale=measured_scale(train, reading), measured=True)


def parsed_scale(scale: str, count: int) -> tuple[tuple[float, float], ...]:
    """Return the ends of the range of each of `count` bands from "LOW,HIGH", or from a pair for each band.

    Raises SceneError for any other text.
    """
    try:
        ends = [float(part) for part in scale.split(",")]
    except ValueError:
        ends = []
    pairs = tuple(zip(ends[::2], ends[1::2], strict=False))
    if len(ends) not in (2, 2 * count) or not all(low < high for low, high in pairs):
        raise SceneError(f"--scale {scale!r} is no range: give LOW,HIGH, or a pair for each of the {count} band(s)")
    return pairs if len(pairs) == count else pairs * count


def _tell_of_fill(values: NDArray[Any]) -> None:
    """Log if the lowest value looks like a fill value without a nodata tag: frequent, and far from all others."""
    for band in values:
        low, share = band.min(), float((band == band.min()).mean())
        others = band[band > low]
        if share > _FREQUENT and len(others) and others.min() - low > others.max() - others.min():
            log.warning(
                "the value %g fills %.1f %% of the pixels, far from all others: if it stands for no measurement, set "
                "it as nodata in the files (gdal_edit.py -a_nodata %g FILE), or give --scale",
                *(low, 100 * share, low),
            )
            return


def measured_scale(paths: Sequence[Path], reading: Reading) -> tuple[tuple[float, float], ...]:
    """Return the PERCENTILES of each band's values, over at most 1,000 of the files and 4,096 pixels of each."""
    chosen = some_files(paths)

    def some(path: Path) -> NDArray[Any]:
        found = reader_of(path).values(path, reading.bands, alpha=reading.alpha)
        return some_pixels(found.bands[:, found.valid])

    with ThreadPoolExecutor(4) as pool:
        values = np.concatenate(list(pool.map(some, chosen)), axis=1)
    if not values.shape[1]:
        raise SceneError(f"{paths[0]} and all other training images have no pixel that is a measurement")
    _tell_of_fill(values)
    return scale_of(values)


def some_files(paths: Sequence[Any]) -> Sequence[Any]:
    """Return at most 1,000 evenly spaced ones of `paths`, by which a range is measured."""
    return paths[:: -(-len(paths) // _FILES)]


def some_pixels(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return about 4,096 evenly spaced pixels of `values` [bands, pixels], or all if they are fewer."""
    return values[:, :: max(1, values.shape[1] // _PIXELS)].astype(np.float64)


def scale_of(values: NDArray[Any]) -> tuple[tuple[float, float], ...]:
    """Return the PERCENTILES of each band of `values` [bands, n], rounded; a band of one value gets a range of 1."""
    ends = np.percentile(values, PERCENTILES, axis=1).T
    rounded = [_rounded(low, high) for low, high in ends.tolist()]
    return tuple((low, high if high > low else low + 1) for low, high in rounded)


def _rounded(low: float, high: float) -> tuple[float, float]:
    """Return the ends of a range, rounded so that the last bits of a sum do not make another data set.

    >>> _rounded(12.3456789, 3330.98765), _rounded(1000.0001234, 1000.0011234)
    ((12.3457, 3330.99), (1000.0001234, 1000.0011234))
    """
    # Six digits, and more for a range that is narrow for its level.
    ratio = max(abs(low), abs(high)) / (high - low) if high > low else 1.0
    digits = 6 if ratio < 1000 else 6 + math.ceil(math.log10(ratio))
    return float(f"{low:.{digits}g}"), float(f"{high:.{digits}g}")
