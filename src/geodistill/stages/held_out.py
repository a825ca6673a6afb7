"""The training scenes that the self-test holds out: no stage before it sees them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from geodistill.config import Config, read_recorded
from geodistill.evaluation.protocols import SMALLEST_SIDE
from geodistill.scenes.scenes import Scenes
from geodistill.scenes.splits import spare

# More tell little more and take longer to predict; fewer tell nothing.
MOST, FEWEST = 2000, 20


@dataclass(frozen=True)
class Apart:
    """Training scenes: `train` is what a run learns from, `test` what it is tested on.

    `test` is None where nothing is held out; `reason` says why, where a test was asked for.
    """

    train: Scenes
    test: Scenes | None = None
    reason: str = ""


def set_apart(scenes: Scenes, config: Config) -> Apart:
    """Return the training scenes without those that are held out for the self-test, and those.

    They follow from the scenes' contents, `self_test.held_out` and the IPC, which every class keeps at least. Where a
    class cannot spare one, or all classes together spare too few, nothing is held out.
    """
    if not config.self_test.held_out:
        return Apart(scenes)
    if config.size < SMALLEST_SIDE:
        return Apart(scenes, None, f"images of {config.size} px are too small for its network")
    share = min(config.self_test.held_out, MOST / len(scenes))
    kept, held = spare(scenes, share, "self-test", leave=config.ipc)
    counts = torch.bincount(scenes.labels[held], minlength=len(scenes.classes)).tolist()
    if 0 in counts:
        label = counts.index(0)
        there = int((scenes.labels == label).sum())
        name = scenes.classes[label]
        return Apart(scenes, None, f"class {name!r} has {there} training images, IPC {config.ipc} leaves none to spare")
    if len(held) < FEWEST:
        return Apart(scenes, None, f"{len(held)} held-out scenes are too few, it needs {FEWEST}")
    return Apart(scenes.subset(kept), scenes.subset(held))


def learned_from(scenes: Scenes, settings: Mapping[str, Any]) -> Scenes:
    """Return the part of training scenes `scenes` that a run learned from, whose run.json has `settings`."""
    return set_apart(scenes, read_recorded(settings.get("config", {}))).train
