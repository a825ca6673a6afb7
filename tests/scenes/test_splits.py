import hashlib
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geodistill.errors import SceneError
from geodistill.scenes import Scenes, hold_out
from geodistill.scenes.readers import RGB, Info
from geodistill.scenes.scenes import SceneFile
from geodistill.scenes.splits import _square, fair_share, listed, spare

keys = st.lists(st.integers(0, 10**6).map(lambda n: hashlib.sha256(str(n).encode()).hexdigest()), max_size=60)


def scenes_of(contents):
    n = len(contents)
    return Scenes([None] * n, [0] * n, ("a", "b"), contents, ["x"] * n)


def held_of(contents, fraction=0.3, salt="s"):
    return {contents[i] for i in hold_out(scenes_of(contents), fraction, salt)[1].tolist()}


@given(keys)
def test_every_scene_is_on_exactly_one_side(contents):
    kept, held = hold_out(scenes_of(contents), 0.3, "s")
    assert sorted(kept.tolist() + held.tolist()) == list(range(len(contents)))
    assert not {contents[i] for i in kept} & {contents[i] for i in held}


@given(keys, keys)
def test_adding_files_moves_no_other(before, added):
    assert held_of(before) == held_of(before + added) & set(before)


@given(keys, st.randoms())
def test_order_does_not_matter(contents, dice):
    mixed = dice.sample(contents, len(contents))
    assert held_of(contents) == held_of(mixed)


@given(keys)
def test_a_larger_fraction_holds_the_same_and_more(contents):
    assert held_of(contents, 0.2) <= held_of(contents, 0.5)


def test_the_fraction_is_met_and_the_salt_counts():
    contents = [hashlib.sha256(bytes([i // 256, i % 256])).hexdigest() for i in range(5000)]
    first, second = held_of(contents, 0.2, "test"), held_of(contents, 0.2, "validation")
    assert 0.18 < len(first) / 5000 < 0.22
    assert 0.03 < len(first & second) / 5000 < 0.05


def test_the_split_of_today_is_that_of_tomorrow():
    contents = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(20)]
    assert hold_out(scenes_of(contents), 0.3, "test")[1].tolist() == [4, 10, 12, 14, 17, 19]
    assert hold_out(scenes_of(contents), 0.3, "test")[0].dtype == torch.int64


@pytest.mark.parametrize("fraction", [0, 1, -0.1, float("nan")])
def test_impossible_fractions(fraction):
    with pytest.raises(SceneError, match=r"^cannot hold out a fraction of .+: choose one between 0 and 1$"):
        hold_out(scenes_of([]), fraction, "s")


# Contents of images of two classes; few different ones, so that there are copies, within a class and between both.
labelled = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 40)), max_size=60)


@given(labelled, st.integers(1, 6), st.sampled_from([0.1, 0.5]))
def test_no_class_is_left_with_too_few_and_no_copy_is_held(images, leave, fraction):
    keys = [str(content) for _, content in images]
    labels = torch.tensor([label for label, _ in images], dtype=torch.int64)
    scenes = Scenes([None] * len(images), labels, ("a", "b"), keys, keys)
    kept, held = spare(scenes, fraction, "s", leave=leave)
    assert sorted(kept.tolist() + held.tolist()) == list(range(len(images)))
    assert not {keys[i] for i in kept} & {keys[i] for i in held}
    for label in (0, 1):
        there, left = int((labels == label).sum()), int((labels[kept] == label).sum())
        assert left >= min(there, leave)
        copies = len(set(keys)) < len(keys)
        assert copies or there <= leave or left < there


def test_spared_scenes_are_those_that_are_held_out_where_no_limit_is_met():
    contents = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(20)]
    scenes = scenes_of(contents)
    assert spare(scenes, 0.3, "test", leave=2)[1].tolist() == [4, 10, 12, 14, 17, 19]
    assert len(spare(scenes, 0.3, "test", leave=17)[1]) == 3
    assert len(spare(scenes, 0.001, "test", leave=2)[1]) == 1
    assert spare(scenes, 0.3, "test", leave=20)[1].tolist() == []
    with pytest.raises(SceneError, match=r"^cannot hold out a fraction of 1: choose one between 0 and 1$"):
        spare(scenes, 1, "test", leave=2)


class TestFairShare:
    @given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 70), st.integers(0, 3))
    def test_every_class_gives_the_same_number_or_all(self, labels: list[int], most: int, seed: int):
        known = torch.tensor(labels)
        found = fair_share(known, most, seed)
        there, given = torch.bincount(known, minlength=5), torch.bincount(known[found], minlength=5)
        assert found.tolist() == sorted(set(found.tolist()))
        each = int(given.max())
        assert torch.equal(given, there.clamp(max=each))
        assert len(found) <= max(most, int((there > 0).sum()))
        if len(labels) > most:  # one more of each class would be too many
            assert int(there.clamp(max=each + 1).sum()) > most
        else:
            assert found.tolist() == list(range(len(labels)))

    def test_a_rare_class_keeps_all_its_scenes(self):
        labels = torch.tensor([0] * 1000 + [1] * 3 + [2] * 1000)
        found = fair_share(labels, 103, seed=0)
        assert torch.bincount(labels[found]).tolist() == [50, 3, 50]

    def test_the_seed_draws(self):
        labels = torch.zeros(1000, dtype=torch.int64)
        one, again, other = (fair_share(labels, 10, seed).tolist() for seed in (0, 0, 1))
        assert one == again != other


def test_a_square_has_its_side_in_metres_whatever_the_unit():
    def file_at(x, metres):
        info = Info(9, 9, "uint8", RGB, crs="EPSG:2263", bounds=(x, 0.0, x, 0.0), metres=metres)
        return SceneFile(Path("a.tif"), 0, "a", info=info)

    feet = 1200 / 3937
    assert _square(file_at(16_000.0, feet), 5000) == "EPSG:2263 0 0"
    assert _square(file_at(17_000.0, feet), 5000) == "EPSG:2263 1 0"
    assert _square(file_at(17_000.0, 1.0), 5000) == "EPSG:2263 3 0"


def test_listed_names_may_have_dots_and_no_suffix(tmp_path):
    files = [SceneFile(Path(f"{name}/scene_1.{k}.png"), 0, "") for name in ("a", "b") for k in range(2)]
    (tmp_path / "x-train.txt").write_text("a/scene_1.0\na/scene_1.1.png\n", encoding="utf-8-sig")
    (tmp_path / "x-test.txt").write_text("b/scene_1.0.jpg\nb\\scene_1.1\n", encoding="utf-8")
    parts = listed(files, tmp_path)
    assert {part: own.tolist() for part, own in parts.items()} == {"train": [0, 1], "test": [2, 3]}


def test_a_list_that_is_no_text_is_named(tmp_path):
    (tmp_path / "x-train.txt").write_bytes("plage_é".encode("latin-1"))
    with pytest.raises(SceneError) as caught:
        listed([], tmp_path)
    assert str(caught.value) == f"{tmp_path / 'x-train.txt'}: not a text in UTF-8: save it as UTF-8"


@pytest.mark.parametrize(("longitude", "latitude"), [(0.0, 45.0), (-122.0, 47.0), (150.0, 60.0)])
def test_squares_in_degrees_do_not_lean(longitude, latitude):
    """Neighbours in the north and in the south are parted as seldom as the side of a square says, anywhere."""

    def column(x, y):
        info = Info(9, 9, "uint8", RGB, crs="EPSG:4326", bounds=(x, y, x, y), degrees=True)
        return _square(SceneFile(Path("a.tif"), 0, "a", info=info), 10_000).split()

    places = [longitude + 0.01 * k for k in range(200)]
    south, north = ([column(x, y) for x in places] for y in (latitude, latitude + 640 / 111_320))
    same_row = [(a[1], b[1]) for a, b in zip(south, north, strict=True) if a[2] == b[2]]
    assert all(a == b for a, b in same_row)
    width = 111_320 * math.cos(math.radians(latitude)) * 0.01 * 200 / 10_000
    assert len({a[1] for a in south}) == pytest.approx(width, abs=1.1)
