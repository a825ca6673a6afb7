"""Descriptions by a vision-language model: captions of a cluster's members, merged into one (arXiv 2601.15829)."""

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor

from geodistill.descriptions.prompts import class_prompt, readable

# Members that are captioned, those nearest the centre of their cluster first.
CAPTIONED = 5
LONGEST = 60

Outcome = Literal["described", "shortened", "refused", "empty", "rambling"]
# What an answer that is none is called; its prototype gets the class prompt alone.
FAILED: tuple[Outcome, ...] = ("refused", "empty", "rambling")

_REFUSAL = re.compile(
    r"\b(sorry|apologi[sz]e|as an ai|language model|(can(no|')t|can not|unable to|not able to) "
    r"(help|assist|describe|see|view|provide|answer|identify|determine)|no image (was|is|has been))\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Exchange:
    """A question put to a model, and its answer; `member` is the rank in the cluster of the image that went along."""

    prompt: str
    answer: str
    member: int | None = None


@dataclass(frozen=True)
class Description:
    """The prompt of a prototype, how it came about, and all that was asked for it."""

    text: str
    outcome: Outcome = "described"
    exchanges: tuple[Exchange, ...] = ()


class Describer(Protocol):
    """Anything that writes a prompt for the images of one cluster."""

    name: str

    def __call__(self, images: Tensor, class_name: str) -> Description:
        """Return one prompt, class prompt first, for all of `images` (uint8 RGB [n, 3, s, s], n >= 1) together.

        Images nearest the centre of the cluster come first.
        """


class Answerer(Protocol):
    """A model that answers questions about an image, or about nothing but the question."""

    name: str

    def __call__(self, prompt: str, image: Tensor | None = None) -> str:
        """Return the answer to `prompt`, with `image` uint8 RGB [3, s, s] in sight; the same one each time.

        Raises DescriberError where none can be had.
        """


class CaptionDescriber:
    """Asks a model for a caption of each of the first images, and for what the captions share."""

    def __init__(self, answerer: Answerer) -> None:
        self.answerer = answerer
        self.name = answerer.name

    def __call__(self, images: Tensor, class_name: str) -> Description:
        """Return the class prompt, then what the captions share.

        Captions that are no answer are left out. With none left, or a merged one that is none, the class prompt alone.
        """
        exchanges = [self._captioned(rank, image, class_name) for rank, image in enumerate(images[:CAPTIONED])]
        captions = [tidy(one.answer) for one in exchanges if quality(one.answer) == "described"]
        if not captions:
            return Description(class_prompt(class_name), quality(exchanges[0].answer), tuple(exchanges))
        if len(captions) > 1:
            exchanges.append(self._merged(captions, class_name))
        outcome = quality(exchanges[-1].answer) if len(captions) > 1 else "described"
        if outcome in FAILED:
            return Description(class_prompt(class_name), outcome, tuple(exchanges))
        shared = tidy(exchanges[-1].answer) if len(captions) > 1 else captions[0]
        return Description(_joined(class_name, shared), outcome, tuple(exchanges))

    def _captioned(self, rank: int, image: Tensor, class_name: str) -> Exchange:
        prompt = (
            f"This is a satellite image of {readable(class_name)}. In one sentence of at most 30 words, say what it "
            "shows: the main objects, how many and how arranged, their colours, and what surrounds them. "
            "Answer with the sentence alone."
        )
        return Exchange(prompt, self.answerer(prompt, image), rank)

    def _merged(self, captions: Sequence[str], class_name: str) -> Exchange:
        listing = "\n".join(f"- {caption}" for caption in captions)
        prompt = (
            f"These sentences describe similar satellite images of {readable(class_name)}:\n{listing}\n"
            "Write one phrase of at most 30 words that says what they share. Answer with the phrase alone."
        )
        return Exchange(prompt, self.answerer(prompt))


def quality(answer: str) -> Outcome:
    """Return 'described' for an answer that can be used, else what is wrong with it.

    empty: no word; refused: an apology; rambling: more than 60 words, or the same ones over and over.
    """
    words = re.findall(r"[^\W\d_]+", answer.lower())
    if not words:
        return "empty"
    if _REFUSAL.search(answer.replace("’", "'")):
        return "refused"
    repeats = len(words) >= 12 and len(set(words)) < 0.4 * len(words)
    return "rambling" if len(words) > LONGEST or repeats else "described"


def tidy(answer: str) -> str:
    """Return `answer` on one line, without quotes around it and without the full stop at its end."""
    return " ".join(answer.split()).strip("\"'“”` ").rstrip(".").strip()


def _joined(class_name: str, shared: str) -> str:
    """Return the class prompt, then `shared` without the words it may begin with for the same purpose."""
    rest = re.sub(
        r"^(an?|the|this|these)?\s*(satellite|aerial|overhead)\s+(image|photo|view)s?\b", "", shared, flags=re.I
    )
    rest = re.sub(r"^\s*(of|shows?|showing|with)\s+", "", rest, flags=re.I) if rest != shared else rest
    rest = re.sub(rf"^(an?|the)?\s*{re.escape(readable(class_name))}\b[\s,:]*", "", rest.strip(), flags=re.I)
    return f"{class_prompt(class_name)}, {rest}" if rest else class_prompt(class_name)


def shortened(description: Description, fits: Callable[[str], bool], class_name: str) -> Description:
    """Return `description` with as many of its first words as `fits`, a test of a text, lets through.

    The class prompt always stays; whether it fits is not for this function to say.
    """
    words, least = description.text.split(), len(class_prompt(class_name).split())
    if fits(description.text):
        return description
    while len(words) > least and not fits(" ".join(words)):
        words.pop()
    return replace(description, text=" ".join(words).rstrip(",;: "), outcome="shortened")


class Conversations:
    """The descriptions written so far in a folder: each a line of conversations.jsonl, with what was asked for it."""

    FILE = "conversations.jsonl"

    def __init__(self, folder: Path) -> None:
        """Take up what an earlier call that was stopped left in `folder`; a line cut short does not count."""
        self.path, self.kept = folder / self.FILE, list[Description]()
        lines = self.path.read_text(encoding="utf-8").split("\n")[:-1] if self.path.exists() else []
        for line in lines:
            values = json.loads(line)
            exchanges = tuple(Exchange(**one) for one in values.pop("exchanges"))
            self.kept.append(Description(**values, exchanges=exchanges))
        # Whatever is cut short goes, so that the next line begins where a line begins.
        self.path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def add(self, description: Description) -> None:
        """Write `description` down."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(description), ensure_ascii=False) + "\n")
        self.kept.append(description)

    def outcomes(self) -> dict[str, Any]:
        """Return how many descriptions came about in which way; a user is told of those that failed."""
        counts = Counter(one.outcome for one in self.kept)
        failed = {name: counts[name] for name in FAILED if counts[name]}
        if failed:
            logging.getLogger(__name__).warning(
                "%d of %d descriptions are the class prompt alone, because the model's answer was %s; all answers: %s",
                sum(failed.values()),
                len(self.kept),
                ", ".join(f"{name} ({count})" for name, count in failed.items()),
                self.path.name,
            )
        return {str(name): count for name, count in counts.items()}
