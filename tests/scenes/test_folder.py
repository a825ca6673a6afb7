import hashlib
import logging
import os
import unicodedata

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from rasterio.transform import from_origin
from rasters import tif

from geodistill.errors import SceneError
from geodistill.scenes import open_scenes
from geodistill.scenes.folder import LAYOUT, SYSTEM_FOLDERS, TEST_FRACTION, images_in, log_skipped, open_unlabelled
from geodistill.scenes.splits import _position


def put(path, value=0):
    """Write a small image whose content depends on `value`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.frombuffer(hashlib.sha256(str(value).encode()).digest()[:27], np.uint8).reshape(3, 3, 3)
    Image.fromarray(pixels).save(path)
    return path


def fill(root, classes=("Beach", "River"), count=12, start=0):
    for k, name in enumerate(classes):
        for i in range(count):
            put(root / name / f"{i:02d}.png", start + 1000 * k + i)
    return root


def fails(root):
    with pytest.raises(SceneError) as error:
        open_scenes(root)
    return str(error.value)


def test_class_folders_are_split_by_content(tmp_path):
    data = open_scenes(fill(tmp_path, count=40))
    assert data.train.classes == data.test.classes == ("Beach", "River")
    assert len(data.train) + len(data.test) == 80
    assert 6 <= len(data.test) <= 28
    assert not set(data.train.keys) & set(data.test.keys)
    assert data.skipped == ()
    first = data.train.names[0]
    assert data.train.keys[0] == hashlib.sha256((tmp_path / first).read_bytes()).hexdigest()
    assert (
        data.train.pixels([0], size=3)[0].permute(1, 2, 0).numpy() == np.asarray(Image.open(tmp_path / first))
    ).all()


def test_adding_files_moves_no_other(tmp_path):
    before = open_scenes(fill(tmp_path, count=15))
    fill(tmp_path, ("Beach", "Airport"), count=30, start=5000)
    for i in range(15):
        put(tmp_path / "Beach" / f"{i:02d}.png", i)
    after = open_scenes(tmp_path)
    assert set(before.train.keys) <= set(after.train.keys)
    assert set(before.test.keys) <= set(after.test.keys)


def test_split_folders(tmp_path, caplog):
    fill(tmp_path / "Train")
    fill(tmp_path / "val", start=100)
    fill(tmp_path / "test", count=3, start=200)
    data = open_scenes(tmp_path)
    assert (len(data.train), len(data.test)) == (24, 6)
    assert data.test.names[0] == "Beach/00.png"
    assert len(data.val) == 24
    assert torch.equal(data.tested_on("val").test.labels, data.val.labels)
    assert (data.tested_part, data.tested_on("val").tested_part) == ("test", "val")
    assert data.tested_on("test") == data


def test_train_alone_has_no_test(tmp_path):
    fill(tmp_path / "train")
    data = open_scenes(tmp_path)
    assert data.test is None
    with pytest.raises(
        SceneError, match=r"^the data has no validation part: add val/<class>/<image>, or a list of it$"
    ):
        data.tested_on("val")
    with pytest.raises(SceneError, match=r"^there is no part 'train' to test on: give test or val$"):
        data.tested_on("train")


@pytest.mark.parametrize("name", ["valid", "Validation"])
def test_other_names_of_the_validation_part(tmp_path, name):
    fill(tmp_path / "train")
    fill(tmp_path / name, count=5, start=100)
    assert len(open_scenes(tmp_path).val) == 10
    fill(tmp_path / "val", count=5, start=200)
    first, second = sorted((name, "val"))
    assert fails(tmp_path) == f"{tmp_path}: {first} and {second} are the same part of the data: keep one"


def test_the_only_folder_stands_for_its_parent(tmp_path, caplog):
    fill(tmp_path / "Images", count=20)
    data = open_scenes(tmp_path)
    assert data.train.classes == ("Beach", "River")
    assert f"using {tmp_path / 'Images'}, the only folder in {tmp_path}" in caplog.messages


def located(root, columns=20, metres=1000.0):
    """Write scenes of 100 m along a line, `metres` apart, whose classes take turns."""
    for k in range(2 * columns):
        values = np.random.default_rng(k).integers(0, 255, (3, 10, 10)).astype(np.uint8)
        place = from_origin(metres * k, 0.0, 10.0, 10.0)
        tif(root / "ab"[k % 2] / f"{k}.tif", values, crs="EPSG:32629", transform=place, photometric="RGB")
    return root


def test_neighbours_stay_together(tmp_path):
    data = open_scenes(located(tmp_path), split="spatial:5000")
    places = {"train": data.train.names, "test": data.test.names}
    squares = {part: {int(name[2:-4]) // 5 for name in names} for part, names in places.items()}
    assert squares["test"]
    assert not squares["train"] & squares["test"]
    assert len(data.train) + len(data.test) == 40
    again = open_scenes(tmp_path, split="spatial:5000")
    assert again.test.keys == data.test.keys


def test_splits_that_cannot_be(tmp_path):
    fill(tmp_path / "plain")
    with pytest.raises(
        SceneError, match=r"/Beach/00\.png has no georeference: --split spatial needs one in every file$"
    ):
        open_scenes(tmp_path / "plain", split="spatial")
    for split in ("spatial:0", "spatial:far"):
        with pytest.raises(SceneError, match=f"^--split {split!r}: give the side of a block in metres, such as"):
            open_scenes(tmp_path / "plain", split=split)
    with pytest.raises(
        SceneError, match=r"^--split 'place': give hash, spatial, spatial:METRES or a folder of lists of"
    ):
        open_scenes(tmp_path / "plain", split="place")
    fill(tmp_path / "split" / "train")
    with pytest.raises(SceneError, match=r" has splits of its own \(train\): leave --split spatial out$"):
        open_scenes(tmp_path / "split", split="spatial")


def _write_lists(folder, parts):
    folder.mkdir()
    for part, names in parts.items():
        (folder / f"uc_merced-{part}.txt").write_text("\n".join(names) + "\n")
    return str(folder)


def test_published_lists(tmp_path, caplog):
    fill(tmp_path / "data")
    numbers = {"train": range(6), "val": range(6, 8), "test": range(8, 11)}
    names = {part: [f"{name}/{k:02d}.tif" for name in ("Beach", "River") for k in own] for part, own in numbers.items()}
    names["test"].append("Beach/99.tif")
    lists = _write_lists(tmp_path / "lists", names)
    data = open_scenes(tmp_path / "data", split=lists)
    assert [len(part) for part in (data.train, data.val, data.test)] == [12, 4, 6]
    assert data.test.names[:3] == ("Beach/08.png", "Beach/09.png", "Beach/10.png")
    assert f"2 image(s) are in none of the lists in {lists}, and are left out" in caplog.messages
    assert f"1 names of the lists in {lists} have no file, 'Beach/99.tif' first" in caplog.messages
    (tmp_path / "lists" / "more_test.txt").write_text("Beach/00\n")
    with pytest.raises(SceneError, match=r"'Beach/00\.tif' is in the lists of test and train$"):
        open_scenes(tmp_path / "data", split=lists)
    ambiguous = _write_lists(tmp_path / "ambiguous", {"train": ["03.png"], "test": ["Beach/04.png"]})
    with pytest.raises(SceneError, match=r"'03\.png' is the name of files in Beach, River: write <class>/03\.png$"):
        open_scenes(tmp_path / "data", split=ambiguous)
    (tmp_path / "none").mkdir()
    with pytest.raises(SceneError, match=r"none: no list of training images: expected files such as NAME-train\.txt"):
        open_scenes(tmp_path / "data", split=str(tmp_path / "none"))


def test_lists_of_names_without_folders(tmp_path):
    fill(tmp_path / "data")
    for name in ("Beach", "River"):
        for k in range(12):
            path = tmp_path / "data" / name / f"{k:02d}.png"
            path.rename(path.with_name(f"{name.lower()}{k:02d}.png"))
    names = {
        part: [f"{name}{k:02d}.jpg" for name in ("beach", "river") for k in own]
        for part, own in {"train": range(8), "test": range(8, 12)}.items()
    }
    data = open_scenes(tmp_path / "data", split=_write_lists(tmp_path / "lists", names))
    assert (len(data.train), len(data.test)) == (16, 8)


def test_copies_in_test_are_reported(tmp_path, caplog):
    fill(tmp_path / "train")
    fill(tmp_path / "test", count=2)
    open_scenes(tmp_path)
    first = "test/Beach/00.png and train/Beach/00.png (the same file)"
    assert f"4 test scene(s) are also in another part, the first is {first}" in caplog.text


names = st.text(
    st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"], exclude_characters="/\\"), min_size=1, max_size=8
)


def _is_class(name):
    # Hidden and system folders are skipped: test_hidden_and_system_entries_are_skipped.
    return name.strip() and name[0] != "." and name not in SYSTEM_FOLDERS


@settings(max_examples=25)
@given(st.sets(names.filter(_is_class), min_size=2, max_size=4))
def test_any_sane_names_are_classes_in_sorted_order(tmp_path_factory, chosen):
    composed = {unicodedata.normalize("NFC", name) for name in chosen}
    root = tmp_path_factory.mktemp("names")
    for k, name in enumerate(composed):
        put(root / "train" / name / "a.png", k)
    assert open_scenes(root).train.classes == tuple(sorted(composed))


def test_unicode_forms_of_one_name_are_one_class(tmp_path):
    fill(tmp_path / "train", ("Cafe\u0301", "River"))
    fill(tmp_path / "test", ("Caf\u00e9", "River"), start=50)
    assert open_scenes(tmp_path).test.classes == ("Caf\u00e9", "River")
    fill(tmp_path / "train", ("Caf\u00e9",))
    message = f"{tmp_path / 'train'}: two folders are named 'Café', differing in Unicode form only: merge them"
    assert fails(tmp_path) == message


def test_hidden_and_system_entries_are_skipped(tmp_path, caplog):
    fill(tmp_path)
    for place in (".cache", "__MACOSX"):
        put(tmp_path / place / "a.png")
    for name in (".DS_Store", "._01.png"):
        (tmp_path / "Beach" / name).write_bytes(b"x")
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "Beach" / "notes.txt").write_text("x")
    assert open_scenes(tmp_path).train.classes == ("Beach", "River")
    assert (
        f"{tmp_path}: 1 entries are no images and ignored, {tmp_path / 'Beach' / 'notes.txt'} first" in caplog.messages
    )


def test_unreadable_images_are_named_and_left_out(tmp_path, caplog):
    fill(tmp_path, count=30)
    (tmp_path / "Beach" / "zero.jpg").touch()
    (tmp_path / "River" / "link.png").symlink_to("nowhere.png")
    data = open_scenes(tmp_path)
    zero = f"{tmp_path / 'Beach' / 'zero.jpg'}: the file is empty"
    assert data.skipped == (
        zero,
        f"{tmp_path / 'River' / 'link.png'}: cannot be opened (No such file or directory)",
    )
    assert f"unreadable image left out: {zero}" in caplog.messages
    assert len(data.train) + len(data.test) == 60


def test_reasons_of_one_kind_are_told_once(caplog):
    sizes = [f"a/{k}.png: {k} x 3 pixels show no scene" for k in range(1, 4)]
    log_skipped([sizes[0], "b/0.jpg: the file is empty", *sizes[1:]])
    assert caplog.messages == [
        "unreadable image left out: a/1.png: 1 x 3 pixels show no scene (and 2 more for this reason)",
        "unreadable image left out: b/0.jpg: the file is empty",
    ]


def test_a_run_folder_among_the_classes_is_no_class(tmp_path, caplog):
    fill(tmp_path, count=10)
    for name in ("stages", "distilled"):
        (tmp_path / "run" / name).mkdir(parents=True)
    (tmp_path / "run" / "run.json").write_text("{}")
    Image.new("RGB", (8, 8)).save(tmp_path / "run" / "grid.png")
    assert open_scenes(tmp_path).train.classes == ("Beach", "River")
    assert f"{tmp_path / 'run'} is a run folder of geodistill, not a class: not read" in caplog.messages


def test_images_of_runs_are_none_of_a_folder(tmp_path):
    for name in ("a.png", "sub/b.png", "run/grid.png", "run/distilled/x/c.png", "run/stages/d.png", ".hidden.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    assert len(images_in(tmp_path)) == 5
    (tmp_path / "run" / "run.json").write_text("{}")
    assert [path.name for path in images_in(tmp_path)] == ["a.png", "b.png"]
    assert len(open_unlabelled(tmp_path)) == 2
    with pytest.raises(SceneError, match=r"run: no images in it or its subfolders$"):
        images_in(tmp_path / "run")


def test_too_many_unreadable_images_stop(tmp_path):
    fill(tmp_path, count=10)
    for i in range(2):
        (tmp_path / "Beach" / f"zero{i}.jpg").touch()
    listed = "; ".join(f"{tmp_path / 'Beach' / f'zero{i}.jpg'}: the file is empty" for i in range(2))
    assert fails(tmp_path) == (
        f"{tmp_path}: 2 of 22 images are unreadable, more than 5%: replace or remove them, first {listed}"
    )


def test_a_class_without_readable_images(tmp_path):
    fill(tmp_path, count=30)
    (tmp_path / "Port").mkdir()
    (tmp_path / "Port" / "a.png").touch()
    assert fails(tmp_path) == f"{tmp_path}: class 'Port' has no readable image: replace its files"


def test_missing_and_empty_folders(tmp_path):
    assert fails(tmp_path / "no") == f"{tmp_path / 'no'}: no such folder: {LAYOUT}"
    assert fails(tmp_path) == f"{tmp_path}: no folders with images in it: {LAYOUT}"
    (tmp_path / "f").touch()
    assert fails(tmp_path / "f") == f"{tmp_path / 'f'}: not a folder, a list or an archive: {LAYOUT}"


def test_one_class(tmp_path):
    fill(tmp_path, ("Beach",))
    assert fails(tmp_path) == f"{tmp_path}: only one class, 'Beach': a classifier needs at least 2"
    assert open_scenes(tmp_path, least=1).train.classes == ("Beach",)


def test_images_beside_the_class_folders(tmp_path):
    fill(tmp_path)
    stray = put(tmp_path / "a.png")
    assert fails(tmp_path) == f"{tmp_path}: 1 image(s) beside the class folders, {stray} first: {LAYOUT}"


def test_a_class_folder_without_images(tmp_path):
    fill(tmp_path)
    put(tmp_path / "Sea" / "deeper" / "a.png")
    assert fails(tmp_path) == f"{tmp_path / 'Sea'}: no images in this class folder: {LAYOUT}"


def test_no_train_folder(tmp_path):
    fill(tmp_path / "test")
    assert fails(tmp_path) == f"{tmp_path}: has test but no train folder: add train/<class>/<image>"


def test_other_classes_in_test(tmp_path):
    fill(tmp_path / "train", ("Beach", "Forest", "River"))
    fill(tmp_path / "test", ("Beach", "River"))
    assert fails(tmp_path) == (
        f"{tmp_path}: test has no class 'Forest', which train has: add it to test or take it from train"
    )
    fill(tmp_path / "test", ("Forest", "Sea"))
    assert fails(tmp_path) == (
        f"{tmp_path}: test has a class 'Sea' that train has not: add it to train or take it from test"
    )


def lands_in_test(path):
    return _position("test", hashlib.sha256(path.read_bytes()).hexdigest()) < TEST_FRACTION


def test_a_class_that_falls_to_one_side_whole(tmp_path, caplog):
    fill(tmp_path, count=30)
    only = tmp_path / "Port" / "a.png"
    assert any(lands_in_test(put(only, value)) for value in range(9000, 9100))
    assert fails(tmp_path) == "class 'Port' has no training image after the split: add images, or split by folders"
    assert not all(lands_in_test(put(only, value)) for value in range(9000, 9100))
    open_scenes(tmp_path)
    assert caplog.messages == [
        "no test image fell to 'Port': add images, split by folders, or by smaller squares of ground"
    ]


def test_links(tmp_path):
    root, other = fill(tmp_path / "data"), fill(tmp_path / "other", ("Sea",))
    (root / "Sea").symlink_to(other / "Sea")
    assert open_scenes(root).train.classes == ("Beach", "River", "Sea")
    (root / "Beach" / "up").symlink_to(root)
    assert open_scenes(root).train.classes == ("Beach", "River", "Sea")
    (root / "Zoo").symlink_to(root)
    assert fails(root) == f"{root / 'Zoo'}: leads to {root.resolve()}, which is read already: remove the link"
    (root / "Zoo").unlink()
    (root / "Loop").symlink_to(root / "Loop")
    assert fails(root) == f"{root / 'Loop'}: a link that leads nowhere or to itself: remove it"


def test_test_linked_to_train(tmp_path):
    fill(tmp_path / "train")
    (tmp_path / "test").symlink_to("train")
    train = (tmp_path / "train").resolve()
    assert fails(tmp_path) == f"{tmp_path / 'train'}: leads to {train}, which is read already: remove the link"


@pytest.mark.parametrize("name", ["a\nb", "a\\b", "a\x1b[2J"])
def test_names_that_play_tricks(tmp_path, name):
    fill(tmp_path, ("Beach", name))
    expected = f"class name {name!r} has a slash, backslash or control character: rename the class"
    assert fails(tmp_path) == expected


def test_undecodable_names(tmp_path):
    fill(tmp_path)
    os.mkdir(os.fsencode(tmp_path) + b"/\xff")
    assert fails(tmp_path).startswith("class name '\\udcff' has a slash")


def test_control_characters_in_file_names_are_escaped(tmp_path):
    fill(tmp_path, count=30)
    (tmp_path / "Beach" / "a\x1b[2J.png").touch()
    assert open_scenes(tmp_path).skipped == (f"{tmp_path}/Beach/a\\x1b[2J.png: the file is empty",)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list anything")
def test_a_folder_that_may_not_be_listed(tmp_path):
    fill(tmp_path)
    (tmp_path / "Beach").chmod(0)
    assert fails(tmp_path) == f"{tmp_path / 'Beach'}: cannot be listed (Permission denied)"
    (tmp_path / "Beach").chmod(0o755)


def test_images_in_subfolders_are_counted(tmp_path, caplog):
    fill(tmp_path)
    for k in range(6):
        put(tmp_path / "Beach" / "more" / "deep" / f"{k}.png", 500 + k)
    open_scenes(tmp_path)
    first = tmp_path / "Beach" / "more" / "deep" / "0.png"
    told = f"{tmp_path}: 6 images in subfolders of class folders are not read, {first} first: move them up"
    assert told in caplog.messages


def test_a_scene_in_two_classes_is_reported(tmp_path, caplog):
    fill(tmp_path)
    put(tmp_path / "River" / "zz.png", 3)  # the fourth beach
    open_scenes(tmp_path)
    told = "1 images are in several classes, Beach/03.png and River/zz.png first: no classifier can have both right"
    assert told in caplog.messages


def test_a_single_pixel_is_no_scene(tmp_path):
    fill(tmp_path)
    Image.new("RGB", (1, 1)).save(tmp_path / "Beach" / "pixel.png")
    (skipped,) = open_scenes(tmp_path).skipped
    assert skipped == f"{tmp_path / 'Beach' / 'pixel.png'}: 1 x 1 pixels show no scene"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
def test_a_pipe_is_not_waited_for(tmp_path, caplog):
    fill(tmp_path)
    os.mkfifo(tmp_path / "Beach" / "pipe.png")
    assert len(open_scenes(tmp_path).train.classes) == 2
    assert (
        f"{tmp_path}: 1 entries are no images and ignored, {tmp_path / 'Beach' / 'pipe.png'} first" in caplog.messages
    )


def test_long_reading_shows_progress(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("geodistill.scenes.folder.SHOW_PROGRESS_FROM", 10)
    open_scenes(fill(tmp_path))
    assert "checking images" in capsys.readouterr().err


@pytest.fixture(autouse=True)
def _log_at_warning(caplog):
    caplog.set_level(logging.WARNING, "geodistill")


def test_all_images_can_be_training_images(tmp_path):
    fill(tmp_path / "train", count=5)
    fill(tmp_path / "test", count=2, start=9000)
    whole = open_scenes(tmp_path / "train", split="all")
    assert (len(whole.train), whole.test) == (10, None)
    # Splits that the data has stay.
    split = open_scenes(tmp_path, split="all")
    assert (len(split.train), len(split.test)) == (10, 4)
