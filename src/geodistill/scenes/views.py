"""What leaves an overhead scene an overhead scene: the eight symmetries of the square, and a nearer look."""

import torch
import torch.nn.functional as F
from torch import Tensor


def dihedral(images: Tensor, view: int) -> Tensor:
    """Return `images` [..., s, s] under symmetry `view` in 0..7; view 0 is the identity, views 0..3 keep rows rows.

    Bit 0 mirrors left and right, bit 1 up and down, bit 2 swaps rows and columns.
    """
    if view & 1:
        images = images.flip(-1)
    if view & 2:
        images = images.flip(-2)
    if view & 4:
        images = images.transpose(-1, -2)
    return images.contiguous()


def nearer(images: Tensor, size: int, random: torch.Generator) -> Tensor:
    """Return uint8 [n, 3, size, size]: of each image, uint8 [n, 3, s, s] with s >= size, a random square, resized.

    Its side is drawn evenly from `size` to s, so that nothing is enlarged, its place evenly from all that there are.
    """
    whole = images.shape[-1]
    made = torch.empty(len(images), 3, size, size, dtype=torch.uint8)
    for image, out in zip(images, made, strict=True):
        side = int(torch.randint(size, whole + 1, (), generator=random))
        top, left = torch.randint(0, whole - side + 1, (2,), generator=random).tolist()
        window = image[None, :, top : top + side, left : left + side].float()
        small = F.interpolate(window, (size, size), mode="bicubic", antialias=True, align_corners=False)
        out.copy_(small[0].round().clamp(0, 255))
    return made
