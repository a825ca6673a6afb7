"""Copyprint: an embedding for copy detection, in which copies of an image lie near it and other images do not.

It is a linear map of features of EfficientNet-Lite2, an ImageNet network that no method uses while it makes a set. It
is trained on the training images themselves: changed copies are made of each image, and a copy must be matched to the
copy of the same image among the copies of all others (InfoNCE, van den Oord et al., 2018; for copy detection Pizzi et
al., SSCD, CVPR 2022). It needs no weights other than the network's, and training takes under a minute.
"""

import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from geodistill.devices import accelerator
from geodistill.networks import WITNESS, backbone_maps
from geodistill.scenes.pixels import Images
from geodistill.scenes.views import as_rgb
from geodistill.seeding import derive_seed, generator

_SIZE, _TEMPERATURE, _STEPS, _BATCH, _RATE = 128, 0.05, 300, 256, 2e-3
# Largest number of training images to train on, and number of changed copies of each.
_LEARNED_ON, _COPIES = 1500, 3
# Index of the early feature map (1/8 of the resolution), and side of the grid to which it is averaged.
_MAP, _PLACES = 2, 4


class Copyprint:
    """A map from uint8 images [n, channels, s, s] to float32 [n, 128] of norm 1, made by `learn_copyprint`.

    It reads the channels that are shown as red, green and blue.
    """

    def __init__(self, projection: nn.Linear, mean: Tensor, deviation: Tensor) -> None:
        self._projection, self._mean, self._deviation = projection, mean, deviation

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return the copyprints of `images`."""
        return self.of_seen(_seen(as_rgb(images)))

    def of_seen(self, vectors: Tensor) -> Tensor:
        """Return the copyprints of images whose feature vectors [n, d] from `_seen` are given."""
        return F.normalize(self._projection((vectors - self._mean) / self._deviation), dim=1)


def learn_copyprint(train: Images, *, seed: int = 0) -> Copyprint:
    """Return a copyprint trained on uint8 images [n, C, s, s], perhaps in files; the same seed gives the same."""
    chosen = as_rgb(train[torch.randperm(len(train), generator=generator(seed, "copyprint"))[:_LEARNED_ON]])
    views = torch.stack([_seen(chosen), *(_seen(changed_copies(chosen, seed, k)) for k in range(_COPIES))])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "copyprint head"))
        projection = nn.Linear(views.shape[2], _SIZE)
    whole = views.flatten(0, 1)
    made = Copyprint(projection, whole.mean(0), whole.std(0).clamp(min=1e-4))
    optimiser = torch.optim.AdamW(projection.parameters(), lr=_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, _STEPS)
    for step in range(_STEPS):
        random = generator(seed, "copyprint step", step)
        rows = torch.randperm(len(chosen), generator=random)[:_BATCH]
        first, second = torch.randperm(len(views), generator=random)[:2].tolist()
        a, b = made.of_seen(views[first, rows]), made.of_seen(views[second, rows])
        alike = a @ b.T / _TEMPERATURE
        own = torch.arange(len(rows))
        loss = (F.cross_entropy(alike, own) + F.cross_entropy(alike.T, own)) / 2
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return made


def changed_copies(images: Tensor, seed: int, rank: int) -> Tensor:
    """Return changed copy number `rank` of each of the uint8 `images`.

    A copy is cropped to 80 to 100 % of the side, has another brightness and contrast, and is compressed by JPEG at
    quality 30 to 95.
    """
    return torch.stack([_changed(image, generator(seed, f"copy {rank}", index)) for index, image in enumerate(images)])


def _changed(image: Tensor, random: torch.Generator) -> Tensor:
    size = image.shape[-1]
    share, top, left, contrast, light, quality = torch.rand(6, generator=random).tolist()
    side = round(size * (0.8 + 0.2 * share))
    top, left = round(top * (size - side)), round(left * (size - side))
    window = image[None, :, top : top + side, left : left + side].float()
    whole = F.interpolate(window, (size, size), mode="bilinear", antialias=True, align_corners=False)[0]
    mean = whole.mean()
    lit = (whole - mean) * (0.6 + 0.8 * contrast) + mean + 60 * (light - 0.5)
    return _compressed(lit.round().clamp(0, 255).to(torch.uint8), round(30 + 65 * quality))


def _compressed(image: Tensor, quality: int) -> Tensor:
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(buffer, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1)


@torch.no_grad()
def _seen(images: Tensor, *, batch: int = 128) -> Tensor:
    """Return features of uint8 images [n, 3, s, s]: the mean of the last map, and an early map on a coarse grid."""
    deep, early = [], []
    for part in images.split(batch):
        maps = backbone_maps(part.to(accelerator()).float() / 127.5 - 1, last=True, name=WITNESS)
        deep.append(maps[-1].mean((2, 3)).cpu())
        early.append(F.adaptive_avg_pool2d(maps[_MAP], _PLACES).flatten(1).cpu())
    return torch.cat([F.normalize(torch.cat(seen), dim=1) for seen in (deep, early)], dim=1)
