import threading

import pytest

from geodistill.prefetch import Prefetch


def test_the_following_key_is_computed_before_it_is_asked_for() -> None:
    done = [threading.Event() for _ in range(4)]

    def compute(key: int) -> int:
        done[key].set()
        return 10 * key

    ahead = Prefetch(compute, lambda key: key + 1 if key < 3 else None)
    assert ahead(1) == 10
    assert done[2].wait(timeout=10)
    assert not done[3].is_set()
    assert [ahead(2), ahead(3)] == [20, 30]


def test_each_key_is_computed_once_and_in_any_order() -> None:
    seen: list[int] = []
    ahead = Prefetch(lambda key: seen.append(key) or key, lambda key: key + 1)
    assert [ahead(0), ahead(1), ahead(7), ahead(8)] == [0, 1, 7, 8]
    assert sorted(seen)[:2] == [0, 1]
    assert len(seen) == len(set(seen))


def test_an_error_is_raised_when_its_key_is_asked_for() -> None:
    ahead = Prefetch(lambda key: 1 // key, lambda key: key - 1)
    assert ahead(1) == 1
    with pytest.raises(ZeroDivisionError):
        ahead(0)
