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
from geodistill.scenes.views import as_rgb

# Number of captioned members; those nearest the centre of their cluster come first.
CAPTIONED = 5
LONGEST = 60

Outcome = Literal["described", "shortened", "refused", "empty", "rambling"]
# Outcomes of unusable answers; the prototype then gets the class prompt alone.
FAILED: tuple[Outcome, ...] = ("refused", "empty", "rambling")

_REFUSAL = re.compile(
    r"\b(sorry|apologi[sz]e|as an ai|language model|(can(no|')t|can not|unable to|not able to) "
    r"(help|assist|describe|see|view|provide|answer|identify|determine)|no image (was|is|has been))\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Exchange:
    """A question to a model and its answer; `member` is the rank in the cluster of the image that was shown with it."""

    prompt: str
    answer: str
    member: int | None = None


@dataclass(frozen=True)
class Description:
    """The prompt of a prototype, its outcome, and all questions and answers behind it."""

    text: str
    outcome: Outcome = "described"
    exchanges: tuple[Exchange, ...] = ()


class Describer(Protocol):
    """Any object that writes a prompt for the images of one cluster."""

    name: str

    def __call__(self, images: Tensor, class_name: str) -> Description:
        """Return one prompt for all of `images` (uint8 [n, channels, s, s], n >= 1), beginning with the class prompt.

        Images nearest the centre of the cluster come first.
        """


class Answerer(Protocol):
    """A model that answers questions, with or without an image."""

    name: str

    def __call__(self, prompt: str, image: Tensor | None = None) -> str:
        """Return the answer to `prompt`, given `image` uint8 RGB [3, s, s]; equal inputs give equal answers.

        Raises DescriberError if no answer can be obtained.
        """


class CaptionDescriber:
    """Asks a model for a caption of each of the first images, then for what the captions have in common."""

    def __init__(self, answerer: Answerer) -> None:
        self.answerer = answerer
        self.name = answerer.name

    def __call__(self, images: Tensor, class_name: str) -> Description:
        """Return the class prompt, followed by what the captions have in common.

        Unusable captions are left out. If none remains, or the merged caption is unusable, the result is the class
        prompt alone.
        """
        exchanges = [self._captioned(rank, image, class_name) for rank, image in enumerate(as_rgb(images[:CAPTIONED]))]
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
    """Return 'described' if `answer` is usable, else what is wrong with it.

    empty: it has no word; refused: it is an apology; rambling: it has more than 60 words, or repeats the same ones.
    """
    words = re.findall(r"[^\W\d_]+", answer.lower())
    if not words:
        return "empty"
    if _REFUSAL.search(answer.replace("’", "'")):
        return "refused"
    repeats = len(words) >= 12 and len(set(words)) < 0.4 * len(words)
    return "rambling" if len(words) > LONGEST or repeats else "described"


def tidy(answer: str) -> str:
    """Return `answer` on one line, without surrounding quotes and without the final full stop."""
    return " ".join(answer.split()).strip("\"'“”` ").rstrip(".").strip()


def _joined(class_name: str, shared: str) -> str:
    """Return the class prompt and `shared`, whose opening words are removed if they repeat the class prompt."""
    rest = re.sub(
        r"^(an?|the|this|these)?\s*(satellite|aerial|overhead)\s+(image|photo|view)s?\b", "", shared, flags=re.I
    )
    rest = re.sub(r"^\s*(of|shows?|showing|with)\s+", "", rest, flags=re.I) if rest != shared else rest
    rest = re.sub(rf"^(an?|the)?\s*{re.escape(readable(class_name))}\b[\s,:]*", "", rest.strip(), flags=re.I)
    return f"{class_prompt(class_name)}, {rest}" if rest else class_prompt(class_name)


def shortened(description: Description, fits: Callable[[str], bool], class_name: str) -> Description:
    """Return `description` cut to its longest beginning that passes the test `fits`.

    The class prompt always stays; this function does not check whether it fits.
    """
    words, least = description.text.split(), len(class_prompt(class_name).split())
    if fits(description.text):
        return description
    while len(words) > least and not fits(" ".join(words)):
        words.pop()
    return replace(description, text=" ".join(words).rstrip(",;: "), outcome="shortened")


class Conversations:
    """The descriptions written so far, one line each in conversations.jsonl, with their questions and answers."""

    FILE = "conversations.jsonl"

    def __init__(self, folder: Path) -> None:
        """Load what an earlier, interrupted call left in `folder`; an incomplete last line is ignored."""
        self.path, self.kept = folder / self.FILE, list[Description]()
        lines = self.path.read_text(encoding="utf-8").split("\n")[:-1] if self.path.exists() else []
        for line in lines:
            values = json.loads(line)
            exchanges = tuple(Exchange(**one) for one in values.pop("exchanges"))
            self.kept.append(Description(**values, exchanges=exchanges))
        # Remove an incomplete last line, so that the next description starts on a new line.
        self.path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def add(self, description: Description) -> None:
        """Append `description` to the file."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(description), ensure_ascii=False) + "\n")
        self.kept.append(description)

    def outcomes(self) -> dict[str, Any]:
        """Return how many descriptions had each outcome; warn about those that failed."""
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
