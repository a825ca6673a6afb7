"""Rows of a comparison table: the results of a set under one protocol and network."""

import math
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any

import torch

from geodistill.evaluation.measures import Measures, mean_std
from geodistill.provenance import Kind

FULL = "full"
# Below this nearness ratio (half the distance of held-out images) the accuracy counts as a result of copying.
COPYING = 0.5


@dataclass(frozen=True)
class Row:
    """One method at one IPC (images per class) under one protocol and network; accuracies are fractions.

    `oa` has a value for each seed. Training on all real images is the method "full" with IPC 0. `wall_seconds` and
    `peak_memory_mib` cover the stages that the method used, without the base, which all methods share.
    `images_per_second` is the number of images divided by that time. `rho` is the nearness ratio, `kind` what the
    images are. Fields are None if they do not apply or are not known yet.
    """

    method: str
    ipc: int
    protocol: str
    network: str
    oa_mean: float
    oa_std: float
    seeds: tuple[int, ...] = ()
    oa: tuple[float, ...] = ()
    aa_mean: float | None = None
    aa_std: float | None = None
    kappa_mean: float | None = None
    kappa_std: float | None = None
    share_of_full: float | None = None
    hlr: float | None = None
    ior: float | None = None
    rho: float | None = None
    rho_pixel: float | None = None
    rho_feature: float | None = None
    nearest_similarity: float | None = None
    fid: float | None = None
    kid: float | None = None
    kind: Kind = "synthetic"
    images_per_second: float | None = None
    wall_seconds: float | None = None
    peak_memory_mib: int | None = None
    per_class: tuple[float, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()

    @property
    def key(self) -> tuple[str, int, str, str]:
        """The values that identify a row in its table."""
        return self.method, self.ipc, self.protocol, self.network

    @property
    def full(self) -> bool:
        """Whether the row is for training on all real images."""
        return self.method == FULL

    @property
    def copying(self) -> bool:
        """Whether the set is so near the training images that its accuracy counts as that of copies."""
        return self.rho is not None and self.rho < COPYING

    @property
    def name(self) -> str:
        """The set in words."""
        return "all real images" if self.full else f"{self.method}, IPC {self.ipc}"


def summarise(
    method: str,
    ipc: int,
    protocol: str,
    network: str,
    seeds: Sequence[int],
    measures: Sequence[Measures],
    *,
    kind: Kind,
    **facts: Any,
) -> Row:
    """Return the row of `measures`, one for each of `seeds`; `facts` are fields of Row that measures do not give."""
    oa_mean, oa_std = mean_std([m.oa for m in measures])
    aa_mean, aa_std = mean_std([m.aa for m in measures])
    kappa_mean, kappa_std = mean_std([m.kappa for m in measures])
    return Row(
        method=method,
        ipc=ipc,
        protocol=protocol,
        network=network,
        seeds=tuple(seeds),
        oa=tuple(m.oa for m in measures),
        oa_mean=oa_mean,
        oa_std=oa_std,
        aa_mean=aa_mean,
        aa_std=aa_std,
        kappa_mean=kappa_mean,
        kappa_std=kappa_std,
        kind=kind,
        per_class=tuple(mean_std(values)[0] for values in zip(*(m.per_class for m in measures), strict=True)),
        confusion=tuple(map(tuple, torch.tensor([m.confusion for m in measures]).sum(0).tolist())),
        **facts,
    )


def row_from_json(entry: dict[str, Any]) -> Row:
    """Return the row that `entry`, read from JSON, holds; raise KeyError or TypeError if it is from another version."""
    values = {name: _finite(value) for name, value in renamed(entry).items()}
    values |= {field.name: entry[field.name] for field in fields(Row) if field.default is MISSING}
    values |= {name: tuple(entry[name]) for name in ("seeds", "oa", "per_class") if name in entry}
    return Row(**{**values, "confusion": tuple(map(tuple, entry.get("confusion", ())))})


def renamed(entry: dict[str, Any]) -> dict[str, Any]:
    """Return `entry` with current field names; tables of earlier releases have `coverage` and `real_pixels`."""
    entry = dict(entry)
    if "coverage" in entry:
        entry["nearest_similarity"] = entry.pop("coverage")
    if "real_pixels" in entry:
        entry["kind"] = "real" if entry.pop("real_pixels") else "synthetic"
    return entry


def _finite(value: Any) -> Any:
    """Return None for NaN and infinity, which stand for values that could not be measured; else `value`."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
