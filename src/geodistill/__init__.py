"""Condense a labelled remote-sensing scene data set into a few realistic synthetic images per class."""

from geodistill.config import Config, load_config
from geodistill.distilled import DistilledSet
from geodistill.errors import GeodistillError
from geodistill.evaluation.evaluate import Evaluation, evaluate
from geodistill.methods.dpd import distill
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
