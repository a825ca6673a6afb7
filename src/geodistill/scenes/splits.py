"""Splits that depend only on the content of the files."""

import hashlib

import torch

from geodistill.errors import SceneError
from geodistill.scenes.scenes import Scenes


def hold_out(scenes: Scenes, fraction: float, salt: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (kept, held): sorted int64 indices; about `fraction` of each class is held.

    An image's part depends only on its content and `salt`: adding, removing or renaming files moves no other image,
    and copies of an image fall into the same part.
    """
    _check_fraction(fraction)
    held = torch.tensor([_position(salt, key) < fraction for key in scenes.keys], dtype=torch.bool)
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def spare(scenes: Scenes, fraction: float, salt: str, *, leave: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (kept, held) like `hold_out`, with at least one held image in each class of more than `leave` images.

    A class keeps at least `leave` images, or all if it has no more than that. An image with a copy among the kept
    is never held, even if no other image of its class is. Adding or removing a file can move another image only at
    these limits.
    Raises SceneError for a fraction that is not between 0 and 1.
    """
    _check_fraction(fraction)
    positions = torch.tensor([_position(salt, key) for key in scenes.keys], dtype=torch.float64)
    held = torch.zeros(len(scenes), dtype=torch.bool)
    for label in range(len(scenes.classes)):
        own = (scenes.labels == label).nonzero()[:, 0]
        wanted = max(1, int((positions[own] < fraction).sum()))
        order = own[positions[own].argsort(stable=True)]
        held[order[: max(0, min(wanted, len(own) - leave))]] = True
    kept = {scenes.keys[index] for index in (~held).nonzero()[:, 0]}
    held &= torch.tensor([key not in kept for key in scenes.keys], dtype=torch.bool)
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction < 1:
        raise SceneError(f"cannot hold out a fraction of {fraction}: choose one between 0 and 1")


def _position(salt: str, key: str) -> float:
    """Return this image's position in [0, 1): 52 bits of a hash, exact in floating point."""
    return int(hashlib.sha256(f"{salt}\x1f{key}".encode()).hexdigest()[:13], 16) / 2**52
