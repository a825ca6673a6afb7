"""The eight symmetries of the square, all of which leave an overhead scene an overhead scene."""

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
