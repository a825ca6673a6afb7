"""Visual prototypes: a few real training scenes that represent their class.

In each class, k-means clusters features of the latents. Each cluster is represented by the member that is near its own
centre and far from the other centres (DPD, Xu, Ghamisi, Weng, arXiv 2601.15829, 2026).

A class of more than `MOST_AT_ONCE` scenes is never in memory as a whole. K-means finds its centres on so many of the
scenes, mini-batch k-means moves them with all others (Sculley, WWW 2010), and each scene then joins the nearest centre.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from torch.nn import functional as F

from geodistill.errors import ConfigError, SceneError
from geodistill.run import Stored, in_parts, mean_of
from geodistill.seeding import derive_seed, generator

POOLED_SIDE = 8
RESTARTS = 10
# Of k-means on a part of a large class, which mini-batches then correct; as many as scikit-learn takes for these.
_RESTARTS_IN_PARTS = 3
# Number of scenes of a class that are clustered together, 170 MB of backbone features.
MOST_AT_ONCE = 2**14

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
# Returns the features of some scenes, by indices, as one row each.
Read = Callable[[Ints], Floats]
Measure = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Prototypes:
    """The prototypes of all classes, ordered by class, then by cluster size (largest first, ties by scene index).

    `indices` int64 [P]: the training scene that represents each; all different. `labels` int64 [P]: its class.
    `members`: P tensors int64, the training scenes of each cluster, nearest to the cluster's centre first.
    """

    indices: Tensor
    labels: Tensor
    members: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def starts(self, count: int, seed: int, *, of: Literal["representative", "members"]) -> Tensor:
        """Return int64 [P * count]: the scenes that the `count` candidates of each prototype follow, by prototype.

        `members`: the representative, then the other members in random order, repeated if there are fewer than `count`.
        """
        if of == "representative":
            return self.indices.repeat_interleave(count)
        rows = []
        for rank, (own, members) in enumerate(zip(self.indices, self.members, strict=True)):
            others = members[members != own]
            order = torch.randperm(len(others), generator=generator(seed, "starts", rank))
            rows.append(torch.cat([own[None], others[order]]).repeat(-(-count // len(members)))[:count])
        return torch.cat(rows)

    def save(self, folder: Path) -> None:
        """Write prototypes.safetensors in `folder`; members are stored as one row, with the sizes of the clusters."""
        sizes = torch.tensor([len(members) for members in self.members])
        tensors = {"indices": self.indices, "labels": self.labels, "members": torch.cat(self.members), "sizes": sizes}
        save_file(tensors, folder / "prototypes.safetensors")

    @classmethod
    def load(cls, folder: Path) -> "Prototypes":
        """Return the prototypes that `save` wrote in `folder`."""
        tensors = load_file(folder / "prototypes.safetensors")
        members = tensors["members"].split(tensors["sizes"].tolist())
        return cls(tensors["indices"], tensors["labels"], members)


def latent_features(latents: Tensor) -> Tensor:
    """Return float32 [N, D] unit-length features of latents [N, C, h, w]: pooled to at most 8x8, then flattened."""
    side = (min(POOLED_SIDE, latents.shape[2]), min(POOLED_SIDE, latents.shape[3]))
    pooled = F.adaptive_avg_pool2d(latents.float(), side)  # [N, C, <=8, <=8]
    return F.normalize(pooled.flatten(1), dim=1)


def find_prototypes(
    features: Stored,
    labels: Tensor,
    *,
    classes: tuple[str, ...],
    per_class: int,
    seed: int,
    alpha: float = 1.0,
    measure: Measure = torch.Tensor.float,
) -> Prototypes:
    """Cluster each class into `per_class` clusters and choose the scene that represents each cluster.

    `features` float [N, D], in memory or in a file; `labels` int64 [N], indices into `classes`. `alpha` weights
    nearness to the own centre against distance from the other centres. `measure` turns rows of `features`, if these
    have another shape, into float [n, D]. Raises SceneError for a class with too few images or features that are not
    finite, ConfigError for `per_class` below 1.
    """
    _check(features, labels, classes, per_class)
    classed = labels.cpu().numpy()
    indices: list[int] = []
    members: list[Tensor] = []
    for label in range(len(classes)):
        scenes = np.flatnonzero(classed == label)
        read = _reader(features, scenes, measure)
        for scene, cluster in _of_class(read, len(scenes), per_class, derive_seed(seed, "prototypes", label), alpha):
            indices.append(int(scenes[scene]))
            members.append(torch.from_numpy(scenes[cluster]))
    repeated = torch.arange(len(classes)).repeat_interleave(per_class)
    return Prototypes(torch.tensor(indices), repeated, tuple(members))


def find_centroids(latents: Stored, labels: Tensor, *, classes: tuple[str, ...], per_class: int, seed: int) -> Tensor:
    """Return float32 [classes * per_class, C, h, w]: the k-means centroids of each class's latents [N, C, h, w].

    Centroids are ordered by class, then by cluster size, largest first. Distances are between whole, unpooled latents.
    Latents may be in a file. Raises the errors of `find_prototypes`.
    """
    _check(latents, labels, classes, per_class)
    classed, centroids = labels.cpu().numpy(), []
    for label in range(len(classes)):
        scenes = np.flatnonzero(classed == label)
        read = _reader(latents, scenes, _flat)
        for _, cluster in _of_class(read, len(scenes), per_class, derive_seed(seed, "centroids", label), alpha=1.0):
            parts = torch.from_numpy(scenes[cluster]).split(MOST_AT_ONCE)
            centroids.append(mean_of(latents[part].float() for part in parts))
    return torch.stack(centroids)


def _flat(latents: Tensor) -> Tensor:
    return latents.float().flatten(1)


def _reader(stored: Stored, scenes: Ints, measure: Measure) -> Read:
    """Return the function that reads rows of `stored` by their indices in `scenes`, as float64 [n, D]."""

    def read(which: Ints) -> Floats:
        points: Floats = measure(stored[torch.from_numpy(scenes[which])].detach().cpu()).double().numpy()
        return points

    return read


def _check(features: Stored, labels: Tensor, classes: tuple[str, ...], per_class: int) -> None:
    if per_class < 1:
        raise ConfigError(f"IPC is {per_class}, it has to be at least 1: raise --ipc")
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    for name, count in zip(classes, counts, strict=True):
        if count < per_class:
            found = f"{count} image{'' if count == 1 else 's'}"
            raise SceneError(
                f"class '{name}' has {found}, IPC {per_class} needs at least {per_class}: lower --ipc or add images"
            )
    finite = [torch.isfinite(part).flatten(1).all(dim=1) for part in in_parts(features)]
    wrong = (~torch.cat(finite)).nonzero().flatten()
    if len(wrong):
        raise SceneError(
            f"features of {len(wrong)} of {len(features)} scenes are not finite, the first is scene {int(wrong[0])}: "
            "look at that image, and at the autoencoder that encoded it"
        )


def _of_class(read: Read, scenes: int, count: int, seed: int, alpha: float) -> list[tuple[int, Ints]]:
    """Return (representative, members nearest first) of each cluster of `scenes` scenes, largest cluster first.

    Members are indices that `read` takes, below `scenes`.
    """
    if scenes <= MOST_AT_ONCE:
        assigned, distances = _clustered(read(np.arange(scenes)), count, seed)
    else:
        assigned, distances = _clustered_in_parts(read, scenes, count, seed)
    found = []
    for k in range(count):
        cluster = np.flatnonzero(assigned == k)
        nearest_first = cluster[np.argsort(distances[cluster, k], kind="stable")]
        best = np.argmax(_representativeness(distances[cluster], k, alpha))
        found.append((int(cluster[best]), nearest_first))
    return sorted(found, key=lambda one: (-len(one[1]), one[0]))


def _clustered(points: Floats, count: int, seed: int) -> tuple[Ints, Floats]:
    """Return the cluster of each of `points` [n, D], int64 [n], and its distances to all centres, [n, K]."""
    assigned = _fill_empty(points, np.asarray(_fitted(points, count, seed, RESTARTS).labels_, dtype=np.int64), count)
    centres = np.stack([points[assigned == k].mean(axis=0) for k in range(count)])
    # One column at a time gives the same distances without an [n, K, D] array.
    return assigned, np.stack([np.linalg.norm(points - centre, axis=1) for centre in centres], axis=1)


def _fitted(points: npt.NDArray[Any], count: int, seed: int, restarts: int) -> KMeans:
    """Return k-means fitted to `points` [n, D]; there may be fewer than `count` clusters if points coincide."""
    with warnings.catch_warnings():
        # Coinciding points are not an error here: `_fill_empty` handles them.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return KMeans(count, n_init=restarts, random_state=seed % 2**32).fit(points)


def _clustered_in_parts(read: Read, scenes: int, count: int, seed: int) -> tuple[Ints, Floats]:
    """Return what `_clustered` returns, for more scenes than are read together; distances are float32."""
    order = torch.randperm(scenes, generator=generator(seed, "order of clustering")).numpy()
    first, *others = (np.sort(part) for part in _parts(order))
    points = read(first).astype(np.float32)
    start = _fitted(points, count, seed, _RESTARTS_IN_PARTS).cluster_centers_
    # Without reassignment a small cluster stays, however rare its scenes are.
    moving = MiniBatchKMeans(count, init=start, n_init=1, random_state=seed % 2**32, reassignment_ratio=0)
    moving.partial_fit(points)
    for part in others:
        moving.partial_fit(read(part).astype(np.float32))
    whole = _parts(np.arange(scenes))
    distances = np.concatenate([moving.transform(read(part).astype(np.float32)) for part in whole])
    return _filled(distances.argmin(axis=1), distances, count), distances


def _parts(indices: Ints) -> Iterator[Ints]:
    return (indices[start : start + MOST_AT_ONCE] for start in range(0, len(indices), MOST_AT_ONCE))


def _filled(assigned: Ints, distances: Floats, count: int) -> Ints:
    """Return `assigned` with each empty cluster given the member of the largest one farthest from its centre."""
    for k in np.flatnonzero(np.bincount(assigned, minlength=count) == 0):
        most = np.argmax(np.bincount(assigned, minlength=count))
        largest = np.flatnonzero(assigned == most)
        assigned[largest[np.argmax(distances[largest, most])]] = k
    return assigned


def _fill_empty(points: Floats, assigned: Ints, count: int) -> Ints:
    """Return `assigned` with each empty cluster given the member of the largest one farthest from its centre."""
    assigned = assigned.copy()
    for k in np.flatnonzero(np.bincount(assigned, minlength=count) == 0):
        largest = np.flatnonzero(assigned == np.argmax(np.bincount(assigned, minlength=count)))
        away = np.linalg.norm(points[largest] - points[largest].mean(axis=0), axis=1)
        assigned[largest[np.argmax(away)]] = k
    return assigned


def _representativeness(distances: Floats, own: int, alpha: float) -> Floats:
    """Return the distance to the nearest other centre, minus `alpha` times the distance to the own centre."""
    if distances.shape[1] == 1:
        return -distances[:, 0]
    others = np.delete(distances, own, axis=1).min(axis=1)
    return np.asarray(others - alpha * distances[:, own])
