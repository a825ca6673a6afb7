"""Stage `prototypes`: clusters of each class, or the k-means centroids of its latents instead."""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from geodistill.pipeline import PROTOTYPES
from geodistill.prototypes import Prototypes, find_centroids, find_prototypes, latent_features
from geodistill.provenance import Made, derived
from geodistill.run import save_tensors
from geodistill.stages.context import Context
from geodistill.stages.latents import scene_features


def cluster(context: Context, latents: Made[Tensor]) -> Made[Prototypes]:
    """Return the prototypes from stage `prototypes`."""
    scenes, config = context.scenes, context.config
    if config.prototypes.features == "latent":
        features = derived(lambda: latent_features(latents.value[:, 0].float()), latents)
    else:
        features = scene_features(context)

    def build(folder: Path) -> None:
        found = find_prototypes(
            features.value, scenes.labels, per_class=config.ipc, seed=config.seed, classes=scenes.classes
        )
        found.save(folder)

    given = [latents, config.prototypes.model_dump(), config.ipc, config.seed]
    return context.run.make(PROTOTYPES, build, Prototypes.load, given=given)


def centroids(context: Context, latents: Made[Tensor]) -> Made[Tensor]:
    """Return float32 [classes * IPC, C, h, w]: k-means centroids of the latents, from stage `prototypes`."""
    scenes, config = context.scenes, context.config

    def build(folder: Path) -> None:
        found = find_centroids(
            latents.value[:, 0], scenes.labels, classes=scenes.classes, per_class=config.ipc, seed=config.seed
        )
        save_tensors({"centroids": found}, folder / "centroids.safetensors")

    def load(folder: Path) -> Tensor:
        found: Tensor = load_file(folder / "centroids.safetensors")["centroids"]
        return found

    return context.run.make(PROTOTYPES, build, load, given=["centroids", latents, config.ipc, config.seed])
