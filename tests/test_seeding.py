import torch
from hypothesis import given
from hypothesis import strategies as st

from geodistill.seeding import derive_seed, generator

seeds, names, indices = st.integers(0, 2**31), st.text(max_size=20), st.integers(0, 10**6)


def test_seeds_are_the_same_in_every_version_and_on_every_machine() -> None:
    # Sets made before would otherwise change: blake2b of "0\x1fcandidates\x1f7", its first 8 bytes halved.
    assert derive_seed(0, "candidates", 7) == 3624439817680806257


@given(seeds, names, indices)
def test_a_seed_fits_what_torch_takes(seed: int, what: str, index: int) -> None:
    assert 0 <= derive_seed(seed, what, index) < 2**63


@given(seeds, names, indices, seeds, names, indices)
def test_other_arguments_give_another_seed(
    seed: int, what: str, index: int, other_seed: int, other: str, other_index: int
) -> None:
    same = (seed, what, index) == (other_seed, other, other_index)
    assert (derive_seed(seed, what, index) == derive_seed(other_seed, other, other_index)) is same


def test_a_generator_starts_anew_each_time_and_leaves_torch_s_own_alone() -> None:
    before = torch.get_rng_state()
    first, again = (torch.randn(4, generator=generator(3, "noise", 1)) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, torch.randn(4, generator=generator(3, "noise", 2)))
    assert torch.equal(before, torch.get_rng_state())
