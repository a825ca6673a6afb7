import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import torch
from made import CLASSES, digests, make_set
from PIL import Image

from geodistill.distilled import DistilledSet
from geodistill.errors import DistilledSetError
from geodistill.scenes.reading import Reading


def test_round_trip_is_exact(tmp_path):
    distilled = make_set()
    distilled.save(tmp_path / "set")
    again = DistilledSet.load(tmp_path / "set")
    assert torch.equal(again.images, distilled.images)
    assert torch.equal(again.labels, distilled.labels)
    assert (again.classes, again.records, again.about) == (distilled.classes, distilled.records, distilled.about)
    assert (again.ipc, again.size, len(again)) == (2, 8, 6)


def test_saving_twice_gives_the_same_bytes_and_leaves_nothing_else(tmp_path):
    make_set().save(tmp_path / "a")
    make_set().save(tmp_path / "b")
    make_set().save(tmp_path / "b")
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_layout_is_an_image_folder(tmp_path):
    # ImageFolder's rule: every folder in the root is a class, sorted by name, and holds images.
    make_set().save(tmp_path / "set")
    assert tuple(sorted(p.name for p in (tmp_path / "set").iterdir() if p.is_dir())) == CLASSES
    assert sorted(p.name for p in (tmp_path / "set" / "Río_train").iterdir()) == [
        "rio-train_000.png",
        "rio-train_001.png",
    ]
    files = sorted(p.name for p in (tmp_path / "set").iterdir() if p.is_file())
    assert files == ["README.md", "class_map.txt", "croissant.json", "manifest.json"]


def test_class_that_reads_like_a_split_is_warned_of(tmp_path, caplog):
    make_set().save(tmp_path / "set")
    assert caplog.messages == [
        "class 'Río_train' reads like a split: load the set by datasets.load_dataset(FOLDER), not by data_dir"
    ]


def test_plain_image_folder(tmp_path):
    for name, colour in (("a", (255, 0, 0)), ("b", (0, 255, 0))):
        (tmp_path / name).mkdir()
        Image.new("RGB", (12, 8), colour).save(tmp_path / name / "x.png")
    loaded = DistilledSet.load(tmp_path)
    assert loaded.images.shape == (2, 3, 8, 8)
    assert loaded.images[:, :, 0, 0].tolist() == [[255, 0, 0], [0, 255, 0]]
    assert (loaded.classes, loaded.labels.tolist()) == (("a", "b"), [0, 1])
    assert DistilledSet.load(tmp_path, size=16).size == 16
    Image.new("RGB", (10, 10)).save(tmp_path / "b" / "y.png")
    with pytest.raises(DistilledSetError, match=r"images of 2 sizes \(8 to 10 px\): give one size$"):
        DistilledSet.load(tmp_path)


def test_images_with_all_bands_are_geotiffs(tmp_path):
    images = torch.randint(0, 256, (3, 4, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    reading = Reading((3, 2, 1, 4), 4 * ((0.0, 1000.0),), dtype="float32", names=("red", "green", "blue", "nir"))
    about = {"method": "dpd", "reading": reading.as_dict()}
    DistilledSet(images, torch.arange(3), CLASSES, (), about).save(tmp_path / "set")
    with rasterio.open(tmp_path / "set/Beach/beach_000.tif") as file:
        assert (file.descriptions, file.dtypes) == (("blue", "green", "red", "nir"), 4 * ("float32",))
        assert np.allclose(file.read()[2], images[0, 0].numpy() / 255 * 1000)
    again = DistilledSet.load(tmp_path / "set")
    assert torch.equal(again.images, images)
    assert again.suffix == ".tif"
    card = (tmp_path / "set/README.md").read_text()
    assert "4 bands of float32, in the units of the source data" in card
    assert "Bands: blue (0 to 1000), green (0 to 1000), red (0 to 1000), nir (0 to 1000)." in card
    assert 'path: "*/*.tif"' in card
    assert (
        json.loads((tmp_path / "set/croissant.json").read_text())["distribution"][1]["encodingFormat"] == "image/tiff"
    )
    # The picture shows the first three channels as red, green and blue.
    with Image.open(tmp_path / "set/preview.png") as preview:
        assert preview.mode == "RGB"
        assert preview.height > 3 * 96


@pytest.mark.parametrize("channels", [2, 4, 16])
def test_channels_without_names_are_kept(channels, tmp_path):
    images = torch.randint(0, 256, (3, channels, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    DistilledSet(images, torch.arange(3), CLASSES).save(tmp_path / "set")
    assert torch.equal(DistilledSet.load(tmp_path / "set").images, images)


def test_folders_that_are_no_set(tmp_path):
    with pytest.raises(DistilledSetError, match=r"nowhere: no such folder$"):
        DistilledSet.load(tmp_path / "nowhere")
    with pytest.raises(DistilledSetError, match=r": no class folders in it: expected <class>/<image>$"):
        DistilledSet.load(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(DistilledSetError, match=r"a: no images in this class folder: expected <class>/<image>$"):
        DistilledSet.load(tmp_path)
    with pytest.raises(DistilledSetError, match=r"is not empty and holds no distilled set: choose another folder$"):
        make_set().save(tmp_path)
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(DistilledSetError, match=r"manifest.json: not the manifest of a distilled set"):
        DistilledSet.load(tmp_path)


def test_manifest_cannot_point_outside(tmp_path):
    folder = make_set().save(tmp_path / "set")
    text = (folder / "manifest.json").read_text().replace("Beach/beach_000.png", "../secret.png")
    (folder / "manifest.json").write_text(text)
    with pytest.raises(DistilledSetError, match=r"file '../secret.png' lies outside the folder$"):
        DistilledSet.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(6, 3, 8, 8)}, "images are torch.float32 of shape [6, 3, 8, 8]: give uint8 RGB"),
        ({"labels": torch.zeros(5)}, "6 images but labels of shape [5]: give one for each image"),
        (
            {"labels": torch.zeros(6)},
            "class 'Dense Residential' has no image: every class of a distilled set needs one",
        ),
        ({"labels": torch.full((6,), 3)}, "labels must lie between 0 and 2, one for each class"),
        ({"classes": ("b", "a", "c")}, "classes ['b', 'a', 'c']: give at least 2 different names, sorted"),
        ({"classes": ("a", "b", "c/d")}, "class name 'c/d' has a slash, backslash or control character"),
        ({"classes": ("README.md", "b", "c")}, "class name 'README.md' is that of a file of the distilled set"),
        ({"records": ({},)}, "6 images but 1 records: give one for each image"),
        ({"records": ({"source": "x"},) * 6}, "record key 'source' is not among those shared: candidate, description"),
    ],
)
def test_parts_that_do_not_fit(change, message):
    parts = {k: getattr(make_set(), k) for k in ("images", "labels", "classes", "records")} | change
    with pytest.raises(DistilledSetError, match=re.escape(message)):
        DistilledSet(**parts)


def test_names_that_windows_has_no_folder_for(tmp_path, caplog, monkeypatch):
    images, labels = torch.zeros(3, 3, 8, 8, dtype=torch.uint8), torch.arange(3)
    DistilledSet(images, labels, ("Beach", "CON", "a:b")).save(tmp_path / "set")
    assert [record.getMessage() for record in caplog.records] == [
        "class name 'CON' is the name of a device: the set cannot be unpacked on Windows",
        "class name 'a:b' has a ':': the set cannot be unpacked on Windows",
    ]
    monkeypatch.setattr("geodistill.scenes.scenes.os", SimpleNamespace(name="nt"))
    with pytest.raises(DistilledSetError) as caught:
        DistilledSet(images, labels, ("Beach", "CON", "a:b"))
    assert str(caught.value) == (
        "class name 'CON' is the name of a device, so Windows has no folder for it: rename the class"
    )


@pytest.mark.parametrize(
    ("about", "replayable"),
    [({}, True), ({"derived": True}, False), ({"real_pixels": True}, False), ({"guarantee": "ε = 8"}, False)],
)
def test_only_images_that_were_sampled_can_be_sampled_again(about, replayable):
    own = make_set()
    own.about.update({"config": {"seed": 0}, **about})
    assert own.replayable == replayable
