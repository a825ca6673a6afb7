import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from geodistill.errors import ConfigError
from geodistill.evaluation import similarity as module
from geodistill.evaluation.similarity import nearest_similarity


def plain(features, labels, real, real_labels):
    best = []
    for query, label in zip(real, real_labels, strict=True):
        known = [f for f, other in zip(features, labels, strict=True) if other == label]
        best.append(max(float(F.cosine_similarity(query, f, dim=0)) for f in known))
    return sum(best) / len(best)


def test_by_hand():
    # Class 0: cosines 1 and 0.6 to its only image (1, 0). Class 1: 0.8 is the larger of 0.6 and 0.8.
    features, labels = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1, 1])
    real, real_labels = torch.tensor([[1.0, 0.0], [3.0, 4.0], [3.0, 4.0]]), torch.tensor([0, 0, 1])
    assert nearest_similarity(features, labels, real, real_labels) == pytest.approx((1 + 0.6 + 0.8) / 3)


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), count=st.integers(3, 12), real=st.integers(1, 20), block=st.integers(1, 25))
def test_equals_a_loop_in_blocks_of_any_size(seed, count, real, block):
    random = torch.Generator().manual_seed(seed)
    features, theirs = torch.randn(count, 5, generator=random), torch.randn(real, 5, generator=random)
    labels, real_labels = torch.arange(count) % 3, torch.randint(0, 3, (real,), generator=random)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", block)
        found = nearest_similarity(features, labels, theirs, real_labels)
    assert found == pytest.approx(plain(features, labels, theirs, real_labels), abs=1e-5)


def test_real_images_cover_themselves_and_more_images_never_cover_less():
    random = torch.Generator().manual_seed(0)
    real, labels = torch.randn(12, 8, generator=random), torch.arange(12) % 2
    shares = [nearest_similarity(real[:n], labels[:n], real, labels) for n in (2, 6, 12)]
    assert shares == sorted(shares)
    assert shares[-1] == pytest.approx(1, abs=1e-6)


def test_what_cannot_be_covered():
    features, labels = torch.ones(2, 4), torch.tensor([0, 0])
    with pytest.raises(ConfigError, match=r"^no real training images: nearest similarity is a mean over them$"):
        nearest_similarity(features, labels, features[:0], labels[:0])
    message = r"^class 1 has 2 real training images and no distilled one: nearest similarity needs one$"
    with pytest.raises(ConfigError, match=message):
        nearest_similarity(features, labels, torch.ones(3, 4), torch.tensor([0, 1, 1]))
