"""The report: one HTML file that shows a run, with nothing loaded from elsewhere.

`write_report` gathers a `Page` section by section from what the run folder holds so far, and renders it.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from geodistill.errors import ConfigError, RunError
from geodistill.report import sections
from geodistill.report.rows import Figures, read_comparison, read_evaluations
from geodistill.report.sets import SetFolder, compared_sets, main_set
from geodistill.run import explain_os_errors, write_atomic
from geodistill.scenes.scenes import SceneData, Scenes

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


def write_report(
    run: Path, *, out: Path | None = None, data: SceneData | None = None, with_sources: bool = False
) -> Path:
    """Write the report of `run`, finished or still going, and return its path.

    Args:
        run: folder of a `distill` or `compare` run.
        out: the HTML file; RUN/report.html when None.
        data: the scenes that the run was made from, for the map of real and distilled images.
        with_sources: also show real images: those near each prototype, and the sets that consist of real images.
            Without it nothing of a real image is in the page.

    Raises:
        RunError: `run` is no run, holds damaged records, was made from other scenes, or `out` cannot be written.
        ConfigError: `with_sources` without `data`.
        DistilledSetError: a distilled set in the run is damaged.
    """
    if with_sources and data is None:
        raise ConfigError("source images are to be shown, but there are no scenes: give the data as well")
    about = _about(run)
    compared = about["settings"].get("kind") == "compare"
    method = str(about["settings"].get("method", "unknown"))
    sets = compared_sets(run) if compared else [_own_set(run, about, method)]
    figures = read_comparison(run / "compare.json") if compared else read_evaluations(run / "evaluation", method)
    page = _page(run, about, sets, figures, None if data is None else data.train, with_sources)
    target = out or run / "report.html"
    with explain_os_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, _render(page))
    return target


def _about(run: Path) -> dict[str, Any]:
    """Return what run.json holds."""
    path = run / "run.json"
    if not path.is_file():
        what = "holds no run.json" if run.is_dir() else "is no folder"
        raise RunError(
            f"{run} is no run, it {what}: give the folder that `geodistill distill` or `geodistill compare` wrote"
        )
    try:
        about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        about["settings"].get("kind")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise RunError(f"{path} is not the record of a geodistill run: give the folder of another run") from None
    return about


def _own_set(run: Path, about: dict[str, Any], method: str) -> SetFolder:
    return SetFolder(run, method, int(about["settings"].get("config", {}).get("ipc", 0)))


def _page(
    run: Path,
    about: dict[str, Any],
    sets: Sequence[SetFolder],
    figures: Figures,
    train: Scenes | None,
    with_sources: bool,
) -> dict[str, Any]:
    """Return everything that the template shows."""
    shown = [one for one in sets if one.finished and (with_sources or not one.holds_real(figures.rows))]
    main = main_set(shown)
    if main is not None and train is not None:
        main.check_scenes(train)
    name = run.resolve().name
    folders = {"": run} | {one.name: one.run for one in sets if one.run != run}
    return {
        "title": f"geodistill report: {name}",
        "lead": sections.lead(about, sets),
        "missing": sections.missing(run, about, sets, figures),
        "facts": sections.facts(about, sets, main),
        "summary": sections.summary(figures, main),
        "gallery": sections.pictures(main, _PER_CLASS, train if with_sources else None),
        "others": sections.others(shown, main, _OTHERS_PER_CLASS),
        "accuracy": sections.accuracy(figures.rows),
        "nearness": sections.nearness(figures.rows),
        "ablation": sections.ablation_table(figures.rows),
        "rows": sections.rows_table(figures.rows),
        "pairs": sections.pairs_table(figures.pairs),
        "classes": sections.class_tables(figures, main),
        "confusion": sections.confusion(figures, main),
        "map": sections.embedding_map(main, train),
        "training": sections.training(folders),
        "cost": sections.cost(folders),
        "command": about.get("command", ""),
        "settings": sections.settings(run, about),
        "versions": sections.versions_table(about),
        "notes": sections.notes(sets, shown, main, figures, train, folders),
    }


def _render(page: dict[str, Any]) -> str:
    # StrictUndefined: a name misspelt in the template is an error, not an empty place in the page.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("geodistill.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script, style = _text("sort.js"), _text("style.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    shown = {key: name for key, name in _SECTIONS.items() if key != "ablation" or page["ablation"]}
    return environment.get_template("template.html.j2").render(
        page, sections=shown, script=Markup(script), style=Markup(style), script_hash=f"sha256-{digest}"
    )


def _text(name: str) -> str:
    return (files("geodistill.report") / name).read_text(encoding="utf-8")
