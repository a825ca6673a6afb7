from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rasterio.transform import Affine, from_origin
from rasterio.windows import Window
from rasters import LEFT, METRES, TOP, tif

from geodistill.errors import SceneError
from geodistill.scenes.readers import Info, PillowReader, RasterReader, info_of, open_raster, reader_of, values_of

READER = RasterReader()
STEPS = np.arange(2 * 3 * 4).reshape(2, 3, 4)


class TestInfo:
    def test_place_in_metres(self, tmp_path: Path):
        found = READER.info(tif(tmp_path / "a.tif", np.zeros((1, 3, 5), np.uint8), located=True))
        assert found.crs == "EPSG:32629"
        # Left, bottom, right, top: five columns to the right, three rows down.
        assert found.bounds == (LEFT, TOP - 3 * METRES, LEFT + 5 * METRES, TOP)
        assert found.resolution == (METRES, METRES)
        assert (found.degrees, found.metres) == (False, 1.0)
        assert (found.width, found.height) == (5, 3)

    def test_place_in_degrees(self, tmp_path: Path):
        place = {"crs": "EPSG:4326", "transform": from_origin(10.0, 50.0, 0.25, 0.125)}
        found = READER.info(tif(tmp_path / "a.tif", np.zeros((1, 4, 4), np.uint8), **place))
        assert found.bounds == (10.0, 49.5, 11.0, 50.0)
        assert (found.degrees, found.metres) == (True, 1.0)

    def test_place_in_feet(self, tmp_path: Path):
        place = {"crs": "EPSG:2263", "transform": from_origin(1e6, 2e5, 10.0, 10.0)}  # New York, US survey feet
        found = READER.info(tif(tmp_path / "a.tif", np.zeros((1, 4, 4), np.uint8), **place))
        assert found.degrees is False
        assert found.metres == pytest.approx(1200 / 3937)

    def test_first_row_in_the_south(self, tmp_path: Path):
        place = {"crs": "EPSG:32629", "transform": Affine(10, 0, 0, 0, 10, 500)}
        found = READER.info(tif(tmp_path / "a.tif", np.zeros((1, 4, 4), np.uint8), **place))
        # As rasterio has it: `bottom` is where the last row ends.
        assert found.bounds == (0, 540, 40, 500)

    def test_without_a_place(self, tmp_path: Path):
        found = READER.info(tif(tmp_path / "a.tif", STEPS.astype(np.int16), names=("nir", "red"), nodata=-9999))
        assert found == Info(4, 3, "int16", ("gray", "undefined"), ("nir", "red"), -9999.0)

    def test_types_and_scales(self, tmp_path: Path):
        path = tif(tmp_path / "a.tif", STEPS.astype(np.uint16), scales=(1.0, 1.0), offsets=(0.0, -1000.0))
        assert READER.info(path).dtype == "float32"


class TestValues:
    def test_each_band_has_its_own_scale_and_offset(self, tmp_path: Path):
        path = tif(tmp_path / "a.tif", STEPS.astype(np.uint16), scales=(1.0, 0.5), offsets=(0.0, -3.0))
        found = READER.values(path, (2,))
        assert found.bands.dtype == np.float32
        assert np.array_equal(found.bands[0], STEPS[1] * 0.5 - 3)
        assert np.array_equal(READER.values(path, (2, 1)).bands, np.stack([STEPS[1] * 0.5 - 3, STEPS[0]]))

    def test_nodata_of_each_band(self, tmp_path: Path):
        # A VRT can have another nodata value for each band.
        tif(tmp_path / "a.tif", STEPS.astype(np.int16))
        bands = "".join(
            f'<VRTRasterBand dataType="Int16" band="{band}"><NoDataValue>{nodata}</NoDataValue><SimpleSource>'
            f'<SourceFilename relativeToVRT="1">a.tif</SourceFilename><SourceBand>{band}</SourceBand>'
            "</SimpleSource></VRTRasterBand>"
            for band, nodata in ((1, 5), (2, 13))
        )
        vrt = tmp_path / "a.vrt"
        vrt.write_text(f'<VRTDataset rasterXSize="4" rasterYSize="3">{bands}</VRTDataset>')
        assert (~READER.values(vrt, (1,)).valid).nonzero() == ([1], [1])
        assert (~READER.values(vrt, (2,)).valid).nonzero() == ([0], [1])
        assert (~READER.values(vrt, ()).valid).sum() == 2

    def test_a_0_that_is_measured_in_one_band_is_no_nodata(self, tmp_path: Path):
        values = np.full((3, 3, 4), 100, np.uint8)
        values[2] = 0  # no blue anywhere
        values[:, 0] = 0  # a border without measurements
        path = tif(tmp_path / "a.tif", values, nodata=0, photometric="RGB")
        found = READER.values(path, (1, 2, 3))
        assert np.array_equal(found.valid, np.array([[False] * 4, [True] * 4, [True] * 4]))
        # Of that band alone there is nothing to tell them apart.
        assert not READER.values(path, (3,)).valid.any()

    def test_a_value_that_cannot_be_measured_counts_in_each_band(self, tmp_path: Path):
        values = STEPS.astype(np.int16)
        values[1, 2, 2] = -9999
        assert (~READER.values(tif(tmp_path / "a.tif", values, nodata=-9999), ()).valid).nonzero() == ([2], [2])

    def test_a_pixel_is_valid_where_all_bands_are_finite(self, tmp_path: Path):
        values = STEPS.astype(np.float32)
        values[0, 0, 1], values[1, 2, 3], values[1, 1, 1] = np.nan, np.inf, -np.inf
        path = tif(tmp_path / "a.tif", values)
        assert [place.tolist() for place in np.nonzero(~READER.values(path, ()).valid)] == [[0, 1, 2], [1, 1, 3]]
        assert [place.tolist() for place in np.nonzero(~READER.values(path, (1,)).valid)] == [[0], [1]]

    def test_only_the_transparency_0_is_no_measurement(self, tmp_path: Path):
        values = np.stack([np.full((3, 4), 7), np.zeros((3, 4))]).astype(np.uint8)
        values[1] = [[0, 1, 2, 255], [255] * 4, [0, 100, 254, 255]]
        path = tif(tmp_path / "a.tif", values, alpha="yes")
        assert READER.info(path).alpha == 2
        assert np.array_equal(READER.values(path, (1,), alpha=True).valid, values[1] > 0)
        assert READER.values(path, (1,)).valid.all()

    def test_a_window(self, tmp_path: Path):
        mask = np.full((3, 4), 255, np.uint8)
        mask[2, 1] = 0
        with open_raster(tif(tmp_path / "a.tif", STEPS.astype(np.uint8), mask=mask)) as file:
            found = values_of(file, (2,), window=Window(1, 1, 2, 2))
            assert info_of(file).bands == 2
        assert np.array_equal(found.bands, STEPS[1:, 1:3, 1:3])
        assert found.valid.tolist() == [[True, True], [False, True]]

    @pytest.mark.parametrize("photometric", ["MINISWHITE", "MINISBLACK"])
    def test_white_as_0_is_turned(self, photometric: str, tmp_path: Path):
        values = (STEPS[:1] * 10).astype(np.uint8)
        path = tif(tmp_path / "a.tif", values, photometric=photometric)
        wanted = 255 - values if photometric == "MINISWHITE" else values
        found = READER.values(path, ()).bands
        assert np.array_equal(found, np.broadcast_to(wanted, found.shape))


class TestRefused:
    def test_complex_values(self, tmp_path: Path):
        path = tif(tmp_path / "a.tif", STEPS.astype(np.complex64))
        for read in (READER.info, lambda path: READER.values(path, ())):
            with pytest.raises(SceneError, match=r"a\.tif: complex values are not read: convert them to amplitude or"):
                read(path)

    def test_more_pixels_than_a_scene_has(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
        small, large = (tif(tmp_path / name, np.zeros((1, *size), np.uint8)) for name, size in LARGE.items())
        assert READER.info(small).height == 2
        with pytest.raises(SceneError, match=r"11\.tif: more than 10 pixels: cut it into scenes first$"):
            READER.info(large)
        with open_raster(large) as file:  # a raster to predict may have any size
            assert file.width == 11

    def test_a_band_that_is_not_there(self, tmp_path: Path):
        with pytest.raises(SceneError, match=r"a\.tif: band 3 is asked for, the file has 2$"):
            READER.values(tif(tmp_path / "a.tif", STEPS.astype(np.uint8)), (1, 3))

    @pytest.mark.parametrize(
        ("content", "message"), [(b"", "the file is empty"), (b"II*\x00nothing", "not a TIFF, JPEG 2000 or VRT image")]
    )
    def test_no_image(self, content: bytes, message: str, tmp_path: Path):
        (tmp_path / "a.tif").write_bytes(content)
        with pytest.raises(SceneError, match=rf"a\.tif: {message}"):
            READER.info(tmp_path / "a.tif")


LARGE = {"10.tif": (2, 5), "11.tif": (1, 11)}


def test_readers_by_suffix():
    assert isinstance(reader_of(Path("a.JPG")), PillowReader)
    assert isinstance(reader_of(Path("a.jp2")), RasterReader)
    assert READER.suffixes.isdisjoint(PillowReader.suffixes)
