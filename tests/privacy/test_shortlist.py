import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from geodistill.privacy.shortlist import Bound, Shortlist


def vectors(*shape: int, seed: int) -> Tensor:
    """Return vectors of norm 1 that lie near a subspace, as those of images do."""
    random = torch.Generator().manual_seed(seed)
    scale = 0.9 ** torch.arange(shape[-1])
    return F.normalize(torch.randn(shape, generator=random) * scale, dim=-1)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.sampled_from([3, 100]))
def test_the_bound_holds_whatever_it_was_learned_from(seed: int, length: int) -> None:
    bound = Bound(vectors(50, length, seed=seed + 1))
    own, real = vectors(40, length, seed=seed), F.normalize(torch.randn(30, length), dim=1)
    assert ((bound(own) @ bound(real).T) - (own @ real.T)).min() > -1e-5
    assert torch.allclose(bound(own).norm(dim=1), torch.ones(40), atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 99), st.integers(1, 700), st.integers(1, 300))
def test_the_list_is_that_of_comparing_every_pair(seed: int, count: int, size: int) -> None:
    own, real = vectors(4, 5, 120, seed=seed), vectors(count, 3, 120, seed=seed + 1)
    bound = Bound(real.flatten(0, 1))
    found = Shortlist(own, bound, 6)
    for first in range(0, count, size):
        block = real[first : first + size]
        found.add(block, bound(block), first)
    every = torch.einsum("vnd,mwd->nmvw", own, real).amax((2, 3))
    assert torch.equal(Shortlist.found([found])[0], every.topk(min(6, count), dim=1).indices)


def test_most_pairs_are_not_compared_in_full() -> None:
    own, real = vectors(4, 5, 120, seed=0), vectors(3000, 3, 120, seed=1)
    bound = Bound(real.flatten(0, 1))
    found = Shortlist(own, bound, 6)
    found.add(real[:2000], bound(real[:2000]), 0)
    values = found._similarities(real[2000:], bound(real[2000:]))
    assert values.isfinite().float().mean() < 0.1


def test_an_image_is_found_among_its_twins() -> None:
    own, real = vectors(1, 2, 120, seed=0), vectors(400, 1, 120, seed=1)
    bound = Bound(real.flatten(0, 1))
    real[[7, 300, 399], 0] = own[0, 1]
    found = Shortlist(own, bound, 3)
    found.add(real, bound(real), 0)
    assert sorted(Shortlist.found([found])[0][1].tolist()) == [7, 300, 399]
