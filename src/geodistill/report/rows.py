"""Rows of figures: one for each method, number of images per class, protocol and network."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from geodistill.errors import RunError
from geodistill.evaluation.measures import hlr, ior, mean_std, share

FULL = "full"
_RANDOM = "random real"
# Nearer to the training images than half of what fresh real images are: accuracy that comes from copying.
COPYING = 0.5

Bench = tuple[str, str]


@dataclass(frozen=True)
class Row:
    """What one set is worth under one protocol; accuracies and ratios are fractions, None is not measured.

    `oa` has a value per seed; `per_class` is the mean and `confusion` (rows: true classes) the sum over the seeds.
    """

    method: str
    ipc: int
    protocol: str
    network: str
    oa_mean: float
    oa_std: float
    seeds: Sequence[int] = ()
    oa: Sequence[float] = ()
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
    real_pixels: bool = False
    images_per_second: float | None = None
    wall_seconds: float | None = None
    peak_memory_mib: int | None = None
    coverage: float | None = None
    per_class: Sequence[float] = ()
    confusion: Sequence[Sequence[int]] = ()

    @property
    def full(self) -> bool:
        """Whether it was trained on all real images."""
        return self.method == FULL

    @property
    def copying(self) -> bool:
        """Whether the set lies so near the training images that its accuracy is that of copies."""
        return self.rho is not None and self.rho < COPYING

    @property
    def name(self) -> str:
        """The set in words."""
        return "all real images" if self.full else f"{self.method}, IPC {self.ipc}"


@dataclass(frozen=True)
class Figures:
    """All that was measured: rows, the classes their confusion matrices are of, and compared pairs of rows."""

    classes: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    pairs: tuple[dict[str, Any], ...] = ()


def by_bench(rows: Iterable[Row]) -> dict[Bench, list[Row]]:
    """Return the rows of each (protocol, network): only these can be compared with each other."""
    found: dict[Bench, list[Row]] = {}
    for row in rows:
        found.setdefault((row.protocol, row.network), []).append(row)
    return found


def read_comparison(path: Path) -> Figures:
    """Return what a `compare` run measured so far; raise RunError where `path` is not its record."""
    if not path.is_file():
        return Figures()
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Figures(tuple(found["classes"]), tuple(map(_row, found["rows"])), tuple(found.get("pairs", ())))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path} is no record of a comparison ({error!r}): run the same compare command again") from None


def _row(raw: dict[str, Any]) -> Row:
    known = {field.name: _finite(raw[field.name]) for field in fields(Row) if field.name in raw}
    absent = [field.name for field in fields(Row) if field.default is MISSING and known.get(field.name) is None]
    if absent:
        raise KeyError(absent[0])
    return Row(**known)


def _finite(value: Any) -> Any:
    """Return None for NaN and infinity, which stand for what could not be measured."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_evaluations(folder: Path, method: str) -> Figures:
    """Return what `evaluate` measured of a run's set, from `folder`: of each protocol and network the last figures.

    The references are rows of their own. Raises RunError on damage.
    """
    classes: tuple[str, ...] = ()
    rows: list[Row] = []
    for bench in sorted(folder.glob("*-*/")):
        paths = sorted(bench.glob("figures-*.json"), key=lambda path: (path.stat().st_mtime_ns, path.name))
        if paths:
            classes, own = _read_evaluation(paths[-1], method)
            rows += own
    return Figures(classes, tuple(rows))


def _read_evaluation(path: Path, method: str) -> tuple[tuple[str, ...], list[Row]]:
    """Return the classes and the rows in one file of figures."""
    kinds = {"distilled": method, "random": _RANDOM, FULL: FULL}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        near = {key: found["nearness"][name] for key, name in _NEARNESS.items()}
        rows = [
            _of_measures(found, found[kind], name, near if kind == "distilled" else {})
            for kind, name in kinds.items()
            if found[kind]
        ]
        return tuple(found["classes"]), rows
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path} is no record of an evaluation ({error!r}): delete it and evaluate again") from None


_NEARNESS = {"rho": "ratio", "rho_pixel": "pixel", "rho_feature": "feature"}


def _of_measures(found: dict[str, Any], measures: list[dict[str, Any]], name: str, near: dict[str, float]) -> Row:
    values: dict[str, Any] = dict(near)
    for what in ("oa", "aa", "kappa"):
        values[f"{what}_mean"], values[f"{what}_std"] = mean_std([one[what] for one in measures])
    own, random = values["oa_mean"], mean_std([one["oa"] for one in found["random"]])[0]
    full = mean_std([one["oa"] for one in found[FULL]])[0] if found[FULL] else None
    return Row(
        method=name,
        ipc=0 if name == FULL else found["ipc"],
        protocol=found["protocol"],
        network=found["network"],
        seeds=found["seeds"],
        oa=[one["oa"] for one in measures],
        share_of_full=None if full is None else _finite(share(full, own)),
        hlr=None if full is None else hlr(full, own),
        ior=ior(own, random),
        real_pixels=name in (FULL, _RANDOM),
        per_class=[mean_std(of_class)[0] for of_class in zip(*(one["per_class"] for one in measures), strict=True)],
        # [seeds, classes, classes] -> [classes, classes]
        confusion=np.sum([one["confusion"] for one in measures], axis=0).tolist(),
        **values,
    )


def ablation(rows: Sequence[Row]) -> list[tuple[Row, float | None]]:
    """Return the rungs of an ablation ladder with what each adds to the OA of the one before.

    Rungs are rows whose method holds a "+" ("+ prototypes"), and `template`, which they build on, where it is there.
    """
    if not any("+" in row.method for row in rows):
        return []
    found: list[tuple[Row, float | None]] = []
    before: dict[tuple[str, str, int], float] = {}
    for row in rows:
        if "+" in row.method or row.method == "template":
            key = (row.protocol, row.network, row.ipc)
            found.append((row, row.oa_mean - before[key] if key in before else None))
            before[key] = row.oa_mean
    return sorted(found, key=lambda one: (one[0].protocol, one[0].network, one[0].ipc))
