import logging
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from rasters import archive, tif

from geodistill.errors import SceneError
from geodistill.scenes import open_scenes
from geodistill.scenes.readers import RGB, Info, open_raster, reader_of
from geodistill.scenes.reading import PLAIN, Reading, choose_bands, read_image, with_scale
from geodistill.stages.context import reading_of

SIDE = 16
EXACT = {"QUALITY": "100", "REVERSIBLE": "YES"}


def ground(random, bands=3, top=256, dtype=np.uint8):
    return random.integers(0, top, (bands, SIDE, SIDE)).astype(dtype)


def correlation(one, other):
    return float(np.corrcoef(np.ravel(one), np.ravel(other))[0, 1])


def opened(folder, **options):
    """Return the scenes of `folder`, with the pixels of the training scenes [n, 3, s, s]."""
    data = open_scenes(folder, **options)
    return data, data.train.pixels(size=SIDE).numpy()


def test_an_8_bit_tiff_is_what_pillow_reads(tmp_path):
    random = np.random.default_rng(0)
    for options in ({}, {"compress": "lzw", "interleave": "band"}, {"photometric": "RGB", "compress": "deflate"}):
        values = ground(random)
        path = tif(tmp_path / "a.tif", values, **options)
        assert (np.asarray(read_image(path)) == values.transpose(1, 2, 0)).all()
    assert (np.asarray(read_image(path)) == np.asarray(Image.open(path))).all()
    data, _ = opened(archive(tmp_path / "all", lambda label, random: ground(random), photometric="RGB"))
    assert data.train.reading == PLAIN


def test_near_infrared_tagged_as_transparency_is_not_used(tmp_path, caplog):
    tiles = []

    def four(label, random):
        tiles.append(ground(random, 4))
        return tiles[-1]

    data, pixels = opened(archive(tmp_path, four))
    assert data.train.reading == Reading((1, 2, 3))
    known = {tile[:3].tobytes() for tile in tiles}
    assert all(image.tobytes() in known for image in pixels)
    told = (
        "band 4 is tagged as transparency, but its values are no mask: it may be near infrared, and is not used "
        "(--bands selects others)"
    )
    assert [record.getMessage() for record in caplog.records if "transparency" in record.getMessage()] == [told]
    for bands in ("4,1,2", "nir,red,green"):
        _, infrared = opened(tmp_path, bands=bands)
        assert all(image.tobytes() in {tile[[3, 0, 1]].tobytes() for tile in tiles} for image in infrared)


def test_a_transparency_band_that_is_a_mask_masks(tmp_path, caplog):
    def masked(label, random):
        values = ground(random, 4)
        values[3] = 255
        values[:, :4] = [[[250]], [[250]], [[250]], [[0]]]
        return values

    data, pixels = opened(archive(tmp_path, masked))
    assert data.train.reading == Reading((1, 2, 3), alpha=True)
    for image in pixels:
        wanted = image[:, 4:].mean(axis=(1, 2)).round()
        assert (image[:, :4] == wanted[:, None, None]).all()
    (told,) = (message for message in caplog.messages if "measurement" in message)
    wanted = "12 of 12 images have pixels without a measurement, 25.0 % of theirs, a/0.tif first: they get the mean of"
    assert told == f"{wanted} the image's others"


@pytest.mark.parametrize(
    ("bands", "options"),
    [
        (1, {}),
        (3, {}),
        (3, {"interleave": "band"}),
        (3, {"photometric": "RGB", "compress": "deflate", "predictor": 2}),
        (3, {"compress": "lerc"}),
        (3, {"driver": "JP2OpenJPEG", **EXACT}),
    ],
)
def test_reflectance_of_16_bits_gets_one_stretch(bands, options, tmp_path):
    tiles = []

    def reflectance(label, random):
        tiles.append(ground(random, bands, 10_001, np.uint16))
        return tiles[-1]

    data, pixels = opened(archive(tmp_path, reflectance, **options))
    (low, high), *_ = data.train.reading.scale
    assert (low, high) == (pytest.approx(100, abs=40), pytest.approx(9900, abs=40))
    wanted = [np.clip((tile.astype(float) - 100) / 9800 * 255, 0, 255) for tile in tiles]
    for image in pixels:
        best = max(wanted, key=lambda one: correlation(np.broadcast_to(one, image.shape), image))
        assert np.abs(image - np.broadcast_to(best, image.shape)).max() < 3
    assert len(np.unique(pixels)) > 250


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_nodata_is_left_out_filled_and_counted(dtype, tmp_path, caplog):
    def bordered(label, random):
        values = (1000 * random.random((3, SIDE, SIDE))).astype(dtype)
        values[:, :, :2] = -9999
        return values

    data, pixels = opened(archive(tmp_path, bordered, nodata=-9999))
    low, high = np.array(data.train.reading.scale).T
    assert ((low >= 0) & (low < 30) & (high > 970) & (high <= 1000)).all()
    assert len(np.unique(pixels)) > 250
    assert np.abs(pixels[..., :2].astype(float) - pixels[..., 2:].mean(axis=(2, 3))[..., None, None]).max() < 4
    assert "12 of 12 images have pixels without a measurement, 12.5 % of theirs" in caplog.text


def test_the_level_of_a_class_survives(tmp_path):
    data, pixels = opened(
        archive(tmp_path, lambda label, random: random.normal(-20 + 10 * label, 2, (1, SIDE, SIDE)).astype(np.float32))
    )
    dark, bright = (pixels[(data.train.labels == label).numpy()].mean() for label in (0, 1))
    assert bright - dark > 90


@pytest.mark.parametrize(
    ("bands", "dtype", "options", "chosen"),
    [
        (13, np.uint16, {}, (4, 3, 2)),
        (4, np.uint8, {"photometric": "MINISBLACK"}, (1, 2, 3)),
        (3, np.float32, {}, (1, 2, 3)),
        (5, np.uint16, {"names": ("blue", "green", "Red", "nir", "")}, (3, 2, 1)),
        (5, np.uint16, {"names": ("B02", "B03", "B04", "B08", "B11")}, (3, 2, 1)),
    ],
)
def test_bands_that_are_the_colours(bands, dtype, options, chosen, tmp_path):
    data, _ = opened(archive(tmp_path, lambda label, random: ground(random, bands, 200, dtype), **options))
    assert data.train.reading.bands == chosen


def test_8_bit_rgb_tagged_as_grey_is_read_as_it_is(tmp_path):
    data, _ = opened(archive(tmp_path, lambda label, random: ground(random), photometric="MINISBLACK"))
    assert data.train.reading == PLAIN


def test_webp_inside_tiff(tmp_path):
    values = np.full((3, SIDE, SIDE), 90, np.uint8)
    path = tif(tmp_path / "w.tif", values, compress="webp", webp_lossless=True, photometric="RGB", interleave="pixel")
    assert (np.asarray(read_image(path)) == 90).all()


def test_scale_and_offset_of_the_file_are_applied(tmp_path):
    path = tif(tmp_path / "t.tif", np.full((1, 4, 4), 300, np.int16), scales=(0.1,), offsets=(-10.0,))
    assert (np.asarray(Reading((1,), ((0.0, 40.0),)).image(path)) == 128).all()  # 20 of 40


def test_an_internal_mask_is_honoured(tmp_path):
    values, mask = np.full((1, 4, 4), 100, np.uint8), np.full((4, 4), 255, np.uint8)
    values[0, 0], mask[0] = 0, 0
    assert (np.asarray(read_image(tif(tmp_path / "m.tif", values, mask=mask))) == 100).all()


def test_a_vrt_is_read_and_known_by_its_pixels(tmp_path):
    random = np.random.default_rng(0)
    for label in "ab":
        for k in range(6):
            source = tif(tmp_path / "tiles" / f"{label}{k}.tif", ground(random), photometric="RGB")
            folder = tmp_path / "data" / label
            folder.mkdir(parents=True, exist_ok=True)
            bands = "".join(
                f'<VRTRasterBand dataType="Byte" band="{band}"><SimpleSource><SourceFilename>{source}</SourceFilename>'
                f"<SourceBand>{band}</SourceBand></SimpleSource></VRTRasterBand>"
                for band in (3, 2, 1)
            )
            vrt = f'<VRTDataset rasterXSize="{SIDE}" rasterYSize="{SIDE}">{bands}</VRTDataset>'
            (folder / f"{k}.vrt").write_text(vrt)
    data, _ = opened(tmp_path / "data")
    assert len({*data.train.keys}) == len(data.train)


def test_kinds_that_do_not_mix(tmp_path):
    archive(tmp_path, lambda label, random: ground(random))
    tif(tmp_path / "a" / "z.tif", np.zeros((3, 4, 4), np.uint16))
    with pytest.raises(SceneError) as caught:
        open_scenes(tmp_path)
    assert str(caught.value) == (
        f"the images are of 2 kinds: 3 band(s) of uint8, {tmp_path / 'a' / '0.tif'} first; 3 band(s) of uint16, "
        f"{tmp_path / 'a' / 'z.tif'} first: keep one kind, or convert the others"
    )


def test_resolutions_that_differ_are_told(caplog):
    infos = [
        (Path(name), Info(4, 4, "uint16", ("gray",), resolution=(size, size), crs="EPSG:32629"))
        for name, size in (("a", 10.0), ("b", 10.01), ("c", 0.5))
    ]
    choose_bands(infos)
    assert caplog.messages == ["the size of a pixel differs: 0.5 in c, 10.01 in b"]


@pytest.mark.parametrize(
    ("bands", "message"),
    [
        ("4,3,9", "has no band '9': give 1 to 5, or Blue, Green, Red, NIR"),
        ("read", "has no band 'read': did you mean 'red'? give 1 to 5, or Blue, Green, Red, NIR"),
        ("0", "has no band '0': give 1 to 5, or Blue, Green, Red, NIR"),
        ("1,2,2,3", "--bands 1,2,2,3: give at most 16 bands, each of them once"),
    ],
)
def test_bands_that_cannot_be(bands, message):
    info = Info(4, 4, "uint16", ("gray",) + 4 * ("undefined",), ("Blue", "Green", "Red", "NIR", ""))
    with pytest.raises(SceneError, match=f"{re.escape(message)}$"):
        choose_bands([(Path("a.tif"), info)], bands)
    assert choose_bands([(Path("a.tif"), info)], "nir, 5 ,red").bands == (4, 5, 3)


@pytest.mark.parametrize(
    ("colours", "names", "bands", "chosen"),
    [
        (4 * ("undefined",), ("B02", "B03", "B04", "B08"), "nir,red,green", (4, 3, 2)),
        (("red", "green", "blue", "alpha"), (), "nir,red,green", (4, 1, 2)),
        (13 * ("undefined",), (), "nir,red,green", (8, 4, 3)),
        (("gray",), (), "1", (1,)),
    ],
)
def test_bands_by_what_they_measure(colours, names, bands, chosen):
    info = Info(4, 4, "uint16", colours, names)
    assert choose_bands([(Path("a.tif"), info)], bands).bands == chosen


def many(label, random):
    """Return 5 bands of 12 bits; the level of the last is that of the class."""
    values = random.integers(100, 4000, (5, SIDE, SIDE))
    values[4] = 1000 + 2000 * label + random.integers(0, 50, (SIDE, SIDE))
    return values.astype(np.uint16)


NAMED = ("B02", "B03", "B04", "B08", "B12")


def test_all_bands_are_read_and_written_in_their_units(tmp_path):
    data, pixels = opened(archive(tmp_path / "data", many, names=NAMED), bands="all")
    reading = data.train.reading
    assert (reading.bands, reading.names) == ((3, 2, 1, 4, 5), ("B04", "B03", "B02", "B08", "B12"))
    assert (reading.dtype, reading.channels, data.train.channels) == ("uint16", 5, 5)
    assert pixels.shape == (len(data.train), 5, SIDE, SIDE)
    # The level that is the class is kept: one range serves all files.
    assert (
        abs(pixels[data.train.labels.numpy() == 1, 4].mean() - pixels[data.train.labels.numpy() == 0, 4].mean()) > 200
    )
    reading.write(tmp_path / "one.tif", pixels[0])
    with rasterio.open(tmp_path / "one.tif") as file:
        assert (file.dtypes[0], file.descriptions, file.crs) == ("uint16", NAMED, None)
        assert [colour.name for colour in file.colorinterp[:3]] == ["blue", "green", "red"]
        low, high = reading.scale[0]
        assert np.abs(file.read(3) - (low + pixels[0, 0] / 255 * (high - low))).max() <= 0.5
    assert (reading.of_written().pixels(tmp_path / "one.tif") == pixels[0]).all()
    assert np.asarray(reading.image(tmp_path / "data" / "a" / "0.tif")).shape == (SIDE, SIDE, 3)
    assert Reading.from_dict(reading.as_dict()) == reading


@pytest.mark.parametrize(
    ("bands", "chosen", "channels"), [("1,2", (1, 2), 2), ("B04,B08,B12,B02", (3, 4, 5, 1), 4), ("B04", (3,), 3)]
)
def test_bands_that_are_named_are_all_kept(bands, chosen, channels, tmp_path):
    data, pixels = opened(archive(tmp_path, many, names=NAMED), bands=bands)
    assert (data.train.reading.bands, pixels.shape[1]) == (chosen, channels)
    assert bool(data.train.reading.dtype) == (channels != 3)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), dtype=st.sampled_from(["uint8", "uint16", "int16", "float32"]), count=st.integers(2, 16))
def test_what_is_written_is_read_again(data, dtype, count, tmp_path):
    pixels = data.draw(arrays.arrays(np.uint8, (count, 5, 7)))
    order = data.draw(st.permutations(range(1, count + 1)))
    scale = () if dtype == "uint8" else tuple((-300.0 + k, 900.0 + 40 * k) for k in range(count))
    scale = tuple((low + 300, high) for low, high in scale) if dtype == "uint16" else scale
    reading = Reading(tuple(order), scale, dtype=dtype, names=tuple(f"b{band}" for band in order))
    reading.write(tmp_path / "x.tif", pixels)
    assert (reading.of_written().pixels(tmp_path / "x.tif") == pixels).all()


def test_a_mask_is_none_of_all_bands(tmp_path):
    def masked(label, random):
        values = ground(random, 4)
        values[3] = 255
        values[3, :2] = 0
        return values

    data, pixels = opened(archive(tmp_path, masked), bands="all")
    assert (data.train.reading.bands, data.train.reading.alpha) == ((1, 2, 3), True)
    assert pixels.shape[1] == 3


def test_all_of_one_band_or_of_17_is_refused():
    for count in (1, 17):
        with pytest.raises(SceneError) as caught:
            choose_bands([(Path("a.tif"), Info(4, 4, "uint16", count * ("undefined",)))], "all")
        assert str(caught.value) == f"a.tif: --bands all takes 2 to 16 bands, the file has {count}: name some"


def test_all_of_unnamed_bands_shows_the_first(caplog):
    reading = choose_bands([(Path("a.tif"), Info(4, 4, "uint8", 5 * ("undefined",)))], "all")
    assert reading.bands == (1, 2, 3, 4, 5)
    assert reading.names == tuple(f"band {k}" for k in range(1, 6))
    assert caplog.messages == [
        "the files do not say which bands are red, green and blue: the first ones are shown as these"
    ]
    plain = choose_bands([(Path("a.png"), Info(4, 4, "uint8", ("red", "green", "blue")))], "all")
    assert plain == PLAIN


def test_roles_of_bands():
    reading = Reading((3, 2, 1, 4, 5), dtype="uint16", names=("B04", "B03", "B02", "B08", "B12"))
    found = [reading.channel(role) for role in ("red", "green", "blue", "nir", "swir2")]
    assert found == [0, 1, 2, 3, 4]
    assert PLAIN.channel("nir") is None


def test_a_fill_value_without_a_tag_is_suspected(tmp_path, caplog):
    def bordered(label, random):
        values = random.normal(-15, 3, (1, SIDE, SIDE)).astype(np.float32)
        values[:, :2] = -9999
        return values

    open_scenes(archive(tmp_path, bordered))
    (told,) = (message for message in caplog.messages if "fills" in message)
    assert told.startswith(
        "the value -9999 fills 12.5 % of the pixels, far from all others: if it stands for no measurement"
    )
    caplog.clear()
    open_scenes(archive(tmp_path / "sea", lambda label, random: random.integers(0, 900, (1, 16, 16)).astype(np.int16)))
    assert not any("fills" in message for message in caplog.messages)


def test_bands_that_nobody_names():
    with pytest.raises(SceneError) as caught:
        choose_bands([(Path("a.tif"), Info(4, 4, "uint8", 5 * ("undefined",)))])
    assert str(caught.value) == (
        "a.tif: 5 bands, and the file does not say which are red, green and blue: give --bands, one or three of 1 to "
        "5, or all"
    )


@pytest.mark.parametrize("scale", ["", "a,b", "1", "5,5", "9,1", "0,1,0,1", "0,nan"])
def test_ranges_that_are_none(scale):
    with pytest.raises(SceneError) as caught:
        with_scale(Reading((1, 2, 3)), "uint16", [], scale)
    assert str(caught.value) == (f"--scale {scale!r} is no range: give LOW,HIGH, or a pair for each of the 3 band(s)")


def test_ranges_that_are_given():
    assert with_scale(Reading((4, 3, 2)), "uint16", [], "0,3000").scale == 3 * ((0.0, 3000.0),)
    assert with_scale(PLAIN, "uint8", [], "10,200").scale == ((10.0, 200.0),)
    assert with_scale(Reading((1, 2, 3)), "f", [], "0,1,0,2,-5,3").scale == ((0.0, 1.0), (0.0, 2.0), (-5.0, 3.0))


def test_a_tile_without_a_measurement_is_left_out(tmp_path, caplog):
    archive(tmp_path, lambda label, random: ground(random, 1, 900, np.float32), each=30, nodata=-1)
    tif(tmp_path / "a" / "empty.tif", np.full((1, SIDE, SIDE), -1, np.float32), nodata=-1)
    data = open_scenes(tmp_path)
    (skipped,) = data.skipped
    assert (
        skipped == f"{tmp_path / 'a' / 'empty.tif'}: no pixel is a measurement (all are nodata, masked or not finite)"
    )


def test_values_of_more_than_8_bits_alone_need_a_range(tmp_path):
    path = tif(tmp_path / "a.tif", np.zeros((3, 4, 4), np.uint16))
    with pytest.raises(SceneError, match=r"a\.tif: values of type uint16 need a range: give --scale LOW,HIGH$"):
        read_image(path)
    path = tif(tmp_path / "b.tif", np.zeros((5, 4, 4), np.uint8))
    with pytest.raises(SceneError, match=r"b\.tif: 5 bands: give --bands, one \(grey\) or three \(red, green, blue\)$"):
        read_image(path)


def test_a_16_bit_png_shares_the_stretch(tmp_path):
    random = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / name).mkdir()
        for k in range(6):
            Image.fromarray(ground(random, 1, 10_001, np.uint16)[0]).save(tmp_path / name / f"{k}.png")
    data, pixels = opened(tmp_path)
    assert data.train.reading.scale[0][1] == pytest.approx(9900, abs=40)
    assert len(np.unique(pixels)) > 250


def test_the_reading_belongs_to_the_scenes(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    data, pixels = opened(archive(tmp_path, lambda label, random: ground(random, 3, 900, np.uint16), each=12))
    assert data.test is not None
    assert data.test.reading == data.train.reading
    other = data.train.read_by(Reading((1, 2, 3), 3 * ((0.0, 400.0),)))
    assert other.fingerprint() != data.train.fingerprint()
    assert other.keys == data.train.keys
    assert other.subset([0]).reading == other.reading
    assert (other.pixels(size=SIDE).numpy() >= pixels).all()
    assert Reading.from_dict(data.train.reading.as_dict()) == data.train.reading


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    values=arrays.arrays(np.float32, (3, 5, 4), elements=st.floats(-1000, 1000, width=32)),
    low=st.floats(-500, 0),
    width=st.floats(1, 900),
)
def test_values_go_linearly_from_low_to_high(values, low, width, tmp_path):
    path = tif(tmp_path / "x.tif", values)
    image = np.asarray(Reading((1, 2, 3), 3 * ((low, low + width),)).image(path)).transpose(2, 0, 1)
    exact = np.clip((values.astype(np.float64) - low) / width * 255, 0, 255)
    assert np.abs(image - exact).max() <= 0.5 + 1e-6


def test_a_jpeg_geotiff_keeps_its_place_and_its_mask(tmp_path):
    # In YCbCr, as GDAL's COG driver writes it.
    smooth = np.broadcast_to(np.linspace(20, 200, 64).astype(np.uint8), (3, 64, 64))
    valid = np.ones((64, 64), bool)
    valid[:, :16] = False
    path = tmp_path / "a.tif"
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        tif(path, smooth, located=True, photometric="YCBCR", compress="jpeg", mask=valid)
    info = reader_of(path).info(path)
    assert (info.crs, info.colours, info.resolution) == ("EPSG:32629", RGB, (10.0, 10.0))
    found = reader_of(path).values(path, ())
    assert (found.valid == valid).all()
    assert abs(found.bands.astype(int) - smooth).max() < 20
    with open_raster(path) as raster:
        assert raster.count == 3


def test_a_palette_keeps_its_place_and_nodata(tmp_path):
    path = tmp_path / "a.tif"
    values = np.random.default_rng(0).integers(0, 3, (1, SIDE, SIDE)).astype(np.uint8)
    tif(path, values, located=True, photometric="palette", nodata=0)
    with rasterio.open(path, "r+") as file:
        file.write_colormap(1, {0: (0, 0, 0, 255), 1: (200, 10, 10, 255), 2: (10, 200, 10, 255)})
    info = reader_of(path).info(path)
    assert (info.crs, info.colours, info.nodata) == ("EPSG:32629", RGB, 0.0)
    found = reader_of(path).values(path, (2, 1))
    assert (found.valid == (values[0] != 0)).all()
    assert found.bands[:, values[0] == 1].T.tolist()[0] == [10, 200]


def test_a_png_in_colour_of_16_bits_is_read_whole(tmp_path):
    values = np.random.default_rng(0).integers(1000, 3000, (3, SIDE, SIDE)).astype(np.uint16)
    path = tif(tmp_path / "a.png", values, driver="PNG")
    assert reader_of(path).info(path).dtype == "uint16"
    assert (reader_of(path).values(path, ()).bands == values).all()
    assert (reader_of(path).values(path, (3, 1)).bands == values[[2, 0]]).all()


def test_names_of_8_bit_bands_count_before_their_colours(tmp_path):
    made = []

    def bands(label, random):
        made.append(ground(random))
        return made[-1]

    data, pixels = opened(archive(tmp_path, bands, names=("B02", "B03", "B04"), photometric="RGB"))
    assert data.train.reading == Reading((3, 2, 1))
    assert {image.tobytes() for image in pixels} <= {one[::-1].tobytes() for one in made}


def test_colours_in_different_places_are_refused(tmp_path):
    archive(tmp_path, lambda label, random: ground(random, 4, 3000, np.uint16), names=("B04", "B03", "B02", "B08"))
    tif(
        tmp_path / "a" / "9.tif",
        ground(np.random.default_rng(9), 4, 3000, np.uint16),
        names=("B02", "B03", "B04", "B08"),
    )
    with pytest.raises(SceneError) as caught:
        open_scenes(tmp_path)
    first = tmp_path / "a" / "0.tif"
    assert str(caught.value) == (
        f"red, green and blue are not the same bands in all images: 1,2,3 in {first}; 3,2,1 in "
        f"{tmp_path / 'a' / '9.tif'}: give numbers as --bands"
    )
    assert open_scenes(tmp_path, bands="1,2,3").train.reading.bands == (1, 2, 3)


def test_what_is_missing_from_other_bands_does_not_count(tmp_path, caplog):
    def three_of_four(label, random):
        values = ground(random, 4, 3000, np.uint16) + 1
        values[3] = 0
        values[0, :4] = 0
        return values

    archive(tmp_path, three_of_four, nodata=0)
    data, _ = opened(tmp_path, bands="1")
    assert len(data.files) == 12
    assert "12 of 12 images have pixels without a measurement, 25.0 % of theirs" in caplog.text
    caplog.clear()
    # A red of 0 beside other values is measured.
    for bands in ("2,3,2", "1,2,3"):
        opened(tmp_path, bands=bands)
        assert "without a measurement" not in caplog.text
    with pytest.raises(SceneError, match="12 of 12 images are unreadable"):
        open_scenes(tmp_path, bands="4")


def test_a_mask_of_16_bits_may_have_the_values_of_8(tmp_path):
    def masked(label, random):
        values = np.concatenate([ground(random, 3, 3000, np.uint16) + 300, np.full((1, SIDE, SIDE), 255, np.uint16)])
        values[:, :4] = 0
        return values

    data, _ = opened(archive(tmp_path, masked, photometric="RGB", alpha="yes"))
    assert data.train.reading.alpha
    assert min(low for low, _ in data.train.reading.scale) >= 300


def test_a_range_that_is_narrow_for_its_level_keeps_its_ends(tmp_path):
    def narrow(label, random):
        return (1000 + random.random((1, SIDE, SIDE)) / 1000).astype(np.float64)

    data, pixels = opened(archive(tmp_path, narrow))
    ((low, high),) = data.train.reading.scale
    assert 1000 <= low < high <= 1000.001
    assert pixels.std() > 40


@pytest.mark.parametrize(
    ("bands", "reading", "told"),
    [
        (3, PLAIN, "has values of type uint16, and the set or model was made from 8-bit values: give scenes of"),
        (4, PLAIN, "has 4 bands, and the set or model was made from images of one or three: give scenes of"),
        (
            4,
            Reading((4, 3, 2), ((0.0, 3000.0),) * 3, of_bands=13),
            "has 4 band(s), and the set or model was made from bands 4, 3, 2 of 13: give scenes of",
        ),
    ],
)
def test_scenes_of_another_kind_than_a_set_s_are_refused(bands, reading, told, tmp_path):
    archive(tmp_path, lambda label, random: ground(random, bands, 3000, np.uint16))
    with pytest.raises(SceneError) as caught:
        open_scenes(tmp_path, reading=reading)
    assert str(caught.value) == f"{tmp_path / 'a' / '0.tif'} {told} the same kind"


def test_runs_from_before_the_number_of_bands_was_recorded_resume(tmp_path):
    archive(tmp_path, lambda label, random: ground(random, 4, 3000, np.uint16))
    scenes = open_scenes(tmp_path, scale="0,3000").train
    assert scenes.reading.of_bands == 4
    old = scenes.read_by(replace(scenes.reading, of_bands=0))
    assert (old.fingerprint(), reading_of(old)) == (scenes.fingerprint(), reading_of(scenes))
    assert "of_bands" not in old.reading.as_dict()
    assert Reading.from_dict(scenes.reading.as_dict()).of_bands == 4


@pytest.mark.parametrize(
    ("colours", "chosen"),
    [
        (("undefined",) * 12, (4, 3, 2)),
        (("undefined",) * 13, (4, 3, 2)),
        (("gray", "undefined", "undefined", "undefined"), (1, 2, 3)),
        (("alpha", "undefined", "undefined", "undefined"), (2, 3, 4)),
        (("gray", "alpha"), (1,)),
    ],
)
def test_bands_without_names_are_the_usual_ones(colours, chosen):
    info = Info(8, 8, "uint16", colours)
    assert choose_bands([(Path("a.tif"), info)]).bands == chosen
    if "alpha" not in colours and len(colours) > 4:
        assert choose_bands([(Path("a.tif"), info)], "nir").bands == (8,)
        assert choose_bands([(Path("a.tif"), info)], "B08,b4,B03").bands == (8, 4, 3)
        with pytest.raises(SceneError, match="has no band 'B12'"):
            choose_bands([(Path("a.tif"), info)], "B12")


def test_a_range_is_that_of_all_parts_of_an_image(tmp_path):
    # More pixels than are looked at; the upper half is dark.
    values = np.full((1, 128, 128), 100, np.uint16)
    values[:, 64:] = 5000
    path = tif(tmp_path / "a.tif", values)
    assert with_scale(Reading((1,)), "uint16", [path]).scale == ((100.0, 5000.0),)
