"""The current content of a run folder, and which of it may be shown."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from geodistill.errors import RunError
from geodistill.evaluation.bench import hash_of
from geodistill.evaluation.rows import Row
from geodistill.evaluation.table import Table, load_table
from geodistill.report.figures import read_evaluations, without_real_images
from geodistill.report.sets import SetFolder, compared_sets, main_set
from geodistill.scenes.scenes import Scenes
from geodistill.stages.held_out import learned_from


@dataclass(frozen=True)
class Found:
    """A run as the report sees it.

    `about`: the content of run.json. `sets`: all sets that were begun; `shown`: those whose images may be shown.
    `train`: the real training scenes, if the user gave them; `owner`: whether the page is for the owner of the data
    only, so that it may show these scenes and how to repeat the run.
    """

    run: Path
    about: dict[str, Any]
    sets: Sequence[SetFolder]
    shown: Sequence[SetFolder]
    figures: Table
    train: Scenes | None
    owner: bool

    @property
    def settings(self) -> dict[str, Any]:
        """Return the settings of the run."""
        settings: dict[str, Any] = self.about["settings"]
        return settings

    @property
    def compared(self) -> bool:
        """Return whether the run is a comparison of methods."""
        return is_comparison(self.about)

    @property
    def withheld(self) -> bool:
        """Return whether exact figures on training images are withheld: in a private run, except for its owner."""
        return self.settings.get("config", {}).get("privacy") == "dp" and not self.owner

    @property
    def main(self) -> SetFolder | None:
        """Return the set that represents the run, if one may be shown."""
        return main_set(self.shown)

    @property
    def main_rows(self) -> list[Row]:
        """Return the rows of the main set, also if its images may not be shown."""
        main = self.main or main_set(self.sets)
        wanted = (main.method, main.ipc) if main is not None else None
        return [row for row in self.figures.rows if (row.method, row.ipc) == wanted]

    @property
    def folders(self) -> dict[str, Path]:
        """Return the run folders by label: the run's own, and those of a comparison's sets."""
        return {"this run": self.run} | {one.name: one.run for one in self.sets if one.run != self.run}


def find(run: Path, train: Scenes | None, owner: bool) -> Found:
    """Return the content of the folder `run`.

    Raises RunError if it is not a run, holds damaged records, or was made from scenes other than `train`;
    DistilledSetError if a distilled set in it is damaged.
    """
    about = _about(run)
    settings = about["settings"]
    method = str(settings.get("method", "unknown"))
    if is_comparison(about):
        figures = load_table(run)
        sets = compared_sets(run, figures.rows)
    else:
        sets = [SetFolder(run, method, int(settings.get("config", {}).get("ipc", 0)))]
        made = hash_of(sets[0].images) if sets[0].finished else ""
        figures = read_evaluations(run / "evaluation", method, made)
    shown = [one for one in sets if one.finished and (owner or not one.holds_real(figures.rows))]
    found = Found(run, about, sets, shown, figures, train, owner)
    if found.withheld:
        # The guarantee ε does not cover exact figures about the training images.
        found = replace(found, figures=without_real_images(figures))
    if found.main is not None and train is not None:
        found.main.check_scenes(train)
        return replace(found, train=None if found.withheld else learned_from(train, settings))
    return found


def is_comparison(about: dict[str, Any]) -> bool:
    """Return whether run.json belongs to a comparison."""
    return bool(about["settings"].get("kind") == "compare")


def _about(run: Path) -> dict[str, Any]:
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
