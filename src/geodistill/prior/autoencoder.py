"""The autoencoder of the compact base: probabilistic PCA on patches, fitted in closed form."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor, nn


class PatchAutoencoder(ModelMixin, ConfigMixin):
    """Linear VAE on non-overlapping patches, with the `encode`/`decode` faces of diffusers' AutoencoderKL.

    A patch of 3·p·p values is projected on its first principal components (Tipping and Bishop 1999: the maximum
    likelihood solution of a linear VAE). Components are divided by the square root of their standard deviation:
    full whitening would make the diffusion model spend its effort on the faintest components, none at all would
    hide them under the noise of almost every step.

    Args:
        latent_channels: components kept, at most 3·p·p.
        block_out_channels: only its length counts, p = 2^(length - 1); diffusers' pipelines read the ratio of image
            to latent from it.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 48,
        block_out_channels: tuple[int, ...] = (1, 1, 1, 1),
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
    ) -> None:
        super().__init__()
        self.patch = 2 ** (len(block_out_channels) - 1)
        size = 3 * self.patch**2
        # Parameters rather than buffers, so that every loader of safetensors finds them.
        self.mean = nn.Parameter(torch.zeros(size), requires_grad=False)
        self.basis = nn.Parameter(torch.eye(latent_channels, size), requires_grad=False)
        self.deviation = nn.Parameter(torch.ones(latent_channels), requires_grad=False)
        self.noise = nn.Parameter(torch.full((1,), 1e-3), requires_grad=False)

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Return the posterior of the latent [n, C, h/p, w/p] of images `x` [n, 3, h, w] in [-1, 1]."""
        patch = self.patch
        kernels = (self.basis / self.deviation[:, None]).view(-1, 3, patch, patch)
        offset = (self.basis @ self.mean) / self.deviation
        mean = F.conv2d(x, kernels, stride=patch) - offset[:, None, None]
        # A discarded direction's mean variance is the model's noise; it is the posterior's spread in a kept one.
        logvar = (2 * torch.log(self.noise / self.deviation)).view(1, -1, 1, 1).expand_as(mean)
        posterior = DiagonalGaussianDistribution(torch.cat([mean, logvar], dim=1))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(self, z: Tensor, return_dict: bool = True, generator: object = None) -> DecoderOutput | tuple[Tensor]:
        """Return images [n, 3, h, w], about [-1, 1], from latents `z` [n, C, h/p, w/p]."""
        patch = self.patch
        kernels = (self.basis * self.deviation[:, None]).view(-1, 3, patch, patch)
        image = F.conv_transpose2d(z, kernels, stride=patch)
        rows, columns = z.shape[-2:]
        image = image + self.mean.view(3, patch, patch).repeat(1, rows, columns)
        return DecoderOutput(sample=image) if return_dict else (image,)

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> "PatchAutoencoder":
        """Fit in closed form on `batches` of images [n, 3, h, w] in [-1, 1]; memory does not grow with their number.

        Afterwards a latent has unit variance on average over its elements. The basis is that of the covariance in
        float64, each component's sign fixed by its largest entry, so that the fit is the same on every machine.
        """
        size = 3 * self.patch**2
        count, total, square = 0, torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
        for images in batches:
            patches = F.pixel_unshuffle(images.double(), self.patch).movedim(1, -1).reshape(-1, size)
            count += len(patches)
            total += patches.sum(0)
            square += patches.T @ patches
        mean = total / count
        values, vectors = torch.linalg.eigh(square / count - torch.outer(mean, mean))
        self._set(mean, values.flip(0).clamp_min(1e-8), vectors.flip(1).T)
        return self

    def _set(self, mean: Tensor, values: Tensor, vectors: Tensor) -> None:
        kept = self.config.latent_channels
        basis = vectors[:kept] * vectors[:kept].gather(1, vectors[:kept].abs().argmax(1, keepdim=True)).sign()
        deviation = values[:kept] ** 0.25
        deviation = deviation * (values[:kept] / deviation**2).mean().sqrt()
        self.mean.copy_(mean)
        self.basis.copy_(basis)
        self.deviation.copy_(deviation)
        rest = values[kept:] if kept < len(values) else values[-1:]
        self.noise.fill_(float(rest.mean().sqrt()))
