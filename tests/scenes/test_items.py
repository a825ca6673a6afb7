import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import geodistill
from geodistill.config import Config
from geodistill.errors import SceneError
from geodistill.scenes import Scenes, draw_scene, open_dataset, open_scenes, write_scenes
from geodistill.scenes.reading import Reading

NAMES = ["River", "Beach"]
TILES = [draw_scene(NAMES[k % 2], k, size=32) for k in range(40)]


class Pairs:
    """As torchvision's ImageFolder: (PIL image, number), with `classes`."""

    def __init__(self, count: int = 40, start: int = 0) -> None:
        self.classes = NAMES
        self._items = [
            (TILES[k % 40] if k < 40 else draw_scene(NAMES[k % 2], k, size=32), k % 2) for k in range(start, count)
        ]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Any:
        pixels, label = self._items[index]
        return Image.fromarray(pixels), label


class Mappings(Pairs):
    """As torchgeo's classification data sets: {"image": float tensor [bands, h, w], "label": tensor}."""

    def __getitem__(self, index: int) -> Any:
        pixels, label = self._items[index]
        return {"image": torch.from_numpy(pixels).permute(2, 0, 1).float(), "label": torch.tensor(label)}


def expected() -> Scenes:
    """All tiles as scenes, whose classes are sorted."""
    return Scenes.from_arrays(TILES, [1 - k % 2 for k in range(40)], ("Beach", "River"))


def test_pairs_with_classes() -> None:
    data = open_dataset(Pairs())
    assert data.train.classes == ("Beach", "River")
    assert data.test is not None
    assert (len(data.train) + len(data.test), data.files, data.skipped, data.leaks) == (40, (), (), ())
    whole = expected()
    of = dict(zip(whole.keys, zip(whole.labels.tolist(), whole.pixels(size=32), strict=True), strict=True))
    for part in (data.train, data.test):
        for key, label, pixels in zip(part.keys, part.labels.tolist(), part.pixels(size=32), strict=True):
            assert label == of[key][0]
            assert torch.equal(pixels, of[key][1])
    assert data.train.names[0].split("/")[0] == data.train.classes[int(data.train.labels[0])]


def test_the_split_is_that_of_the_same_files(tmp_path: Path) -> None:
    """Not by the bytes of the files, but as often: a fifth of the items, whatever their order."""

    class Turned(Pairs):
        def __getitem__(self, index: int) -> Any:
            return super().__getitem__(39 - index)

    assert set(open_dataset(Pairs()).train.keys) == set(open_dataset(Turned()).train.keys)


def test_tensors_need_a_range() -> None:
    with pytest.raises(SceneError) as error:
        open_dataset(Mappings())
    found = TILES[0].transpose(2, 0, 1)
    assert str(error.value) == (
        f'item 0: an image is of type float32, {found.min()} to {found.max()}: give scale="LOW,HIGH", the values that '
        "become black and white, such as 0,1 or 0,255"
    )
    assert open_dataset(Mappings(), scale="0,255").train.fingerprint() == open_dataset(Pairs()).train.fingerprint()


def test_parts(caplog: pytest.LogCaptureFixture) -> None:
    data = open_dataset({"train": Pairs(30), "validation": Pairs(36, 30), "test": Pairs(42, 35)})
    assert [len(part) for part in (data.train, data.test, data.val) if part is not None] == [30, 7, 6]
    # Item 35 is in both.
    assert [(leak.scene, leak.other, leak.why) for leak in data.leaks] == [
        ("val/Beach/5", "test/Beach/0", "the same file")
    ]
    assert "1 validation scene(s) are also in another part" in caplog.text
    with pytest.raises(SceneError, match="1 scene\\(s\\) are in two parts of the data"):
        open_dataset({"train": Pairs(30), "test": Pairs(42, 29)}, strict=True)


@pytest.mark.parametrize("kind", ["PIL", "array", "tensor", "bytes", "grey", "float"])
def test_kinds_of_images(kind: str) -> None:
    buffer = io.BytesIO()
    Image.fromarray(TILES[0]).save(buffer, "PNG")
    grey = TILES[0].mean(axis=2).astype(np.uint8)
    images: dict[str, Any] = {
        "PIL": Image.fromarray(TILES[0]).convert("RGBA"),
        "array": TILES[0],
        "tensor": torch.from_numpy(TILES[0]).permute(2, 0, 1),
        "bytes": {"bytes": buffer.getvalue(), "path": "a.png"},
        "grey": grey,
        "float": torch.from_numpy(TILES[0]).permute(2, 0, 1).double() / 255,
    }
    items = [{"img": images[kind], "labels": name} for name in NAMES]
    data = open_dataset({"train": items}, classes=NAMES, scale="0,1" if kind == "float" else "")
    found = data.train.pixels([0], size=32)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(found, np.stack([grey] * 3, 2) if kind == "grey" else TILES[0])
    assert data.train.labels.tolist() == [1, 0]
    assert data.test is None


def test_bands_and_columns() -> None:
    values = [np.random.default_rng(k).integers(0, 3000, (16, 16, 13)).astype(np.uint16) for k in range(2)]
    items = [{"pixels": value, "kind": k} for k, value in enumerate(values)]
    data = open_dataset({"train": items}, classes="ab", columns=("pixels", "kind"), bands=(4, 3, 2), scale="0,3000")
    found = data.train.pixels([1], size=16)[0].permute(1, 2, 0).numpy()
    assert np.array_equal(found, (values[1][..., [3, 2, 1]] / 3000 * 255).round().astype(np.uint8))


class Endless:
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))


class Random(Pairs):
    def __getitem__(self, index: int) -> Any:
        return np.random.default_rng().integers(0, 255, (32, 32, 3)).astype(np.uint8), index % 2


PLAIN = np.zeros((16, 16, 3), np.uint8)


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        (Endless(), {}, "the data set is Endless, without a length or items by number: do not stream it"),
        ([], {}, "the data set has no items"),
        ({}, {}, "an empty mapping: the parts are train, test and val"),
        ({"all": Pairs()}, {}, "'all': the parts are train, test and val"),
        ({"test": Pairs()}, {}, "no part train, only test: add one"),
        ([(PLAIN, 0)], {}, "the data set does not name its classes: give classes=, their names by number"),
        (
            [(PLAIN, 2)],
            {"classes": "ab"},
            "item 0: an item has the class 2, known are 0 to 1: give classes=, or filter ",
        ),
        ([(PLAIN, -1)], {"classes": "ab"}, "item 0: an item has the class -1, known are 0 to 1"),
        ([(PLAIN, "c")], {"classes": "ab"}, "item 0: an item has the class 'c', known are 0 to 1"),
        ([(PLAIN, 0)], {"classes": "aa"}, "two classes have the same name: give classes=, all different"),
        ([3], {"classes": "ab"}, "item 0: an item is of type int: expected a mapping or (image, label)"),
        ([{"x": 1}], {"classes": "ab"}, "items have x: give columns=, the keys of image and label"),
        ([{"x": 1}], {"classes": "ab", "columns": ("x", "y")}, "item 0: an item has no 'y', but x: give columns="),
        ([("text", 0)], {"classes": "ab"}, "item 0: an image is str of shape []: expected an image"),
        (
            [(np.zeros((9, 9, 5)), 0)],
            {"classes": "ab"},
            "item 0: an image has 5 bands: give bands=, one (grey), three (red",
        ),
        ([(PLAIN, 0)], {"classes": "ab", "bands": (4,)}, "item 0: an image has 3 bands, bands= names 4"),
        ([(PLAIN, 0)], {"classes": "ab", "scale": "1"}, "item 0: --scale '1' is no range: give LOW,HIGH"),
        (Random(), {}, "the data set gives another image each time it is read: take its random transform off"),
        ({"train": Pairs(1)}, {}, "class 'Beach' has no training image: leave it out of classes="),
    ],
)
def test_what_is_no_data_set_of_scenes(dataset: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SceneError) as error:
        open_dataset(dataset, **options)
    assert str(error.value).startswith(message)


def test_items_that_cannot_be_read() -> None:
    class Damaged(Pairs):
        def __getitem__(self, index: int) -> Any:
            if index == 7:
                raise OSError("truncated file")
            return ({"bytes": b"x"}, 0) if index in self.empty else super().__getitem__(index)

        empty: tuple[int, ...] = ()

    data = open_dataset(Damaged())
    assert data.skipped == ("item 7: cannot be read (truncated file)",)
    assert len(data.train) + len(data.test or ()) == 39
    Damaged.empty = (8, 9)
    with pytest.raises(SceneError) as error:
        open_dataset({"train": Damaged()})
    assert str(error.value).startswith(
        "the data set: 3 of 40 images are unreadable, more than 5%: replace or remove them, first item 7 of train: "
    )


@given(st.permutations(["d", "a", "c", "b"]))
def test_labels_follow_their_names(names: list[str]) -> None:
    items = [(np.full((4, 4, 3), k, np.uint8), k) for k in range(4)]
    data = open_dataset({"train": items}, classes=names)
    assert [data.train.classes[label] for label in data.train.labels] == names


def test_a_run_on_a_data_set(tiny: Config, tmp_path: Path) -> None:
    """A set of real images needs no training; the methods see scenes like any others."""
    data = open_dataset({"train": Pairs(), "test": Pairs(46, 40)})
    made = geodistill.distill(data.train, tiny, method="random", out=tmp_path / "run")
    assert made.classes == ("Beach", "River")
    assert len(made) == 4


def test_a_data_set_of_hugging_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    datasets = pytest.importorskip("datasets")
    write_scenes(tmp_path / "data", train_per_class=3, test_per_class=2, size=32)
    files = open_scenes(tmp_path / "data")
    parts = {}
    for part in ("train", "test"):
        paths = sorted((tmp_path / "data" / part).rglob("*.png"))
        features = datasets.Features(
            {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(files.train.classes))}
        )
        rows = {"image": [str(path) for path in paths], "label": [path.parent.name for path in paths]}
        parts[part] = datasets.Dataset.from_dict(rows, features=features)
    data = open_dataset(datasets.DatasetDict(parts))
    assert data.train.classes == files.train.classes
    assert torch.equal(data.train.labels, files.train.labels)
    assert torch.equal(data.train.pixels(size=32), files.train.pixels(size=32))
    assert data.test is not None
    assert len(data.test) == 20
    parts["train"].to_parquet(tmp_path / "train.parquet")
    embedded = open_scenes(tmp_path / "train.parquet", split="hash")
    assert embedded.train.classes == files.train.classes


class Named(Pairs):
    """Pairs whose classes have other numbers."""

    def __init__(self, names: list[str], start: int) -> None:
        super().__init__(start + 20, start)
        self.classes = names


def test_each_part_has_its_own_numbers_of_classes() -> None:
    data = open_dataset({"train": Named(NAMES, 0), "test": Named(NAMES[::-1], 40)})
    assert data.test is not None
    # Item k of a part is of class k % 2 by number.
    assert {name.split("/")[0] for name in data.test.names[::2]} == {NAMES[1]}
    with pytest.raises(SceneError) as caught:
        open_dataset({"train": Named(NAMES, 0), "test": Named(["River", "Pond"], 40)})
    assert (
        str(caught.value) == "only another part has a class 'Beach': give classes=, the names of all classes by number"
    )
    given = open_dataset({"train": Named(NAMES, 0), "test": Named(["x", "y"], 40)}, classes=NAMES)
    assert given.test is not None
    assert given.test.labels.tolist()[:2] == [1, 0]


def test_values_that_are_no_measurement_get_the_mean() -> None:
    random = np.random.default_rng(0)
    tiles = [random.uniform(0.2, 0.8, (16, 16, 3)).astype(np.float32) for _ in range(40)]
    for tile in tiles[:4]:
        tile[:8] = np.nan
    tiles[5][:] = np.nan
    items = [(tile, k % 2) for k, tile in enumerate(tiles)]
    data = open_dataset({"train": items}, classes=NAMES, scale=(0, 1))
    assert data.skipped == (
        "item 5 of train: cannot be read (no pixel is a measurement (all are nodata, masked or not finite))",
    )
    first = data.train.pixels([0], size=16)[0].float()
    assert first[:, :8].flatten(1).std(dim=1).max() < 1e-3
    assert (first[:, 0, 0] - first[:, 8:].flatten(1).mean(dim=1)).abs().max() < 2


class Sentinel(Pairs):
    """As torchgeo's EuroSAT: {"image": float tensor of reflectance [13, h, w], "label": tensor}."""

    def __getitem__(self, index: int) -> Any:
        pixels, label = self._items[index]
        bands = torch.from_numpy(pixels).permute(2, 0, 1).float().repeat(5, 1, 1)[:13]
        return {"image": bands * torch.arange(1, 14)[:, None, None], "label": torch.tensor(label)}


@pytest.mark.parametrize("bands", ["all", tuple(range(1, 14))])
def test_all_bands_are_kept_in_their_units(bands: Any, tmp_path: Path) -> None:
    data = open_dataset(Sentinel(), bands=bands, scale="auto")
    train = data.train
    assert data.test is not None
    assert (train.channels, train.reading.dtype, train.reading.measured) == (13, "float32", True)
    assert train.reading.names[:2] == ("band 1", "band 2")
    (_, high), (_, tenth) = train.reading.scale[0], train.reading.scale[9]
    assert tenth == pytest.approx(10 * high, rel=1e-5)
    pixels = train.pixels(size=32)
    assert pixels.shape == (len(train), 13, 32, 32)
    assert len(data.test) + len(train) == 40
    # Band 4 is four times band 1, and so is its range.
    assert (pixels[:, 0].int() - pixels[:, 3].int()).abs().max() <= 1
    values = train.reading.measurements(pixels[0].numpy())
    item = next(k for k in range(40) if train.names[0].endswith(f"/{k}"))
    known = Sentinel()[item]["image"].numpy()
    low, top = (np.array([ends[side] for ends in train.reading.scale])[:, None, None] for side in (0, 1))
    assert np.abs(values - known.clip(low, top)).max() <= float((top - low).max()) / 255
    again = open_dataset(Sentinel(), bands=bands, scale="auto")
    assert again.train.fingerprint() == train.fingerprint()


def test_some_bands_and_ranges_that_are_given() -> None:
    found = open_dataset(Sentinel(), bands=(3, 2, 1, 8), scale="0,2500").train
    assert (found.reading.bands, found.channels) == ((3, 2, 1, 8), 4)
    assert found.reading.scale == ((0.0, 2500.0),) * 4
    three = open_dataset(Sentinel(), bands=(3, 2, 1), scale="auto").train
    assert (three.reading, three.channels) == (Reading(), 3)
    # 8-bit values need no range.
    plain = [(np.repeat(tile, 2, axis=2), k % 2) for k, tile in enumerate(TILES)]
    found = open_dataset(plain, classes=NAMES, bands="all", scale="auto").train
    assert (found.channels, found.reading.dtype, found.reading.scale) == (6, "uint8", ())
    assert (found.pixels(size=32)[0].numpy() == plain[int(found.names[0].split("/")[1])][0].transpose(2, 0, 1)).all()


@pytest.mark.parametrize(
    ("bands", "message"),
    [
        ("rgb", "bands='rgb': give numbers of bands, or 'all'"),
        (range(1, 18), "an image of 17 bands cannot keep them all, only 2 to 16: name some"),
        ((1, 14), "item 0: an image has 13 bands, bands= names 1, 14"),
        ((), 'item 0: an image has 13 bands: give bands=, one (grey), three (red, green, blue) or "all"'),
    ],
)
def test_bands_that_cannot_be(bands: Any, message: str) -> None:
    with pytest.raises(SceneError) as caught:
        open_dataset(Sentinel(), bands=bands, scale="0,2500")
    assert str(caught.value) == message


def test_encoded_and_transparent_pictures_are_rgb_whatever_is_asked_for() -> None:
    stream = io.BytesIO()
    Image.fromarray(TILES[0]).save(stream, "PNG")
    kinds = {"bytes": {"bytes": stream.getvalue()}, "rgba": Image.fromarray(TILES[0]).convert("RGBA")}
    for image in kinds.values():
        for bands, scale in (((), "auto"), ("all", ""), ("all", "auto"), ((4, 3, 2), "0,3000")):
            found = open_dataset({"train": [(image, 0)]}, classes=["a"], bands=bands, scale=scale).train
            assert (found.pixels(size=32)[0].numpy() == TILES[0].transpose(2, 0, 1)).all()


def test_the_first_item_may_be_unreadable() -> None:
    class Torn(Sentinel):
        def __getitem__(self, index: int) -> Any:
            if index == 0:
                raise OSError("torn")
            return super().__getitem__(index)

    data = open_dataset(Torn(80), bands=(3, 2, 1, 8), scale="auto", columns=("image", "label"))
    assert data.skipped == ("item 0: cannot be read (torn)",)
    assert data.train.channels == 4
    assert open_dataset(Torn(80), bands="all", scale="auto", columns=("image", "label")).train.channels == 13


def test_ranges_and_arrays_of_numbers_name_bands() -> None:
    for bands in (range(1, 4), np.array([1, 2, 3])):
        assert open_dataset(Sentinel(), bands=bands, scale="0,255").train.channels == 3


@pytest.mark.parametrize("dtype", [np.float16, np.bool_])
def test_types_that_a_geotiff_does_not_have_are_refused(dtype: Any) -> None:
    items = [(np.zeros((8, 8, 5), dtype), k % 2) for k in range(4)]
    with pytest.raises(SceneError, match=rf"^values of type {np.dtype(dtype)} cannot be kept, only uint8, int16, "):
        open_dataset(items, classes=NAMES, bands="all", scale="0,1")


def test_a_range_of_nothing() -> None:
    empty = [(np.full((8, 8), np.nan, np.float32), 0)] * 4
    with pytest.raises(SceneError, match=r"^no pixel is a measurement .*: give scale=$"):
        open_dataset(empty, classes=["a"], scale="auto")


@pytest.mark.slow
def test_a_set_of_all_bands_of_a_data_set(tmp_path: Path) -> None:
    data = open_dataset(Sentinel(), bands=(3, 2, 1, 8), scale="auto")
    config = geodistill.load_config("tiny", ["compact.steps=2", "self_test.held_out=0"])
    made = geodistill.distill(data.train, config, out=tmp_path / "run")
    assert made.images.shape[1] == 4
    assert len(list((tmp_path / "run" / "distilled").rglob("*.tif"))) == len(made)
