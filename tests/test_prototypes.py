import dataclasses
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn import functional as F

from geodistill import prototypes
from geodistill.errors import ConfigError, SceneError
from geodistill.prototypes import Prototypes, find_centroids, find_prototypes, latent_features
from geodistill.run import Rows, save_tensors


def blobs(sizes: list[int], seed: int = 0) -> Tensor:
    """Tight, far-apart groups of points on a line, as float32 [sum(sizes), 2]."""
    noise = torch.Generator().manual_seed(seed)
    groups = [torch.tensor([20.0 * k, 0.0]) + torch.rand(size, 2, generator=noise) for k, size in enumerate(sizes)]
    return torch.cat(groups)


def one_class(features: Tensor, per_class: int, **more: float) -> Prototypes:
    labels = torch.zeros(len(features), dtype=torch.int64)
    return find_prototypes(features, labels, classes=("Beach",), per_class=per_class, seed=0, **more)


class TestStarts:
    def found(self) -> Prototypes:
        members = (torch.tensor([4, 2, 7, 9]), torch.tensor([1]))
        return Prototypes(torch.tensor([2, 1]), torch.tensor([0, 1]), members)

    def test_representative_alone(self):
        assert self.found().starts(3, 0, of="representative").tolist() == [2, 2, 2, 1, 1, 1]

    def test_members_in_turn_after_the_representative(self):
        first, second = self.found().starts(6, 0, of="members").view(2, 6).tolist()
        assert (first[0], first[4]) == (2, 2)
        assert sorted(first[1:4]) == [4, 7, 9]
        assert first[5] == first[1]
        assert second == [1] * 6

    def test_each_prototype_has_an_order_of_its_own(self):
        members = (torch.arange(0, 30), torch.arange(30, 60))
        found = Prototypes(torch.tensor([0, 30]), torch.tensor([0, 1]), members)
        first, second = found.starts(30, 0, of="members").view(2, 30)
        assert not torch.equal(first, second - 30)
        assert not torch.equal(first, found.starts(30, 1, of="members")[:30])

    @given(st.integers(1, 9), st.integers(0, 5))
    def test_more_of_them_change_none_before(self, count, seed):
        few, many = (self.found().starts(n, seed, of="members").view(2, n) for n in (count, count + 3))
        assert torch.equal(few, many[:, :count])


class TestFindPrototypes:
    def test_clusters_are_ordered_by_class_then_size(self):
        features = torch.cat([blobs([2, 5, 3]), blobs([4, 1, 6], seed=1)])
        labels = torch.tensor([0] * 10 + [1] * 11)
        found = find_prototypes(features, labels, classes=("Beach", "Port"), per_class=3, seed=0)
        assert found.labels.tolist() == [0, 0, 0, 1, 1, 1]
        assert [sorted(cluster.tolist()) for cluster in found.members] == [
            [2, 3, 4, 5, 6],
            [7, 8, 9],
            [0, 1],
            [15, 16, 17, 18, 19, 20],
            [10, 11, 12, 13],
            [14],
        ]
        assert [int(index) in cluster for index, cluster in zip(found.indices, found.members, strict=True)] == [
            True
        ] * 6
        assert found.indices.dtype == found.labels.dtype == found.members[0].dtype == torch.int64
        assert len(found) == 6

    def test_classes_may_be_interleaved(self):
        features, labels = torch.tensor([[0.0], [5.0], [1.0], [6.0], [9.0]]), torch.tensor([1, 0, 1, 0, 0])
        found = find_prototypes(features, labels, classes=("Beach", "Port"), per_class=1, seed=0)
        assert found.indices.tolist() == [3, 0]
        assert [cluster.tolist() for cluster in found.members] == [[3, 1, 4], [0, 2]]

    def test_one_prototype_is_the_image_nearest_the_centre(self):
        found = one_class(torch.tensor([[0.0], [1.0], [2.5], [9.0]]), 1)
        assert found.indices.tolist() == [2]
        assert found.members[0].tolist() == [2, 1, 0, 3]

    def test_representative_by_hand(self):
        # Clusters {0, 1, 2} and {100, 102, 107} with centres 1 and 103: on a line every step away from the other
        # centre gains as much as it costs until the own centre is passed, then costs nothing. So the second cluster
        # has -|x - 103| + (x - 1): 98 at 100, 100 at 102, 102 at 107; the first 102 at 0, 102 at 1, 100 at 2.
        features = torch.tensor([[0.0], [1.0], [2.0], [100.0], [102.0], [107.0]])
        assert one_class(features, 2).indices.tolist() == [0, 5]
        # At alpha 3 nearness decides: 93, 98, 94 and 100, 102, 98.
        assert one_class(features, 2, alpha=3.0).indices.tolist() == [1, 4]

    def test_the_nearest_of_the_other_centres_counts(self):
        # Clusters at (0, 0), (10, 0) and (0, 100). Of the first, the member away from the second centre is best; by the
        # mean distance of both others it would be the one away from the third.
        own = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])
        features = torch.cat([own, own[:3] + torch.tensor([10.0, 0.0]), own[:2] + torch.tensor([0.0, 100.0])])
        assert one_class(features, 3).indices[0] == 0

    def test_kmeans_starts_ten_times_from_seeds_of_its_own(self, monkeypatch: pytest.MonkeyPatch):
        started: list[tuple[int, int]] = []
        kmeans = prototypes.KMeans

        def watched(count: int, *, n_init: int, random_state: int) -> KMeans:
            started.append((n_init, random_state))
            return kmeans(count, n_init=n_init, random_state=random_state)

        monkeypatch.setattr(prototypes, "KMeans", watched)
        labels = torch.arange(12) % 2
        for seed in (0, 1):
            find_prototypes(torch.rand(12, 2), labels, classes=("Beach", "Port"), per_class=2, seed=seed)
        assert [times for times, _ in started] == [10] * 4
        assert len({seed for _, seed in started}) == 4

    def test_members_are_sorted_by_distance_to_the_centre(self):
        found = one_class(torch.tensor([[0.0], [1.0], [2.0], [100.0], [102.0], [107.0]]), 2)
        assert [cluster.tolist() for cluster in found.members] == [[1, 0, 2], [4, 3, 5]]

    def test_every_image_a_prototype(self):
        found = one_class(torch.arange(6.0)[:, None], 6)
        assert found.indices.tolist() == [0, 1, 2, 3, 4, 5]

    @pytest.mark.parametrize("distinct", [1, 2, 3])
    def test_duplicates_still_give_distinct_prototypes_quietly(self, distinct: int):
        features = torch.eye(3)[torch.arange(12) % distinct]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = one_class(features, 5)
        assert len(found.indices.unique()) == 5
        assert sorted(torch.cat(found.members).tolist()) == list(range(12))
        assert min(len(cluster) for cluster in found.members) >= 1

    def test_same_seed_same_prototypes(self):
        features = F.normalize(torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), dim=1)
        first, again = one_class(features, 6), one_class(features, 6)
        assert torch.equal(first.indices, again.indices)

    def test_other_classes_change_nothing(self):
        features = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
        labels = torch.arange(60) // 30
        both = find_prototypes(features, labels, classes=("Beach", "Port"), per_class=4, seed=3)
        alone = find_prototypes(features[:30], labels[:30], classes=("Beach",), per_class=4, seed=3)
        assert torch.equal(both.indices[:4], alone.indices)

    def test_saved_and_loaded(self, tmp_path: Path):
        found = one_class(blobs([2, 5, 3]), 3)
        found.save(tmp_path)
        again = Prototypes.load(tmp_path)
        assert torch.equal(again.indices, found.indices)
        assert torch.equal(again.labels, found.labels)
        assert [cluster.tolist() for cluster in again.members] == [cluster.tolist() for cluster in found.members]
        assert [path.name for path in tmp_path.iterdir()] == ["prototypes.safetensors"]

    def test_is_frozen(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            one_class(torch.arange(3.0)[:, None], 1).indices = torch.zeros(1)  # type: ignore[misc]

    @settings(max_examples=25)
    @given(st.integers(0, 10_000), st.integers(1, 6), st.integers(6, 24), st.booleans())
    def test_partition_with_distinct_representatives(self, seed: int, per_class: int, count: int, coarse: bool):
        features = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))
        found = one_class(features.round() if coarse else features, per_class)
        sizes = [len(cluster) for cluster in found.members]
        assert sorted(torch.cat(found.members).tolist()) == list(range(count))
        assert sizes == sorted(sizes, reverse=True)
        assert all(int(i) in cluster.tolist() for i, cluster in zip(found.indices, found.members, strict=True))
        ties = [(-size, int(index)) for size, index in zip(sizes, found.indices, strict=True)]
        assert ties == sorted(ties)


class TestLargeClasses:
    def test_clear_clusters_are_found_in_parts(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        features = blobs([30, 80, 50])[torch.randperm(160, generator=torch.Generator().manual_seed(1))]
        whole = one_class(features, 3)
        save_tensors({"features": features}, tmp_path / "features.safetensors")
        monkeypatch.setattr(prototypes, "MOST_AT_ONCE", 40)
        labels = torch.zeros(160, dtype=torch.int64)
        kept = Rows(tmp_path / "features.safetensors", "features")
        found = find_prototypes(kept, labels, classes=("Beach",), per_class=3, seed=0)
        assert [sorted(cluster.tolist()) for cluster in found.members] == [
            sorted(cluster.tolist()) for cluster in whole.members
        ]
        for cluster in found.members:
            apart = (features[cluster] - features[cluster].mean(dim=0)).norm(dim=1)
            assert (apart.diff() > -0.1).all()  # nearest first, about centres that moved by little

    def test_centroids_are_means_of_their_members(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        latents = blobs([20, 45]).view(65, 1, 1, 2).half()
        save_tensors({"latents": latents[:, None]}, tmp_path / "latents.safetensors")
        monkeypatch.setattr(prototypes, "MOST_AT_ONCE", 16)
        kept = Rows(tmp_path / "latents.safetensors", "latents").column(0)
        labels = torch.zeros(65, dtype=torch.int64)
        found = find_centroids(kept, labels, classes=("Beach",), per_class=2, seed=0)
        wanted = torch.stack([latents[20:].float().mean(dim=0), latents[:20].float().mean(dim=0)])
        assert torch.allclose(found, wanted, atol=1e-3)

    @settings(max_examples=15)
    @given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 3))
    def test_every_scene_is_in_one_cluster(self, seed: int, per_class: int, distinct: int):
        # Coinciding points leave clusters empty.
        features = torch.randn(distinct, 2, generator=torch.Generator().manual_seed(seed))[torch.arange(31) % distinct]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(prototypes, "MOST_AT_ONCE", 8)
            found = one_class(features, per_class)
        assert sorted(torch.cat(found.members).tolist()) == list(range(31))
        assert min(map(len, found.members)) >= 1
        assert len(found.indices.unique()) == per_class

    def test_infinite_features_are_found_in_a_file(self, tmp_path: Path):
        features = torch.rand(9, 2)
        features[5, 1] = torch.nan
        save_tensors({"features": features}, tmp_path / "features.safetensors")
        with pytest.raises(SceneError, match=r"^features of 1 of 9 scenes are not finite, the first is scene 5: "):
            one_class(Rows(tmp_path / "features.safetensors", "features"), 2)  # type: ignore[arg-type]


class TestBadInput:
    def test_too_few_images(self):
        labels = torch.tensor([0] * 7 + [1] * 12)
        message = "^class 'Beach' has 7 images, IPC 10 needs at least 10: lower --ipc or add images$"
        with pytest.raises(SceneError, match=message):
            find_prototypes(torch.rand(19, 2), labels, classes=("Beach", "Port"), per_class=10, seed=0)

    def test_one_image(self):
        with pytest.raises(SceneError, match=r"^class 'Beach' has 1 image, IPC 2 needs at least 2: "):
            one_class(torch.rand(1, 2), 2)

    def test_class_without_images(self):
        with pytest.raises(SceneError, match=r"^class 'Port' has 0 images, IPC 1 needs at least 1: "):
            find_prototypes(torch.rand(2, 2), torch.zeros(2).long(), classes=("Beach", "Port"), per_class=1, seed=0)

    def test_no_prototypes_asked_for(self):
        with pytest.raises(ConfigError, match=r"^IPC is 0, it has to be at least 1: raise --ipc$"):
            one_class(torch.rand(3, 2), 0)

    def test_features_that_are_not_finite(self):
        features = torch.rand(5, 2)
        features[2, 1], features[4, 0] = torch.nan, torch.inf
        message = (
            "^features of 2 of 5 scenes are not finite, the first is scene 2: "
            "look at that image, and at the autoencoder that encoded it$"
        )
        with pytest.raises(SceneError, match=message):
            one_class(features, 2)


class TestLatentFeatures:
    def test_pools_to_eight_by_eight(self):
        latents = torch.arange(2 * 3 * 16 * 16, dtype=torch.float32).reshape(2, 3, 16, 16)
        features = latent_features(latents)
        blocks = latents.reshape(2, 3, 8, 2, 8, 2).mean((3, 5)).flatten(1)
        torch.testing.assert_close(features, blocks / blocks.norm(dim=1, keepdim=True))

    @pytest.mark.parametrize(
        ("shape", "width"), [((1, 48, 8, 8), 3072), ((1, 4, 5, 3), 60), ((1, 4, 32, 6), 192), ((0, 4, 8, 8), 256)]
    )
    def test_small_latents_are_not_enlarged(self, shape: tuple[int, ...], width: int):
        assert latent_features(torch.ones(shape)).shape == (shape[0], width)

    def test_half_precision_and_zeros(self):
        features = latent_features(torch.zeros(1, 2, 8, 8, dtype=torch.bfloat16))
        assert features.dtype == torch.float32
        assert features.abs().sum() == 0


class TestFindCentroids:
    def test_by_hand(self):
        # Class 0: {0, 1, 2} and {100, 102}; class 1: {50, 50, 53} and {7}. Latents are [1, 1, 2] of value and minus it.
        values = torch.tensor([100.0, 50, 0, 53, 1, 7, 2, 50, 102])
        labels = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1, 0])
        latents = torch.stack([values, -values], dim=1).view(9, 1, 1, 2).half()
        found = find_centroids(latents, labels, classes=("Beach", "Port"), per_class=2, seed=0)
        assert found.shape == (4, 1, 1, 2)
        assert found.dtype == torch.float32
        assert found.flatten(1).tolist() == [[1, -1], [101, -101], [51, -51], [7, -7]]

    def test_one_centroid_is_the_mean(self):
        latents = torch.randn(7, 2, 3, 3, generator=torch.Generator().manual_seed(0))
        found = find_centroids(latents, torch.zeros(7, dtype=torch.int64), classes=("Beach",), per_class=1, seed=0)
        assert torch.allclose(found, latents.mean(0, keepdim=True), atol=1e-6)

    def test_too_few_images(self):
        with pytest.raises(SceneError) as caught:
            find_centroids(torch.zeros(1, 1, 2, 2), torch.tensor([0]), classes=("Beach",), per_class=2, seed=0)
        assert str(caught.value) == "class 'Beach' has 1 image, IPC 2 needs at least 2: lower --ipc or add images"
