"""Scenes: images with their classes, decoded on demand."""

import hashlib
import json
import os
import unicodedata
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from geodistill.errors import SceneError
from geodistill.scenes.images import bands_to_square
from geodistill.scenes.packed import joined, joined_sources, packed, packed_sources, taken
from geodistill.scenes.readers import Info
from geodistill.scenes.reading import MOST_BANDS, PLAIN, Reading


class Drawn(Protocol):
    """Makes an image when it is asked for."""

    def image(self) -> Image.Image | NDArray[np.uint8]:
        """Return the image, RGB, or all its channels as uint8 [h, w, channels]."""


Source: TypeAlias = Path | NDArray[np.uint8] | Drawn
Indices: TypeAlias = Sequence[int] | torch.Tensor
# The single class of unlabelled images.
UNLABELLED = ("unlabelled",)
# Decoding releases the interpreter lock; more threads than this gain little.
WORKERS = min(4, os.cpu_count() or 1)
# Why a scene counts as a part of two parts of the data.
FILE, PICTURE, GROUND = "the same file", "the same picture", "the same ground"
# Keys that are text together, and images that are asked for together.
_TOGETHER = 4096


class Scenes:
    """N labelled images of C classes.

    `classes`: names, sorted. `labels`: int64 [N]. `keys`: the sha256 of each image's content; every split depends on
    it. `names`: "class/file", used in messages only, never to open files. `reading`: how files become images; arrays
    are images already. Names, keys and paths are kept packed: a scene takes about 200 bytes.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        labels: Sequence[int] | torch.Tensor,
        classes: Sequence[str],
        keys: Sequence[str],
        names: Sequence[str],
        reading: Reading = PLAIN,
    ) -> None:
        self._sources = packed_sources(sources)
        self.labels = torch.as_tensor(labels, dtype=torch.int64).reshape(-1)
        self.classes, self.keys, self.names = tuple(classes), packed(keys), packed(names)
        self.reading = reading
        check_classes(self.classes)
        self._check_lengths()

    def _check_lengths(self) -> None:
        if not len(self._sources) == len(self.labels) == len(self.keys) == len(self.names):
            raise SceneError(
                f"{len(self._sources)} images but {len(self.labels)} labels: give one label for each image"
            )
        if len(self) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            raise SceneError(
                f"labels go from {int(self.labels.min())} to {int(self.labels.max())}, "
                f"but {len(self.classes)} classes allow 0 to {len(self.classes) - 1}"
            )

    def __len__(self) -> int:
        return len(self._sources)

    @property
    def sources(self) -> Sequence[Source]:
        """Return what each scene is made from: a file, an array uint8 [h, w, 3], or an object with a method `image`."""
        return self._sources

    def __repr__(self) -> str:
        return f"Scenes({len(self)} images, {len(self.classes)} classes)"

    @property
    def channels(self) -> int:
        """Return the number of channels of the images: 3 for RGB."""
        first = self._sources[0] if self._sources else None
        return first.shape[2] if isinstance(first, np.ndarray) else self.reading.channels

    def pixels(self, indices: Indices | None = None, *, size: int) -> torch.Tensor:
        """Return uint8 [n, channels, size, size]: the central squares, resized, of all images or those at `indices`.

        The channels are red, green and blue, and all others if the scenes have more.
        Raises SceneError if a file is gone or has become unreadable since the folder was opened.
        """
        chosen = range(len(self)) if indices is None else _as_list(indices)
        pixels = torch.empty(len(chosen), self.channels, size, size, dtype=torch.uint8)
        with ThreadPoolExecutor(WORKERS) as pool:
            for start in range(0, len(chosen), _TOGETHER):
                part = chosen[start : start + _TOGETHER]
                for k, image in enumerate(pool.map(lambda i: bands_to_square(self._image(i), size), part)):
                    pixels[start + k] = image
        return pixels

    def _image(self, index: int) -> NDArray[np.uint8]:
        """Return uint8 [channels, h, w]."""
        source = self._sources[index]
        if isinstance(source, Path):
            return self.reading.pixels(source)
        pixels = source if isinstance(source, np.ndarray) else np.asarray(source.image())
        return pixels.transpose(2, 0, 1)

    def typical_side(self) -> int:
        """Return the median side in pixels of the central squares, over fewer than 128 evenly spaced images."""
        chosen = range(0, len(self), max(1, len(self) // 64))
        return int(torch.tensor([min(self._image(index).shape[1:]) for index in chosen]).median())

    def subset(self, indices: Indices) -> "Scenes":
        """Return the scenes at `indices`, in that order, with the full list of classes."""
        chosen = torch.as_tensor(indices, dtype=torch.int64).reshape(-1)
        own = (taken(self._sources, chosen), self.labels[chosen], self.classes)
        return Scenes(*own, self.keys.take(chosen), self.names.take(chosen), self.reading)

    def followed_by(self, others: "Scenes") -> "Scenes":
        """Return these scenes followed by others of the same classes, which are read in the same way."""
        sources = joined_sources([self._sources, others._sources])
        labels, keys = torch.cat([self.labels, others.labels]), joined([self.keys, others.keys])
        return Scenes(sources, labels, self.classes, keys, joined([self.names, others.names]), self.reading)

    def of_classes(self, classes: Sequence[str]) -> "Scenes":
        """Return the scenes of `classes`, sorted names, numbered anew; a class may have no scenes."""
        numbers = torch.tensor([list(classes).index(name) if name in classes else -1 for name in self.classes])
        labels = numbers[self.labels]
        own = self.subset((labels >= 0).nonzero()[:, 0])
        return Scenes(own._sources, labels[labels >= 0], classes, own.keys, own.names, self.reading)

    def read_by(self, reading: Reading) -> "Scenes":
        """Return the same scenes, whose files are read in another way."""
        return Scenes(self._sources, self.labels, self.classes, self.keys, self.names, reading)

    def fingerprint(self) -> str:
        """Return a sha256 over classes, labels, image contents and reading, regardless of file names and folders."""
        digest = hashlib.sha256()
        for part in self._content():
            digest.update(part)
        return digest.hexdigest()

    def _content(self) -> Iterator[bytes]:
        """Yield the JSON that the fingerprint covers: [classes, labels, keys] and any reading."""
        yield f"[{json.dumps(self.classes)}, {json.dumps(self.labels.tolist())}, [".encode()
        for start in range(0, len(self), _TOGETHER):
            part = json.dumps(self.keys[start : start + _TOGETHER])[1:-1]
            yield f"{', ' if start else ''}{part}".encode()
        yield f"]{'' if self.reading == PLAIN else f', {json.dumps(self.reading.settings())}'}]".encode()

    @classmethod
    def from_arrays(
        cls,
        images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8],
        labels: Sequence[int] | torch.Tensor,
        classes: Sequence[str],
    ) -> "Scenes":
        """Build scenes from uint8 arrays: [N, H, W, channels], or a list of [H, W, channels] of any sizes.

        Three channels are red, green and blue. With 2 or 4 to 16, the first three are shown as these.
        """
        arrays = [_checked_array(image, k) for k, image in enumerate(images)]
        counts = sorted({array.shape[2] for array in arrays})
        if len(counts) > 1:
            raise SceneError(f"images have {counts[0]} to {counts[-1]} channels: give one number")
        keys = [hashlib.sha256(array.tobytes()).hexdigest() for array in arrays]
        return cls(arrays, labels, classes, keys, [f"image {k}" for k in range(len(arrays))])


@dataclass(frozen=True)
class SceneFile:
    """A file of a data folder, and what its verification found.

    label: number of its class. name: "class/file", for messages. key: the sha256 of its content. info: what it holds.
    missing: the share of its pixels that are no measurement. masked: whether its transparency band, if it has one, is a
    mask. look: what its picture is known by (`looks.look_of`).
    """

    path: Path
    label: int
    name: str
    key: str = ""
    info: Info | None = None
    missing: float = 0.0
    masked: bool = True
    look: bytes = b""


@dataclass(frozen=True)
class Leak:
    """A scene of one part that is also in another.

    scene, other: "part/class/file". why: FILE, PICTURE (compressed again, resized, turned or mirrored) or GROUND
    (georeferenced scenes that overlap). share: of the smaller scene that both show for GROUND; the cosine of the looks
    for PICTURE; 1 for FILE.
    """

    scene: str
    other: str
    why: str
    share: float

    def __str__(self) -> str:
        amount = f", {self.share:.0%} of it" if self.why == GROUND else ""
        return f"{self.scene} and {self.other} ({self.why}{amount})"


@dataclass(frozen=True)
class SceneData:
    """The scenes of a data folder.

    skipped: the unreadable files, each as "path: reason". files: all others; empty for scenes that are no files. val: a
    validation part, on which choices can be made; methods never see it. leaks: the test and validation scenes that are
    also in another part. tested_part: which part of the data `test` is, "test" or "val".
    """

    train: Scenes
    test: Scenes | None
    skipped: tuple[str, ...] = ()
    files: Sequence[SceneFile] = ()
    val: Scenes | None = None
    leaks: tuple[Leak, ...] = ()
    tested_part: str = "test"

    def read_by(self, reading: Reading) -> "SceneData":
        """Return the same scenes, whose files are read in another way."""
        test, val = (None if part is None else part.read_by(reading) for part in (self.test, self.val))
        return replace(self, train=self.train.read_by(reading), test=test, val=val)

    def tested_on(self, part: str) -> "SceneData":
        """Return the data with `part`, "test" or "val", as what classifiers are tested on.

        Raises:
            SceneError: there is no validation part, or `part` is neither.
        """
        if part not in ("test", "val"):
            raise SceneError(f"there is no part {part!r} to test on: give test or val")
        if part == "val" and self.val is None:
            raise SceneError("the data has no validation part: add val/<class>/<image>, or a list of it")
        return self if part == "test" else replace(self, test=self.val, tested_part="val")


def check_classes(classes: Sequence[str]) -> None:
    """Raise SceneError unless there are classes, safely named and sorted, or only UNLABELLED."""
    if tuple(classes) == UNLABELLED:
        return
    for name in classes:
        check_class_name(name)
    if not classes:
        raise SceneError("no classes given: name at least one")
    if list(classes) != sorted(set(classes)):
        raise SceneError("classes must be sorted by name and all different: sort them and renumber the labels")


def check_class_name(name: str) -> None:
    """Raise SceneError unless `name` is safe as a folder name: class names become folders of the result."""
    if not name.strip() or name.startswith("."):
        raise SceneError(f"class name {name!r} is empty or starts with a dot: rename the class")
    # Cc, Cs: control characters and undecodable bytes; Zl, Zp: Unicode line and paragraph separators.
    if any(c in "/\\" or unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"} for c in name):
        raise SceneError(f"class name {name!r} has a slash, backslash or control character: rename the class")
    unfit = unfit_for_windows(name)
    if unfit and os.name == "nt":
        raise SceneError(f"class name {name!r} {unfit}, so Windows has no folder for it: rename the class")


# Names that no folder can have on Windows, with or without an extension.
_DEVICES = frozenset({"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10))})


def unfit_for_windows(name: str) -> str:
    """Return why a folder on Windows cannot have this name, "" if it can.

    >>> unfit_for_windows("aux.d"), unfit_for_windows("a:b"), unfit_for_windows("Beach")
    ('is the name of a device', "has a ':'", '')
    """
    if name.split(".")[0].strip().upper() in _DEVICES:
        return "is the name of a device"
    wrong = next((c for c in name if c in '<>:"|?*'), "")
    if wrong:
        return f"has a {wrong!r}"
    return "ends with a dot or a space" if name[-1:] in (".", " ") else ""


def _as_list(indices: Indices) -> list[int]:
    return [int(i) for i in indices]


def _checked_array(image: NDArray[np.uint8], index: int) -> NDArray[np.uint8]:
    array = np.ascontiguousarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or not 2 <= array.shape[2] <= MOST_BANDS:
        raise SceneError(
            f"image {index} is {array.dtype} of shape {list(array.shape)}: give uint8 of shape [H, W, 3], 0 to 255, or "
            f"another number of channels from 2 to {MOST_BANDS}"
        )
    return array
