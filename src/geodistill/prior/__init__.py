"""The prior: a text-to-image latent diffusion model in diffusers' pipeline format."""

from geodistill.prior.autoencoder import PatchAutoencoder

__all__ = ["PatchAutoencoder"]
