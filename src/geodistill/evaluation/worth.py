"""The result of the self-test, which compares a set with random real images, and the words for it."""

from dataclasses import dataclass
from typing import Literal

from geodistill.config import Config
from geodistill.networks import PRETRAINED

Verdict = Literal["better than random", "not distinguishable from random", "below random"]


@dataclass(frozen=True)
class Worth:
    """Overall accuracy after training on the set and on random real images, with the 95 % interval of the difference.

    All are fractions.
    """

    distilled: float
    random: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        """Accuracy after training on the set minus that after training on random real images."""
        return self.distilled - self.random

    @property
    def verdict(self) -> Verdict:
        """The verdict: where the interval lies relative to 0."""
        if self.low > 0:
            return "better than random"
        return "below random" if self.high < 0 else "not distinguishable from random"

    def __str__(self) -> str:
        return (
            f"distilled set {100 * self.distilled:.1f} %, random real images {100 * self.random:.1f} %, "
            f"difference {100 * self.difference:+.1f} points (95 % interval over the scenes alone "
            f"{100 * self.low:+.1f} to {100 * self.high:+.1f})"
        )


@dataclass(frozen=True)
class SelfTest:
    """The result of the self-test on `held_out` scenes; the base was trained on about `seen` of them.

    `skipped` says why the test was not done; the other fields are then 0 or None.
    """

    held_out: int = 0
    seen: int = 0
    finetune: Worth | None = None
    probe: Worth | None = None
    skipped: str = ""

    @property
    def verdict(self) -> Verdict | None:
        """The verdict under finetune, or that of the probe if finetune shows no difference and the probe a loss.

        None if the test was not done.
        """
        if self.finetune is None or self.probe is None:
            return None
        tied = self.finetune.verdict == "not distinguishable from random"
        return self.probe.verdict if tied and self.probe.verdict == "below random" else self.finetune.verdict

    @property
    def figures(self) -> list[str]:
        """The results, a line for each protocol; empty if the test was not done."""
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
        by_probe = self.finetune is not None and self.verdict != self.finetune.verdict
        return f"self-test: the set is {self.verdict} real images" + (" after logistic regression" if by_probe else "")

    @property
    def summary(self) -> str:
        """Conclusion and figures as one paragraph, for the data card and the report; it names no scene."""
        sentences = [self.conclusion, *self.figures]
        return " ".join(f"{one[0].upper()}{one[1:]}." for one in sentences)


def advice(config: Config, *, adapts: bool = True) -> str:
    """Return what to try if a set made with `config` is below random real images.

    `adapts`: whether its method adapts the base to the scenes.
    """
    steps = max(400, 2 * config.finetune.steps)
    longer = f"longer adaptation (--set finetune.steps={steps}), " if adapts else ""
    return (
        f"try {longer}more images (--ipc {2 * config.ipc}), another --base, or a base of your own by `geodistill "
        "pretrain`"
    )
