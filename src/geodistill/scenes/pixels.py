"""The pixels of scenes, read from their files when they are asked for."""

from collections.abc import Iterator
from typing import Self, TypeAlias

import torch
from torch import Tensor

from geodistill.scenes.scenes import Scenes

# Images that are in memory together.
_TOGETHER = 1024


class Pixels:
    """The central squares of scenes, uint8 [N, C, size, size]; what is indexed is read from the files, and not kept.

    Args:
        scenes: the scenes.
        size: side of the squares in pixels.
        chosen: int64 [N], indices of the scenes; all of them by default.
    """

    def __init__(self, scenes: Scenes, size: int, chosen: Tensor | None = None) -> None:
        self._scenes, self._size = scenes, size
        self._chosen = torch.arange(len(scenes)) if chosen is None else chosen
        self.shape = torch.Size((len(self._chosen), scenes.channels, size, size))

    @property
    def labels(self) -> Tensor:
        """The classes of the images, int64 [N]."""
        return self._scenes.labels[self._chosen]

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, which: slice | Tensor) -> Tensor:
        """Return the images at `which`: a slice, indices int64 [n], or a mask bool [N]."""
        return self._scenes.pixels(self._chosen[which], size=self._size)

    def subset(self, which: Tensor) -> Self:
        """Return the images at `which`, indices int64 [n] or a mask bool [N]; none is read yet."""
        return type(self)(self._scenes, self._size, self._chosen[which])


# Images uint8 [N, channels, s, s] in memory or in files; both are indexed in the same way.
Images: TypeAlias = Tensor | Pixels


def some_of(images: Images, which: Tensor) -> Images:
    """Return the images at `which`, indices int64 [n] or a mask bool [N]; those in files are not read yet."""
    return images.subset(which) if isinstance(images, Pixels) else images[which]


def in_blocks(images: Images, size: int = _TOGETHER) -> Iterator[Tensor]:
    """Yield uint8 images [n, channels, s, s] in consecutive blocks of at most `size`."""
    return (images[block] for block in blocks_of(len(images), size))


def blocks_of(count: int, size: int = _TOGETHER) -> list[slice]:
    """Return the consecutive blocks of at most `size` that `count` images are divided into.

    >>> blocks_of(5, 3)
    [slice(0, 3, None), slice(3, 5, None)]
    """
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
