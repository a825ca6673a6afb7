"""Spectral indices in words, for images whose near-infrared or shortwave-infrared band is known.

NDVI = (nir - red) / (nir + red): vegetation (Rouse et al. 1974). NDWI = (green - nir) / (green + nir): open water
(McFeeters 1996). NBR = (nir - swir2) / (nir + swir2): burnt land has low values (Key and Benson 2006).
"""

from torch import Tensor

from geodistill.scenes.reading import Reading

# The bands of (a - b) / (a + b), and the means of an image from which an index is medium and high.
INDICES = {
    "NDVI": (("nir", "red"), (0.2, 0.5)),
    "NDWI": (("green", "nir"), (-0.3, 0.1)),
    "NBR": (("nir", "swir2"), (0.1, 0.4)),
}


def measured_indices(images: Tensor, reading: Reading) -> dict[str, Tensor]:
    """Return the mean index float64 [n] of each image, for each of `INDICES` whose bands `reading` knows.

    `images` are uint8 [n, channels, s, s], which `reading` made from the files.

    >>> import torch
    >>> reading = Reading((1, 2), dtype="uint8", names=("red", "nir"))
    >>> images = torch.tensor([50, 150], dtype=torch.uint8)[None, :, None, None].expand(1, 2, 4, 4)
    >>> measured_indices(images, reading)["NDVI"]
    tensor([0.5000], dtype=torch.float64)
    """
    found = {}
    for name, (roles, _) in INDICES.items():
        one, other = (reading.channel(role) for role in roles)
        if one is not None and other is not None:
            a, b = (_values(images[:, channel], channel, reading) for channel in (one, other))
            found[name] = ((a - b) / (a + b).clamp(min=1e-6)).mean((1, 2))
    return found


def _values(band: Tensor, channel: int, reading: Reading) -> Tensor:
    """Return the measurements float64 [n, s, s] of one band; values below 0, which no reflectance has, are 0."""
    if not reading.scale:
        return band.double()
    low, high = reading.scale[channel]
    return (low + band.double() / 255 * (high - low)).clamp(min=0)


def index_phrase(means: dict[str, float]) -> str:
    """Return for example "high NDVI, low NDWI" for the mean of each index."""
    return ", ".join(f"{_word(value, *INDICES[name][1])} {name}" for name, value in means.items())


def _word(value: float, medium: float, high: float) -> str:
    return "high" if value >= high else "medium" if value >= medium else "low"
