"""Visual prototypes: a few real training scenes that represent their class.

In each class, k-means clusters features of the latents. Each cluster is represented by the member that is near its own
centre and far from the other centres (DPD, Xu, Ghamisi, Weng, arXiv 2601.15829, 2026).
"""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor
from torch.nn import functional as F

from geodistill.errors import ConfigError, SceneError
from geodistill.seeding import derive_seed, generator

POOLED_SIDE = 8
RESTARTS = 10

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


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
    features: Tensor, labels: Tensor, *, classes: tuple[str, ...], per_class: int, seed: int, alpha: float = 1.0
) -> Prototypes:
    """Cluster each class into `per_class` clusters and choose the scene that represents each cluster.

    `features` float [N, D]; `labels` int64 [N], indices into `classes`. `alpha` weights nearness to the own centre
    against distance from the other centres. Raises SceneError for a class with too few images or features that are
    not finite, ConfigError for `per_class` below 1.
    """
    _check(features, labels, classes, per_class)
    points = features.detach().cpu().double().numpy()
    classed = labels.cpu().numpy()
    indices: list[int] = []
    members: list[Tensor] = []
    for label in range(len(classes)):
        scenes = np.flatnonzero(classed == label)
        for scene, cluster in _of_class(points[scenes], per_class, derive_seed(seed, "prototypes", label), alpha):
            indices.append(int(scenes[scene]))
            members.append(torch.from_numpy(scenes[cluster]))
    repeated = torch.arange(len(classes)).repeat_interleave(per_class)
    return Prototypes(torch.tensor(indices), repeated, tuple(members))


def find_centroids(latents: Tensor, labels: Tensor, *, classes: tuple[str, ...], per_class: int, seed: int) -> Tensor:
    """Return float32 [classes * per_class, C, h, w]: the k-means centroids of each class's latents [N, C, h, w].

    Centroids are ordered by class, then by cluster size, largest first. Distances are between whole, unpooled latents.
    Raises the errors of `find_prototypes`.
    """
    _check(latents.flatten(1), labels, classes, per_class)
    centroids = []
    for label in range(len(classes)):
        own = latents[labels == label].float()
        points = own.flatten(1).double().numpy()
        for _, cluster in _of_class(points, per_class, derive_seed(seed, "centroids", label), alpha=1.0):
            centroids.append(own[torch.from_numpy(cluster)].mean(dim=0))
    return torch.stack(centroids)


def _check(features: Tensor, labels: Tensor, classes: tuple[str, ...], per_class: int) -> None:
    if per_class < 1:
        raise ConfigError(f"IPC is {per_class}, it has to be at least 1: raise --ipc")
    counts = torch.bincount(labels, minlength=len(classes)).tolist()
    for name, count in zip(classes, counts, strict=True):
        if count < per_class:
            found = f"{count} image{'' if count == 1 else 's'}"
            raise SceneError(
                f"class '{name}' has {found}, IPC {per_class} needs at least {per_class}: lower --ipc or add images"
            )
    wrong = (~torch.isfinite(features).all(dim=1)).nonzero().flatten()
    if len(wrong):
        raise SceneError(
            f"features of {len(wrong)} of {len(features)} scenes are not finite, the first is scene {int(wrong[0])}: "
            "look at that image, and at the autoencoder that encoded it"
        )


def _of_class(points: Floats, count: int, seed: int, alpha: float) -> list[tuple[int, Ints]]:
    """Return (representative, members nearest first) of each cluster, as rows of `points`, largest cluster first."""
    assigned = _fill_empty(points, _cluster(points, count, seed), count)
    centres = np.stack([points[assigned == k].mean(axis=0) for k in range(count)])
    # One column at a time gives the same distances without an [n, K, D] array.
    distances = np.stack([np.linalg.norm(points - centre, axis=1) for centre in centres], axis=1)  # [n, K]
    found = []
    for k in range(count):
        cluster = np.flatnonzero(assigned == k)
        nearest_first = cluster[np.argsort(distances[cluster, k], kind="stable")]
        best = np.argmax(_representativeness(distances[cluster], k, alpha))
        found.append((int(cluster[best]), nearest_first))
    return sorted(found, key=lambda one: (-len(one[1]), one[0]))


def _cluster(points: Floats, count: int, seed: int) -> Ints:
    """Return the k-means cluster of each point; there may be fewer than `count` clusters if points coincide."""
    with warnings.catch_warnings():
        # Coinciding points are not an error here: `_fill_empty` handles them.
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = KMeans(count, n_init=RESTARTS, random_state=seed % 2**32).fit(points)
    return np.asarray(fitted.labels_, dtype=np.int64)


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
