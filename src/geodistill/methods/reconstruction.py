"""Reconstruction: the k-means images, encoded and decoded by the prior's autoencoder.

The autoencoder limits every method that draws latents, so this is their ceiling.
"""

from pathlib import Path

import torch
from torch import Tensor

from geodistill.distilled import DistilledSet
from geodistill.methods import kmeans
from geodistill.provenance import Made
from geodistill.stages.base import load_base
from geodistill.stages.candidates import decode
from geodistill.stages.context import Context
from geodistill.stages.distilled import write_set
from geodistill.stages.latents import scene_features


def make(context: Context) -> Made[DistilledSet]:
    """Return the images that `kmeans` selects, encoded and decoded."""
    scenes, config = context.scenes, context.config
    prior, features = load_base(context), scene_features(context)

    def images(_: Path) -> Tensor:
        pixels = scenes.pixels(kmeans.select(features.value, scenes, config), size=config.size)
        latents = torch.cat([prior.value.encode(part) for part in pixels.split(config.sampling.batch)])
        return decode(prior.value, latents, config)

    return write_set(context, images, given=[scenes.fingerprint(), prior, config.ipc, config.size, config.seed])
