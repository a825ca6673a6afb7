"""What every stage needs: the scenes, the settings and the run."""

from dataclasses import dataclass, replace
from typing import Any, Self

from geodistill.config import Config, recorded
from geodistill.provenance import Method
from geodistill.run import Run
from geodistill.scenes.reading import PLAIN
from geodistill.scenes.scenes import Scenes


@dataclass(frozen=True)
class Context:
    """The training scenes of a run, its settings, the run itself, and the method that makes the set.

    method: None before the set is made, for example in stages that all methods of a comparison share.
    """

    scenes: Scenes
    config: Config
    run: Run
    method: Method | None = None

    @property
    def maker(self) -> Method:
        """The method; raises ValueError if there is none yet."""
        if self.method is None:
            raise ValueError("a distilled set is written by a method: give the context one")
        return self.method

    def having(self, config: Config) -> Self:
        """Return the same context with other settings."""
        return replace(self, config=config)


def run_settings(method: str, config: Config, scenes: Scenes) -> dict[str, Any]:
    """Return what the record of a run has of its settings; a resumed run must have the same ones."""
    settings = {"method": method, "config": recorded(config), "scenes": scenes.fingerprint()}
    return settings | reading_of(scenes)


def reading_of(scenes: Scenes) -> dict[str, Any]:
    """Return what decides how files become images, as JSON: nothing for 8-bit images with their own colours."""
    return {} if scenes.reading == PLAIN else {"reading": scenes.reading.settings()}


def unless_default(precision: str) -> list[str]:
    """Return the part of a stage's fingerprint that covers the precision: nothing if it is "auto"."""
    return [] if precision == "auto" else [precision]
