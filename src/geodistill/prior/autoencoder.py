"""The autoencoders of the compact base: probabilistic PCA fitted in closed form, or a CNN trained for hours."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from geodistill.devices import dtype_for, mixed
from geodistill.networks import backbone_maps

# Channels of the compared backbone maps, at 1/2, 1/4, 1/8 and 1/16 of the image's resolution.
_MAP_CHANNELS = (16, 24, 40, 112)


class PatchAutoencoder(ModelMixin, ConfigMixin):
    """Linear VAE on non-overlapping patches, with the `encode`/`decode` interface of diffusers' AutoencoderKL.

    A patch of 3·p·p values is projected on its first principal components (Tipping and Bishop 1999: the maximum
    likelihood solution of a linear VAE). Components are divided by the square root of their standard deviation.
    With full whitening, the diffusion model would spend its effort on the faintest components; without any, the
    noise of almost every step would hide them.

    Args:
        latent_channels: number of components kept, at most B·p·p for images of B channels.
        block_out_channels: only its length matters, p = 2^(length - 1); diffusers' pipelines derive the ratio of
            image size to latent size from it.
        in_channels: B.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 48,
        block_out_channels: tuple[int, ...] = (1, 1, 1, 1),
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        self.patch = 2 ** (len(block_out_channels) - 1)
        size = in_channels * self.patch**2
        # Parameters rather than buffers, so that every loader of safetensors finds them.
        self.mean = nn.Parameter(torch.zeros(size), requires_grad=False)
        self.basis = nn.Parameter(torch.eye(latent_channels, size), requires_grad=False)
        self.deviation = nn.Parameter(torch.ones(latent_channels), requires_grad=False)
        self.noise = nn.Parameter(torch.full((1,), 1e-3), requires_grad=False)

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Return the posterior of the latent [n, C, h/p, w/p] of images `x` [n, B, h, w] in [-1, 1]."""
        patch = self.patch
        with _exact(x):
            kernels = (self.basis / self.deviation[:, None]).view(-1, self.config.in_channels, patch, patch)
            offset = (self.basis @ self.mean) / self.deviation
            mean = F.conv2d(x, kernels, stride=patch) - offset[:, None, None]
        # The model's noise is the mean variance of the discarded directions. It sets the posterior's spread.
        logvar = (2 * torch.log(self.noise / self.deviation)).view(1, -1, 1, 1).expand_as(mean)
        posterior = DiagonalGaussianDistribution(torch.cat([mean, logvar], dim=1))
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def decode(self, z: Tensor, return_dict: bool = True, generator: object = None) -> DecoderOutput | tuple[Tensor]:
        """Return images [n, B, h, w], about [-1, 1], from latents `z` [n, C, h/p, w/p]."""
        patch, bands = self.patch, self.config.in_channels
        kernels = (self.basis * self.deviation[:, None]).view(-1, bands, patch, patch)
        with _exact(z):
            image = F.conv_transpose2d(z, kernels, stride=patch)
        rows, columns = z.shape[-2:]
        image = image + self.mean.view(bands, patch, patch).repeat(1, rows, columns)
        return DecoderOutput(sample=image) if return_dict else (image,)

    @torch.no_grad()
    def fit(self, batches: Iterable[Tensor]) -> "PatchAutoencoder":
        """Fit in closed form on `batches` of images [n, B, h, w] in [-1, 1], in constant memory.

        Afterwards latents have unit variance on average over their elements. The basis comes from the covariance in
        float64, and each component's sign is fixed by its largest entry, so the fit is the same on every machine.
        """
        size = self.config.in_channels * self.patch**2
        count, total, square = 0, torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
        for images in batches:
            patches = F.pixel_unshuffle(images.cpu().double(), self.patch).movedim(1, -1).reshape(-1, size)
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


class _Block(nn.Module):
    """Residual block that starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        last = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(cast(Tensor, last.bias))
        first = nn.Conv2d(width, width, 3, padding=1)
        self.layers = nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), first, nn.SiLU(), last)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.layers(x)
        return y


def _doubled(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(before, after, 3, padding=1))


class ConvAutoencoder(ModelMixin, ConfigMixin):
    """Convolutional VAE at 1/8 of the resolution, with the `encode`/`decode` interface of diffusers' AutoencoderKL.

    Most layers work at a quarter of the resolution, where a CPU convolves fastest; a pixel shuffle restores full
    resolution. Latents are shifted and scaled per channel to mean 0 and variance 1 on the scenes given to
    `standardise`.

    Args:
        latent_channels: C.
        block_out_channels: channels at full, half, quarter and eighth resolution, multiples of 8; diffusers' pipelines
            derive the ratio of image size to latent size from their number, four.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        block_out_channels: tuple[int, int, int, int] = (16, 64, 128, 192),
        scaling_factor: float = 1.0,
        shift_factor: float = 0.0,
    ) -> None:
        super().__init__()
        full, half, quarter, eighth = block_out_channels
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(48, quarter, 3, padding=1),
            *(_Block(quarter) for _ in range(2)),
            nn.Conv2d(quarter, eighth, 2, stride=2),
            *(_Block(eighth) for _ in range(2)),
            nn.GroupNorm(8, eighth),
            nn.SiLU(),
            nn.Conv2d(eighth, 2 * latent_channels, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(latent_channels, eighth, 3, padding=1),
            *(_Block(eighth) for _ in range(2)),
            _doubled(eighth, quarter),
            *(_Block(quarter) for _ in range(3)),
            _doubled(quarter, half),
            *(_Block(half) for _ in range(2)),
            nn.GroupNorm(8, half),
            nn.SiLU(),
            nn.Conv2d(half, 4 * full, 3, padding=1),
            nn.PixelShuffle(2),
            nn.SiLU(),
            nn.Conv2d(full, 3, 3, padding=1),
        )
        # Parameters rather than buffers, so that every loader of safetensors finds them.
        self.mean = nn.Parameter(torch.zeros(latent_channels), requires_grad=False)
        self.deviation = nn.Parameter(torch.ones(latent_channels), requires_grad=False)

    def encode(self, x: Tensor, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussianDistribution]:
        """Return the posterior of the latent [n, C, h/8, w/8] of images `x` [n, 3, h, w] in [-1, 1]."""
        posterior = self._posterior(x)
        return AutoencoderKLOutput(latent_dist=posterior) if return_dict else (posterior,)

    def _posterior(self, x: Tensor) -> DiagonalGaussianDistribution:
        mean, logvar = self.encoder(_channels_last(x)).float().chunk(2, dim=1)
        mean = (mean - self.mean[:, None, None]) / self.deviation[:, None, None]
        logvar = logvar.clamp(-10, 4) - 2 * self.deviation.log()[:, None, None]
        return DiagonalGaussianDistribution(torch.cat([mean, logvar], dim=1))

    def decode(self, z: Tensor, return_dict: bool = True, generator: object = None) -> DecoderOutput | tuple[Tensor]:
        """Return images [n, 3, h, w], about [-1, 1], from latents `z` [n, C, h/8, w/8]."""
        raw = z * self.deviation[:, None, None] + self.mean[:, None, None]
        image = self.decoder(_channels_last(raw)).float()
        return DecoderOutput(sample=image) if return_dict else (image,)

    @torch.no_grad()
    def standardise(self, batches: Iterable[Tensor]) -> "ConvAutoencoder":
        """Set the shift and scale of the latents from `batches` of images [n, 3, h, w] in [-1, 1]."""
        self.mean.zero_()
        self.deviation.fill_(1)
        latents = torch.cat([self._posterior(images).mean for images in batches]).movedim(1, 0).flatten(1)
        self.mean.copy_(latents.mean(1))
        self.deviation.copy_(latents.std(1))
        return self


def _exact(x: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which float32 stays float32: the work is too small to gain from lower precision."""
    # A tensor without numbers, on which `plan` counts operations, knows no precisions.
    if x.is_meta:
        return nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def _mixed(images: Tensor) -> torch.autocast:
    return mixed(images.device, dtype_for("auto", images.device))


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


class AutoencoderLoss(nn.Module):
    """Training loss of a ConvAutoencoder; the posterior is sampled once.

        |x̂ - x| + 0.5 Σ_l ‖ unit(φ_l(x̂)) - unit(φ_l(x)) ‖² + 2e-3 KL(posterior ‖ N(0, 1)) + 0.2 (1 - cos(W z, φ(x)))

    φ_l are maps of the ImageNet backbone, each position scaled to length 1 (the perceptual loss of Zhang et al., CVPR
    2018, without its learned weights). The last term makes the backbone's deepest map predictable from 2x2 latents
    by a linear map W: a diffusion model needs fewer steps for latents that encode content (Yao et al., CVPR 2025).
    All terms are means over their elements.
    """

    def __init__(self, autoencoder: ConvAutoencoder) -> None:
        super().__init__()
        self.autoencoder: Any = autoencoder
        self.reader = nn.Conv2d(autoencoder.config.latent_channels, _MAP_CHANNELS[-1], 2, stride=2)

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """Return the loss of images [n, 3, s, s] in [-1, 1]; `noise` [n, C, s/8, s/8] samples the posterior."""
        with torch.no_grad():
            wanted = backbone_maps(images)
        with _mixed(images):
            posterior = self.autoencoder.encode(images).latent_dist
            made = self.autoencoder.decode(posterior.mean + posterior.std * noise).sample
            read = self.reader(posterior.mean)
        perceptual = _perceptual(backbone_maps(made), wanted)
        divergence = posterior.kl().mean() / noise[0].numel()
        aligned = F.cosine_similarity(read.float(), wanted[-1], dim=1).mean()
        loss: Tensor = F.l1_loss(made, images) + 0.5 * perceptual + 2e-3 * divergence + 0.2 * (1 - aligned)
        return loss


def _perceptual(maps: list[Tensor], wanted: list[Tensor]) -> Tensor:
    """Return the sum over the maps of the mean squared distance between positions, each scaled to length 1."""
    distances = [
        ((F.normalize(one, dim=1) - F.normalize(other, dim=1)) ** 2).sum(dim=1).mean()
        for one, other in zip(maps, wanted, strict=True)
    ]
    return torch.stack(distances).sum()


class Critics(nn.Module):
    """Five small networks that each discriminate between real and decoded images, position by position.

    Four of them read one map each of the ImageNet backbone; this lets small networks learn in a few hundred steps
    (projected GANs: Sauer et al., NeurIPS 2021). The fifth reads the pixels. Their weights have spectral norm 1.
    """

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(_critic((channels, 1, 1), (64, 3, 1), (64, 1, 1)) for channels in _MAP_CHANNELS)
        self.pixels = _critic((3, 4, 2), (48, 4, 2), (96, 3, 1))

    def forward(self, images: Tensor, maps: list[Tensor]) -> list[Tensor]:
        """Return each critic's scores [n, 1, h, w] for images [n, 3, s, s] in [-1, 1] with backbone `maps`."""
        read = [head(own) for head, own in zip(self.heads, maps, strict=True)]
        return [*read, self.pixels(_channels_last(images))]


def _critic(*layers: tuple[int, int, int]) -> nn.Sequential:
    """Return convolutions that end in one score, each given as (input channels, kernel size, stride)."""
    widths = [channels for channels, _, _ in layers[1:]] + [1]
    made: list[nn.Module] = []
    for (before, side, stride), after in zip(layers, widths, strict=True):
        convolution = nn.Conv2d(before, after, side, stride, padding=(side - 1) // 2)
        made += [spectral_norm(convolution), nn.LeakyReLU(0.2)]
    return nn.Sequential(*made[:-1])


class SharpeningLoss(nn.Module):
    """Loss that teaches texture to the decoder of a trained ConvAutoencoder; the encoder and all latents stay fixed.

        |x̂ - x| + 0.5 perceptual(x̂, x) - w mean_k D_k(x̂) + mean_k [ max(0, 1 - D_k(x)) + max(0, 1 + D_k(x̂)) ]

    with w the weight of the critics. The third term trains only the decoder, the last only the critics (hinge loss:
    Lim and Ye 2017). A squared or absolute error is smallest for the average of all textures that fit a latent, which
    has no texture; the critics favour a single one of them (Esser et al., CVPR 2021). Latents are perturbed slightly,
    because sampled latents are inexact too.
    """

    def __init__(self, autoencoder: ConvAutoencoder) -> None:
        super().__init__()
        self.autoencoder: Any = autoencoder.requires_grad_(False)
        autoencoder.decoder.requires_grad_(True)
        self.critics = Critics()

    def forward(self, images: Tensor, disturbance: Tensor, pressure: float) -> Tensor:
        """Return the loss of images [n, 3, s, s] in [-1, 1] with critics of weight `pressure`.

        `disturbance` [n, C, s/8, s/8] is added to the latents.
        """
        with torch.no_grad():
            wanted = backbone_maps(images)
        with _mixed(images):
            made = self.autoencoder.decode(self.autoencoder.encode(images).latent_dist.mean + disturbance).sample
        maps = backbone_maps(made)
        with _mixed(images):
            real = self.critics(images, wanted)
            fake = self.critics(made.detach(), [own.detach() for own in maps])
            pleased = self._judged(made, maps)
        loss: Tensor = F.l1_loss(made, images) + 0.5 * _perceptual(maps, wanted)
        return loss - pressure * _mean(pleased) + _hinge(real, fake)

    def _judged(self, images: Tensor, maps: list[Tensor]) -> list[Tensor]:
        """Return the critics' scores with gradients that reach the images but not the critics."""
        self.critics.eval().requires_grad_(False)
        scores: list[Tensor] = self.critics(images, maps)
        self.critics.train().requires_grad_(True)
        return scores


def _hinge(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    return _mean([F.relu(1 - score) for score in real]) + _mean([F.relu(1 + score) for score in fake])


def _mean(scores: list[Tensor]) -> Tensor:
    return torch.stack([score.float().mean() for score in scores]).mean()
