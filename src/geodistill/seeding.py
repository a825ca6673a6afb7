"""One place where randomness comes from.

Every image, training step and split draws from its own generator, seeded by the run's seed, what it is for,
and its index, so that batch size, resume and the number of processes change nothing about what is drawn.

A seed is an int that anyone may know, or a secret: bytes that the operating system drew. What follows from an int can
be drawn again by trying all seeds, since torch uses 32 bits of it. What follows from a secret cannot.
"""

import hashlib
import os

import torch

SECRET_BYTES = 32
# Where the state of torch's Mersenne twister has its 624 words, 8 bytes each, the upper 4 of them zero.
_WORDS = 624
_TWISTER = slice(24, 24 + 8 * _WORDS)


def derive_seed(seed: int, what: str, index: int = 0) -> int:
    """Return a 63-bit seed that depends on all three arguments and on nothing else."""
    digest = hashlib.blake2b(f"{seed}\x1f{what}\x1f{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def derive_secret(secret: bytes, what: str) -> bytes:
    """Return 32 bytes that depend on both arguments and tell nothing of `secret`."""
    return hashlib.blake2b(what.encode(), key=secret, digest_size=SECRET_BYTES).digest()


def generator(seed: int | bytes, what: str, index: int = 0) -> torch.Generator:
    """Return a fresh CPU generator for (`seed`, `what`, `index`).

    All of its state, 19,968 bits, follows from a secret seed by SHAKE-256 (FIPS 202).
    """
    if isinstance(seed, int):
        return torch.Generator().manual_seed(derive_seed(seed, what, index))
    return _of_state(hashlib.shake_256(derive_secret(seed, f"{what}\x1f{index}")).digest(4 * _WORDS))


def secret_generator() -> torch.Generator:
    """Return a CPU generator that nobody can set up again: all of its state is drawn by the operating system."""
    return _of_state(os.urandom(4 * _WORDS))


def _of_state(words: bytes) -> torch.Generator:
    by = torch.Generator().manual_seed(0)
    state = by.get_state()
    lower = torch.frombuffer(bytearray(words), dtype=torch.uint8).view(-1, 4)
    state[_TWISTER] = torch.cat([lower, torch.zeros_like(lower)], dim=1).flatten()
    return by.set_state(state)


def seed_of_member(seed: int, what: str, index: int) -> int:
    """Return the seed of member `index` of a mixture; the first has `seed` itself, as if it were alone."""
    return derive_seed(seed, what, index) if index else seed
