from types import SimpleNamespace

import pytest

from geodistill.progress import progress, reported_to


def test_a_line_at_each_tenth_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("work", 20) as advance:
        for done in range(1, 21):
            advance(done, "loss 1" if done == 20 else "")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"work: {done}/20" for done in (1, *range(2, 20, 2))] + ["work: 20/20 loss 1"]


def test_lines_state_the_time_left(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 100.0, 200.0, 300.0, 400.0])
    monkeypatch.setattr("geodistill.progress.time", SimpleNamespace(monotonic=lambda: next(clock)))
    with progress("work", 10) as advance:
        # Six were done by an earlier process, so the first call says nothing on the rate.
        for done in (6, 7, 8, 9, 10):
            advance(done, "loss 1" if done == 7 else "")
    assert capsys.readouterr().err.splitlines() == [
        "work: 6/10",
        "work: 7/10, 5 min left loss 1",
        "work: 8/10, 3 min left",
        "work: 9/10, 2 min left",
        "work: 10/10",
    ]


def test_a_function_of_the_caller_takes_the_place_of_lines(capsys: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[str, int, int]] = []
    with reported_to(lambda *now: told.append(now)), progress("work", 2) as advance:
        advance(1, "loss 3")
        advance(2)
    assert told == [("work", 1, 2), ("work", 2, 2)]
    with progress("after", 1) as advance:
        advance(1)
    assert capsys.readouterr().err == "after: 1/1\n"
