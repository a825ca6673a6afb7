from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA

from geodistill.prior.autoencoder import PatchAutoencoder
from geodistill.scenes import SceneData


@pytest.fixture(scope="module")
def images(data: SceneData) -> torch.Tensor:
    return data.train.pixels(size=32).float() / 127.5 - 1


def _error(images: torch.Tensor, channels: int) -> float:
    model = PatchAutoencoder(latent_channels=channels).fit(images.split(50))
    latents = model.encode(images).latent_dist.mean
    return float((model.decode(latents).sample - images).square().mean())


def test_reconstruction_is_that_of_principal_components(images: torch.Tensor) -> None:
    patches = F.pixel_unshuffle(images, 8).movedim(1, -1).reshape(-1, 192).numpy()
    pca = PCA(n_components=12, svd_solver="full").fit(patches)
    reference = np.square(pca.inverse_transform(pca.transform(patches)) - patches).mean()
    assert _error(images, 12) == pytest.approx(float(reference), rel=1e-3)


def test_all_components_lose_nothing(images: torch.Tensor) -> None:
    assert _error(images, 192) < 1e-6 < _error(images, 48) < _error(images, 8)


def test_latents_have_unit_variance_and_no_mean(images: torch.Tensor) -> None:
    latents = PatchAutoencoder(latent_channels=16).fit([images]).encode(images).latent_dist.mean
    assert latents.shape == (len(images), 16, 4, 4)
    assert latents.mean(dim=(0, 2, 3)).abs().max() < 1e-3
    assert float(latents.square().mean()) == pytest.approx(1.0, rel=1e-3)


def test_fit_does_not_depend_on_how_images_are_batched(images: torch.Tensor) -> None:
    whole, parts = PatchAutoencoder(latent_channels=8).fit([images]), PatchAutoencoder(latent_channels=8)
    parts.fit(images.split(7))
    assert torch.allclose(whole.basis, parts.basis, atol=1e-5)


def test_saved_and_loaded_by_diffusers(images: torch.Tensor, tmp_path: Path) -> None:
    model = PatchAutoencoder(latent_channels=8).fit([images])
    model.save_pretrained(tmp_path)
    again = PatchAutoencoder.from_pretrained(tmp_path)
    assert torch.equal(model.encode(images).latent_dist.mean, again.encode(images).latent_dist.mean)


def test_posterior_is_narrower_in_components_that_matter_more(images: torch.Tensor) -> None:
    posterior = PatchAutoencoder(latent_channels=8).fit([images]).encode(images[:1]).latent_dist
    spread = posterior.std[0, :, 0, 0]
    assert (spread.diff() > 0).all()
