from pathlib import Path

import torch
from diffusers import AutoencoderKL

from geodistill.config import Config
from geodistill.methods import METHODS, kmeans, reconstruction
from geodistill.run import Run
from geodistill.scenes import Scenes
from geodistill.stages.context import Context
from geodistill.stages.latents import scene_features


def test_images_are_those_of_kmeans_through_the_stock_autoencoder(
    pair: Scenes, on_pipeline: Config, sd_folder: Path, tmp_path: Path
) -> None:
    with Run(tmp_path, {}) as run:
        made = reconstruction.make(
            Context(pair, on_pipeline.model_copy(update={"precision": "f32"}), run, METHODS["reconstruction"])
        ).value
        features = scene_features(Context(pair, on_pipeline, run)).value
    vae = AutoencoderKL.from_pretrained(sd_folder / "vae")
    real = pair.pixels(kmeans.select(features, pair, on_pipeline), size=32)
    with torch.no_grad():
        back = vae.decode(vae.encode(real / 127.5 - 1).latent_dist.mode()).sample
    assert (made.images - (back.clamp(-1, 1) + 1) * 127.5).abs().max() < 0.6  # rounded to whole values
