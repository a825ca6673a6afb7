"""Damaged files: each is read, or refused with a SceneError that names it. `make fuzz` runs the whole corpus."""

import contextlib
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rasterio import warp
from rasters import LEFT, TOP, tif
from test_archives import packed
from test_folder import fill

from geodistill.errors import SceneError
from geodistill.scenes import cut_tiles, open_scenes
from geodistill.scenes.folder import _verify
from geodistill.scenes.readers import undecodable_messages_ignored
from geodistill.scenes.reading import choose_bands, with_scale
from geodistill.scenes.scenes import SceneFile

# Mutations of each seed file; the whole corpus has more than a thousand files.
WHOLE, PART = 80, 4
SIDE = 24


def _seeds(folder: Path) -> list[Path]:
    """Return sound files of many kinds."""
    draw = np.random.default_rng(0)

    def values(bands: int, dtype: str = "uint8") -> np.ndarray:
        return draw.integers(0, 200, (bands, SIDE, SIDE)).astype(dtype)

    exact = {"driver": "JP2OpenJPEG", "QUALITY": "100", "REVERSIBLE": "YES"}
    found = [
        tif(folder / "rgb.tif", values(3), photometric="RGB"),
        tif(folder / "lzw.tif", values(3), compress="lzw", interleave="band"),
        tif(folder / "tiled.tif", values(1, "uint16"), tiled=True, blockxsize=16, blockysize=16, compress="deflate"),
        tif(folder / "float.tif", values(4, "float32"), nodata=-1, located=True),
        tif(folder / "lerc.tif", values(1, "int16"), compress="lerc"),
        tif(folder / "many.tif", values(13, "uint16"), names=tuple(f"B{k}" for k in range(13))),
        tif(folder / "eight.jp2", values(3), **exact),
        tif(folder / "deep.jp2", values(3, "uint16"), **exact),
    ]
    picture = Image.fromarray(values(3).transpose(1, 2, 0).copy())
    for name in ("a.jpg", "a.png", "a.webp", "a.bmp"):
        picture.save(folder / name)
        found.append(folder / name)
    picture.convert("P").save(folder / "palette.png")
    Image.fromarray(values(1, "uint16")[0]).save(folder / "deep.png")
    (folder / "none.vrt").write_text(
        '<VRTDataset rasterXSize="9" rasterYSize="9"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        "<SourceFilename>nowhere.tif</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    (folder / "text.png").write_text("<html>not found</html>")
    return [*found, folder / "palette.png", folder / "deep.png", folder / "none.vrt", folder / "text.png"]


def _mutations(data: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Yield `data` cut, with bytes and stretches changed, doubled, removed, or a header before it."""
    dice = random.Random(seed)
    for _ in range(count):
        changed = bytearray(data)
        for _ in range(dice.choice((1, 1, 2, 8))):
            at = dice.randrange(len(changed) or 1)
            # Most structure is at the beginning of a file.
            at = at if dice.random() < 0.5 else min(at, dice.randrange(64))
            kind = dice.randrange(6)
            if kind == 0:
                changed[at:] = b""
            elif kind == 1:
                changed[at : at + 1] = bytes([dice.randrange(256)])
            elif kind == 2:
                changed[at : at + 4] = dice.choice(
                    (b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", os.urandom(4))
                )
            elif kind == 3:
                changed[at : at + dice.randrange(1, 60)] = b""
            elif kind == 4:
                changed[at:at] = changed[at : at + dice.randrange(1, 60)]
            else:
                changed[at:at] = bytes(dice.randrange(256) for _ in range(dice.randrange(1, 9)))
            if not changed:
                break
        yield bytes(changed)


def _attempt(path: Path) -> str:
    """Read `path` as `open_scenes` and `Scenes.pixels` do; return why it was refused, "" if it was not."""
    found = _verify(SceneFile(path, 0, path.name), "rgb")
    if isinstance(found, str):
        return found
    assert found.info is not None
    try:
        reading = with_scale(choose_bands([(path, found.info)]), found.info.dtype, [path])
        assert reading.image(path).mode == "RGB"
    except SceneError as error:
        return str(error)
    return ""


def _attack(folder: Path, count: int) -> tuple[int, int]:
    """Return how many damaged files were read, and how many were refused."""
    seeds = _seeds(folder)
    with undecodable_messages_ignored():
        return _attack_all(folder, seeds, count)


def _attack_all(folder: Path, seeds: list[Path], count: int) -> tuple[int, int]:
    read = refused = 0
    assert not any(_attempt(path) for path in seeds[:-2])
    for rank, path in enumerate(seeds):
        data = path.read_bytes()
        for k, changed in enumerate(_mutations(data, count, rank)):
            target = folder / f"{path.stem}-{k}{path.suffix}"
            target.write_bytes(changed)
            reason = _attempt(target)
            assert not reason or str(target) in reason
            assert "\n" not in reason
            read, refused = read + (not reason), refused + bool(reason)
            target.unlink()
    return read, refused


def _containers(folder: Path) -> list[Path]:
    """Return sound archives, lists and labels of two classes, without those whose libraries are missing."""
    fill(folder / "data")
    files = sorted((folder / "data").rglob("*.png"))
    found = [packed(folder / "data", suffix) for suffix in (".zip", ".tar", ".tar.gz")]
    with contextlib.suppress(ImportError):
        found.append(_parquet(folder / "images.parquet", files))
    with contextlib.suppress(ImportError):
        found += _vectors(folder)
    return found


def _parquet(path: Path, files: list[Path]) -> Path:
    import pyarrow
    import pyarrow.parquet

    rows = [
        {"image": {"bytes": one.read_bytes(), "path": one.name}, "label": one.parent.name, "split": "train"}
        for one in files
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def _vectors(folder: Path) -> list[Path]:
    import pyogrio.raw
    import shapely

    tif(folder / "mosaic.tif", np.zeros((1, 50, 50), np.uint8), located=True)
    x, y = warp.transform("EPSG:32629", "EPSG:4326", [LEFT + 100 + 10 * k for k in range(20)], [TOP - 250] * 20)
    points = np.array([shapely.Point(*place) for place in zip(x, y, strict=True)], object)
    columns = [np.array(["ab"[k % 2] for k in range(20)], object)]
    found = [folder / "points.gpkg", folder / "points.geojson"]
    for path, driver in zip(found, ("GPKG", "GeoJSON"), strict=True):
        about: dict[str, Any] = {"geometry_type": "Point", "crs": "EPSG:4326", "driver": driver}
        pyogrio.raw.write(path, shapely.to_wkb(points), columns, ["label"], **about)
    return found


def _opened(path: Path, folder: Path) -> str:
    """Open what holds scenes, or labels of scenes; return why it was refused, "" if it was not."""
    try:
        if path.suffix in (".gpkg", ".geojson"):
            cut_tiles(path, folder / "mosaic.tif", folder / "tiles", tile=4)
        else:
            open_scenes(path, split="hash")
    except SceneError as error:
        return str(error)
    finally:
        for name in ("home", "tiles"):
            shutil.rmtree(folder / name, ignore_errors=True)
    return ""


def _attack_containers(folder: Path, count: int) -> tuple[int, int]:
    """Return how many damaged containers were read, and how many were refused."""
    read = refused = 0
    for rank, path in enumerate(_containers(folder)):
        assert not _opened(path, folder)
        suffix = "".join(path.suffixes)
        for k, changed in enumerate(_mutations(path.read_bytes(), count, 1000 + rank)):
            target = folder / f"changed-{k}{suffix}"
            target.write_bytes(changed)
            reason = _opened(target, folder)
            assert "\n" not in reason
            read, refused = read + (not reason), refused + bool(reason)
            target.unlink()
    return read, refused


def test_no_damaged_container_ends_in_a_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    assert sum(_attack_containers(tmp_path, PART)) >= 3 * PART


@pytest.mark.skipif("FUZZ" not in os.environ, reason="runs by `make fuzz`")
def test_hundreds_of_containers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    read, refused = _attack_containers(tmp_path, WHOLE)
    assert read + refused >= 3 * WHOLE
    assert read
    assert refused
    print(f"{read} damaged archives, lists and labels read, {refused} refused")


def test_no_damaged_file_ends_in_a_traceback(tmp_path: Path) -> None:
    read, refused = _attack(tmp_path, PART)
    assert read
    assert refused


@pytest.mark.skipif("FUZZ" not in os.environ, reason="runs by `make fuzz`")
def test_the_whole_corpus(tmp_path: Path) -> None:
    read, refused = _attack(tmp_path, WHOLE)
    assert read + refused > 1000
    print(f"{read} damaged files read, {refused} refused")
