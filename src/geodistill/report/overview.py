"""The head of the page: what the run is, what is missing, and what each section means."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from geodistill.config import read_recorded
from geodistill.errors import ConfigError
from geodistill.evaluation.columns import COLUMNS
from geodistill.evaluation.rows import COPYING
from geodistill.pipeline import DISTILLED, OWN
from geodistill.provenance import Stage
from geodistill.report.found import Found
from geodistill.report.parts import Cell, Table, bench_name, percent, points, rho
from geodistill.report.record import training_curves
from geodistill.report.sets import Picture
from geodistill.run import records
from geodistill.stages.line import line
from geodistill.stages.self_test import read_self_test


def lead(found: Found) -> str:
    """Return one sentence that describes the run."""
    if not found.compared:
        updated = ", an earlier one with new images" if any(one.updated for one in found.sets) else ""
        return f"A distilled set made by the method {found.settings.get('method', 'unknown')}{updated}."
    methods = list(dict.fromkeys(one.method for one in found.sets))
    return (
        f"A comparison of {len(methods)} method{'' if len(methods) == 1 else 's'}: {', '.join(methods) or 'none yet'}."
    )


def missing(found: Found) -> list[str]:
    """Return a line for each part of a finished run that this one does not have yet."""
    rows = found.figures.rows
    if not found.compared:
        lines = [f"stage {stage} is not finished: {_GO_ON}" for stage in _open_stages(found)]
        if not rows:
            # The path of a run is for its owner alone.
            run = found.run if found.owner else "RUN"
            lines.append(f"no accuracy yet: run `geodistill evaluate {run} --data DATA`, with the scenes for DATA")
        return lines
    lines = [f"the images of {one.name} are not finished: {_GO_ON}" for one in found.sets if not one.finished]
    measured = {(row.method, row.ipc) for row in rows}
    lines += [f"no accuracy of {one.name} yet: {_GO_ON}" for one in found.sets if (one.method, one.ipc) not in measured]
    return lines or ([] if rows else [f"no images and no figures yet: {_GO_ON}"])


_GO_ON = "the run's command goes on with it"


def _open_stages(found: Found) -> list[str]:
    """Return the stages that are not done yet; for methods other than `dpd` only the last stage is known."""
    expected: tuple[Stage, ...] = (DISTILLED,)
    if found.settings.get("method") == OWN:
        # Settings of another release may be unreadable.
        with suppress(ConfigError):
            expected = line(read_recorded(found.settings.get("config", {})))
    return [stage.name for stage in expected if not (found.run / stage.name).is_dir()]


def facts(found: Found) -> list[tuple[str, str]]:
    """Return names and values for the head of the page."""
    lines = []
    if found.main is not None:
        images = found.main.images
        lines = [
            ("Set shown", found.main.name if found.compared else found.main.method),
            ("Images", f"{len(images)} of {images.size} × {images.size} pixels"),
            ("Classes", str(len(images.classes))),
            ("Images per class", str(images.ipc)),
        ]
    if found.compared:
        lines.append(("Sets", f"{sum(one.finished for one in found.sets)} of {len(found.sets)} finished"))
    config = found.settings.get("config", {})
    planned = {
        "config": config,
        "screened": config.get("privacy") == "screen",
        "guarantee": config.get("privacy") == "dp",
    }
    privacy = _privacy(found.main.images.about if found.main is not None else planned)
    return [*lines, ("Privacy", privacy)] if privacy else lines


def _privacy(about: Mapping[str, Any]) -> str:
    """Return how a set with these facts is protected, or "" if it is not."""
    config = about.get("config", {})
    if about.get("screened"):
        return (
            "screened: no image is nearer to a training image of its class, in structure, than 99 % of images set apart"
        )
    if about.get("guarantee"):
        return f"differential: ε = {config.get('epsilon')}, δ = {config.get('delta')}, one image blanked (zero-out)"
    return ""


def summary(found: Found) -> Table | None:
    """Return the main results of the main set for each protocol and network."""
    rows = found.main_rows
    if not rows:
        return None
    lines = [
        (
            Cell(bench_name(row)),
            percent(row.oa_mean, row.oa_std),
            percent(row.share_of_full),
            points(row.ior),
            rho(row),
        )
        for row in rows
    ]
    heads = ("Tested with", "OA, %", "share of full data, %", "over random, points", "nearness ρ")
    return Table(f"What {rows[0].name} is worth", heads, lines, frozenset(range(1, 5)))


def self_test(found: Found) -> Cell | None:
    """Return the result of the run's self-test, flagged if it is below random."""
    result = None if found.compared else read_self_test(found.run)
    return Cell(result.summary, flag=result.verdict == "below random") if result else None


def definitions(found: Found) -> list[str]:
    """Return the definitions of the summary's figures."""
    return [_OA, _RHO] if found.main_rows else []


def notes(found: Found, gallery: Mapping[str, Sequence[Picture]]) -> dict[str, list[str]]:
    """Return for each section the sentences that explain it or say why it is empty."""
    rows = found.figures.rows
    empty = [] if rows else ["No figures yet."]
    near = any(row.rho is not None for row in rows)
    costs = any(records(folder) for folder in found.folders.values())
    return {
        "images": _notes_on_images(found, [picture for group in gallery.values() for picture in group]),
        "accuracy": empty or ["Mean over the seeds; the bars are one standard deviation to each side."],
        "nearness": [_RHO] if near else empty or [_WITHHELD if found.withheld else "No row has a nearness ratio."],
        "ablation": ["Each rung adds one part of the method to the rung above it."],
        "rows": empty or [_OA, _MEASURES],
        "classes": empty or ["The worst class first, with the class that its test images are most often taken for."],
        "confusion": empty
        or ["Lines are true classes, columns predictions, summed over the seeds; right ones are framed."],
        "map": _notes_on_map(found),
        "training": [] if training_curves(found.folders) else ["No training has left its losses yet."],
        "cost": [] if costs else ["No stage has been begun yet."],
    }


_OA = "OA: overall accuracy of a classifier that was trained on the images and tested on real ones."
_WITHHELD = (
    "Kept back, as the page may be shared: nearness, similarity, FID, KID, the map, and accuracy after training on "
    "real images come from real images without noise, so ε does not cover them. `report --owner` shows them."
)
_RHO = (
    "Nearness ratio ρ: how far the images are from their nearest training images, as a share of what fresh real images "
    f"are. 1: no nearer than those; towards 0: copies. Below {COPYING} accuracy comes from copying."
)
_MEASURES = " ".join(
    f"{column.title}{f' ({column.short})' if column.short in ('IOR', 'HLR') else ''}: {column.means}"
    for column in COLUMNS
    if column.field not in ("oa_mean", "kappa_mean")
)


def _notes_on_images(found: Found, pictures: Sequence[Picture]) -> list[str]:
    lines = [] if pictures else ["There are no images to show."]
    if any(picture.facts for picture in pictures):
        lines.append("Teacher: the probability that the run's own classifier gives the image's class.")
    if any(picture.sources for picture in pictures):
        lines.append("Under the dotted line: the real images nearest the centre of the cluster that it stands for.")
    held = dict.fromkeys(one.method for one in found.sets if one.finished and one not in found.shown)
    return [*lines, f"Not shown because the images are real ones, or may be: {', '.join(held)}."] if held else lines


def _notes_on_map(found: Found) -> list[str]:
    if found.main is None:
        return ["There are no distilled images to put on a map."]
    if found.withheld:
        return [_WITHHELD]
    if found.train is None:
        return ["The map needs the real images: write the report again with the data."]
    return [
        "Each point is an image: features of a network pretrained on ImageNet, flattened by t-SNE. Near means alike; "
        "distances between far groups mean little."
    ]
