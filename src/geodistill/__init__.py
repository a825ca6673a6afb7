"""Condense a labelled remote-sensing scene data set into a few realistic synthetic images per class."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geodistill.commands.distill import distill
    from geodistill.config import Config, load_config
    from geodistill.distilled import DistilledSet
    from geodistill.errors import GeodistillError
    from geodistill.evaluation.evaluate import Evaluation, evaluate
    from geodistill.scenes import SceneData, Scenes, builtin_scenes, open_scenes

__all__ = [
    "Config",
    "DistilledSet",
    "Evaluation",
    "GeodistillError",
    "SceneData",
    "Scenes",
    "builtin_scenes",
    "distill",
    "evaluate",
    "load_config",
    "open_scenes",
]

_HOMES = {
    "commands.distill": ("distill",),
    "config": ("Config", "load_config"),
    "distilled": ("DistilledSet",),
    "errors": ("GeodistillError",),
    "evaluation.evaluate": ("Evaluation", "evaluate"),
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
