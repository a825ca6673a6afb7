"""The single source of randomness.

Every image, training step and split draws from its own generator, seeded by the run's seed, its purpose and its index.
Batch size, resuming and the number of processes therefore do not change what is drawn.

A seed is an int that anyone may know, or a secret: bytes drawn by the operating system. Draws from an int can be
reproduced by trying all seeds, since torch uses 32 bits of it. Draws from a secret cannot.
"""

import hashlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

SECRET_BYTES = 32
# Position of the 624 words in the state of torch's Mersenne twister: 8 bytes each, of which the upper 4 are zero.
_WORDS = 624
_TWISTER = slice(24, 24 + 8 * _WORDS)


def derive_seed(seed: int, what: str, index: int = 0) -> int:
    """Return a 63-bit seed that depends on all three arguments and on nothing else."""
    digest = hashlib.blake2b(f"{seed}\x1f{what}\x1f{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def derive_secret(secret: bytes, what: str) -> bytes:
    """Return 32 bytes that depend on both arguments and reveal nothing about `secret`."""
    return hashlib.blake2b(what.encode(), key=secret, digest_size=SECRET_BYTES).digest()


def generator(seed: int | bytes, what: str, index: int = 0) -> "torch.Generator":
    """Return a fresh CPU generator for (`seed`, `what`, `index`).

    For a secret seed, its whole state of 19,968 bits is derived by SHAKE-256 (FIPS 202).
    """
    if isinstance(seed, int):
        import torch  # Not above: drawing the built-in scenes does without it.

        return torch.Generator().manual_seed(derive_seed(seed, what, index))
    return _of_state(hashlib.shake_256(derive_secret(seed, f"{what}\x1f{index}")).digest(4 * _WORDS))


def secret_generator() -> "torch.Generator":
    """Return a CPU generator that nobody can reproduce: the operating system draws its whole state."""
    return _of_state(os.urandom(4 * _WORDS))


def _of_state(words: bytes) -> "torch.Generator":
    import torch

    by = torch.Generator().manual_seed(0)
    state = by.get_state()
    lower = torch.frombuffer(bytearray(words), dtype=torch.uint8).view(-1, 4)
    state[_TWISTER] = torch.cat([lower, torch.zeros_like(lower)], dim=1).flatten()
    return by.set_state(state)


def seed_of_member(seed: int, what: str, index: int) -> int:
    """Return the seed of member `index` of a mixture; the first gets `seed` itself, as if it were alone."""
    return derive_seed(seed, what, index) if index else seed
