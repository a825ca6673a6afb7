import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from geodistill.errors import SceneError
from geodistill.scenes import Scenes
from geodistill.scenes.scenes import unfit_for_windows


def flat(value, height=4, width=4):
    return np.full((height, width, 3), value, np.uint8)


@pytest.fixture
def scenes():
    return Scenes.from_arrays([flat(10), flat(20, 4, 8), flat(30, 6, 3)], [0, 1, 1], ("a", "b"))


def test_from_arrays(scenes):
    assert (len(scenes), scenes.classes, scenes.labels.tolist()) == (3, ("a", "b"), [0, 1, 1])
    assert scenes.labels.dtype == torch.int64
    assert scenes.keys[0] == hashlib.sha256(flat(10).tobytes()).hexdigest()
    assert repr(scenes) == "Scenes(3 images, 2 classes)"


def test_pixels_of_all_some_and_none(scenes):
    assert scenes.pixels(size=2).shape == (3, 3, 2, 2)
    assert scenes.pixels([2, 0], size=2)[:, 0, 0, 0].tolist() == [30, 10]
    assert scenes.pixels(torch.tensor([1]), size=5).unique().tolist() == [20]
    assert scenes.pixels([], size=2).shape == (0, 3, 2, 2)


def test_subset_keeps_classes_and_order(scenes):
    part = scenes.subset(torch.tensor([2, 0]))
    assert (part.labels.tolist(), part.classes) == ([1, 0], ("a", "b"))
    assert part.keys == (scenes.keys[2], scenes.keys[0])
    assert part.names == ("image 2", "image 0")
    assert part.pixels(size=1).flatten(1)[:, 0].tolist() == [30, 10]


def test_fingerprint_follows_content_labels_and_classes(scenes):
    same = Scenes.from_arrays([flat(10), flat(20, 4, 8), flat(30, 6, 3)], [0, 1, 1], ("a", "b"))
    relabelled = Scenes(scenes._sources, [0, 0, 1], scenes.classes, scenes.keys, scenes.names)
    renamed = Scenes(scenes._sources, scenes.labels, ("a", "c"), scenes.keys, scenes.names)
    assert scenes.fingerprint() == same.fingerprint()
    prints = {s.fingerprint() for s in (scenes, relabelled, renamed, scenes.subset([0, 1]))}
    assert len(prints) == 4


def test_a_file_that_vanishes_is_named(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(flat(1)).save(path)
    scenes = Scenes([path], [0], ("a", "b"), ["k"], ["a/a.png"])
    assert scenes.pixels(size=4).unique().tolist() == [1]
    path.unlink()
    with pytest.raises(SceneError, match=r"a\.png: cannot be opened \(No such file or directory\)$"):
        scenes.pixels(size=4)


@pytest.mark.parametrize(
    ("images", "labels", "classes", "message"),
    [
        ([flat(1)], [0, 1], ("a", "b"), "1 images but 2 labels: give one label for each image"),
        ([flat(1)], [2], ("a", "b"), "labels go from 2 to 2, but 2 classes allow 0 to 1"),
        ([flat(1)], [-1], ("a", "b"), "labels go from -1 to -1, but 2 classes allow 0 to 1"),
        ([flat(1)], [0], (), "no classes given: name at least one"),
        (
            [flat(1)],
            [0],
            ("b", "a"),
            "classes must be sorted by name and all different: sort them and renumber the labels",
        ),
        (
            [flat(1)],
            [0],
            ("a", "a"),
            "classes must be sorted by name and all different: sort them and renumber the labels",
        ),
        ([flat(1)], [0], ("..", "a"), "class name '..' is empty or starts with a dot: rename the class"),
        ([flat(1)], [0], (" ", "a"), "class name ' ' is empty or starts with a dot: rename the class"),
        (
            [flat(1)],
            [0],
            ("a", "b/../c"),
            "class name 'b/../c' has a slash, backslash or control character: rename the class",
        ),
        (
            [flat(1)],
            [0],
            ("a", "b\n"),
            "class name 'b\\n' has a slash, backslash or control character: rename the class",
        ),
        (
            [flat(1)[..., 0]],
            [0],
            ("a", "b"),
            "image 0 is uint8 of shape [4, 4]: give uint8 of shape [H, W, 3], 0 to 255, or "
            "another number of channels from 2 to 16",
        ),
        (
            [flat(1) / 255],
            [0],
            ("a", "b"),
            "image 0 is float64 of shape [4, 4, 3]: give uint8 of shape [H, W, 3], 0 to 255, or "
            "another number of channels from 2 to 16",
        ),
    ],
)
def test_bad_input(images, labels, classes, message):
    with pytest.raises(SceneError) as error:
        Scenes.from_arrays(images, labels, classes)
    assert str(error.value) == message


def test_typical_side_is_the_median_of_the_shorter_sides() -> None:
    sizes = [(10, 12), (40, 20), (30, 30)]
    images = [np.zeros((height, width, 3), np.uint8) for height, width in sizes]
    assert Scenes.from_arrays(images, [0, 1, 1], ("a", "b")).typical_side() == 20


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("con", "is the name of a device"),
        ("Lpt9.old", "is the name of a device"),
        ("AUX ", "is the name of a device"),
        ("what?", "has a '?'"),
        ('"quoted"', "has a '\"'"),
        ("end.", "ends with a dot or a space"),
        ("Contour", ""),
        ("com10", ""),
        ("v1.5 Éclair", ""),
    ],
)
def test_names_unfit_for_windows(name, why):
    assert unfit_for_windows(name) == why
