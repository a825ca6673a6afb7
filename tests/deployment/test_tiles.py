import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rasterio import Affine
from rasterio.errors import RasterioIOError
from rasters import LEFT, METRES, TOP, tif

from geodistill.deployment import tiles
from geodistill.deployment.tiles import (
    Grid,
    _told_of_output,
    check_range,
    colour_of,
    fitting_reading,
    map_raster,
    nodata_of,
    with_mask,
)
from geodistill.errors import ConfigError, RunError, SceneError
from geodistill.evaluation.classifier import About
from geodistill.scenes.readers import RGB, Info
from geodistill.scenes.reading import PLAIN, Reading


@dataclass(frozen=True)
class Brightness:
    """Predicts class 1 for bright images, class 0 for dark ones; keeps what it has seen."""

    about: About
    seen: list[torch.Tensor]

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append(images)
        mean = images.float().mean((1, 2, 3))
        return torch.stack([128 - mean, mean - 128], dim=1)


def brightness(reading: Reading = PLAIN) -> Brightness:
    return Brightness(About("convnet3", "scratch", ("Dark", "Öde, bright"), 8, reading=reading), [])


sides = st.integers(1, 300)


@given(sides, sides, st.integers(1, 80), st.data())
def test_tiles_cover_the_raster_and_begin_inside(width: int, height: int, tile: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, tile))
    grid = Grid(width, height, tile, stride)
    for count, side in zip(grid.shape, (height, width), strict=True):
        assert (count - 1) * stride + tile >= side
        assert count == 1 or (count - 2) * stride + tile < side
        assert (count - 1) * stride < side
    seen = [(row, column) for row, columns in grid.parts() for column in columns]
    assert seen == [(row, column) for row in range(grid.shape[0]) for column in range(grid.shape[1])]


@given(st.integers(1, 60), st.integers(1, 60))
def test_a_pixel_of_the_map_is_the_middle_of_its_tile(row: int, column: int) -> None:
    grid, raster = Grid(5000, 5000, tile=50, stride=20), Affine(10, 0, 500_000, 0, -10, 4_000_000)
    turned = Affine(8, 6, 500_000, 6, -8, 4_000_000)
    for georeference in (raster, turned):
        a, b, c, d, e, f = georeference[:6]
        pixel, centre = (column + 0.5, row + 0.5), (column * 20 + 25, row * 20 + 25)
        made = grid.transform(georeference)
        x, y = made.a * pixel[0] + made.b * pixel[1] + made.c, made.d * pixel[0] + made.e * pixel[1] + made.f
        assert x == pytest.approx(a * centre[0] + b * centre[1] + c)
        assert y == pytest.approx(d * centre[0] + e * centre[1] + f)


@pytest.mark.parametrize(("tile", "stride"), [(0, 1), (8, 9), (8, 0)])
def test_tiles_that_leave_gaps_are_refused(tile: int, stride: int) -> None:
    with pytest.raises(ConfigError) as caught:
        Grid(100, 100, tile, stride)
    assert str(caught.value) == (
        f"tiles of {tile} pixels every {stride} pixels: give --tile 1 or more, and --stride from 1 to the side of a "
        "tile"
    )


def test_a_map_has_classes_georeference_colours_and_names(tmp_path: Path) -> None:
    bands = np.zeros((3, 40, 70), np.uint8)
    bands[:, :, 32:] = 255
    path = tif(tmp_path / "in.tif", bands, located=True)
    counts = map_raster(brightness(), path, tmp_path / "new" / "out.tif", Grid(70, 40, 16, 16), PLAIN)
    with rasterio.open(tmp_path / "new" / "out.tif") as made:
        # The last row of tiles covers 8 of 16 pixels, the last column 6 of 16: less than half.
        assert made.read(1).tolist() == [[0, 0, 1, 1, 255]] * 3
        assert made.nodata == 255
        assert made.crs == "EPSG:32629"
        assert made.transform == Affine(16 * METRES, 0, LEFT, 0, -16 * METRES, TOP)
        assert made.colormap(1)[1] == colour_of(1)
        tags = made.tags()
        assert (tags["CLASS_0"], tags["CLASS_1"]) == ("Dark", "Öde, bright")
    assert counts == {"Dark": 6, "Öde, bright": 6}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["out.tif"]


def test_tiles_are_read_as_scenes_are(tmp_path: Path) -> None:
    """Each tile is the image that the same pixels in a file of their own give."""
    random = np.random.default_rng(0)
    bands = random.integers(0, 4000, (4, 24, 48), np.uint16)
    bands[:, :3, :3] = 0
    reading = Reading(bands=(4, 2, 1), scale=((0, 3000), (100, 2000), (0, 4000)))
    whole = tif(tmp_path / "in.tif", bands, nodata=0)
    predictor = brightness(reading)
    map_raster(predictor, whole, tmp_path / "out.tif", Grid(48, 24, 8, 8), reading)
    seen = torch.cat(predictor.seen)
    assert len(seen) == 18
    for k, image in enumerate(seen):
        row, column = divmod(k, 6)
        part = bands[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        alone = reading.image(tif(tmp_path / "part.tif", part, nodata=0))
        assert torch.equal(image, torch.from_numpy(np.array(alone)).permute(2, 0, 1))


def test_tiles_without_measurements_get_no_class(tmp_path: Path) -> None:
    bands = np.full((1, 16, 32), 200, np.uint8)
    bands[:, :, :15] = 7
    path = tif(tmp_path / "in.tif", bands, nodata=7)
    predictor = brightness()
    assert map_raster(predictor, path, tmp_path / "out.tif", Grid(32, 16, 16, 8), PLAIN)["Öde, bright"] == 2
    with rasterio.open(tmp_path / "out.tif") as made:
        assert made.read(1).tolist() == [[255, 1, 1]]
    # Pixels that are no measurement got the mean of the others.
    assert set(torch.cat(predictor.seen).unique().tolist()) == {200}


def test_more_than_255_classes_need_16_bits() -> None:
    assert nodata_of(["a"] * 255) == 255
    assert nodata_of(["a"] * 256) == 65535


def test_colours_of_classes_differ() -> None:
    assert len({colour_of(label) for label in range(60)}) == 60


GREY16 = Info(9, 9, "uint16", ("gray",))
FOUR = Info(9, 9, "uint8", (*RGB, "undefined"))
CLEAR = Info(9, 9, "uint8", (*RGB, "alpha"))
PLAIN_RGB = Info(9, 9, "uint8", RGB)
DEEP = Reading(bands=(4, 3, 2), scale=((0, 3000),) * 3)
FOUR16 = Info(9, 9, "uint16", (*RGB, "undefined"))
SENTINEL = replace(DEEP, of_bands=13)


@pytest.mark.parametrize(
    ("info", "model", "options", "message"),
    [
        (
            *(FOUR, PLAIN, {}),
            "x.tif has 4 bands, the model was trained on images of one or three: give --bands, such as 1,2,3",
        ),
        (
            *(GREY16, PLAIN, {}),
            "x.tif has values of type uint16, the model was trained on 8-bit values: give --scale LOW,HIGH",
        ),
        (GREY16, DEEP, {}, "x.tif has 1 band(s), the model was trained on bands 4, 3, 2: give --bands"),
        (FOUR16, SENTINEL, {}, "x.tif has 4 band(s), the model was trained on bands 4, 3, 2 of 13: give --bands"),
        (
            *(FOUR16, replace(DEEP, of_bands=5, alpha=False), {}),
            "x.tif has 4 band(s), the model was trained on bands 4, 3, 2 of 5: give --bands",
        ),
        (
            FOUR,
            DEEP,
            {},
            "x.tif has 8-bit values, the model was trained on values up to 3000: give a raster with values in "
            "that range, or --scale LOW,HIGH",
        ),
        (GREY16, DEEP, {"bands": "1"}, "x.tif: 1 band(s) are read, the model was trained on ranges of 3: give --scale"),
        (PLAIN_RGB, PLAIN, {"bands": "4"}, "x.tif has no band '4': give 1 to 3"),
    ],
)
def test_other_bands_and_values_are_named(info: Info, model: Reading, options: dict[str, str], message: str) -> None:
    with pytest.raises(SceneError) as caught:
        fitting_reading(info, model, Path("x.tif"), **options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("info", "model", "bands"),
    [
        (FOUR16, SENTINEL, "3,2,1"),
        (FOUR16, replace(DEEP, of_bands=4), None),
        # A mask may be absent, or be there where the training files had none.
        (FOUR16, replace(DEEP, of_bands=5, alpha=True), None),
        (Info(9, 9, "uint16", (*RGB, "undefined", "alpha")), replace(DEEP, of_bands=4), None),
    ],
)
def test_as_many_bands_or_bands_that_are_given_fit(info: Info, model: Reading, bands: str | None) -> None:
    reading = fitting_reading(info, model, Path("x.tif"), bands=bands)
    assert reading.bands == ((3, 2, 1) if bands else (4, 3, 2))


@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_values_in_other_units_are_refused(suffix: str, tmp_path: Path) -> None:
    # Reflectance from 0 to 1, for a model that was trained on reflectance times 10,000.
    path = tmp_path / f"in.{suffix}"
    values = np.random.default_rng(0).uniform(0.01, 0.9, (4, 300, 200)).astype(np.float32)
    reading = Reading(bands=(4, 3, 2), scale=((100, 3000),) * 3)
    if suffix == "tif":
        tif(path, values)
        message = f"{path} has values from 0.01"
    else:
        Image.fromarray((values[0] * 99).astype(np.uint16)).save(path)
        reading = Reading(bands=(1,), scale=((100, 3000),))
        message = f"{path} has values from 0"
    with pytest.raises(SceneError) as caught:
        check_range(path, reading)
    assert str(caught.value).startswith(message)
    assert str(caught.value).endswith(
        "the model was trained on values from 100 to 3000: give values in the same units, or --scale LOW,HIGH"
    )
    tif(tmp_path / "right.tif", values * 10_000)
    check_range(tmp_path / "right.tif", Reading(bands=(4, 3, 2), scale=((100, 3000),) * 3))
    check_range(path, PLAIN)


def test_units_are_told_by_most_bands(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One band of five has a range that the values of other units reach too."""
    scale = ((0.0, 20.0), *[(500.0, 3000.0)] * 4)
    reading = Reading(bands=(1, 2, 3, 4, 5), scale=scale, dtype="uint16")
    random = np.random.default_rng(0)
    values = np.stack([random.integers(1, 20, (32, 32)), *random.integers(600, 2900, (4, 32, 32))])
    check_range(tif(tmp_path / "own.tif", values.astype(np.float32)), reading)
    assert caplog.messages == []
    per_cent = tif(tmp_path / "per_cent.tif", (values / 100).astype(np.float32))
    with pytest.raises(
        SceneError, match=r"has values from 0\.01 to 28\.99, the model was trained on values from 0 to 3000"
    ):
        check_range(per_cent, reading)
    # A third of the values still lies in the ranges: it may be another season.
    check_range(tif(tmp_path / "brighter.tif", (values * 3).astype(np.float32)), reading)
    (told,) = caplog.messages
    assert "brighter.tif has values from 3 to 86" in told
    share = 100 * float(np.median([(one < 1000).mean() for one in values[1:]]))
    assert f"in the median of its bands {share:.0f} % of the values lie in the range: if its units" in told


def test_troubles_with_the_map_are_those_of_the_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tif(tmp_path / "raster.tif", np.full((3, 16, 16), 200, np.uint8), photometric="RGB")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"file cannot be a folder, a file is in its place: choose another --out$"):
        map_raster(brightness(), path, tmp_path / "file" / "map.tif", Grid(16, 16, 8, 8), PLAIN)
    usage = shutil.disk_usage(tmp_path)
    # A map that is cut short when it is closed is none.
    resource = pytest.importorskip("resource")
    large = tif(tmp_path / "large.tif", np.random.default_rng(0).integers(0, 255, (1, 300, 300)).astype(np.uint8))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))
        with pytest.raises(RunError, match=r"map\.tif: it cannot be written \("):
            map_raster(brightness(), large, tmp_path / "map.tif", Grid(300, 300, 1, 1), PLAIN)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not (tmp_path / "map.tif").exists()
    for free, why in ((5, f"the disk that holds {tmp_path} is full"), (10**9, "it cannot be written (Seek error)")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        with pytest.raises(RunError) as caught, _told_of_output(tmp_path / "map.tif"):
            raise RasterioIOError("Seek error")
        assert str(caught.value) == f"{tmp_path / 'map.tif'}: {why}: free some space or choose another --out"


def test_a_map_is_written_tile_by_tile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a row of tiles are written where they lie."""
    monkeypatch.setattr(tiles, "_TILES", 3)
    random = np.random.default_rng(0)
    bright = random.integers(0, 2, (2, 10))
    values = np.repeat(np.repeat(bright * 200 + 20, 8, 0), 8, 1).astype(np.uint8)
    path = tif(tmp_path / "raster.tif", np.stack([values] * 3), photometric="RGB")
    counts = map_raster(brightness(), path, tmp_path / "map.tif", Grid(80, 16, 8, 8), PLAIN)
    with rasterio.open(tmp_path / "map.tif") as file:
        assert np.array_equal(file.read(1), bright)
    assert counts == {"Dark": int((bright == 0).sum()), "Öde, bright": int(bright.sum())}


def test_places_all_over_the_raster_are_sampled(tmp_path: Path) -> None:
    # Only the last corner has values in the range, 12 % of the sample.
    values = np.zeros((1, 320, 320), np.uint16)
    values[:, 200:, 200:] = 1000
    check_range(tif(tmp_path / "a.tif", values), Reading(bands=(1,), scale=((100, 3000),)))
    with pytest.raises(SceneError, match="values from 0 to 0"):
        check_range(tif(tmp_path / "b.tif", values * 0), Reading(bands=(1,), scale=((100, 3000),)))


def test_one_band_for_a_model_of_colours_is_told(caplog: pytest.LogCaptureFixture) -> None:
    fitting_reading(Info(9, 9, "uint8", ("gray",)), PLAIN, Path("x.tif"))
    assert [record.getMessage() for record in caplog.records] == ["x.tif has one band, which the model sees as grey"]


def test_options_replace_what_the_model_was_trained_with() -> None:
    path = Path("x.tif")
    assert fitting_reading(PLAIN_RGB, PLAIN, path) == PLAIN
    assert fitting_reading(CLEAR, PLAIN, path) == Reading(bands=(1, 2, 3))
    assert fitting_reading(FOUR, PLAIN, path, bands="4,1,2") == Reading(bands=(4, 1, 2))
    assert fitting_reading(GREY16, PLAIN, path, scale="0,900") == Reading(scale=((0.0, 900.0),))
    assert fitting_reading(FOUR, DEEP, path, scale="0,255") == Reading(bands=(4, 3, 2), scale=((0.0, 255.0),) * 3)


@pytest.mark.parametrize(("opacity", "is_a_mask"), [((0, 255), True), ((0, 900), True), ((0, 31, 255), False)])
@pytest.mark.parametrize("model", [PLAIN, Reading(bands=(1, 2, 3)), Reading(bands=(1, 2, 3), alpha=True)])
def test_transparency_is_a_mask_by_its_values(
    opacity: tuple[int, ...], is_a_mask: bool, model: Reading, tmp_path: Path
) -> None:
    values = np.random.default_rng(0).integers(1, 200, (4, 64, 64)).astype(np.uint16)
    values[3] = np.random.default_rng(1).choice(opacity, (64, 64))
    info = Info(64, 64, "uint16", (*RGB, "alpha"))
    path = tif(tmp_path / "in.tif", values)
    reading = fitting_reading(info, model, path, scale="0,200")
    assert with_mask(path, info, reading).alpha is is_a_mask
    assert not with_mask(path, Info(64, 64, "uint16", RGB), reading).alpha


def test_a_palette_is_refused(tmp_path: Path) -> None:
    path = tif(tmp_path / "in.tif", np.zeros((1, 8, 8), np.uint8))
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {0: (255, 0, 0, 255)})
    with pytest.raises(SceneError) as caught:
        map_raster(brightness(), path, tmp_path / "out.tif", Grid(8, 8, 8, 8), PLAIN)
    assert str(caught.value) == f"{path}: its values are no plain RGB (palette, CMYK or single bits): convert it to RGB"


_MAP = """
import sys
from pathlib import Path
import torch
from geodistill.deployment.tiles import Grid, check_range, map_raster
from geodistill.evaluation.classifier import About
from geodistill.memory import peak_memory_mib
from geodistill.scenes.reading import PLAIN

class Zero:
    about = About("convnet3", "scratch", ("a", "b"), 64)
    def logits(self, images):
        return torch.zeros(len(images), 2)

side = int(sys.argv[2])
counts = map_raster(Zero(), Path(sys.argv[1]), Path(sys.argv[3]), Grid(side, side, 256, 256), PLAIN)
print(peak_memory_mib(), counts["a"])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="peak memory of a process is measured by /proc or getrusage")
def test_memory_does_not_depend_on_the_size_of_the_raster(tmp_path: Path) -> None:
    """A raster of 1.2 GB, written sparsely, against one of 3 MB."""
    peaks = []
    for side in (1024, 20_000):
        path = tmp_path / f"{side}.tif"
        profile = {"width": side, "height": side, "count": 3, "dtype": "uint8", "tiled": True, "SPARSE_OK": "TRUE"}
        with rasterio.open(path, "w", driver="GTiff", transform=Affine(1, 0, 0, 0, -1, 0), crs="EPSG:32629", **profile):
            pass
        assert path.stat().st_size < 2**20
        command = [sys.executable, "-c", _MAP, str(path), str(side), str(tmp_path / "out.tif")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        peak, tiles = map(int, done.stdout.split()[-2:])
        assert tiles == (side // 256 + (side % 256 >= 128)) ** 2
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 150
