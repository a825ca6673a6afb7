import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geodistill.errors import SceneError
from geodistill.scenes import Scenes, hold_out

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
