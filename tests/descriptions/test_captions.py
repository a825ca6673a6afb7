import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from geodistill.descriptions import Conversations, Description, Exchange, make_describer, shortened
from geodistill.descriptions.captions import CAPTIONED, CaptionDescriber, quality, tidy
from geodistill.errors import ConfigError

IMAGES = torch.arange(7, dtype=torch.uint8)[:, None, None, None].expand(7, 3, 4, 4)


class Scripted:
    """Answers each image with what is written for it, and a question without one with the last line."""

    name = "scripted"

    def __init__(self, *answers: str, merged: str = "rows of white planes") -> None:
        self.answers, self.merged, self.prompts = answers, merged, list[str]()

    def __call__(self, prompt: str, image: Tensor | None = None) -> str:
        self.prompts.append(prompt)
        return self.merged if image is None else self.answers[int(image[0, 0, 0]) % len(self.answers)]


def described(*answers: str, merged: str = "rows of white planes") -> Description:
    return CaptionDescriber(Scripted(*answers, merged=merged))(IMAGES, "AirPort")


class TestCaptionDescriber:
    def test_captions_of_the_nearest_members_are_merged(self):
        model = Scripted("Two planes.", '"A runway"', "Three\nplanes")
        found = CaptionDescriber(model)(IMAGES, "AirPort")
        assert found.text == "A satellite image of air port, rows of white planes"
        assert found.outcome == "described"
        assert [one.member for one in found.exchanges] == [*range(CAPTIONED), None]
        assert "- Two planes\n- A runway\n- Three planes\n- Two planes\n- A runway\n" in model.prompts[-1]
        assert all("air port" in prompt for prompt in model.prompts)

    def test_one_caption_needs_no_merging(self):
        found = CaptionDescriber(Scripted("Two planes."))(IMAGES[:1], "AirPort")
        assert found.text == "A satellite image of air port, Two planes"
        assert len(found.exchanges) == 1

    def test_useless_captions_are_left_out(self):
        model = Scripted("", "I'm sorry, I cannot help.", "Two planes", "a hangar", "...")
        CaptionDescriber(model)(IMAGES, "AirPort")
        assert "- Two planes\n- a hangar\nWrite" in model.prompts[-1]

    @pytest.mark.parametrize(
        ("answer", "outcome"), [("", "empty"), ("As an AI I see nothing", "refused"), ("plane " * 20, "rambling")]
    )
    def test_without_a_caption_the_class_prompt_stays(self, answer: str, outcome: str):
        found = described(answer)
        assert (found.text, found.outcome) == ("A satellite image of air port", outcome)
        assert [one.answer for one in found.exchanges] == [answer] * CAPTIONED

    @pytest.mark.parametrize(
        ("merged", "outcome"), [("-", "empty"), ("I apologize.", "refused"), ("a b " * 40, "rambling")]
    )
    def test_without_a_merged_one_too(self, merged: str, outcome: str):
        found = described("Two planes", merged=merged)
        assert (found.text, found.outcome) == ("A satellite image of air port", outcome)

    @pytest.mark.parametrize(
        "merged",
        [
            "A satellite image of air port, grey runways.",
            "An aerial view of grey runways",
            "Air port: grey runways",
            "These satellite images show grey runways",
            "grey runways",
        ],
    )
    def test_the_class_prompt_is_not_said_twice(self, merged: str):
        assert described("Two planes", merged=merged).text == "A satellite image of air port, grey runways"


class TestQuality:
    @pytest.mark.parametrize(
        ("answer", "found"),
        [
            ("", "empty"),
            ("  .!? 12", "empty"),
            ("I'm sorry, but I can't help with that.", "refused"),
            ("I am unable to view images", "refused"),
            ("As an AI language model, I do not look", "refused"),
            ("You cannot help seeing two ships", "refused"),
            ("A road that cannot be crossed", "described"),
            ("two planes on a runway", "described"),
            (" ".join(f"word{'x' * i}" for i in range(60)), "described"),
            (" ".join(f"word{'x' * i}" for i in range(61)), "rambling"),
            ("the river and " * 5, "rambling"),
            ("住宅区", "described"),
        ],
    )
    def test_of(self, answer: str, found: str):
        assert quality(answer) == found

    @given(st.text(max_size=80))
    def test_tidy_is_one_line_and_stays_as_it_is(self, answer: str):
        assert "\n" not in tidy(answer)
        assert tidy(tidy(answer)).split() == tidy(answer).split() or tidy(answer)[-1:] in "\"'“”` ."


class TestShortened:
    def test_what_fits_stays(self):
        found = Description("A satellite image of beach, sand")
        assert shortened(found, lambda text: len(text) < 40, "Beach") is found

    def test_last_words_go_first(self):
        found = shortened(
            Description("A satellite image of beach, sand, and waves"), lambda text: len(text.split()) <= 6, "Beach"
        )
        assert (found.text, found.outcome) == ("A satellite image of beach, sand", "shortened")

    @given(st.lists(st.from_regex(r"[a-z]{1,8},?", fullmatch=True), max_size=30), st.integers(1, 40))
    def test_fits_or_is_the_class_prompt(self, words: list[str], most: int):
        text = " ".join(["A satellite image of beach,", *words])
        found = shortened(Description(text), lambda one: len(one.split()) <= most, "Beach")
        assert len(found.text.split()) <= max(most, 5)
        assert text.startswith(found.text)


class TestConversations:
    def test_go_on_where_they_stopped(self, tmp_path: Path):
        one = Description("x", "shortened", (Exchange("q", "a\u2028b\n", 3),))
        Conversations(tmp_path).add(one)
        with (tmp_path / "conversations.jsonl").open("a") as file:
            file.write('{"text": "cut sh')
        again = Conversations(tmp_path)
        assert again.kept == [one]
        again.add(Description("y"))
        assert Conversations(tmp_path).kept == [one, Description("y")]
        lines = (tmp_path / "conversations.jsonl").read_text().split("\n")
        assert json.loads(lines[1]) == {"text": "y", "outcome": "described", "exchanges": []}

    def test_failures_are_counted_and_told(self, tmp_path: Path, caplog: pytest.LogCaptureFixture):
        log = Conversations(tmp_path)
        for outcome in ("described", "refused", "refused", "empty", "shortened"):
            log.add(Description("x", outcome))  # type: ignore[arg-type]
        assert log.outcomes() == {"described": 1, "refused": 2, "empty": 1, "shortened": 1}
        assert caplog.messages == [
            "3 of 5 descriptions are the class prompt alone, because the model's answer was refused (2), empty (1); "
            "all answers: conversations.jsonl"
        ]


class TestMakeDescriber:
    def test_by_name(self):
        assert [make_describer(name).name for name in ("template", "measured")] == ["template", "measured"]

    def test_unknown_name(self):
        with pytest.raises(
            ConfigError,
            match=r"^unknown describer 'vlm': choose measured, template, openai:URL, a model's folder, or a hub name "
            r"such as HuggingFaceTB/SmolVLM-256M-Instruct$",
        ):
            make_describer("vlm")
