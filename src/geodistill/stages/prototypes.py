"""Stage `prototypes`: clusters of each class, or the k-means centroids of its latents instead."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from geodistill.pipeline import PROTOTYPES
from geodistill.prototypes import Prototypes, find_centroids, find_prototypes, latent_features
from geodistill.provenance import Made
from geodistill.run import Stored, column, save_tensors
from geodistill.stages.context import Context
from geodistill.stages.latents import scene_features


def cluster(context: Context, latents: Made[Stored]) -> Made[Prototypes]:
    """Return the prototypes from stage `prototypes`."""
    scenes, config = context.scenes, context.config
    known = None if config.prototypes.features == "latent" else scene_features(context)

    def build(folder: Path) -> None:
        options: dict[str, Any] = {"classes": scenes.classes, "per_class": config.ipc, "seed": config.seed}
        if known is None:
            found = find_prototypes(column(latents.value, 0), scenes.labels, measure=latent_features, **options)
        else:
            found = find_prototypes(known.value, scenes.labels, **options)
        found.save(folder)

    given = [latents, config.prototypes.model_dump(), config.ipc, config.seed]
    return context.run.make(PROTOTYPES, build, Prototypes.load, given=given)


def centroids(context: Context, latents: Made[Stored]) -> Made[Tensor]:
    """Return float32 [classes * IPC, C, h, w]: k-means centroids of the latents, from stage `prototypes`."""
    scenes, config = context.scenes, context.config

    def build(folder: Path) -> None:
        found = find_centroids(
            column(latents.value, 0), scenes.labels, classes=scenes.classes, per_class=config.ipc, seed=config.seed
        )
        save_tensors({"centroids": found}, folder / "centroids.safetensors")

    def load(folder: Path) -> Tensor:
        found: Tensor = load_file(folder / "centroids.safetensors")["centroids"]
        return found

    return context.run.make(PROTOTYPES, build, load, given=["centroids", latents, config.ipc, config.seed])
