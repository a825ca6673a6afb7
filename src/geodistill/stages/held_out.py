"""The training scenes that are held out for the self-test; no earlier stage sees them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from geodistill.config import Config, read_recorded
from geodistill.networks import SMALLEST_SIDE
from geodistill.privacy.screen import LEAST
from geodistill.scenes.scenes import Scenes
from geodistill.scenes.splits import spare

# More scenes add little precision and take longer to predict; with fewer a result means nothing.
MOST, FEWEST = 2000, 20


@dataclass(frozen=True)
class Apart:
    """Training scenes: a run learns from `train` and is tested on `test`.

    `test` is None if nothing is held out; `reason` says why, if a test was asked for.
    """

    train: Scenes
    test: Scenes | None = None
    reason: str = ""


def set_apart(scenes: Scenes, config: Config) -> Apart:
    """Return the training scenes in two parts: those to learn from, and those held out for the self-test.

    The split depends only on the scenes' contents, `self_test.held_out`, the IPC and whether the set is screened; every
    class keeps at least IPC scenes, and as many as screening needs. Nothing is held out if a class cannot spare a
    scene, if all classes together spare too few, or if the images are too small for the test's network.
    """
    if not config.self_test.held_out:
        return Apart(scenes)
    if config.size < SMALLEST_SIDE:
        return Apart(scenes, None, f"images of {config.size} px are too small for its network")
    share = min(config.self_test.held_out, MOST / len(scenes))
    least = max(config.ipc, LEAST if config.privacy == "screen" else 0)
    kept, held = spare(scenes, share, "self-test", leave=least)
    counts = torch.bincount(scenes.labels[held], minlength=len(scenes.classes)).tolist()
    if 0 in counts:
        return Apart(scenes, None, _why_none(scenes, counts.index(0), least, config))
    if len(held) < FEWEST:
        return Apart(scenes, None, f"{len(held)} held-out scenes are too few, it needs {FEWEST}")
    return Apart(scenes.subset(kept), scenes.subset(held))


def _why_none(scenes: Scenes, label: int, least: int, config: Config) -> str:
    """Return why class `label` has no scene to hold out, although it would keep `least`."""
    own = [key for key, one in zip(scenes.keys, scenes.labels.tolist(), strict=True) if one == label]
    what = f"class {scenes.classes[label]!r} has {len(own)} training images"
    if len(own) > least:
        return f"{what}, and those to hold out are copies of others"
    return f"{what}, {'screening' if least > config.ipc else f'IPC {config.ipc}'} leaves none to spare"


def learned_from(scenes: Scenes, settings: Mapping[str, Any]) -> Scenes:
    """Return the part of training scenes `scenes` that a run with these `settings` in its run.json learned from."""
    return set_apart(scenes, read_recorded(settings.get("config", {}))).train
