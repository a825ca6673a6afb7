"""Small GeoTIFFs for tests."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import from_origin

LEFT, TOP, METRES = 500_000.0, 4_000_000.0, 10.0


def tif(path: Path, bands: Any, *, names: tuple[str, ...] = (), located: bool = False, **options: Any) -> Path:
    """Write `bands` [bands, h, w] as a GeoTIFF, or as `driver` says; `located` puts it into UTM zone 29N, 10 m."""
    bands = np.asarray(bands)
    profile: dict[str, Any] = {"driver": "GTiff", "dtype": bands.dtype, "count": len(bands)}
    profile |= {"height": bands.shape[1], "width": bands.shape[2]}
    if located:
        profile |= {"crs": "EPSG:32629", "transform": from_origin(LEFT, TOP, METRES, METRES)}
    path.parent.mkdir(parents=True, exist_ok=True)
    alpha = options.pop("mask", None)
    scales, offsets = options.pop("scales", None), options.pop("offsets", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", **profile | options) as file:
            file.write(bands)
            for index, name in enumerate(names, start=1):
                file.set_band_description(index, name)
            if scales:
                file.scales, file.offsets = scales, offsets
            if alpha is not None:
                file.write_mask(alpha)
    return path


def archive(root: Path, make: Any, *, each: int = 6, seed: int = 0, **options: Any) -> Path:
    """Write `root`/<class>/<k>.tif, `each` of the classes a and b; `make(class number, random)` returns the bands."""
    random = np.random.default_rng(seed)
    for label, name in enumerate("ab"):
        for k in range(each):
            suffix = ".jp2" if options.get("driver") == "JP2OpenJPEG" else ".tif"
            tif(root / name / f"{k}{suffix}", make(label, random), **options)
    return root
