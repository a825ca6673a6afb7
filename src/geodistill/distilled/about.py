"""What holds for all images of a set: its title, and what its manifest states (`about`), read in one place."""

from typing import Any

from geodistill.config import FOLLOWING_NO_SCENE
from geodistill.pipeline import OWN
from geodistill.provenance import Kind

# Methods with a guidance of their own, which `sampling.follow` does not state.
_GUIDED = frozenset({"mgd3"})


# How many batches of scenes an updated set stands for, in its manifest.
BATCHES = "batches"


def kind_of(about: dict[str, Any]) -> Kind:
    """Return what the images are: real ones, ones derived from them, or synthetic ones."""
    if about.get("real_pixels"):
        return "real"
    return "derived" if about.get("derived") else "synthetic"


def follows_scenes(about: dict[str, Any]) -> bool:
    """Return whether sampling followed training images or means of them, with no noise that hides which ones.

    Methods that follow none state so in the set's settings (`sampling.follow`), or are guided in a way of their own. A
    set that was updated states `follows_scenes` itself, because its images can come from several runs.
    """
    if about.get("follows_scenes"):
        return True
    follow = about.get("config", {}).get("sampling", {}).get("follow", "none")
    guided = follow not in FOLLOWING_NO_SCENE or about.get("method") in _GUIDED
    return kind_of(about) == "synthetic" and guided and not about.get("guarantee")


def safer(about: dict[str, Any]) -> str:
    """Return how to make a set of the same scenes whose images follow no training image, as an advice to its owner."""
    if about.get("screened"):
        return "leave out the settings for `sampling` (by default screening follows no training image)"
    by = "" if about.get("method") == OWN else f" by the method `{OWN}`"
    return f"make the set{by} with `--privacy screen` or `--privacy dp`"


def title(classes: int) -> str:
    """Return the title of a set of `classes` classes, for card and metadata."""
    return f"Distilled overhead scenes, {classes} classes"
