import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from sklearn.decomposition import PCA
from torch import nn

from geodistill.networks import backbone_maps
from geodistill.prior import autoencoder
from geodistill.prior.autoencoder import AutoencoderLoss, ConvAutoencoder, Critics, PatchAutoencoder, SharpeningLoss
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


def test_images_of_any_number_of_channels(images: torch.Tensor, tmp_path: Path) -> None:
    wide = torch.cat([images, images.flip(0), images[:, :1]], dim=1)
    model = PatchAutoencoder(latent_channels=7 * 64, in_channels=7).fit([wide])
    model.save_pretrained(tmp_path)
    again = PatchAutoencoder.from_pretrained(tmp_path)
    assert float((again.decode(again.encode(wide).latent_dist.mean).sample - wide).square().mean()) < 1e-5


def test_saved_and_loaded_by_diffusers(images: torch.Tensor, tmp_path: Path) -> None:
    model = PatchAutoencoder(latent_channels=8).fit([images])
    model.save_pretrained(tmp_path)
    again = PatchAutoencoder.from_pretrained(tmp_path)
    assert torch.equal(model.encode(images).latent_dist.mean, again.encode(images).latent_dist.mean)


def test_posterior_is_narrower_in_components_that_matter_more(images: torch.Tensor) -> None:
    posterior = PatchAutoencoder(latent_channels=8).fit([images]).encode(images[:1]).latent_dist
    spread = posterior.std[0, :, 0, 0]
    assert (spread.diff() > 0).all()


@pytest.fixture(scope="module")
def convolutional() -> ConvAutoencoder:
    torch.manual_seed(0)
    return ConvAutoencoder(latent_channels=4, block_out_channels=(8, 8, 16, 16)).eval()


def test_standardised_latents_have_mean_0_and_deviation_1(convolutional: ConvAutoencoder, images: torch.Tensor) -> None:
    latents = convolutional.standardise(images.split(50)).encode(images).latent_dist.mean
    assert latents.shape == (len(images), 4, 4, 4)
    assert latents.mean(dim=(0, 2, 3)).abs().max() < 1e-4
    assert torch.allclose(latents.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-3)


def test_standardising_changes_no_image(convolutional: ConvAutoencoder, images: torch.Tensor, tmp_path: Path) -> None:
    def there_and_back(model: ConvAutoencoder) -> torch.Tensor:
        with torch.no_grad():
            image: torch.Tensor = model.decode(model.encode(images[:4]).latent_dist.mean).sample
        return image

    torch.manual_seed(1)
    raw = ConvAutoencoder(latent_channels=4, block_out_channels=(8, 8, 16, 16)).eval()
    before, wide = there_and_back(raw), raw.encode(images[:4]).latent_dist.std
    after = there_and_back(raw.standardise(images.split(50)))
    assert torch.allclose(before, after, atol=1e-4)
    narrow = raw.encode(images[:4]).latent_dist.std * raw.deviation[:, None, None]
    assert torch.allclose(wide, narrow, rtol=1e-4)
    raw.save_pretrained(tmp_path)
    assert torch.equal(there_and_back(ConvAutoencoder.from_pretrained(tmp_path).eval()), after)


class _Perfect(nn.Module):
    """Gives every batch back as it was, with one posterior for all."""

    def __init__(self, images: torch.Tensor, mean: float, logvar: float) -> None:
        super().__init__()
        size = (len(images), 4, 4, 4)
        moments = torch.cat([torch.full(size, mean), torch.full(size, logvar)], dim=1)
        self.posterior, self.images = DiagonalGaussianDistribution(moments), images

    def encode(self, _: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(latent_dist=self.posterior)

    def decode(self, _: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(sample=self.images)


class _Opposite(nn.Module):
    """Reads the contrary of the backbone's deepest map."""

    def __init__(self, images: torch.Tensor) -> None:
        super().__init__()
        self.answer = -backbone_maps(images)[-1]

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        return self.answer


def test_loss_of_a_perfect_autoencoder_is_its_divergence_and_alignment_alone(images: torch.Tensor) -> None:
    batch = images[:6]
    loss = AutoencoderLoss(ConvAutoencoder(latent_channels=4, block_out_channels=(8, 8, 16, 16)))
    loss.autoencoder, loss.reader = _Perfect(batch, 0.5, -1.0), _Opposite(batch)  # type: ignore[assignment]
    divergence = 0.5 * (0.5**2 + math.exp(-1) - 1 + 1)
    assert float(loss(batch, torch.zeros(6, 4, 4, 4))) == pytest.approx(2e-3 * divergence + 0.2 * 2, abs=1e-6)


def test_training_lowers_the_loss(images: torch.Tensor) -> None:
    torch.manual_seed(0)
    loss = AutoencoderLoss(ConvAutoencoder(latent_channels=4, block_out_channels=(8, 8, 16, 16)))
    optimiser = torch.optim.Adam(loss.parameters(), lr=3e-3)
    values = []
    for _ in range(25):
        value = loss(images[:16], torch.randn(16, 4, 4, 4))
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        values.append(float(value))
    assert values[-1] < 0.7 * values[0]


@pytest.fixture
def sharpening() -> SharpeningLoss:
    torch.manual_seed(0)
    return SharpeningLoss(ConvAutoencoder(latent_channels=4, block_out_channels=(8, 8, 16, 16)))


def test_critics_weights_have_spectral_norm_1(images: torch.Tensor) -> None:
    critics = Critics().train()
    for _ in range(30):  # each forward takes a step of power iteration
        critics(images[:2], backbone_maps(images[:2]))
    matrices = [head[0].weight.flatten(1) for head in [*critics.heads, critics.pixels]]  # type: ignore[index]
    norms = torch.stack([torch.linalg.matrix_norm(matrix, ord=2) for matrix in matrices])
    assert torch.allclose(norms, torch.ones(5), atol=0.05)


def test_each_critic_scores_every_place_of_what_it_reads(images: torch.Tensor) -> None:
    scores = Critics()(images[:2], backbone_maps(images[:2]))
    side = images.shape[-1]
    assert [tuple(score.shape) for score in scores] == [(2, 1, side // k, side // k) for k in (2, 4, 8, 16, 4)]


class _Scores(nn.Module):
    """Critics that find `real` in the first images they see, `fake` in the second, `pleased` in the third."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.values = list(values)

    def forward(self, made: torch.Tensor, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        return [torch.full((len(made), 1, 2, 2), self.values.pop(0))]


def test_sharpening_loss_of_a_perfect_decoder_is_the_critics_alone(
    images: torch.Tensor, sharpening: SharpeningLoss
) -> None:
    sharpening.autoencoder, sharpening.critics = _Perfect(images[:6], 0.0, 0.0), _Scores(0.75, -0.5, 3.0)  # type: ignore[assignment]
    loss = sharpening(images[:6], torch.zeros(6, 4, 4, 4), 0.3)
    assert float(loss) == pytest.approx(-0.3 * 3.0 + (1 - 0.75) + (1 - 0.5), abs=1e-3)


def _gradients(loss: SharpeningLoss, images: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return the gradients of a critic's and of the decoder's first weights."""
    loss.zero_grad()
    loss(images, torch.zeros(len(images), 4, 4, 4), 0.3).backward()
    return loss.critics.pixels[0].parametrizations.weight.original.grad, loss.autoencoder.decoder[0].weight.grad


def test_decoder_and_critics_each_follow_their_own_terms_and_the_encoder_stays(
    images: torch.Tensor, sharpening: SharpeningLoss, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In this mode the critics' power iteration stands still, so that every call sees the same weights.
    sharpening.critics.eval()
    monkeypatch.setattr(Critics, "train", lambda self, mode=True: self)
    critic, decoder = _gradients(sharpening, images[:4])
    assert all(p.grad is None for p in sharpening.autoencoder.encoder.parameters())
    assert critic is not None
    assert decoder is not None
    with monkeypatch.context() as patch:
        patch.setattr(sharpening, "_judged", lambda made, _: [made.new_zeros(())])
        same, other = _gradients(sharpening, images[:4])
        assert same is not None
        assert torch.equal(same, critic)
        assert other is not None
        assert not torch.allclose(other, decoder, rtol=0.01)
    monkeypatch.setattr(autoencoder, "_hinge", lambda *_: torch.zeros(()))
    none, same = _gradients(sharpening, images[:4])
    assert none is None
    assert same is not None
    assert torch.equal(same, decoder)
