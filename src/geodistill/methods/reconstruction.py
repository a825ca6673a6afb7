"""Reconstruction: the k-means images through the prior's autoencoder and back.

No method that draws latents can do better than its autoencoder gives back: this is their ceiling.
"""

from pathlib import Path

import torch
from torch import Tensor

from geodistill.config import Config
from geodistill.distilled import DistilledSet
from geodistill.methods import kmeans
from geodistill.methods.stages import decode, make_base, scene_features, write_set
from geodistill.prior.base import fingerprint_of_base
from geodistill.run import Run
from geodistill.scenes.scenes import Scenes


def make(scenes: Scenes, config: Config, run: Run) -> DistilledSet:
    """Return the images that `kmeans` takes, encoded and decoded."""
    prior = make_base(scenes, config, run)
    features = scene_features(scenes, config, run)

    def images(_: Path) -> Tensor:
        pixels = scenes.pixels(kmeans.select(features, scenes, config), size=config.size)
        latents = torch.cat([prior.encode(part) for part in pixels.split(config.sampling.batch)])
        return decode(prior, latents, config)

    inputs = [scenes.fingerprint(), fingerprint_of_base(prior.source), config.ipc, config.size, config.seed]
    return write_set("reconstruction", images, scenes, config, run, inputs=inputs)
