"""Tensors that stay in their file: only the rows asked for are read into memory."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Types of a safetensors file, as NumPy reads them (https://huggingface.co/docs/safetensors).
_TYPES = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "U8": "|u1", "I64": "<i8"}
# Rows of a tensor that are in memory together.
_TOGETHER = 4096
# Rows at any places in the file that are mapped together. Linux maps 64 kB around each.
_MAPPED = 1024


class Rows:
    """A tensor [N, ...] in a safetensors file. Indexing reads what is asked for, and keeps nothing.

    The file is mapped for each access and unmapped after it, so that the memory of the process does not grow with the
    rows that it has read.

    Args:
        path: the file, which must not change while this is in use.
        name: of the tensor in it.
        column: an index of the second axis; the tensor is then [N, ...] without this axis.
        chosen: int64 [n], rows of the file; the tensor is then [n, ...], these rows in this order.

    Raises:
        ValueError: the tensor has a type that NumPy has not, such as bfloat16.

    >>> import tempfile, torch
    >>> from geodistill.run import save_tensors
    >>> path = Path(tempfile.mkdtemp()) / "kept.safetensors"
    >>> save_tensors({"views": torch.arange(12).view(3, 2, 2)}, path)
    >>> kept = Rows(path, "views")
    >>> kept[1:, 0], kept.column(1)[torch.tensor([2, 0])]
    (tensor([[4, 5],
            [8, 9]]), tensor([[10, 11],
            [ 2,  3]]))
    """

    def __init__(self, path: Path, name: str, column: int | None = None, chosen: Tensor | None = None) -> None:
        self._path, self._name, self._column, self._chosen = path, name, column, chosen
        self._offset, self._whole, kind = _header(path, name)
        if kind not in _TYPES:
            raise ValueError(f"{path}: {name} has type {kind}, which cannot be read row by row")
        self._kind = np.dtype(_TYPES[kind])
        count = self._whole[0] if chosen is None else len(chosen)
        self.shape = torch.Size((count, *self._whole[1 if column is None else 2 :]))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, which: Any) -> Tensor:
        """Return the tensor at `which`: an integer, a slice, a tensor of indices or bool, or several for more axes."""
        axes = which if isinstance(which, tuple) else (which,)
        if self._chosen is not None:
            axes = (self._chosen[axes[0]], *axes[1:])
        key = tuple(_index(axis) for axis in axes)
        if self._column is not None:
            key = (key[0], self._column, *key[1:])
        return torch.from_numpy(self._gathered(key) if np.ndim(key[0]) else self._read(key))

    def _gathered(self, key: tuple[Any, ...]) -> NDArray[Any]:
        """Return the rows at indices `key[0]`, a few at a time: each row brings its neighbours in the file along."""
        count = len(key[0])
        found: NDArray[Any] | None = None
        for start in range(0, count, _MAPPED):
            some = slice(start, start + _MAPPED)
            part = self._read(tuple(axis[some] if np.ndim(axis) else axis for axis in key))
            found = np.empty((count, *part.shape[1:]), self._kind) if found is None else found
            found[some] = part
        return self._read(key) if found is None else found

    def _read(self, key: tuple[Any, ...]) -> NDArray[Any]:
        return np.array(self._mapped()[key])  # a copy, after which nothing refers to the map

    def _mapped(self) -> NDArray[Any]:
        if not self._whole[0]:
            return np.empty(self._whole, self._kind)  # a map cannot be empty
        return np.memmap(self._path, self._kind, "r", self._offset, self._whole)

    def column(self, index: int) -> "Rows":
        """Return the tensor at `index` of the second axis, for all rows."""
        return Rows(self._path, self._name, index, self._chosen)

    def subset(self, chosen: Tensor) -> "Rows":
        """Return the rows `chosen`, int64 [n], in that order."""
        return Rows(self._path, self._name, self._column, chosen if self._chosen is None else self._chosen[chosen])


# A tensor in memory or in a file; both are indexed in the same way.
Stored: TypeAlias = Tensor | Rows


def column(stored: Stored, index: int) -> Stored:
    """Return the tensor [N, ...] at `index` of the second axis of `stored` [N, V, ...]."""
    return stored.column(index) if isinstance(stored, Rows) else stored[:, index]


def subset(stored: Stored, chosen: Tensor) -> Stored:
    """Return the rows `chosen`, int64 [n], of `stored`; those of a file stay there."""
    return stored.subset(chosen) if isinstance(stored, Rows) else stored[chosen]


def in_parts(stored: Stored, size: int = _TOGETHER) -> Iterator[Tensor]:
    """Yield the rows of `stored` in consecutive parts of at most `size`."""
    return (stored[start : start + size] for start in range(0, len(stored), size))


def mean_of(parts: Iterable[Tensor]) -> Tensor:
    """Return the mean over the rows of all `parts`, float [n, ...] with n at least 1, in their type.

    Sums are in float64, so that the mean of many parts is as exact as that of one.

    >>> mean_of([torch.tensor([[1.0], [2.0]]), torch.tensor([[6.0]])])
    tensor([3.])
    """
    total, count, kind = torch.zeros(()).double(), 0, torch.float32
    for part in parts:
        total, count, kind = total + part.mean(dim=0).double() * len(part), count + len(part), part.dtype
    return (total / count).to(kind)


def _index(axis: Any) -> Any:
    """Return `axis` as NumPy takes it, a mask as indices."""
    if not isinstance(axis, Tensor):
        return axis
    return axis.nonzero()[:, 0].numpy() if axis.dtype == torch.bool else axis.numpy()


def _header(path: Path, name: str) -> tuple[int, tuple[int, ...], str]:
    """Return where the numbers of tensor `name` begin in the file, its shape and its type."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        found = json.loads(file.read(length))[name]
    return 8 + length + int(found["data_offsets"][0]), tuple(found["shape"]), str(found["dtype"])
