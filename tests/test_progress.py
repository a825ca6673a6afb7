import pytest

from geodistill.progress import progress, stages


def test_a_line_at_each_tenth_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("work", 20) as advance:
        for done in range(1, 21):
            advance(done, "loss 1" if done == 20 else "")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"work: {done}/20" for done in (1, *range(2, 20, 2))] + ["work: 20/20 loss 1"]


def test_each_kind_of_work_has_its_own_total(capsys: pytest.CaptureFixture[str]) -> None:
    with stages() as advance:
        advance("few", 1, 2)
        advance("few", 2, 2)
        advance("few", 1, 4)
        advance("more", 3, 3)
    assert capsys.readouterr().err.splitlines() == ["few: 1/2", "few: 2/2", "few: 1/4", "more: 3/3"]
