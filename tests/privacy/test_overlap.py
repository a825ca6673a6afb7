import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from geodistill.errors import PriorError
from geodistill.prior.catalogue import folder_of
from geodistill.privacy import overlap
from geodistill.privacy.overlap import (
    FOOTPRINT,
    PICTURES,
    Known,
    count_known,
    fewest_noticed,
    footprint,
    known,
    known_archives,
    known_pictures,
    sign,
    sign_pictures,
    told_overlap,
)
from geodistill.scenes import SceneData, Scenes, open_scenes
from geodistill.scenes.procedural import draw_scene

SHARED = Path(__file__).parents[3] / "shared" / "data"
TRAINED = [f"image {index}" for index in range(2000)]
OTHERS = [f"another {index}" for index in range(2000)]


def having(keys: list[str]) -> Scenes:
    """Return scenes with `keys`, whose pictures are empty."""
    return Scenes([np.zeros((64, 64, 3), np.uint8)] * len(keys), [0] * len(keys), ("a",), keys, keys)


def base(folder: Path, *lines: str) -> Path:
    (folder / FOOTPRINT).write_text("".join(lines), encoding="utf-8")
    return folder


def test_all_or_some_or_none_of_the_images_are_known(tmp_path):
    folder = base(tmp_path, footprint(TRAINED))
    assert known(TRAINED, folder) == 2000
    assert known(OTHERS, folder) == 0
    mixed = known(TRAINED[:500] + OTHERS[:1500], folder)
    assert 440 < mixed < 560


def test_a_base_that_was_gone_on_from_counts_too(tmp_path):
    folder = base(tmp_path, footprint(OTHERS), footprint(TRAINED))
    assert known(TRAINED, folder) == 2000


def test_a_base_that_says_nothing_knows_nothing(tmp_path):
    assert known(TRAINED, tmp_path) == 0


def test_a_footprint_beside_a_run_s_base_counts_for_it_alone(tmp_path):
    for name in ("base", "other"):
        (tmp_path / name).mkdir()
    sign(tmp_path, [("", TRAINED)])
    assert known(TRAINED, tmp_path / "base") == 2000
    assert known(TRAINED, tmp_path / "other") == 0
    sign(tmp_path, [("", OTHERS)], tmp_path / "base")
    assert known(TRAINED + OTHERS, tmp_path / "base") == 4000


@pytest.mark.parametrize("count", [60, 500, 2000])
def test_so_many_are_noticed_and_a_third_of_them_is_not(count, tmp_path):
    keys = [f"of a user {index}" for index in range(count)]
    folder = base(tmp_path, footprint(TRAINED))
    fewest = fewest_noticed(count, folder)
    assert fewest < count
    for share, noticed in ((1.6, True), (0.3, False)):
        seen = min(count, round(share * fewest))
        assert bool(known(TRAINED[:seen] + keys[seen:], folder)) is noticed


def test_one_image_is_not_given_away():
    bits = base64.b64decode(json.loads(footprint(TRAINED))["bits"])
    # Of images that were never seen, so many meet a bit that is set.
    assert 0.05 < sum(byte.bit_count() for byte in bits) / (8 * len(bits)) < 0.07


@given(st.lists(st.text(), min_size=40, max_size=80, unique=True))
@settings(max_examples=30)
def test_whatever_the_names_what_was_trained_on_is_known(tmp_path_factory, keys):
    folder = base(tmp_path_factory.mktemp("base"), footprint(keys))
    assert known(keys, folder) == len(keys)


def test_the_base_gone_on_from_is_signed_for_and_the_same_images_once(tmp_path):
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    for folder in (first, second, third):
        folder.mkdir()
    sign(first, [("", TRAINED)])
    sign(second, [("", OTHERS)], first)
    assert (second / FOOTPRINT).read_text() == footprint(OTHERS) + footprint(TRAINED)
    sign(third, [("", TRAINED)], second)
    assert (third / FOOTPRINT).read_text() == footprint(OTHERS) + footprint(TRAINED)


def test_each_archive_is_named_with_how_many_of_its_images_are_there(tmp_path):
    sign(tmp_path, [("harbours", TRAINED), ("fields", OTHERS)])
    assert known_archives(TRAINED, tmp_path) == [Known("harbours", 2000)]
    assert known_archives(OTHERS, tmp_path) == [Known("fields", len(OTHERS))]
    (about,) = known_archives(TRAINED[:500] + [f"other {k}" for k in range(1500)], tmp_path)
    assert about.archive == "harbours"
    assert 400 < about.count < 600


def test_an_image_of_several_archives_counts_once(tmp_path):
    folder = base(tmp_path, footprint(TRAINED, "one"), footprint(TRAINED[:1500] + OTHERS[:500], "other"))
    assert [one.archive for one in known_archives(TRAINED, folder)] == ["one", "other"]
    assert known(TRAINED, folder) == 2000
    half = known(TRAINED[:500] + [f"new {k}" for k in range(1500)], folder)
    assert 420 < half < 580


def test_the_overlap_in_words(tmp_path):
    folder = base(tmp_path, footprint(TRAINED, "harbours"), footprint(OTHERS))
    named = "about 2,000 of the 2,000 training images are among those that the base was trained on (harbours)"
    assert told_overlap(having(TRAINED), folder) == named
    assert told_overlap(having(OTHERS), folder, images="images", base="the base 'quay'") == (
        "about 2,000 of the 2,000 images are among those that the base 'quay' was trained on"
    )
    sign(folder, [("fields", OTHERS)], folder)
    assert told_overlap(having(TRAINED + OTHERS), folder) == (
        "about 4,000 of the 4,000 training images are among those that the base was trained on (fields, harbours)"
    )
    assert told_overlap(having([f"new {k}" for k in range(2000)]), folder) == ""


@pytest.mark.parametrize("text", ["{", "[1]", '{"archive": "fields"}'])
def test_a_footprint_that_cannot_be_read(text, tmp_path):
    (tmp_path / "trained_on.jsonl").write_text(text)
    with pytest.raises(PriorError) as caught:
        known(TRAINED, tmp_path)
    told = str(caught.value)
    assert told.startswith(f"{tmp_path / 'trained_on.jsonl'} cannot be read (")
    assert told.endswith("): copy the base again; without this file nobody can tell which images it was trained on")


def test_a_link_to_a_base_does_not_hide_what_it_was_trained_on(tmp_path):
    (tmp_path / "run" / "base").mkdir(parents=True)
    sign(tmp_path / "run", [("", TRAINED)])
    (tmp_path / "mine").symlink_to(tmp_path / "run" / "base")
    assert known(TRAINED, tmp_path / "mine") == 2000


def test_the_fullest_footprint_says_how_many_are_noticed(tmp_path):
    both, full = tmp_path / "both", tmp_path / "full"
    for folder in (both, full):
        folder.mkdir()
    few, many = [f"{k:064x}" for k in range(3)], [f"{k:064x}" for k in range(100, 3100)]
    sign(full, [("many", many)])
    sign(both, [("few", few), ("many", many)])
    assert fewest_noticed(1000, both) == fewest_noticed(1000, full)


def changed(image: np.ndarray, how: int) -> np.ndarray:
    """Return `image` [h, w, 3] as another file would have it: as JPEG, turned, or smaller."""
    if how == 1:
        return np.ascontiguousarray(np.rot90(image))
    if how == 2:
        return np.asarray(Image.fromarray(image).resize((48, 48), Image.Resampling.BICUBIC))
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=90)
    return np.asarray(Image.open(stream))


def drawn(seeds: range, how: int | None = None) -> Scenes:
    images = [draw_scene("Harbour", seed) for seed in seeds]
    images = images if how is None else [changed(image, how) for image in images]
    keys = [f"{seed} {how}" for seed in seeds]
    return Scenes(images, [0] * len(seeds), ("Harbour",), keys, keys)


@pytest.mark.parametrize("how", [0, 1, 2])
def test_pictures_in_other_files_are_known(how, tmp_path):
    sign(tmp_path, [("harbours", drawn(range(60)).keys)])
    sign_pictures(tmp_path, [("harbours", drawn(range(60))), ("none", drawn(range(1000, 1005)))])
    half = drawn(range(30, 90), how)
    (found,) = known_pictures(half, tmp_path)
    assert found.archive == "harbours"
    assert 28 <= found.count <= 31
    assert count_known(half, tmp_path) == found.count
    told = f"about {found.count} of the 60 training images are among those that the base was trained on, in other files"
    assert told_overlap(half, tmp_path) == f"{told} (harbours)"
    assert told_overlap(drawn(range(200, 260), how), tmp_path) == ""
    # The same files are known as these.
    assert told_overlap(drawn(range(60)), tmp_path).endswith("that the base was trained on (harbours)")


def test_a_large_archive_is_looked_up_by_a_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(overlap, "_LOOKED_UP", 20)
    sign_pictures(tmp_path, [("harbours", drawn(range(100)))])
    assert known_pictures(drawn(range(100), 0), tmp_path) == [Known("harbours", 100)]
    assert known_pictures(drawn(range(50, 150), 0), tmp_path) == [Known("harbours", 50)]
    # Some of a sample could be alike by chance.
    assert known_pictures(drawn(range(85, 185), 0), tmp_path) == []


def test_perceptual_hashes_are_those_of_the_base_gone_on_from_too(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    sign_pictures(tmp_path / "first", [("harbours", drawn(range(10)))])
    sign_pictures(tmp_path / "second", [("others", drawn(range(10, 20)))], tmp_path / "first")
    found = known_pictures(drawn(range(20), 0), tmp_path / "second")
    assert [(one.archive, one.count) for one in found] == [("others", 10), ("harbours", 10)]


def test_damaged_perceptual_hashes(tmp_path):
    (tmp_path / PICTURES).write_text("{}\n")
    with pytest.raises(
        PriorError, match=r"trained_on_pictures\.jsonl cannot be read \(KeyError: 'hashes'\): copy the base"
    ):
        known_pictures(having(["a"]), tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent")
def test_the_shipped_base_knows_uc_merced_as_png(tmp_path):
    """The published archive is in TIFF; the base was trained on it as JPEG."""
    data: SceneData = open_scenes(SHARED / "ucmerced")
    for part, scenes in (("train", data.train), ("test", data.test)):
        for k in range(0, len(scenes), 10):
            path = tmp_path / part / f"{scenes.labels[k]}" / f"{k}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.open(scenes.sources[k]).save(path)
    png = open_scenes(tmp_path)
    shipped = folder_of("compact")
    told = "about 126 of the 126 training images are among those that the base was trained on, in other files"
    assert told_overlap(png.train, shipped) == f"{told} (UC Merced Land Use)"
    assert told_overlap(png.test, shipped) == ""


def labelled(seeds: range) -> Scenes:
    """Return scenes that all have the same label over a quarter of them."""
    images = [draw_scene("Forest", seed).copy() for seed in seeds]
    for image in images:
        image[:16, :64] = 255
    return Scenes(images, [0] * len(images), ("Forest",), [f"{seed}" for seed in seeds], [f"{seed}" for seed in seeds])


def test_what_all_pictures_share_makes_none_known(tmp_path):
    sign_pictures(tmp_path, [("forests", labelled(range(200)))])
    assert known_pictures(labelled(range(1000, 1100)), tmp_path) == []
    (found,) = known_pictures(labelled(range(100)), tmp_path)
    assert found.count == 100


def test_hashes_of_another_length(tmp_path):
    (tmp_path / PICTURES).write_text(json.dumps({"archive": "a", "hashes": "AAAA", "mean": ""}) + "\n")
    with pytest.raises(PriorError, match=r"cannot be read \(ValueError: hashes of another length\)"):
        known_pictures(having(["a"]), tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is absent")
def test_the_shipped_base_does_not_know_eurosat_s_test_images():
    data: SceneData = open_scenes(SHARED / "eurosat")
    assert data.test is not None
    assert told_overlap(data.test, folder_of("compact")) == ""
    # Scenes of water and forest have little texture.
    smooth = [data.test.classes.index(name) for name in ("Forest", "SeaLake")]
    chosen = torch.isin(data.test.labels, torch.tensor(smooth)).nonzero()[:, 0]
    assert told_overlap(data.test.subset(chosen), folder_of("compact")) == ""
