"""Condense a labelled remote-sensing scene data set into a few realistic synthetic images per class."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geodistill.commands.audit import audit
    from geodistill.commands.compare import compare
    from geodistill.commands.distill import distill
    from geodistill.commands.plan import plan
    from geodistill.commands.pretrain import open_sources, pretrain
    from geodistill.commands.sample import sample
    from geodistill.config import Config, load_config
    from geodistill.distilled import DistilledSet
    from geodistill.errors import (
        ConfigError,
        DescriberError,
        DistilledSetError,
        GeodistillError,
        PriorError,
        PrivacyError,
        RunError,
        SceneError,
        TrainingError,
    )
    from geodistill.evaluation.evaluate import Evaluation, evaluate
    from geodistill.methods import METHODS
    from geodistill.scenes import SceneData, Scenes, builtin_scenes, open_scenes

__all__ = [
    "METHODS",
    "Config",
    "ConfigError",
    "DescriberError",
    "DistilledSet",
    "DistilledSetError",
    "Evaluation",
    "GeodistillError",
    "PriorError",
    "PrivacyError",
    "RunError",
    "SceneData",
    "SceneError",
    "Scenes",
    "TrainingError",
    "audit",
    "builtin_scenes",
    "compare",
    "distill",
    "evaluate",
    "load_config",
    "open_scenes",
    "open_sources",
    "plan",
    "pretrain",
    "sample",
]

_HOMES = {
    "commands.audit": ("audit",),
    "commands.compare": ("compare",),
    "commands.distill": ("distill",),
    "commands.plan": ("plan",),
    "commands.pretrain": ("open_sources", "pretrain"),
    "commands.sample": ("sample",),
    "config": ("Config", "load_config"),
    "distilled": ("DistilledSet",),
    "errors": tuple(name for name in __all__ if name.endswith("Error")),
    "evaluation.evaluate": ("Evaluation", "evaluate"),
    "methods": ("METHODS",),
    "scenes": ("SceneData", "Scenes", "builtin_scenes", "open_scenes"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    # Public names are fetched when asked for: `geodistill --help` need not wait for torch and diffusers.
    if name in _HOME_OF:
        return getattr(import_module(f"geodistill.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module 'geodistill' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
