"""Decoding images of common kinds by Pillow, and cutting squares from them."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from geodistill.errors import SceneError

# Listed, so that Pillow never tries formats that call other programs or hold no scenes.
FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP")
ALPHA_MODES = frozenset({"RGBA", "LA", "PA", "RGBa", "La"})


def read_bytes(path: Path) -> bytes:
    """Return the content of the file at `path`; raise SceneError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise SceneError(f"{path}: cannot be opened ({error.strerror or error})") from error


def decode_image(data: bytes, name: str) -> Image.Image:
    """Return the image encoded in `data`, upright; `name` is for the error message only.

    Greyscale of more than 8 bits is returned as it is. All else becomes RGB: grey, palette and CMYK are converted, and
    transparency is laid on black.
    """
    with opened(data, name) as image:
        image.load()
        upright = ImageOps.exif_transpose(image)
        return upright if is_deep(upright) else to_rgb(upright)


@contextmanager
def opened(data: bytes, name: str) -> Iterator[Image.Image]:
    """Open the image encoded in `data`; errors within the block become SceneErrors that name the file."""
    if not data:
        raise SceneError(f"{name}: the file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            yield image
    except UnidentifiedImageError as error:
        raise SceneError(f"{name}: not a JPEG, PNG, TIFF, WebP or BMP image") from error
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise SceneError(f"{name}: more than {limit:,} pixels: cut it into scenes first") from error
    except Exception as error:  # broken files make the decoders raise almost anything
        raise SceneError(f"{name}: cannot be decoded ({error or type(error).__name__})") from error


def is_deep(image: Image.Image) -> bool:
    """Return whether `image` is greyscale of more than 8 bits."""
    return image.mode == "F" or image.mode.startswith("I")


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image of at most 8 bits as RGB; transparency is laid on black."""
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        rgba = image.convert("RGBA")
        black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, rgba).convert("RGB")
    return image.convert("RGB")


def bands_to_square(pixels: NDArray[np.uint8], size: int) -> torch.Tensor:
    """Return the central square of `pixels`, [channels, h, w], resized (bicubic), as uint8 [channels, size, size]."""
    if len(pixels) == 3:
        return to_square_tensor(Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))), size)
    return torch.cat([to_square_tensor(Image.fromarray(band), size) for band in pixels])


def to_square_tensor(image: Image.Image, size: int) -> torch.Tensor:
    """Return the central square of `image`, resized (bicubic), as uint8 [3, size, size], or [1, size, size] if grey."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    pixels = torch.from_numpy(np.array(square))
    return pixels.permute(2, 0, 1).contiguous() if pixels.ndim == 3 else pixels[None]  # [H, W, 3] -> [3, H, W]
