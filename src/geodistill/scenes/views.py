"""Transformations that keep a scene a valid overhead scene: the eight symmetries of the square, and zooming in."""

import torch
from torch import Tensor

from geodistill.scenes.reading import shown_channels


def dihedral(images: Tensor, view: int) -> Tensor:
    """Return `images` [..., s, s] under symmetry `view` in 0..7; view 0 is the identity, views 0..3 keep rows as rows.

    Bit 0 mirrors left and right, bit 1 up and down, bit 2 swaps rows and columns.
    """
    if view & 1:
        images = images.flip(-1)
    if view & 2:
        images = images.flip(-2)
    if view & 4:
        images = images.transpose(-1, -2)
    return images.contiguous()


def as_rgb(images: Tensor) -> Tensor:
    """Return uint8 [n, 3, s, s]: the channels of `images` [n, channels, s, s] that are shown as red, green and blue."""
    count = images.shape[1]
    return images if count == 3 else images[:, list(shown_channels(count))]


def nearer(images: Tensor, size: int, random: torch.Generator) -> Tensor:
    """Return uint8 [n, 3, size, size]: a random square of each image, uint8 [n, 3, s, s] with s >= size, resized.

    Its side is uniform between `size` and s, so that nothing is enlarged. Its position is uniform over all possible
    ones.
    """
    whole, count = images.shape[-1], len(images)
    side = torch.randint(size, whole + 1, (count,), generator=random)
    free = whole - side[:, None] + 1
    start = (torch.rand(count, 2, generator=random, dtype=torch.float64) * free).long()
    return _windows(images, start, side, size)


def resized(images: Tensor, size: int) -> Tensor:
    """Return the whole images, uint8 [n, 3, s, s], resized to uint8 [n, 3, size, size]."""
    start = torch.zeros(len(images), 2, dtype=torch.int64)
    return _windows(images, start, torch.full((len(images),), images.shape[-1]), size)


def _windows(images: Tensor, start: Tensor, side: Tensor, size: int) -> Tensor:
    """Return the squares of `side` [n] pixels with first pixel at `start` [n, 2], resized to [n, 3, size, size]."""
    whole = images.shape[-1]
    rows, columns = (_resizing(start[:, axis], side, size, whole).to(images.device) for axis in (0, 1))
    small = rows[:, None] @ images.float() @ columns[:, None].mT
    return small.round().clamp(0, 255).to(torch.uint8)


def _resizing(start: Tensor, side: Tensor, size: int, whole: int) -> Tensor:
    """Return matrices float32 [n, size, whole] that resize `side` [n] pixels of a row, beginning at `start` [n].

    The kernel is cubic convolution (Keys 1981, a = -0.5), widened to avoid aliasing: the bicubic of PIL and torch.
    """
    scale = (side / size)[:, None, None]
    wanted = (torch.arange(size) + 0.5)[None, :, None] * scale
    there = torch.arange(whole) + 0.5 - start[:, None, None]
    x = ((there - wanted) / scale).abs()
    weights = torch.where(x < 1, (1.5 * x - 2.5) * x**2 + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2)
    weights = weights * (x < 2) * (there > 0) * (there < side[:, None, None])
    return weights / weights.sum(dim=2, keepdim=True)
