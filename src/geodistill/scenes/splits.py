"""Splits that depend on what the files hold, and on nothing else."""

import hashlib

import torch

from geodistill.errors import SceneError
from geodistill.scenes.scenes import Scenes


def hold_out(scenes: Scenes, fraction: float, salt: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (kept, held): sorted int64 indices, about `fraction` of each class held.

    Each image's side follows from its content and `salt` alone: adding, removing or renaming files moves no other,
    and copies of one image fall on the same side.
    """
    _check_fraction(fraction)
    held = torch.tensor([_position(salt, key) < fraction for key in scenes.keys], dtype=torch.bool)
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def spare(scenes: Scenes, fraction: float, salt: str, *, leave: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (kept, held) as `hold_out` does, with at least one held of each class that has more than `leave` images.

    No class keeps fewer than `leave`: one that has no more keeps all. No image is held that has a copy among the kept.
    At these limits a file more or less can move another; in between none moves.
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
    """Return where in [0, 1) this image falls: 52 bits of a hash, exact in floating point."""
    return int(hashlib.sha256(f"{salt}\x1f{key}".encode()).hexdigest()[:13], 16) / 2**52
