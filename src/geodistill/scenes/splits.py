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
    if not 0 < fraction < 1:
        raise SceneError(f"cannot hold out a fraction of {fraction}: choose one between 0 and 1")
    held = torch.tensor([_position(salt, key) < fraction for key in scenes.keys], dtype=torch.bool)
    return (~held).nonzero().flatten(), held.nonzero().flatten()


def _position(salt: str, key: str) -> float:
    """Return where in [0, 1) this image falls: 52 bits of a hash, exact in floating point."""
    return int(hashlib.sha256(f"{salt}\x1f{key}".encode()).hexdigest()[:13], 16) / 2**52
