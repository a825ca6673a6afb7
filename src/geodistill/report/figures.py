"""Rows of figures, one per method, number of images per class, protocol and network."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from geodistill.errors import RunError
from geodistill.evaluation.columns import COLUMNS
from geodistill.evaluation.measures import Measures, hlr, ior, mean_std, share
from geodistill.evaluation.rows import FULL, Row, renamed, summarise
from geodistill.evaluation.table import Table
from geodistill.methods import METHODS
from geodistill.provenance import Kind

_RANDOM = "random real"

Bench = tuple[str, str]


def by_bench(rows: Iterable[Row]) -> dict[Bench, list[Row]]:
    """Return the rows of each (protocol, network); only rows of the same one can be compared with each other."""
    found: dict[Bench, list[Row]] = {}
    for row in rows:
        found.setdefault((row.protocol, row.network), []).append(row)
    return found


def read_evaluations(folder: Path, method: str, made: str = "") -> Table:
    """Return the results of `evaluate` for a run's set in `folder`: the latest ones of each protocol and network.

    `made`: the set's `bench.hash_of`; results of another set, which the run made earlier, are left out. So are those on
    validation scenes, which serve choices. The references are rows of their own. Raises RunError if a file is damaged.
    """
    classes: tuple[str, ...] = ()
    rows: list[Row] = []
    for bench in sorted(folder.glob("*-*/")):
        paths = sorted(bench.glob("figures-*.json"), key=lambda path: (path.stat().st_mtime_ns, path.name))
        for path in reversed(paths):
            (part, of), of_all, own = _read_evaluation(path, method)
            if part == "test" and (not made or of in ("", made)):
                classes = of_all
                rows += own
                break
    return Table(classes, tuple(rows))


def _read_evaluation(path: Path, method: str) -> tuple[tuple[str, str], tuple[str, ...], list[Row]]:
    """Return the rows in one file of figures, their classes, and the part that was tested on with the set's hash.

    Files of earlier releases name no set.
    """
    kinds = {"distilled": method, "random": _RANDOM, FULL: FULL}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = [_of_measures(found, kind, name) for kind, name in kinds.items() if found[kind]]
        return (found.get("tested_on", "test"), found.get("set", "")), tuple(found["classes"]), rows
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{path} is no record of an evaluation ({error!r}): delete it and evaluate again") from None


def without_real_images(figures: Table) -> Table:
    """Return `figures` without rows and values that stand for real images.

    Classifiers trained on real images, differences to these, nearness and KID were computed from training images
    without noise.
    """
    withheld: dict[str, Any] = {column.field: None for column in COLUMNS if column.needs and column.of is None}
    withheld |= {"ior": None, "share_of_full": None, "hlr": None}
    made = [row for row in figures.rows if row.kind == "synthetic"]
    return replace(figures, rows=tuple(replace(row, **withheld) for row in made), pairs=())


def _of_measures(found: dict[str, Any], kind: str, name: str) -> Row:
    measures = {which: [Measures(**one) for one in found[which]] for which in ("random", FULL, kind)}
    means = {which: mean_std([one.oa for one in several])[0] for which, several in measures.items() if several}
    facts: dict[str, Any] = {"ior": ior(means[kind], means["random"])}
    if FULL in means:
        facts |= {"share_of_full": share(means[FULL], means[kind]), "hlr": hlr(means[FULL], means[kind])}
    if kind == "distilled":
        likeness = renamed(found["likeness"])
        near = likeness["nearness"]
        facts |= {"rho": near["ratio"], "rho_pixel": near["pixel"], "rho_feature": near["feature"]}
        facts["nearest_similarity"] = likeness["nearest_similarity"]
        facts |= {name: likeness[name]["value"] for name in ("fid", "kid") if likeness.get(name)}
    return summarise(
        name,
        0 if kind == FULL else found["ipc"],
        found["protocol"],
        found["network"],
        found["seeds"],
        measures[kind],
        kind=_kind_of_method(name) if kind == "distilled" else "real",
        **facts,
    )


def _kind_of_method(method: str) -> Kind:
    """Return what the images of `method` are; those of a method that is not installed may be real."""
    return METHODS[method].kind if method in METHODS else "real"


def ablation(rows: Sequence[Row]) -> list[tuple[Row, float | None]]:
    """Return the rungs of an ablation ladder, each with the OA that it adds to the previous rung.

    Rungs are rows with a "+" in their method ("+ prototypes"), and their starting point `template` if it exists.
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
