import csv
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from models import CLASSES, classifier, saved
from PIL import Image
from rasters import tif

from geodistill.commands import predict as module
from geodistill.commands.predict import predict
from geodistill.deployment.predictors import load_predictor
from geodistill.errors import ConfigError, SceneError
from geodistill.scenes import draw_scene, read_image, to_square_tensor


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("model") / "model")


def folder_of_images(root: Path) -> list[Path]:
    """Draw five images of several sizes in `root`, one in a subfolder."""
    paths = [root / name for name in ("a.png", "b.png", "c.png", "d.png", "sub/e.png")]
    (root / "sub").mkdir(parents=True)
    for k, path in enumerate(paths):
        Image.fromarray(draw_scene("Beach", k, size=32 + 8 * k)).save(path)
    return paths


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_becomes_a_table(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BATCH", 2)
    paths = folder_of_images(tmp_path / "in")
    (tmp_path / "in" / ".hidden.png").write_bytes(b"")
    done = predict(model, tmp_path / "in", out=tmp_path / "new" / "out.csv", top=2)
    rows = rows_of(done.path)
    assert [row["file"] for row in rows] == ["a.png", "b.png", "c.png", "d.png", "sub/e.png"]
    pixels = torch.stack([to_square_tensor(read_image(path), 32) for path in paths])
    best = classifier().logits(pixels).softmax(1).topk(2)
    for row, labels, values in zip(rows, best.indices.tolist(), best.values.tolist(), strict=True):
        assert (row["class"], row["class_2"]) == tuple(CLASSES[label] for label in labels)
        assert [float(row["probability"]), float(row["probability_2"])] == pytest.approx(values, abs=1e-3)
    assert sum(done.counts.values()) == 5
    assert [path.name for path in done.path.parent.iterdir()] == ["out.csv"]


def test_unreadable_images_are_named_and_left_out(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder_of_images(tmp_path / "in")
    for name in ("a.png", "c.png"):
        (tmp_path / "in" / name).write_bytes(b"nothing")
    done = predict(model, tmp_path / "in", out=tmp_path / "out.csv")
    assert [row["file"] for row in rows_of(done.path)] == ["b.png", "d.png", "sub/e.png"]
    assert done.unreadable == 2
    assert [record.getMessage() for record in caplog.records] == [
        f"unreadable image left out: {tmp_path / 'in' / 'a.png'}: not a JPEG, PNG, TIFF, WebP or BMP image "
        "(and 1 more for this reason)"
    ]


def test_one_image_is_a_table_of_one_row(model: Path, tmp_path: Path) -> None:
    (path, *_) = folder_of_images(tmp_path / "in")
    assert [row["file"] for row in rows_of(predict(model, path, out=tmp_path / "out.csv").path)] == ["a.png"]


def test_a_raster_becomes_a_map(model: Path, tmp_path: Path) -> None:
    """Each pixel has the class that its tile has as an image of its own."""
    scenes = np.concatenate([draw_scene(name, 1, size=64) for name in ("Beach", "Forest", "River")], axis=1)
    path = tif(tmp_path / "in.tif", scenes.transpose(2, 0, 1), located=True)
    done = predict(model, path, out=tmp_path / "out.tif", tile=64)
    pixels = torch.stack([to_square_tensor(Image.fromarray(scenes[:, k : k + 64]), 32) for k in (0, 64, 128)])
    with rasterio.open(done.path) as made:
        assert made.read(1).tolist() == [classifier().logits(pixels).argmax(1).tolist()]
        assert made.crs == "EPSG:32629"
    finer = predict(model, path, out=tmp_path / "finer.tif", tile=64, stride=16)
    with rasterio.open(finer.path) as made:
        assert made.shape == (1, 9)
    assert sum(finer.counts.values()) == 9


def test_a_model_is_loaded_once_for_many_files(model: Path, tmp_path: Path) -> None:
    folder_of_images(tmp_path / "in")
    loaded = load_predictor(model)
    outs = [
        predict(source, tmp_path / "in", out=tmp_path / f"{k}.csv").path for k, source in enumerate((loaded, model))
    ]
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_the_input_is_not_replaced_by_its_map(model: Path, tmp_path: Path) -> None:
    path = tif(tmp_path / "in.tif", np.zeros((3, 40, 40), np.uint8))
    before = path.read_bytes()
    (tmp_path / "link.tif").symlink_to(path)
    for out in (path, tmp_path / "link.tif"):
        with pytest.raises(ConfigError) as caught:
            predict(model, path, out=out)
        assert str(caught.value) == f"--out {out} is the input itself: give another name"
    assert path.read_bytes() == before


def test_bad_input_is_told(model: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    deep = tif(tmp_path / "deep" / "deep.tif", np.zeros((3, 40, 40), np.uint16))
    own = "has values of type uint16, the model was trained on 8-bit values: give --scale LOW,HIGH"
    for source, message in {
        tmp_path / "no": f"{tmp_path / 'no'}: no such file or folder: give a folder of images or a raster",
        empty: f"{empty}: no images in it or its subfolders",
        deep: f"{deep} {own}",
        deep.parent: f"{deep} {own}",
    }.items():
        with pytest.raises(SceneError) as caught:
            predict(model, source, out=tmp_path / f"out.{'tif' if source == deep else 'csv'}")
        assert str(caught.value) == message
    (broken,) = (tmp_path / "broken.png",)
    broken.write_bytes(b"")
    with pytest.raises(SceneError) as caught:
        predict(model, broken, out=tmp_path / "out.csv")
    assert str(caught.value) == f"{broken}: the file is empty"
    with pytest.raises(ConfigError) as several:
        predict(model, tmp_path / "deep", out=tmp_path / "out.csv", top=4)
    assert str(several.value) == "--top 4: give 1 to 3, the number of classes"
    for source, name, message in (
        (deep, "out.csv", "the map of a raster is a GeoTIFF: give a name that ends in .tif"),
        (deep.parent, "out.tif", "the classes of images are a CSV table: give a name that ends in .csv"),
    ):
        with pytest.raises(ConfigError) as named:
            predict(model, source, out=tmp_path / name)
        assert str(named.value) == f"--out {tmp_path / name}: {message}"
    assert not list(tmp_path.glob("out*"))


def test_a_map_without_classes_or_place_is_told(model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tif(tmp_path / "in.tif", np.zeros((3, 40, 40), np.uint8), nodata=0)
    assert sum(predict(model, path, out=tmp_path / "out.tif").counts.values()) == 0
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} has no georeference, so its map has none",
        "less than half of each tile of 32 pixels is measured: the map has no class",
    ]


def test_files_of_each_kind_are_read_in_their_own_way(model: Path, tmp_path: Path) -> None:
    shown = draw_scene("Beach", 0, size=32).transpose(2, 0, 1)
    for first, second in (("a", "b"), ("b", "a")):
        folder = tmp_path / first
        folder.mkdir()
        Image.fromarray(shown.transpose(1, 2, 0).copy()).save(folder / f"{first}.png")
        opaque = np.concatenate([shown, np.full((1, 32, 32), 255, np.uint8)])
        tif(folder / f"{second}.tif", opaque, photometric="RGB", alpha="yes")
        tif(folder / "z.tif", np.zeros((5, 32, 32), np.uint8))
        done = predict(model, folder, out=tmp_path / f"{first}.csv")
        assert [row["file"] for row in rows_of(done.path)] == sorted([f"{first}.png", f"{second}.tif"])
        assert done.unreadable == 1
        assert len({row["probability"] for row in rows_of(done.path)}) == 1


@pytest.mark.parametrize("tiles", [{"tile": 0}, {"stride": 0}])
def test_no_tile_is_no_default(tiles: dict[str, int], model: Path, tmp_path: Path) -> None:
    path = tif(tmp_path / "in.tif", np.zeros((3, 64, 64), np.uint8))
    with pytest.raises(ConfigError, match=r"^tiles of \d+ pixels every \d+ pixels: give --tile 1 or more"):
        predict(model, path, out=tmp_path / "out.tif", **tiles)  # type: ignore[arg-type]
