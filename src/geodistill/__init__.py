"""Condense a labelled remote-sensing scene data set into a few realistic synthetic images per class."""

from typing import TYPE_CHECKING

from geodistill.lazy import lazy_names

if TYPE_CHECKING:
    from geodistill.commands.add import add
    from geodistill.commands.audit import audit
    from geodistill.commands.bench import bench
    from geodistill.commands.compare import compare
    from geodistill.commands.distill import distill
    from geodistill.commands.export import export
    from geodistill.commands.inspect import inspect
    from geodistill.commands.plan import plan
    from geodistill.commands.predict import predict
    from geodistill.commands.pretrain import open_sources, pretrain
    from geodistill.commands.sample import sample
    from geodistill.commands.train import train
    from geodistill.config import Config, load_config
    from geodistill.deployment.predictors import load_predictor
    from geodistill.devices import on_device
    from geodistill.distilled import DistilledSet
    from geodistill.errors import (
        ConfigError,
        DescriberError,
        DistilledSetError,
        ExportError,
        GeodistillError,
        PriorError,
        PrivacyError,
        RunError,
        SceneError,
        TrainingError,
    )
    from geodistill.evaluation.classifier import Classifier
    from geodistill.evaluation.evaluate import Evaluation, evaluate
    from geodistill.methods import METHODS
    from geodistill.progress import reported_to
    from geodistill.scenes import SceneData, Scenes, builtin_scenes, cut_tiles, open_dataset, open_scenes

__all__ = [
    "METHODS",
    "Classifier",
    "Config",
    "ConfigError",
    "DescriberError",
    "DistilledSet",
    "DistilledSetError",
    "Evaluation",
    "ExportError",
    "GeodistillError",
    "PriorError",
    "PrivacyError",
    "RunError",
    "SceneData",
    "SceneError",
    "Scenes",
    "TrainingError",
    "add",
    "audit",
    "bench",
    "builtin_scenes",
    "compare",
    "cut_tiles",
    "distill",
    "evaluate",
    "export",
    "inspect",
    "load_config",
    "load_predictor",
    "on_device",
    "open_dataset",
    "open_scenes",
    "open_sources",
    "plan",
    "predict",
    "pretrain",
    "reported_to",
    "sample",
    "train",
]

# `geodistill --help` does not wait for torch and diffusers.
__getattr__ = lazy_names(
    __name__,
    {
        "commands.add": ("add",),
        "commands.audit": ("audit",),
        "commands.bench": ("bench",),
        "commands.compare": ("compare",),
        "commands.distill": ("distill",),
        "commands.export": ("export",),
        "commands.inspect": ("inspect",),
        "commands.plan": ("plan",),
        "commands.predict": ("predict",),
        "commands.pretrain": ("open_sources", "pretrain"),
        "commands.sample": ("sample",),
        "commands.train": ("train",),
        "config": ("Config", "load_config"),
        "deployment.predictors": ("load_predictor",),
        "devices": ("on_device",),
        "distilled": ("DistilledSet",),
        "errors": tuple(name for name in __all__ if name.endswith("Error")),
        "evaluation.classifier": ("Classifier",),
        "evaluation.evaluate": ("Evaluation", "evaluate"),
        "methods": ("METHODS",),
        "progress": ("reported_to",),
        "scenes": ("SceneData", "Scenes", "builtin_scenes", "cut_tiles", "open_dataset", "open_scenes"),
    },
)


def __dir__() -> list[str]:
    return sorted(__all__)
