import pytest

from geodistill.evaluation.worth import SelfTest, Worth

BETTER, TIED, BELOW = Worth(0.7, 0.6, 0.01, 0.2), Worth(0.6, 0.6, -0.1, 0.1), Worth(0.5, 0.6, -0.2, -0.01)


@pytest.mark.parametrize(
    ("finetune", "probe", "verdict"),
    [
        (BETTER, BELOW, "better than random"),
        (TIED, BELOW, "below random"),
        (TIED, TIED, "not distinguishable from random"),
        (TIED, BETTER, "not distinguishable from random"),
        (BELOW, BETTER, "below random"),
    ],
)
def test_the_probe_decides_against_a_set_where_finetune_shows_no_difference(
    finetune: Worth, probe: Worth, verdict: str
) -> None:
    found = SelfTest(100, 0, finetune, probe)
    assert found.verdict == verdict
    told = " after logistic regression" if (finetune, probe) == (TIED, BELOW) else ""
    assert found.conclusion == f"self-test: the set is {verdict} real images{told}"


def test_a_test_that_was_not_done_has_no_verdict() -> None:
    found = SelfTest(skipped="3 held-out scenes are too few, it needs 20")
    assert found.verdict is None
    assert found.figures == []
    assert found.summary == "No self-test: 3 held-out scenes are too few, it needs 20."
