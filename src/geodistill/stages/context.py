"""What every stage needs: the scenes, the settings and the run."""

from dataclasses import dataclass, replace
from typing import Self

from geodistill.config import Config
from geodistill.provenance import Method
from geodistill.run import Run
from geodistill.scenes.scenes import Scenes


@dataclass(frozen=True)
class Context:
    """The training scenes of a run, its settings, the run itself, in which all is made, and the method that makes it.

    method: None before the set is made, as in stages that all methods of a comparison share.
    """

    scenes: Scenes
    config: Config
    run: Run
    method: Method | None = None

    def having(self, config: Config) -> Self:
        """Return the same with other settings."""
        return replace(self, config=config)


def unless_default(precision: str) -> list[str]:
    """Return what a stage's fingerprint says of the precision."""
    return [] if precision == "auto" else [precision]
