"""Names, digests and paths of many files in little memory: they become Python objects only when they are asked for.

A million paths take 90 MB and a million SHA-256 digests 32 MB, an eighth of what they take as strings.
"""

import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray

_Item = TypeVar("_Item", covariant=True)
_DIGEST = re.compile("[0-9a-f]{64}")
_DIGEST_BYTES = 32
# Paths may hold bytes that are no text, which Python keeps as surrogates.
_ERRORS = "surrogatepass"
# Digests that become strings together.
_TOGETHER = 4096


class OnDemand(Sequence[_Item]):
    """An immutable sequence whose items are made when they are asked for; slices are tuples."""

    @abstractmethod
    def _at(self, index: int) -> _Item: ...

    @overload
    def __getitem__(self, index: int) -> _Item: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[_Item, ...]: ...
    def __getitem__(self, index: int | slice) -> _Item | tuple[_Item, ...]:
        if isinstance(index, slice):
            return tuple(self._at(k) for k in range(*index.indices(len(self))))
        return self._at(range(len(self))[index])


class Packed(OnDemand[str]):
    """An immutable sequence of strings that equals a tuple of the same strings; slices are tuples."""

    @abstractmethod
    def take(self, indices: torch.Tensor) -> "Packed":
        """Return the strings at `indices`, int64 [n], in that order."""

    @abstractmethod
    def first_equal(self) -> NDArray[np.int64]:
        """Return for each string the index of the first one that is equal, int64 [N]."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Packed | tuple):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __add__(self, other: Iterable[str]) -> tuple[str, ...]:
        return (*self, *other)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} strings)"


class Texts(Packed):
    """Any strings, in one buffer.

    >>> Texts.of(["a", "é", ""]).take(torch.tensor([1, 0]))[:]
    ('é', 'a')
    """

    def __init__(self, buffer: bytes, starts: NDArray[np.int64], stops: NDArray[np.int64]) -> None:
        self._buffer, self._starts, self._stops = buffer, starts, stops

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Texts":
        """Return `texts` packed; they are read once."""
        buffer, stops = bytearray(), [0]
        whole: list[NDArray[np.int64]] = []
        for text in texts:
            buffer += text.encode("utf-8", _ERRORS)
            stops.append(len(buffer))
            if len(stops) > _TOGETHER:
                whole.append(np.array(stops[:-1], np.int64))
                stops = stops[-1:]
        bounds = np.concatenate([*whole, np.array(stops, np.int64)])
        return cls(bytes(buffer), bounds[:-1], bounds[1:])

    @classmethod
    def join(cls, parts: Sequence["Texts"]) -> "Texts":
        """Return the strings of all `parts`, one after the other."""
        sizes = np.cumsum([0, *(len(part._buffer) for part in parts)])
        starts, stops = (
            np.concatenate([np.zeros(0, np.int64), *(own + size for own, size in zip(bounds, sizes, strict=False))])
            for bounds in ([part._starts for part in parts], [part._stops for part in parts])
        )
        return cls(b"".join(part._buffer for part in parts), starts, stops)

    def __len__(self) -> int:
        return len(self._starts)

    def _at(self, index: int) -> str:
        return self._buffer[self._starts[index] : self._stops[index]].decode("utf-8", _ERRORS)

    def take(self, indices: torch.Tensor) -> "Texts":
        """Return the strings at `indices`, int64 [n]; the buffer is shared."""
        chosen = indices.numpy()
        return Texts(self._buffer, self._starts[chosen], self._stops[chosen])

    def first_equal(self) -> NDArray[np.int64]:
        """Return for each string the index of the first one that is equal, int64 [N]."""
        first: dict[str, int] = {}
        return np.fromiter((first.setdefault(text, k) for k, text in enumerate(self)), np.int64, len(self))


class Digests(Packed):
    """SHA-256 digests, which read as 64 hexadecimal digits."""

    def __init__(self, values: NDArray[np.uint8]) -> None:
        self._values = values  # [N, 32]

    @classmethod
    def of(cls, texts: Iterable[str]) -> "Digests":
        """Return `texts` packed, each of 64 digits; they are read once."""
        buffer = bytearray()
        for text in texts:
            buffer += bytes.fromhex(text)
        return cls(np.frombuffer(bytes(buffer), np.uint8).reshape(-1, _DIGEST_BYTES))

    @classmethod
    def join(cls, parts: Sequence["Digests"]) -> "Digests":
        """Return the digests of all `parts`, one after the other."""
        return cls(np.concatenate([part._values for part in parts]))

    def __len__(self) -> int:
        return len(self._values)

    def _at(self, index: int) -> str:
        return str(self._values[index].tobytes().hex())

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _TOGETHER):
            text = self._values[start : start + _TOGETHER].tobytes().hex()
            yield from (text[k : k + 2 * _DIGEST_BYTES] for k in range(0, len(text), 2 * _DIGEST_BYTES))

    def take(self, indices: torch.Tensor) -> "Digests":
        """Return the digests at `indices`, int64 [n]."""
        return Digests(self._values[indices.numpy()])

    def first_equal(self) -> NDArray[np.int64]:
        """Return for each digest the index of the first one that is equal, int64 [N]."""
        whole = np.ascontiguousarray(self._values).view([("", np.uint64)] * 4).ravel()
        _, first, which = np.unique(whole, return_index=True, return_inverse=True)
        return np.asarray(first[which.ravel()], np.int64)


class Paths(OnDemand[Path]):
    """Paths, each made when it is asked for."""

    def __init__(self, texts: Texts) -> None:
        self._texts = texts

    def __len__(self) -> int:
        return len(self._texts)

    def _at(self, index: int) -> Path:
        return Path(self._texts[index])

    def take(self, indices: torch.Tensor) -> "Paths":
        """Return the paths at `indices`, int64 [n]."""
        return Paths(self._texts.take(indices))


def packed(texts: Iterable[str]) -> Packed:
    """Return `texts` as Digests if all are digests, otherwise as Texts."""
    if isinstance(texts, Packed):
        return texts
    known = tuple(texts)
    return Digests.of(known) if all(map(_DIGEST.fullmatch, known)) else Texts.of(known)


def joined(parts: Sequence[Packed]) -> Packed:
    """Return the strings of all `parts`, one after the other."""
    digests = [part for part in parts if isinstance(part, Digests)]
    if digests and len(digests) == len(parts):
        return Digests.join(digests)
    return Texts.of(text for part in parts for text in part)


def packed_sources(sources: Sequence[Any]) -> Paths | tuple[Any, ...]:
    """Return `sources` as Paths if all are paths, otherwise as a tuple."""
    if isinstance(sources, Paths):
        return sources
    known = tuple(sources)
    return Paths(Texts.of(map(str, known))) if known and all(isinstance(one, Path) for one in known) else known


def joined_sources(parts: Sequence[Paths | tuple[Any, ...]]) -> Paths | tuple[Any, ...]:
    """Return the sources of all `parts`, one after the other."""
    if all(isinstance(part, Paths) for part in parts):
        return Paths(Texts.of(str(path) for part in parts for path in part))
    return tuple(source for part in parts for source in part)


def taken(sources: Paths | tuple[Any, ...], indices: torch.Tensor) -> Paths | tuple[Any, ...]:
    """Return the sources at `indices`, int64 [n], in that order."""
    return sources.take(indices) if isinstance(sources, Paths) else tuple(sources[k] for k in indices.tolist())
