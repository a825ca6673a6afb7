"""What holds for all images of a set: its title, and what its manifest states (`about`), read in one place."""

from typing import Any

from geodistill.provenance import Kind


def kind_of(about: dict[str, Any]) -> Kind:
    """Return what the images are: real ones, ones derived from them, or synthetic ones."""
    if about.get("real_pixels"):
        return "real"
    return "derived" if about.get("derived") else "synthetic"


def follows_scenes(about: dict[str, Any]) -> bool:
    """Return whether images were sampled from latents of training images, with no noise that hides which ones.

    Methods that follow no training image state `sampling.follow=none` in the set's settings.
    """
    follow = about.get("config", {}).get("sampling", {}).get("follow", "none")
    return kind_of(about) == "synthetic" and follow != "none" and not about.get("guarantee")


def title(classes: int) -> str:
    """Return the title of a set of `classes` classes, for card and metadata."""
    return f"Distilled overhead scenes, {classes} classes"
