"""What every stage needs: the scenes, the settings and the run."""

from dataclasses import dataclass, replace
from typing import Self

from geodistill.config import Config
from geodistill.provenance import Method
from geodistill.run import Run
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


def unless_default(precision: str) -> list[str]:
    """Return the part of a stage's fingerprint that covers the precision: nothing if it is "auto"."""
    return [] if precision == "auto" else [precision]
