import io

import numpy as np
import pytest
import torch
from PIL import Image

from geodistill.errors import SceneError
from geodistill.scenes import read_image, to_square_tensor
from geodistill.scenes.images import decode_image

RGB = np.array([[[200, 30, 90], [10, 120, 240]], [[0, 0, 0], [255, 255, 255]]], np.uint8)


def saved(tmp_path, image, name, **options):
    path = tmp_path / name
    image.save(path, **options)
    return np.asarray(read_image(path))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp", "a.webp"])
def test_lossless_formats_keep_every_value(tmp_path, name):
    options = {"lossless": True} if name.endswith("webp") else {}
    assert (saved(tmp_path, Image.fromarray(RGB), name, **options) == RGB).all()


def test_jpeg_is_close(tmp_path):
    flat = Image.new("RGB", (16, 16), (200, 30, 90))
    assert np.abs(saved(tmp_path, flat, "a.jpg", quality=95).astype(int) - [200, 30, 90]).max() <= 3


def test_grey_and_one_bit_repeat_over_channels(tmp_path):
    assert (saved(tmp_path, Image.fromarray(RGB[..., 0]), "l.png") == RGB[..., :1]).all()
    bits = Image.fromarray(RGB[..., 0]).point(lambda v: 255 * (v > 100)).convert("1")
    assert saved(tmp_path, bits, "1.png")[..., 2].tolist() == [[255, 0], [0, 255]]


def test_palette_and_its_transparency(tmp_path):
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 30, 90, 10, 120, 240])
    palette.putpixel((1, 0), 1)
    assert saved(tmp_path, palette, "p.png").tolist() == [[[200, 30, 90], [10, 120, 240]]]
    assert saved(tmp_path, palette, "t.png", transparency=1).tolist() == [[[200, 30, 90], [0, 0, 0]]]


def test_alpha_is_laid_on_black(tmp_path):
    assert saved(tmp_path, Image.new("RGBA", (1, 1), (200, 100, 50, 51)), "a.png").tolist() == [[[40, 20, 10]]]
    assert saved(tmp_path, Image.new("LA", (1, 1), (200, 0)), "la.png").tolist() == [[[0, 0, 0]]]


def test_cmyk(tmp_path):
    assert saved(tmp_path, Image.new("CMYK", (1, 1), (0, 255, 255, 0)), "c.tif").tolist() == [[[255, 0, 0]]]


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    image = Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8))
    for name in ("e.png", "e.tif"):
        assert saved(tmp_path, image, name, exif=exif).tolist() == [[[255, 0, 0]], [[0, 0, 255]]]


def encoded(kind="PNG", side=64):
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "BMP"])
def test_truncated_files_are_named(kind):
    with pytest.raises(SceneError, match=r"^x/broken: cannot be decoded \(.+\)$"):
        decode_image(encoded(kind)[:-600], "x/broken")


def test_empty_foreign_and_missing_files_are_named(tmp_path):
    with pytest.raises(SceneError, match=r"^a\.png: the file is empty$"):
        decode_image(b"", "a.png")
    with pytest.raises(SceneError, match=r"^a\.png: not a JPEG, PNG, TIFF, WebP or BMP image$"):
        decode_image(b"<html>not found</html>", "a.png")
    with pytest.raises(SceneError, match=r"none\.png: cannot be opened \(No such file or directory\)$"):
        read_image(tmp_path / "none.png")


def test_decompression_bombs_are_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(SceneError, match=r"^a\.png: more than 2,000 pixels: cut it into scenes first$"):
        decode_image(encoded(), "a.png")


def test_to_square_tensor_takes_the_centre():
    wide = np.zeros((4, 10, 3), np.uint8)
    wide[:, 3:7] = [9, 8, 7]
    square = to_square_tensor(Image.fromarray(wide), 2)
    assert (square.dtype, square.is_contiguous()) == (torch.uint8, True)
    assert (square == torch.tensor([9, 8, 7], dtype=torch.uint8)[:, None, None]).all()


def test_to_square_tensor_leaves_the_right_size_alone():
    assert (to_square_tensor(Image.fromarray(RGB), 2).permute(1, 2, 0).numpy() == RGB).all()
