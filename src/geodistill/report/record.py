"""How the run was made: training, time and memory, settings and versions."""

import json
from collections.abc import Mapping
from pathlib import Path

from geodistill.pipeline import ADAPTER, BASE, REFINED, words_of
from geodistill.prior.training import read_losses
from geodistill.report.found import Found
from geodistill.report.parts import Cell, Plot, Table, number
from geodistill.report.plots import curves_plot, thin
from geodistill.run import records

_TRAINED = {stage.name: stage.title for stage in (BASE, ADAPTER, REFINED)}


def training_curves(folders: Mapping[str, Path]) -> dict[str, dict[str, list[float]]]:
    """Return, for each stage with training, the losses of every folder that has them.

    Sets that share a training count once.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for stage in _TRAINED:
        curves: dict[str, list[float]] = {}
        for name, folder in folders.items():
            losses = read_losses(folder / stage)
            if losses and losses not in curves.values():
                curves[name] = losses
        if curves:
            found[stage] = curves
    return found


def training(folders: Mapping[str, Path]) -> list[Plot]:
    """Return the training curves of the base, the adapters and the refinements."""
    return [_curves_plot(stage, curves) for stage, curves in training_curves(folders).items()]


def _curves_plot(stage: str, curves: dict[str, list[float]]) -> Plot:
    lines = []
    for name, losses in curves.items():
        for step, value in zip(*thin(losses, 10), strict=True):
            lines.append((Cell(name), Cell(str(step), step), number(value, 4)))
    heads = ("Training", "up to step", "mean loss since the row above")
    table = Table(f"{_TRAINED[stage]}: losses", heads, lines, frozenset({1, 2}))
    told = [f"{name} from {thin(v, 10)[1][0]:.3f} to {thin(v, 10)[1][-1]:.3f}" for name, v in curves.items()]
    return Plot(curves_plot(f"training-{stage}", curves), _TRAINED[stage], f"Loss: {'; '.join(told)}.", table)


def cost(folders: Mapping[str, Path]) -> Table | None:
    """Return time and memory of every stage, or None if there is none."""
    lines = []
    for name, folder in folders.items():
        for record in records(folder):
            lines.append(
                (
                    Cell(words_of(record["stage"]) + ("" if record["facts"] is not None else " (so far)")),
                    Cell(name),
                    Cell(f"{record['wall_seconds']:.1f}", record["wall_seconds"]),
                    Cell(f"{record['cpu_seconds']:.1f}", record["cpu_seconds"]),
                    Cell(str(record["peak_memory_mib"]), record["peak_memory_mib"]),
                )
            )
    heads = ("Stage", "of", "wall time, s", "processor time, s", "peak memory, MiB")
    return Table("Time and memory of each stage", heads, lines, frozenset({2, 3, 4}), sortable=True) if lines else None


def settings(found: Found) -> str:
    """Return all settings: the run's TOML file if it has one, else the settings in its record as JSON.

    On a page that may be shared, they are those in the set's own record, without the seed.
    """
    if not found.owner:
        told = {} if found.main is None else found.main.images.about.get("config", {})
        return json.dumps({name: told[name] for name in told if name != "seed"}, indent=2, ensure_ascii=False)
    path = found.run / "config.toml"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    return json.dumps(found.settings, indent=2, sort_keys=True, ensure_ascii=False)


def versions_table(found: Found) -> Table:
    """Return the versions of the software that the figures depend on."""
    lines = [(Cell(name), Cell(str(version))) for name, version in found.about.get("versions", {}).items()]
    return Table("Versions", ("Software", "version"), lines)
