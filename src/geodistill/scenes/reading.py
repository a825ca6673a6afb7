"""How the values of a data set's files become 8-bit RGB: which bands, which range, what is not a measurement.

The choice is made once for a data set, and is the same for all its files. A stretch of each file by itself would hide
what distinguishes the classes, such as the level of a radar image.
"""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

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
_NATURAL = "rgb"
_MEASURED = "auto"
# Names of red, green and blue bands, as files have them.
_NAMES = (RGB, ("b4", "b3", "b2"), ("b04", "b03", "b02"), ("r", "g", "b"))
_INFRARED = ("nir", "b8", "b08")
# By the number of bands of a file that does not name them: red, green and blue; near infrared; what the bands are.
_USUAL = {
    4: ((1, 2, 3), 4, "red, green, blue, near infrared"),
    12: ((4, 3, 2), 8, "the bands of Sentinel-2 L2A (B1 to B12 without B10)"),
    13: ((4, 3, 2), 8, "the bands of Sentinel-2 L1C"),
}


@dataclass(frozen=True)
class Reading:
    """How files become images.

    bands: numbers of one (grey) or three bands (red, green, blue), counted from 1; none if each file's own colours are
    taken. scale: for each of these bands, the values that become 0 and 255; none if values are 0 to 255 already.
    alpha: whether a transparency band masks pixels out. measured: whether the scale was measured on training scenes.
    Without `bands`, one pair of `scale` serves all of a file's.
    """

    bands: tuple[int, ...] = ()
    scale: tuple[tuple[float, float], ...] = ()
    alpha: bool = False
    measured: bool = False

    def image(self, path: Path) -> Image.Image:
        """Return the file at `path` as RGB; pixels without a measurement get the mean of the others, band by band.

        Raises:
            SceneError: the file cannot be read, lacks a band, has no valid pixel, or its values need a range.
        """
        reader = reader_of(path)
        image = self.rgb(reader.values(path, self.bands, alpha=self.alpha), path)
        return upright(image, path) if isinstance(reader, RasterReader) and not self.bands else image

    def rgb(self, found: Values, path: Path) -> Image.Image:
        """Return the values `found` of this reading's bands as RGB; `path` is for the messages of its errors.

        Raises:
            SceneError: there are neither one nor three bands, no pixel is valid, or the values need a range.
        """
        if len(found.bands) not in (1, 3):
            raise SceneError(f"{path}: {len(found.bands)} bands: give --bands, one (grey) or three (red, green, blue)")
        if not self.scale and found.bands.dtype != np.uint8:
            raise SceneError(f"{path}: values of type {found.bands.dtype} need a range: give --scale LOW,HIGH")
        filled = _filled(found.bands, found.valid, path)
        pixels = self._scaled(filled) if self.scale else filled
        return Image.fromarray(np.broadcast_to(pixels.transpose(1, 2, 0), (*pixels.shape[1:], 3)).copy())

    def _scaled(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        # One pair serves all bands where the files' own colours are taken.
        low, high = (np.array(ends, np.float64)[:, None, None] for ends in zip(*self.scale, strict=True))
        return np.clip((values - low) / (high - low) * 255, 0, 255).round().astype(np.uint8)

    def as_dict(self) -> dict[str, Any]:
        """Return the reading as JSON types; `from_dict` reads it."""
        return asdict(self) | {"bands": list(self.bands), "scale": [list(ends) for ends in self.scale]}

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> "Reading":
        """Return the reading that `as_dict` wrote."""
        scale = tuple((float(low), float(high)) for low, high in found["scale"])
        return cls(tuple(found["bands"]), scale, bool(found["alpha"]), bool(found["measured"]))


# 8-bit images with their own colours.
PLAIN = Reading()


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
        bands: "rgb" for what the files say are red, green and blue; else numbers or the files' own names of one or
            three bands, such as "4,3,2" or "B8".
        masks: whether the transparency bands of all files hold 0 and the largest value only.

    Raises:
        SceneError: the files are of several kinds, have no such bands, or do not say which ones are the colours.
    """
    first, info = files[0]
    if all(_is_plain(one) for _, one in files) and bands == _NATURAL:
        return PLAIN
    _refuse_mixtures(files)
    alpha = info.alpha is not None and masks
    if info.alpha is not None and not masks and bands == _NATURAL:
        log.warning(
            "band %d is tagged as transparency, but its values are no mask: it may be near infrared, and is not used "
            "(--bands selects others)",
            info.alpha,
        )
    chosen = _natural(info, first) if bands == _NATURAL else _asked(bands, info, first)
    return Reading(chosen, alpha=alpha)


def _is_plain(info: Info) -> bool:
    return info.dtype == "uint8" and info.nodata is None and info.bands in (1, 3)


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


def _natural(info: Info, path: Path) -> tuple[int, ...]:
    """Return the numbers of the bands that `info` says are the colours, or that usually are."""
    named = _named(info)
    if named:
        return named
    coloured = [band for band in range(1, info.bands + 1) if band != info.alpha]
    if len(coloured) in (1, 3):
        return tuple(coloured)
    if info.bands in _USUAL:
        chosen, _, what = _USUAL[info.bands]
        log.warning(
            "the %d bands have no names: they are taken for %s, and read as RGB from %s (--bands selects others)",
            *(info.bands, what, ",".join(map(str, chosen))),
        )
        return chosen
    raise SceneError(
        f"{path}: {info.bands} bands, and the file does not say which are red, green and blue: give --bands, one or "
        f"three of 1 to {info.bands}"
    )


def _named(info: Info) -> tuple[int, ...]:
    """Return the numbers of red, green and blue by the colours of the bands or by their names; none if neither says."""
    for known in (info.colours, tuple(name.lower() for name in info.names)):
        for names in _NAMES:
            if set(names) <= set(known):
                return tuple(known.index(name) + 1 for name in names)
    return ()


def _asked(bands: str, info: Info, path: Path) -> tuple[int, ...]:
    """Return the numbers of the bands that `bands` lists by number or name."""
    roles = _roles(info)
    names = roles | {name.lower(): band for band, name in enumerate(info.names, start=1) if name}
    chosen = []
    for one in (part.strip() for part in bands.split(",")):
        band = int(one) if one.isdigit() else names.get(one.lower(), 0)
        if not 1 <= band <= info.bands:
            own = {name.lower(): name for name in info.names if name}
            hint = did_you_mean(own.get(one.lower(), one), [*info.names, *roles])
            known = f"1 to {info.bands}" + (f", or {', '.join(filter(None, info.names))}" if any(info.names) else "")
            raise SceneError(f"{path} has no band {one!r}: {hint}give {known}")
        chosen.append(band)
    if len(chosen) not in (1, 3):
        raise SceneError(f"--bands {bands} names {len(chosen)} bands: give one (grey) or three (red, green, blue)")
    return tuple(chosen)


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
        return replace(reading, scale=_parsed(scale, len(reading.bands) or 1))
    if dtype == "uint8":
        return reading
    return replace(reading, scale=measured_scale(train, reading), measured=True)


def _parsed(scale: str, count: int) -> tuple[tuple[float, float], ...]:
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
    chosen = paths[:: -(-len(paths) // _FILES)]

    def some(path: Path) -> NDArray[Any]:
        found = reader_of(path).values(path, reading.bands, alpha=reading.alpha)
        values = found.bands[:, found.valid]  # [bands, valid pixels]
        return values[:, :: max(1, values.shape[1] // _PIXELS)].astype(np.float64)

    with ThreadPoolExecutor(4) as pool:
        values = np.concatenate(list(pool.map(some, chosen)), axis=1)
    if not values.shape[1]:
        raise SceneError(f"{paths[0]} and all other training images have no pixel that is a measurement")
    _tell_of_fill(values)
    ends = np.percentile(values, PERCENTILES, axis=1).T
    # Rounded, so that the last bits of a sum do not make another data set.
    rounded = [(float(f"{low:.6g}"), float(f"{high:.6g}")) for low, high in ends]
    return tuple((low, high if high > low else low + 1) for low, high in rounded)
