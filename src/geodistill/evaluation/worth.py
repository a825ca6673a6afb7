"""What a set is worth beside random real images: the result of the self-test, and the words for it."""

from dataclasses import dataclass
from typing import Literal

from geodistill.config import Config
from geodistill.networks import PRETRAINED

Verdict = Literal["better than random", "not distinguishable from random", "below random"]


@dataclass(frozen=True)
class Worth:
    """Overall accuracy after the set and after random real images, and the 95 % interval of the difference.

    All are fractions.
    """

    distilled: float
    random: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        """Accuracy after the set minus that after random real images."""
        return self.distilled - self.random

    @property
    def verdict(self) -> Verdict:
        """Where the interval lies relative to 0."""
        if self.low > 0:
            return "better than random"
        return "below random" if self.high < 0 else "not distinguishable from random"

    def __str__(self) -> str:
        return (
            f"distilled set {100 * self.distilled:.1f} %, random real images {100 * self.random:.1f} %, "
            f"difference {100 * self.difference:+.1f} points (95 % interval {100 * self.low:+.1f} to "
            f"{100 * self.high:+.1f})"
        )


@dataclass(frozen=True)
class SelfTest:
    """What the self-test found on `held_out` scenes, about `seen` of them known to the base.

    `skipped` says why it was not done; the other fields are 0 and None then.
    """

    held_out: int = 0
    seen: int = 0
    finetune: Worth | None = None
    probe: Worth | None = None
    skipped: str = ""

    @property
    def verdict(self) -> Verdict | None:
        """The verdict under finetune; None where the test was not done."""
        return self.finetune.verdict if self.finetune else None

    @property
    def figures(self) -> list[str]:
        """What was found, a line for each protocol; empty where the test was not done."""
        if self.finetune is None or self.probe is None:
            return []
        seen = f" (the base was trained on about {self.seen} of them)" if self.seen else ""
        return [
            f"after finetuning {PRETRAINED}: {self.finetune}, on {self.held_out:,} held-out training scenes{seen}",
            f"after logistic regression on its ImageNet features: {self.probe}",
        ]

    @property
    def conclusion(self) -> str:
        """The verdict in words, or why there is none."""
        if self.verdict is None:
            return f"no self-test: {self.skipped}"
        return f"self-test: the set is {self.verdict} real images"

    @property
    def summary(self) -> str:
        """Return conclusion and figures as one paragraph, for the data card and the report; it names no scene."""
        sentences = [self.conclusion, *self.figures]
        return " ".join(f"{one[0].upper()}{one[1:]}." for one in sentences)


def advice(config: Config) -> str:
    """Return what to try where a set made with `config` is below random real images."""
    steps = max(400, 2 * config.finetune.steps)
    return (
        f"try longer adaptation (--set finetune.steps={steps}), more images (--ipc {2 * config.ipc}), another --base, "
        "or a base of your own by `geodistill pretrain`"
    )
