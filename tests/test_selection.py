import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from geodistill.errors import TrainingError
from geodistill.selection import by_coverage, by_margin

CASES = settings(max_examples=40)


def angles(*degrees: float) -> Tensor:
    """Unit vectors [n, 2], whose cosine similarities are easy to know."""
    radians = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def covered(features: Tensor, real: Tensor, chosen: list[int]) -> float:
    """Mean over real of the largest cosine similarity to the chosen, in plain loops; -1 when nothing is chosen."""
    best = [max([-1.0] + [math.cos(angle(r, features[c])) for c in chosen]) for r in real]
    return sum(best) / len(best)


def angle(one: Tensor, other: Tensor) -> float:
    dot = sum(float(a) * float(b) for a, b in zip(one, other, strict=True))
    return math.acos(max(-1.0, min(1.0, dot / (float(one.norm()) * float(other.norm())))))


def mean_cosine(feature: Tensor, real: Tensor) -> float:
    return sum(math.cos(angle(r, feature)) for r in real) / len(real)


def naive_coverage(features: Tensor, real: Tensor, slots: list[int]) -> list[int]:
    chosen: dict[int, int] = {}
    while len(chosen) < len(set(slots)):
        open_candidates = [i for i in range(len(slots)) if slots[i] not in chosen]
        taken = list(chosen.values())
        gain = {i: (covered(features, real, [*taken, i]), mean_cosine(features[i], real)) for i in open_candidates}
        best = max(gain, key=gain.__getitem__)
        chosen[slots[best]] = best
    return [chosen[slot] for slot in sorted(chosen)]


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, list[int]]:
    """Candidates, real scenes and slots, random enough for ties to have no chance."""
    noise = torch.Generator().manual_seed(draw(st.integers(0, 100_000)))
    slots = draw(st.lists(st.integers(0, 4), min_size=1, max_size=9))
    features = torch.randn(len(slots), 3, generator=noise, dtype=torch.float64)
    real = torch.randn(draw(st.integers(1, 7)), 3, generator=noise, dtype=torch.float64)
    return features, real, slots


class TestByMargin:
    def test_by_hand(self):
        logits = torch.tensor([[3.0, 1.0, 0.0], [5.0, 4.5, 0.0], [0.0, 1.0, 2.0], [1.0, 0.0, 2.0]])
        # Margins for class 0: 2, 0.5, -2, -1.
        assert by_margin(logits, 0, torch.tensor([0, 0, 1, 1])).tolist() == [0, 3]
        # Margins for class 2: -3, -5, 1, 1.
        assert by_margin(logits, 2, torch.tensor([0, 1, 1, 0])).tolist() == [3, 2]

    def test_slots_ascend_whatever_their_numbers(self):
        logits = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
        assert by_margin(logits, 0, torch.tensor([40, -1, 7])).tolist() == [1, 2, 0]

    def test_ties_go_to_the_first(self):
        assert by_margin(torch.zeros(4, 3), 1, torch.tensor([1, 0, 1, 0])).tolist() == [1, 0]

    def test_leaves_its_input_alone(self):
        logits = torch.ones(2, 2)
        by_margin(logits, 0, torch.tensor([0, 1]))
        assert torch.equal(logits, torch.ones(2, 2))

    def test_not_finite(self):
        message = (
            "^teacher logits: 1 of 2 rows hold NaN or infinity, the first is row 1: "
            "look at the sampled images and at the teacher's training log$"
        )
        with pytest.raises(TrainingError, match=message):
            by_margin(torch.tensor([[0.0, 1.0], [torch.nan, 0.0]]), 0, torch.tensor([0, 1]))

    @CASES
    @given(st.integers(0, 100_000), st.integers(0, 3), st.lists(st.integers(0, 4), min_size=1, max_size=12))
    def test_against_plain_loops(self, seed: int, label: int, slots: list[int]):
        logits = torch.randn(len(slots), 4, generator=torch.Generator().manual_seed(seed))
        chosen = by_margin(logits, label, torch.tensor(slots)).tolist()
        assert [slots[i] for i in chosen] == sorted(set(slots))
        for i, j in itertools.product(chosen, range(len(slots))):
            if slots[i] == slots[j]:
                rivals = [[float(v) for c, v in enumerate(logits[k]) if c != label] for k in (i, j)]
                assert float(logits[i, label]) - max(rivals[0]) >= float(logits[j, label]) - max(rivals[1]) - 1e-6


class TestByCoverage:
    def test_by_hand(self):
        # Real scenes at 0, 10 and 90 degrees. Alone, 30 degrees is best: (0.866 + 0.940 + 0.5) / 3; then 90 degrees,
        # which is in the same slot, is barred, and of slot 1 the candidate at 0 adds (0.134 + 0.045), that at -40 none.
        real, candidates = angles(0, 10, 90), angles(30, 90, 0, -40)
        assert by_coverage(candidates, real, torch.tensor([0, 0, 1, 1])).tolist() == [0, 2]
        # With 90 degrees in a slot of its own it comes second, adding 0.5; then 0 degrees.
        assert by_coverage(candidates, real, torch.tensor([0, 1, 2, 2])).tolist() == [0, 1, 2]

    def test_covers_both_ends(self):
        # Three real scenes at 0, two at 90: 1 degree alone reaches 0.607, 0 degrees 0.6, 80 degrees 0.498, 85 0.45.
        real = angles(0, 0, 0, 90, 90)
        assert by_coverage(angles(0, 80, 1, 85), real, torch.tensor([0, 0, 1, 1])).tolist() == [1, 2]

    def test_a_slot_that_adds_nothing_takes_its_most_typical_candidate(self):
        assert by_coverage(angles(60, 20, 40, 0), angles(0), torch.tensor([0, 0, 0, 1])).tolist() == [1, 3]

    def test_length_of_features_does_not_matter(self):
        real, candidates = angles(0, 10, 90), angles(30, 90, 0, -40)
        slots, lengths = torch.tensor([0, 0, 1, 1]), torch.tensor([[1e-3], [1e3], [7.0], [0.5]])
        assert by_coverage(candidates * lengths, real * 5, slots).tolist() == [0, 2]

    def test_ties_go_to_the_first(self):
        assert by_coverage(torch.ones(4, 2), torch.ones(3, 2), torch.tensor([1, 0, 1, 0])).tolist() == [1, 0]

    @pytest.mark.parametrize(("candidate", "real", "what"), [(torch.nan, 1, "candidate"), (1, torch.inf, "real")])
    def test_not_finite(self, candidate: float, real: float, what: str):
        message = f"^{what} features: 1 of 1 rows hold NaN or infinity, the first is row 0: "
        with pytest.raises(TrainingError, match=message):
            by_coverage(torch.full((1, 2), candidate), torch.full((1, 2), real), torch.tensor([0]))

    @CASES
    @given(problems())
    def test_is_the_greedy_choice(self, problem: tuple[Tensor, Tensor, list[int]]):
        features, real, slots = problem
        chosen = by_coverage(features, real, torch.tensor(slots)).tolist()
        assert chosen == naive_coverage(features, real, slots)
        assert [slots[i] for i in chosen] == sorted(set(slots))

    @CASES
    @given(problems(), st.randoms(use_true_random=False))
    def test_order_of_candidates_and_real_scenes_does_not_matter(self, problem, random):
        features, real, slots = problem
        order, real_order = list(range(len(slots))), list(range(len(real)))
        random.shuffle(order)
        random.shuffle(real_order)
        chosen = by_coverage(features, real, torch.tensor(slots)).tolist()
        shuffled = by_coverage(features[order], real[real_order], torch.tensor(slots)[order]).tolist()
        assert [order[i] for i in shuffled] == chosen

    @CASES
    @given(problems())
    def test_reaches_half_of_the_best_set_and_any_single_candidate(self, problem: tuple[Tensor, Tensor, list[int]]):
        features, real, slots = problem
        chosen = by_coverage(features, real, torch.tensor(slots)).tolist()
        reached = covered(features, real, chosen)
        groups = [[i for i, slot in enumerate(slots) if slot == wanted] for wanted in sorted(set(slots))]
        best = max(covered(features, real, list(one)) for one in itertools.product(*groups))
        assert reached + 1 >= (best + 1) / 2 - 1e-9
        assert all(reached >= covered(features, real, [i]) - 1e-9 for i in range(len(slots)))
