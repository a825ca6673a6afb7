"""The report: one HTML file that shows a run and loads nothing from elsewhere."""

import base64
import hashlib
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from geodistill.distilled import FOR_THE_OWNER, MANIFEST
from geodistill.errors import ConfigError
from geodistill.report import classes, overview, record, results
from geodistill.report.found import Found, find
from geodistill.report.parts import page_file
from geodistill.run import explain_os_errors, write_atomic
from geodistill.scenes.scenes import SceneData

_PER_CLASS, _OTHERS_PER_CLASS = 10, 3

_SECTIONS = {
    "summary": "Summary",
    "images": "Images",
    "accuracy": "Accuracy",
    "nearness": "Accuracy against nearness",
    "ablation": "Ablation",
    "rows": "All figures",
    "classes": "Accuracy by class",
    "confusion": "Confusion matrix",
    "map": "Map of real and distilled images",
    "training": "Training",
    "cost": "Time and memory",
    "settings": "Settings",
}


_FOR_THE_OWNER = f"This page shows real images. {FOR_THE_OWNER}"


def write_report(run: Path, *, out: Path | None = None, data: SceneData | None = None, owner: bool = False) -> Path:
    """Write the report of `run`, finished or in progress, and return its path.

    Args:
        run: folder of a `distill` or `compare` run.
        out: the HTML file; RUN/report.html if None, RUN/report-owner.html for the owner's page.
        data: the scenes that the run was made from, for the map of real and distilled images.
        owner: write the owner's page, which must not be shared: it also shows real images (those near each prototype,
            and the sets that consist of real images), seeds, the command and the run's name.

    Raises:
        RunError: `run` is not a run, holds damaged records, was made from other scenes, or `out` cannot be written.
        ConfigError: `owner` without `data`, or with an `out` in the folder of a set, which is shared.
        DistilledSetError: a distilled set in the run is damaged.
    """
    if owner and data is None:
        raise ConfigError("source images are to be shown, but there are no scenes: give the data as well")
    target = Path(out) if out is not None else run / ("report-owner.html" if owner else "report.html")
    if owner and any((folder / MANIFEST).is_file() for folder in target.resolve().parents):
        raise ConfigError(f"--out {target} is in the folder of a set, which is shared: the page shows training images")
    page = _page(find(run, None if data is None else data.train, owner))
    with explain_os_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        sections = {key: name for key, name in _SECTIONS.items() if key != "ablation" or page["ablation"]}
        write_atomic(target, render("template.html.j2", sections, page))
    return target


def _page(found: Found) -> dict[str, Any]:
    """Return everything that the template shows, by template variable."""
    gallery = classes.images(found, _PER_CLASS)
    rows = found.figures.rows
    return {
        "title": f"geodistill report: {found.run.resolve().name}" if found.owner else "geodistill report",
        "warning": _FOR_THE_OWNER if found.owner else "",
        "lead": overview.lead(found),
        "missing": overview.missing(found),
        "facts": overview.facts(found),
        "self_test": overview.self_test(found),
        "summary": overview.summary(found),
        "definitions": overview.definitions(found),
        "gallery": gallery,
        "others": classes.others(found, _OTHERS_PER_CLASS),
        "accuracy": results.accuracy(rows),
        "nearness": results.nearness(rows),
        "ablation": results.ablation_table(rows),
        "rows": results.rows_table(rows),
        "pairs": results.pairs_table(found.figures.pairs),
        "classes": classes.class_tables(found),
        "confusion": classes.confusion(found),
        "map": classes.embedding_map(found),
        "training": record.training(found.folders),
        "cost": record.cost(found.folders),
        "command": found.about.get("command", "") if found.owner else "",
        "settings": record.settings(found),
        "versions": record.versions_table(found),
        "notes": overview.notes(found, gallery),
    }


def render(template: str, sections: dict[str, str], page: dict[str, Any]) -> str:
    """Return the HTML of `template`, a file in this folder: `sections` are its headings, `page` its variables."""
    # StrictUndefined: a misspelt name in the template is an error, not a gap in the page.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("geodistill.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script, style = page_file("sort.js"), page_file("style.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(
        page, sections=sections, script=Markup(script), style=Markup(style), script_hash=f"sha256-{digest}"
    )
