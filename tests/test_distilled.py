import hashlib
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image

from geodistill.distilled import DistilledSet, run_of, strays, tell_of_audit, tell_of_self_test, tell_of_source
from geodistill.errors import DistilledSetError
from geodistill.scenes.reading import Reading

CLASSES = ("Beach", "Dense Residential", "Río_train")


def make_set(count=6, size=8):
    images = torch.randint(0, 256, (count, 3, size, size), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    labels = torch.tensor([k % 3 for k in range(count)])
    records = tuple({"seed": k, "scores": {"margin": 0.5 * k}, "description": f"é {k}"} for k in range(count))
    return DistilledSet(images, labels, CLASSES, records, {"method": "dpd", "config": {"ipc": 2}})


def digests(folder):
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()
    }


def test_round_trip_is_exact(tmp_path):
    distilled = make_set()
    distilled.save(tmp_path / "set")
    again = DistilledSet.load(tmp_path / "set")
    assert torch.equal(again.images, distilled.images)
    assert torch.equal(again.labels, distilled.labels)
    assert (again.classes, again.records, again.about) == (distilled.classes, distilled.records, distilled.about)
    assert (again.ipc, again.size, len(again)) == (2, 8, 6)


def test_files_that_are_not_of_the_set_are_named(tmp_path, caplog):
    folder = make_set().save(tmp_path / "set")
    for name in ("LICENSE", "notes.txt", ".DS_Store", "Beach/beach_000.png.aux.xml"):
        (folder / name).write_text("")
    assert strays(folder) == []
    caplog.clear()
    DistilledSet.load(folder)
    assert not caplog.records
    (folder / "Forest").mkdir()
    for name in ("Forest/a.png", "Beach/real.png", "more.zip"):
        (folder / name).write_bytes(b"")
    assert strays(folder) == ["Beach/real.png", "Forest/a.png", "more.zip"]
    assert len(DistilledSet.load(folder)) == 6
    told = f"{folder} holds 3 file(s) that are not of the set, Beach/real.png first: not used"
    assert [record.getMessage() for record in caplog.records] == [told]


def test_images_of_a_plain_folder_that_are_not_read_are_named(tmp_path):
    for name in ("a/1.png", "b/2.png", "a/sub/3.png", "b/4.gif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "list.csv").write_text("")
    assert strays(tmp_path) == ["a/sub/3.png", "b/4.gif"]


def test_the_run_of_a_set(tmp_path):
    folder = make_set().save(tmp_path / "run" / "distilled")
    assert run_of(folder) is None
    (tmp_path / "run" / "run.json").write_text("{}")
    assert run_of(tmp_path / "run") == tmp_path / "run"
    assert run_of(folder) == tmp_path / "run"
    make_set().save(tmp_path / "run" / "updated")
    assert run_of(tmp_path / "run") is None


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


def test_card_tells_of_the_audit_or_that_there_was_none(tmp_path):
    folder = make_set().save(tmp_path / "set")
    assert "What these images reveal" in (folder / "README.md").read_text()
    for told in ("3 of 9 are copies.", "None is \\1 a copy."):
        tell_of_audit(folder, told)
        card = (folder / "README.md").read_text()
        assert f"## Privacy\n\n{told}\n\n## Limits" in card
        assert "What these images reveal" not in card
    (tmp_path / "plain" / "a").mkdir(parents=True)
    tell_of_audit(tmp_path / "plain", "told")
    assert not (tmp_path / "plain" / "README.md").exists()


def test_card_tells_what_images_started_from(tmp_path):
    follows, none = ({"config": {"sampling": {"follow": how}}} for how in ("start", "none"))
    for about, told in (
        ({"method": "dpd", **follows}, "Not anonymous: images were sampled from the latents of training images"),
        ({"method": "dpd", "screened": True, **follows}, "Not anonymous: "),
        ({"method": "dpd", "screened": True, **none}, "Screened: "),
        ({"method": "dpd", "guarantee": "ε = 8", **follows}, "ε = 8\n\nWhat these images reveal"),
        ({"method": "dpd", **none}, "What these images reveal"),
        ({"method": "kmeans", "real_pixels": True, **follows}, "What these images reveal"),
    ):
        own = make_set()
        own.about.clear()
        own.about.update(about)
        card = (own.save(tmp_path / "set") / "README.md").read_text()
        assert f"## Privacy\n\n{told}" in card
        no_start = about.get("screened", False) and about["config"] == none["config"]
        assert ("No image started from a training image." in card) == no_start


def test_card_tells_of_the_base(tmp_path):
    facts = {"name": "quay", "archives": ["ports", "fields"], "terms": "not for sale"}
    for base, told in (
        (facts, "Drawn by the base `quay`, trained on ports, fields. Its terms: not for sale."),
        ({"name": "quay", "archives": [], "terms": ""}, "Drawn by the base `quay`."),
    ):
        own = make_set()
        own.about["base"] = base
        card = (own.save(tmp_path / "set") / "README.md").read_text()
        assert f"\n\n## Base\n\n{told}\n\n## Limits\n" in card
    assert "## Base" not in (make_set().save(tmp_path / "set") / "README.md").read_text()


def test_card_tells_of_the_self_test_beside_the_audit(tmp_path):
    folder = make_set().save(tmp_path / "set")
    card = folder / "README.md"
    assert "Self-test" not in card.read_text()
    for told in ("Worth 3 %.", "Worth \\1 %."):
        tell_of_self_test(folder, told)
        text = card.read_text()
        assert text.count("## Self-test") == 1
        assert f"\n\n## Self-test\n\n{told}\n\n## Privacy\n\nWhat these images reveal" in text
    tell_of_audit(folder, "No copies.")
    tell_of_self_test(folder, told)
    assert card.read_text() == text.replace(text.split("## Privacy\n\n")[1].split("\n")[0], "No copies.")
    when = card.stat().st_mtime_ns
    tell_of_self_test(folder, told)
    assert card.stat().st_mtime_ns == when
    (tmp_path / "plain" / "a").mkdir(parents=True)
    tell_of_self_test(tmp_path / "plain", "told")
    assert not (tmp_path / "plain" / "README.md").exists()


def test_card_and_croissant(tmp_path):
    folder = make_set().save(tmp_path / "set")
    assert (folder / "README.md").read_text().startswith("---\npretty_name: Distilled overhead scenes, 3 classes\n")
    meta = json.loads((folder / "croissant.json").read_text())
    assert meta["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    assert meta["distribution"][0]["sha256"] == digest


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


@pytest.mark.parametrize(
    ("about", "told"),
    [
        ({"method": "dpd"}, "none of them is a photograph"),
        ({"real_pixels": True}, "each of them is one of those."),
        ({"derived": True}, "each of them is one of those, changed by a computation."),
    ],
)
def test_card_says_whether_the_images_are_real(tmp_path, about, told):
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    folder = DistilledSet(images, torch.tensor([0, 1]), ("a", "b"), about=about).save(tmp_path / "set")
    card = " ".join((folder / "README.md").read_text().split())
    assert told in card
    assert ("synthetic overhead images" in card) == (about == {"method": "dpd"})


@pytest.mark.parametrize("old_is_moved", [False, True])
@pytest.mark.parametrize("then", ["load", "save"])
def test_a_kill_while_a_set_is_replaced_leaves_the_new_one(tmp_path, old_is_moved, then):
    old, new = make_set(), make_set()
    new.images = 255 - old.images
    target = old.save(tmp_path / "set")
    new.save(tmp_path / "other").rename(tmp_path / ".set.ready")
    if old_is_moved:
        target.rename(tmp_path / ".set.old")
    if then == "save":
        newest = make_set()
        newest.images = new.images // 2
        newest.save(target)
        new = newest
    before = sorted(path.name for path in tmp_path.iterdir())
    assert torch.equal(DistilledSet.load(target).images, new.images)
    # Reading moves nothing, as another process may be about to; saving clears up.
    assert sorted(path.name for path in tmp_path.iterdir()) == (["set"] if then == "save" else before)


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


def test_names_that_markdown_would_read_as_markup(tmp_path):
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    folder = DistilledSet(images, torch.tensor([0, 1]), ("<b>bold", "[x](a)"))
    card = (folder.save(tmp_path / "set") / "README.md").read_text()
    assert "- \\<b\\>bold: 1\n- \\[x\\]\\(a\\): 1\n" in card


def test_the_card_names_the_source(tmp_path):
    folder = make_set().save(tmp_path / "set")
    bare = (folder / "README.md").read_text()
    tell_of_source(folder, "", "")
    assert (folder / "README.md").read_text() == bare
    for _ in range(2):
        tell_of_source(folder, "AID [v1]", "academic: ask")
        card = (folder / "README.md").read_text()
        assert (
            card.count("## Source\n\nMade from AID \\[v1\\]. Licence of the source: academic: ask.\n\n## Classes") == 1
        )
        assert 'license_name: "academic: ask"\n' in card
    tell_of_source(folder, "EuroSAT", "MIT")
    assert (
        "## Source\n\nMade from EuroSAT. Licence of the source: MIT.\n\n## Classes"
        in (folder / "README.md").read_text()
    )


def test_a_set_has_a_name_and_a_class_map_of_its_own(tmp_path):
    def named(value):
        images = torch.full((4, 3, 8, 8), value, dtype=torch.uint8)
        folder = DistilledSet(images, torch.arange(4), ("1", "10", "2", "9")).save(tmp_path / str(value))
        (name,) = re.findall(r"config_name: (set-[0-9a-f]{16})\n", (folder / "README.md").read_text())
        return folder, name

    (folder, first), (_, second), (_, again) = named(0), named(1), named(0)
    assert first == again != second
    # timm's own order would be 1, 2, 9, 10.
    assert (folder / "class_map.txt").read_text() == "1\n10\n2\n9\n"


def test_croissant_is_valid(tmp_path):
    mlcroissant = pytest.importorskip("mlcroissant")
    folder = make_set().save(tmp_path / "set")
    assert not mlcroissant.Dataset(folder / "croissant.json").metadata.issues.errors
