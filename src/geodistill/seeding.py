"""One place where randomness comes from.

Every image, training step and split draws from its own generator, seeded by the run's seed, what it is for,
and its index, so that batch size, resume and the number of processes change nothing about what is drawn.
"""

import hashlib

import torch


def derive_seed(seed: int, what: str, index: int = 0) -> int:
    """Return a 63-bit seed that depends on all three arguments and on nothing else."""
    digest = hashlib.blake2b(f"{seed}\x1f{what}\x1f{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, what: str, index: int = 0) -> torch.Generator:
    """Return a fresh CPU generator for (`seed`, `what`, `index`)."""
    return torch.Generator().manual_seed(derive_seed(seed, what, index))


def seed_of_member(seed: int, what: str, index: int) -> int:
    """Return the seed of member `index` of a mixture; the first has `seed` itself, as if it were alone."""
    return derive_seed(seed, what, index) if index else seed
