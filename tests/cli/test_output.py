"""What commands print about runs and sets."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from geodistill.cli.output import print_nearness, print_screening, print_self_test
from geodistill.config import Config
from geodistill.distilled import DistilledSet
from geodistill.evaluation.worth import SelfTest, Worth


@pytest.mark.parametrize(
    ("rejected", "told"),
    [
        ([7], "screening: 7 candidates too like a training image rejected"),
        (
            [7, 3, 0],
            "screening: 7 candidates too like a training image, 2 times drawn again, following less: 3, 0 rejected",
        ),
    ],
)
def test_what_screening_rejected_is_told(
    rejected: list[int], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "stages").mkdir()
    record = {"stage": "screened", "facts": {"rejected": rejected}}
    (tmp_path / "stages" / "screened.json").write_text(json.dumps(record))
    print_screening(tmp_path)
    assert capsys.readouterr().out.strip() == told


def _set_with(**about: Any) -> DistilledSet:
    return DistilledSet(torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1]), ("a", "b"), (), about)


_SCREEN = "make the set with `--privacy screen` or `--privacy dp`"


@pytest.mark.parametrize(
    ("follow", "about", "advice"),
    [
        ("start", {"method": "dpd"}, _SCREEN),
        ("guide", {"method": "dpd"}, _SCREEN),
        (
            "start",
            {"method": "dpd", "screened": True},
            "leave out the settings for `sampling` (by default screening follows no training image)",
        ),
        ("start", {"method": "d4m"}, _SCREEN.replace("the set", "the set by the method `dpd`")),
        # Guided in a way of its own.
        ("none", {"method": "mgd3"}, _SCREEN.replace("the set", "the set by the method `dpd`")),
        ("none", {"method": "dpd"}, ""),
        ("start", {"method": "dpd", "guarantee": "ε = 8"}, ""),
    ],
)
def test_that_images_are_near_their_sources_is_told_where_nothing_protects_them(
    follow: str, about: dict[str, Any], advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    print_nearness(_set_with(config={"sampling": {"follow": follow}}, **about))
    expected = (
        "the images follow training images, or means of them, and may show their layout: before you share a set of "
        f"sensitive scenes, {advice}, or run `geodistill audit`\n"
    )
    assert capsys.readouterr().out == (expected if advice else "")


_FIGURES = """\
after finetuning efficientnet-lite0: distilled set 60.0 %, random real images 64.1 %, difference -4.1 points (95 % \
interval over the scenes alone {low} to {high}), on 600 held-out training scenes
after logistic regression on its ImageNet features: distilled set 66.0 %, random real images 64.1 %, difference +1.9 \
points (95 % interval over the scenes alone -1.0 to +3.0)
"""
_ADVICE = """\
try longer adaptation (--set finetune.steps=2000), more images (--ipc 20), another --base, or a base of your own by \
`geodistill pretrain`
"""


@pytest.mark.parametrize(
    ("low", "high", "told"),
    [
        (-0.061, -0.02, "self-test: the set is below random real images\n" + _ADVICE),
        (-0.061, 0.02, "self-test: the set is not distinguishable from random real images\n"),
        (0.001, 0.02, "self-test: the set is better than random real images\n"),
    ],
)
def test_self_test_is_told(
    low: float, high: float, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_self_test(tmp_path, Config(), "auto")
    assert capsys.readouterr().out == ""
    probe = Worth(0.66, 0.641, -0.01, 0.03)
    (tmp_path / "self_test").mkdir()
    path = tmp_path / "self_test" / "self_test.json"
    path.write_text(json.dumps(asdict(SelfTest(600, 0, Worth(0.6, 0.641, low, high), probe))))
    (tmp_path / "adapter").mkdir()
    print_self_test(tmp_path, Config(), "auto")
    figures = _FIGURES.format(low=f"{100 * low:+.1f}", high=f"{100 * high:+.1f}")
    assert capsys.readouterr().out == figures + told


def test_self_test_that_is_not_possible_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "self_test").mkdir()
    (tmp_path / "self_test" / "self_test.json").write_text(json.dumps(asdict(SelfTest(skipped="too few"))))
    print_self_test(tmp_path, Config(), "auto")
    assert capsys.readouterr().out == "no self-test: too few\n"


@pytest.mark.parametrize(("kind", "told"), [("real_pixels", " as they are"), ("derived", ", changed by a computation")])
def test_sets_of_real_images_are_named(kind: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    print_nearness(_set_with(**{kind: True}))
    expected = f"the images are training images{told}: the set protects none of them\n"
    assert capsys.readouterr().out == expected


def test_neighbours_of_held_out_scenes_are_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    worth = Worth(0.6, 0.5, 0.05, 0.15)
    (tmp_path / "self_test").mkdir()
    (tmp_path / "self_test" / "self_test.json").write_text(json.dumps(asdict(SelfTest(600, 0, worth, worth))))
    for split, told in (("auto", False), ("spatial:500", True)):
        print_self_test(tmp_path, Config(), split)
        assert ("may be too high: `geodistill evaluate`" in capsys.readouterr().out) == told
