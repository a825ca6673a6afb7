import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.warp
from hypothesis import given
from hypothesis import strategies as st
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin
from rasters import LEFT, METRES, TOP, tif
from typer.testing import CliRunner

from geodistill.cli import app
from geodistill.errors import SceneError
from geodistill.scenes import cut_tiles, open_scenes
from geodistill.scenes.scenes import GROUND
from geodistill.scenes.tiles import _grid

shapely = pytest.importorskip("shapely")
raw = pytest.importorskip("pyogrio.raw")

SIDE = 200


def mosaic(path: Path, **options: Any) -> Path:
    """Write a raster of 200 x 200 pixels of 10 m, whose values are row and column."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return tif(path, np.stack([rows, columns]).astype(np.uint16), located=True, names=("row", "column"), **options)


def place(column: float, row: float) -> tuple[float, float]:
    """Return the coordinates of a place in pixels of the mosaic."""
    return LEFT + METRES * column, TOP - METRES * row


def layer(path: Path, shapes: list[Any], crs: str | None = "EPSG:32629", **columns: list[Any]) -> Path:
    """Write geometries, given in pixels of the mosaic, with their columns."""

    def located(points: Any) -> Any:
        x, y = np.array([place(*point) for point in points]).T
        return np.stack(rasterio.warp.transform("EPSG:32629", crs, x, y), 1) if crs else np.stack([x, y], 1)

    kinds = {shape.geom_type for shape in shapes}
    wkb = shapely.to_wkb(np.array([shapely.transform(shape, located) for shape in shapes], object))
    values = [np.array(column, object if isinstance(column[0], str) else None) for column in columns.values()]
    driver = "GeoJSON" if path.suffix == ".geojson" else "GPKG"
    kind = kinds.pop() if len(kinds) == 1 else "Unknown"
    raw.write(path, wkb, values, list(columns), geometry_type=kind, crs=crs, driver=driver)
    return path


def points(path: Path, *places: tuple[float, float], crs: str = "EPSG:32629", **columns: list[Any]) -> Path:
    columns = columns or {"label": ["ab"[k % 2] for k in range(len(places))]}
    return layer(path, [shapely.Point(*one) for one in places], crs, **columns)


def values(path: Path) -> np.ndarray:
    with rasterio.open(path) as file:
        return file.read()


@pytest.mark.parametrize("crs", ["EPSG:32629", "EPSG:4326", "EPSG:3857"])
@pytest.mark.parametrize("suffix", [".gpkg", ".geojson"])
def test_a_point_is_the_centre_of_its_tile(crs: str, suffix: str, tmp_path: Path) -> None:
    if suffix == ".geojson" and crs != "EPSG:4326":
        pytest.skip("GeoJSON is in longitude and latitude")
    labels = points(tmp_path / f"a{suffix}", (50, 60), (100.2, 20.4), crs=crs)
    cut = cut_tiles(labels, mosaic(tmp_path / "m.tif"), tmp_path / "out", tile=10)
    assert dict(cut.classes) == {"a": 1, "b": 1}
    assert cut.left_out == {}
    first, second = sorted((tmp_path / "out").rglob("*.tif"))
    assert first.parent.name == "a"
    assert values(first)[:, 0, 0].tolist() == [55, 45]
    assert values(second)[:, -1, -1].tolist() == [24, 104]
    with rasterio.open(first) as file:
        assert file.shape == (10, 10)
        assert file.bounds == (*place(45, 65), *place(55, 55))
        assert file.descriptions == ("row", "column")


def test_what_a_raster_says_is_kept(tmp_path: Path) -> None:
    labels = points(tmp_path / "a.gpkg", (50, 50))
    bands = np.random.default_rng(0).integers(0, 99, (4, SIDE, SIDE)).astype(np.int16)
    raster = tif(tmp_path / "m.tif", bands, located=True, nodata=-7, scales=(2.0,) * 4, offsets=(1.0,) * 4)
    with rasterio.open(raster, "r+") as file:
        file.colorinterp = (ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.undefined)
    cut_tiles(labels, raster, tmp_path / "out", tile=20)
    with rasterio.open(tmp_path / "out" / "a" / "1.tif") as file:
        assert (file.read() == bands[:, 40:60, 40:60]).all()
        assert file.nodata == -7
        assert (file.scales, file.offsets) == ((2.0,) * 4, (1.0,) * 4)
        assert [one.name for one in file.colorinterp] == ["red", "green", "blue", "undefined"]


def test_a_mask_and_a_palette(tmp_path: Path) -> None:
    labels = points(tmp_path / "a.gpkg", (50, 50))
    mask = np.zeros((SIDE, SIDE), bool)
    mask[45:] = True
    tif(tmp_path / "m.tif", np.ones((1, SIDE, SIDE), np.uint8), located=True, mask=mask)
    cut_tiles(labels, tmp_path / "m.tif", tmp_path / "masked", tile=20)
    with rasterio.open(tmp_path / "masked" / "a" / "1.tif") as file:
        assert (file.dataset_mask() == 255 * mask[40:60, 40:60]).all()
    tif(tmp_path / "p.tif", np.ones((1, SIDE, SIDE), np.uint8), located=True, photometric="palette")
    with rasterio.open(tmp_path / "p.tif", "r+") as file:
        file.write_colormap(1, {1: (200, 100, 50, 255)})
    cut_tiles(labels, tmp_path / "p.tif", tmp_path / "palette", tile=20)
    with rasterio.open(tmp_path / "palette" / "a" / "1.tif") as file:
        assert file.colormap(1)[1] == (200, 100, 50, 255)


def test_polygons_by_their_boxes(tmp_path: Path) -> None:
    triangle = shapely.Polygon([(10.5, 20.5), (30, 20.5), (10.5, 49.5)])
    labels = layer(tmp_path / "a.gpkg", [triangle, shapely.box(0, 0, 1, 50)], label=["a", "b"])
    cut = cut_tiles(labels, mosaic(tmp_path / "m.tif"), tmp_path / "out")
    found = values(tmp_path / "out" / "a" / "1.tif")
    assert found.shape == (2, 30, 20)
    assert found[:, 0, 0].tolist() == [20, 10]
    assert cut.told() == ["1 feature(s) are too small for a tile, and give no tile there: 2"]


def test_an_edge_on_the_border_between_two_pixels_is_on_it(tmp_path: Path) -> None:
    # Reprojection leaves errors in the last digits; a box of whole pixels must not get one more.
    boxes = [shapely.box(column, 0, column + 64, 64) for column in (0, 64, 136)]
    labels = layer(tmp_path / "a.gpkg", boxes, "EPSG:4326", label=["a", "b", "b"])
    cut = cut_tiles(labels, mosaic(tmp_path / "m.tif"), tmp_path / "out")
    assert cut.told() == []
    assert {values(path).shape for path in (tmp_path / "out").rglob("*.tif")} == {(2, 64, 64)}


def test_tiles_without_a_measurement_are_counted(tmp_path: Path) -> None:
    blank = np.zeros((1, SIDE, SIDE), np.uint16)
    half = blank.copy()
    half[:, :, 100:] = 7
    labels = points(tmp_path / "a.gpkg", (50, 50), (150, 50), (100, 90))
    cut = cut_tiles(labels, tif(tmp_path / "half.tif", half, located=True, nodata=0), tmp_path / "out", tile=20)
    assert cut.classes == {"a": 1, "b": 1}
    assert cut.told() == ["1 feature(s) show nodata alone, and give no tile there: 1"]
    with pytest.raises(SceneError) as caught:
        cut_tiles(labels, tif(tmp_path / "no.tif", blank, located=True, nodata=0), tmp_path / "none", tile=20)
    assert str(caught.value).endswith("no tile shows a measurement (all are nodata or masked)")
    assert not (tmp_path / "none").exists()


def test_tiles_within_a_polygon(tmp_path: Path) -> None:
    lower = shapely.Polygon([(0, 0), (0, 40), (40, 40)])
    both = shapely.MultiPolygon([shapely.box(100, 100, 119, 110), shapely.box(150, 0, 160, 20)])
    labels = layer(tmp_path / "a.gpkg", [lower, both, shapely.box(0, 0, 9, 90)], label=["a", "b", "b"])
    cut = cut_tiles(labels, mosaic(tmp_path / "m.tif"), tmp_path / "out", tile=10)
    corners = [tuple(values(path)[:, 0, 0].tolist()) for path in (tmp_path / "out" / "a").iterdir()]
    # Rows and columns of the squares below the diagonal.
    assert sorted(corners) == [(10, 0), (20, 0), (20, 10), (30, 0), (30, 10), (30, 20)]
    assert cut.classes == {"a": 6, "b": 3}
    assert cut.told() == ["1 feature(s) are too small for a tile, and give no tile there: 3"]


@given(st.floats(-300, 300), st.floats(0, 300), st.integers(2, 50))
def test_a_grid_lies_in_the_polygon_and_in_the_raster(low: float, length: float, tile: int) -> None:
    found = _grid(low, low + length, tile, SIDE)
    every = np.arange(np.ceil(low), low + length - tile + 1, tile)
    whole = [x for x in every if x >= 0 and x + tile <= min(SIDE, low + length)]
    assert found.tolist() == whole


def test_what_gives_no_tile_is_counted(tmp_path: Path) -> None:
    places = [(100, 100), (3, 100), (198, 100), (-300, 5), (5, 900), (100, 110)]
    shapes = [*(shapely.Point(*one) for one in places), shapely.LineString([(9, 9), (30, 30)])]
    labels = layer(tmp_path / "a.gpkg", shapes, label=["a", "b", "b", "b", "b", None, "b"])
    cut = cut_tiles(labels, mosaic(tmp_path / "m.tif"), tmp_path / "out", tile=10)
    assert cut.classes == {"a": 1}
    assert cut.told() == [
        "1 feature(s) have no class, and give no tile there: 6",
        "2 feature(s) reach over the raster's edge, and give no tile there: 2, 3",
        "2 feature(s) are outside the raster, and give no tile there: 4, 5",
        "1 feature(s) are neither points nor polygons, and give no tile there: 7",
    ]


def test_a_polygon_far_larger_than_the_raster(tmp_path: Path) -> None:
    labels = layer(tmp_path / "a.gpkg", [shapely.box(-2e6, -2e6, 2e6, 2e6), shapely.box(500, 0, 900, 90)], label=[1, 2])
    cut = cut_tiles(labels, mosaic(tmp_path / "m.tif"), tmp_path / "out", tile=50)
    assert cut.classes == {"1": 16}
    assert cut.told() == ["1 feature(s) are outside the raster, and give no tile there: 2"]


def test_a_raster_larger_than_memory(tmp_path: Path) -> None:
    """240 GB of zeros, none of which the file holds."""
    side = 200_000
    profile: dict[str, Any] = {"driver": "GTiff", "dtype": "uint16", "count": 3, "width": side, "height": side}
    profile |= {"tiled": True, "compress": "deflate", "interleave": "pixel", "blockxsize": 1024, "blockysize": 1024}
    profile |= {"crs": "EPSG:32629", "transform": from_origin(LEFT, TOP, METRES, METRES)}
    with rasterio.open(tmp_path / "m.tif", "w", BIGTIFF="YES", SPARSE_OK="TRUE", **profile):
        pass
    labels = points(tmp_path / "a.gpkg", (60_000, 190_000), (1_000, 1_000))
    cut = cut_tiles(labels, tmp_path / "m.tif", tmp_path / "out", tile=64)
    assert cut.classes == {"a": 1, "b": 1}


def test_a_split_column(tmp_path: Path) -> None:
    places = [(20.0 * k + 20, 20.0 * j + 20) for j in range(4) for k in range(8)]
    parts = ["test" if k % 8 > 5 else "train" for k in range(32)]
    labels = points(
        tmp_path / "a.gpkg", *places, landuse=["ab"[k % 2] for k in range(32)], subset=parts, other=[1] * 32
    )
    with pytest.raises(SceneError, match=r"no column label or class or class_name or category: the columns are"):
        cut_tiles(labels, mosaic(tmp_path / "m.tif"), tmp_path / "out", tile=16)
    with pytest.raises(SceneError, match=r"no column 'kind': the columns are landuse, subset, other$"):
        cut_tiles(labels, tmp_path / "m.tif", tmp_path / "out", tile=16, column="kind")
    cut_tiles(labels, tmp_path / "m.tif", tmp_path / "out", tile=16, column="landuse")
    data = open_scenes(tmp_path / "out", bands="1")
    assert (len(data.train), len(data.test or ())) == (24, 8)
    assert not [leak for leak in data.leaks if leak.why == GROUND]
    assert len((tmp_path / "out" / "metadata.jsonl").read_text().splitlines()) == 32
    json.loads((tmp_path / "out" / "metadata.jsonl").read_text().splitlines()[0])


def test_the_command_line(tmp_path: Path) -> None:
    places = [(20.0 * k + 20, 20.0 * j + 20) for j in range(9) for k in range(9)]
    labels = points(tmp_path / "a.gpkg", *places, (500, 500))
    arguments = ["--raster", str(mosaic(tmp_path / "m.tif")), "--tile", "16", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, ["tiles", str(labels), *arguments])
    assert done.exit_code == 0
    assert "1 feature(s) are outside the raster, and give no tile there: 82" in done.output
    assert f"81 tiles of 2 classes (a 41, b 40): {tmp_path / 'out'}" in done.output
    assert len(open_scenes(tmp_path / "out", bands="2", split="spatial:500").train) < 81
    again = CliRunner().invoke(app, ["tiles", str(labels), *arguments])
    assert again.exit_code == 2
    assert "exists and is not empty: choose another --out" in again.output
    refused = CliRunner().invoke(app, ["inspect", str(labels)])
    assert refused.exit_code == 2
    assert f"labels without images: cut their tiles from a raster, geodistill tiles {labels}" in refused.output


def test_what_cannot_be_used(tmp_path: Path) -> None:
    raster, labels = mosaic(tmp_path / "m.tif"), points(tmp_path / "a.gpkg", (50, 50))

    def fails(labels: Path, raster: Path, **options: Any) -> str:
        with pytest.raises(SceneError) as error:
            cut_tiles(labels, raster, tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()
        return str(error.value)

    told = fails(labels, raster)
    assert told == f"{labels}: feature 1 is a point: give --tile, the side of its tile in pixels"
    assert fails(labels, raster, tile=1) == "--tile 1: a tile has 2 pixels or more on a side"
    assert fails(labels, labels, tile=8).startswith(f"{labels}: not a raster that GDAL reads (")
    assert fails(raster, raster, tile=8).startswith(f"{raster}: ")
    assert fails(tmp_path / "none.gpkg", raster, tile=8).startswith(
        f"{tmp_path}/none.gpkg: not a GeoPackage or GeoJSON"
    )
    outside = points(tmp_path / "o.gpkg", (-50, 50))
    assert fails(outside, raster, tile=8) == (
        f"{outside}: no feature gives a tile of {raster}: 1 feature(s) are outside the raster, and give no tile there: "
        "1"
    )
    plain = tif(tmp_path / "plain.tif", np.zeros((1, 50, 50), np.uint8))
    assert fails(labels, plain, tile=8) == (
        f"{plain}: the raster has no coordinate system: assign one (gdal_edit.py -a_srs)"
    )
    nowhere = layer(tmp_path / "n.gpkg", [shapely.Point(9, 9)], None, label=["a"])
    assert fails(nowhere, raster, tile=8) == f"{nowhere}: the layer has no coordinate system: assign one"
    dotted = points(tmp_path / "d.gpkg", (50, 50), label=["../a"])
    assert fails(dotted, raster, tile=8) == "class name '../a' is empty or starts with a dot: rename the class"
    raw.write(labels, shapely.to_wkb([shapely.Point(0, 0)]), [], [], geometry_type="Point", layer="b", crs="EPSG:4326")
    assert fails(labels, raster, tile=8) == f"{labels}: 2 layers (a, b): keep one in a file of its own"


def test_without_pyogrio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raster, labels = mosaic(tmp_path / "m.tif"), points(tmp_path / "a.gpkg", (50, 50))
    monkeypatch.setitem(sys.modules, "pyogrio.raw", None)
    with pytest.raises(SceneError) as error:
        cut_tiles(labels, raster, tmp_path / "out", tile=8)
    assert str(error.value).startswith(f"{labels}: a layer of vector data needs pyogrio.raw, which")
    assert str(error.value).endswith("): pip install 'geodistill[vector]'")


@pytest.mark.parametrize("kind", ["RGB", "minisblack"])
def test_transparency_is_kept(kind: str, tmp_path: Path) -> None:
    count = 4 if kind == "RGB" else 2
    values = np.full((count, SIDE, SIDE), 90, np.uint8)
    values[-1, 45:] = 255
    values[-1, :45] = 0
    raster = tif(tmp_path / "r.tif", values, located=True, photometric=kind, alpha="yes")
    cut_tiles(points(tmp_path / "l.gpkg", (50, 50)), raster, tmp_path / "out", tile=20)
    with rasterio.open(tmp_path / "out" / "a" / "1.tif") as file:
        assert file.colorinterp[-1].name == "alpha"
        assert (file.read(count)[:5] == 0).all()


def test_long_numbers_of_classes_stay_apart(tmp_path: Path) -> None:
    # One missing value makes the column one of floats.
    labels = points(tmp_path / "l.gpkg", (50, 50), (90, 90), (120, 50), label=[1110001.0, 1110002.0, float("nan")])
    cut = cut_tiles(labels, mosaic(tmp_path / "r.tif"), tmp_path / "out", tile=20)
    assert sorted(cut.classes) == ["1110001", "1110002"]
