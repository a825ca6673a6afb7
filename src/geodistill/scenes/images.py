"""Reading image files of common kinds as eight-bit RGB."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from geodistill.errors import SceneError

SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".tif", ".tiff", ".webp", ".bmp"})
# Listed, so that Pillow never tries formats that call other programs or hold no scenes.
FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP")
ALPHA_MODES = frozenset({"RGBA", "LA", "PA", "RGBa", "La"})


def read_image(path: Path) -> Image.Image:
    """Return the image at `path` as upright RGB; raise SceneError with file and reason if it is broken."""
    return decode_image(read_bytes(path), str(path))


def read_bytes(path: Path) -> bytes:
    """Return the content of the file at `path`; raise SceneError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise SceneError(f"{path}: cannot be opened ({error.strerror or error})") from error


def decode_image(data: bytes, name: str) -> Image.Image:
    """Return the image encoded in `data` as upright RGB; `name` is for the error message only.

    Grey, palette and CMYK are converted; transparency is laid on black; 16-bit grey keeps its full range (65535 is
    white); floating point in [0, 1] is scaled; any other range is stretched from its minimum to its maximum.
    """
    if not data:
        raise SceneError(f"{name}: the file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError as error:
        raise SceneError(f"{name}: not a JPEG, PNG, TIFF, WebP or BMP image") from error
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise SceneError(f"{name}: more than {limit:,} pixels: cut it into scenes first") from error
    except Exception as error:  # broken files make the decoders raise almost anything
        raise SceneError(f"{name}: cannot be decoded ({error or type(error).__name__})") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_to_8_bit(np.asarray(image))).convert("RGB")
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        rgba = image.convert("RGBA")
        black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, rgba).convert("RGB")
    return image.convert("RGB")


def _to_8_bit(values: np.ndarray) -> np.ndarray:
    """Scale [H, W] integers or floats to uint8; values that are not finite become black."""
    finite = np.isfinite(values)
    low, high = (float(values[finite].min()), float(values[finite].max())) if finite.any() else (0.0, 0.0)
    white = 65535.0 if np.issubdtype(values.dtype, np.integer) else 1.0
    if low >= 0 and high <= white:
        low, high = 0.0, white
    scaled = (np.where(finite, values, low).astype(np.float64) - low) / (high - low or 1.0)
    return (scaled * 255).round().astype(np.uint8)


def to_square_tensor(image: Image.Image, size: int) -> torch.Tensor:
    """Return the central square of `image`, resized (bicubic), as uint8 [3, size, size]."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()  # [H, W, 3] -> [3, H, W]
