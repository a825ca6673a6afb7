import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from geodistill.seeding import _TWISTER, SECRET_BYTES, derive_secret, derive_seed, generator, secret_generator

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


secrets = st.binary(min_size=SECRET_BYTES, max_size=SECRET_BYTES)


@given(secrets, names, indices, secrets, names, indices)
def test_a_secret_gives_the_same_noise_again_and_another_secret_other_noise(
    secret: bytes, what: str, index: int, other_secret: bytes, other: str, other_index: int
) -> None:
    first, again, differs = (
        torch.randn(4, generator=generator(*arguments))
        for arguments in ((secret, what, index), (secret, what, index), (other_secret, other, other_index))
    )
    assert torch.equal(first, again)
    assert torch.equal(first, differs) is ((secret, what, index) == (other_secret, other, other_index))


def test_of_an_int_torch_uses_32_bits_of_a_secret_every_one() -> None:
    # Why an int can be guessed: these two seeds draw the same.
    low, high = (torch.randn(4, generator=torch.Generator().manual_seed(seed)) for seed in (5, 5 + 2**32))
    assert torch.equal(low, high)
    drawn = [
        torch.randn(4, generator=generator(bytes(place) + b"\1" + bytes(31 - place), "image")) for place in range(32)
    ]
    assert len({values.numpy().tobytes() for values in drawn}) == 32


def test_what_a_secret_gives_is_the_same_in_every_version() -> None:
    # A run that stopped ends with the same bytes: keyed BLAKE2b (RFC 7693), then SHAKE-256 (FIPS 202).
    assert (
        derive_secret(bytes(32), "candidates 0").hex()
        == "cf3cac7ce6f1d1fc4fe315fb2548f6b86b95467f5b93af40cd18e50d0cdd02f0"
    )
    state = generator(bytes(32), "image", 7).get_state()[_TWISTER].view(-1, 8)
    assert state[0].tolist() == [41, 60, 59, 221, 0, 0, 0, 0]


def test_noise_cannot_be_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len({float(torch.randn((), generator=secret_generator())) for _ in range(5)}) == 5
    # All of the state counts: torch takes 32 bits of a seed, which can be tried one after the other.
    drawn = []
    for last in (0, 1):
        bytes_drawn = bytes(623 * 4) + bytes([last, 0, 0, 0])
        monkeypatch.setattr("os.urandom", lambda count, drawn=bytes_drawn: drawn if count == len(drawn) else b"")
        drawn.append(torch.randn(2000, generator=secret_generator()))
    assert not torch.equal(*drawn)


def test_secret_noise_is_a_twister_s() -> None:
    by = secret_generator()
    values = torch.randn(200_000, generator=by)
    assert abs(float(values.mean())) < 0.01
    assert float(values.std()) == pytest.approx(1, abs=0.01)
    # Where torch keeps the words: those of seed 0 are known (Matsumoto and Nishimura 1998: 0, then 1812433253 * 0 + 1).
    words = torch.Generator().manual_seed(0).get_state()[_TWISTER].view(-1, 8)
    assert words[:2].tolist() == [[0] * 8, [1, *[0] * 7]]
    before = torch.Generator().manual_seed(0).get_state()
    after = secret_generator().get_state()
    assert torch.equal(before[:24], after[:24])
    assert torch.equal(before[24 + 624 * 8 :], after[24 + 624 * 8 :])
