"""Data sets in Python as scenes: those of Hugging Face `datasets`, torchvision and torchgeo, and any like them.

Nothing of these libraries is imported: what counts is what a data set offers (duck typing).
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from geodistill.errors import SceneError
from geodistill.progress import progress
from geodistill.scenes.folder import LEAST_SIDE, SHOW_PROGRESS_FROM, TEST_FRACTION, parted, tell_of_unreadable
from geodistill.scenes.images import decode_image, is_deep, to_rgb
from geodistill.scenes.leaks import find_leaks, tell_of_leaks
from geodistill.scenes.looks import look_of
from geodistill.scenes.readers import Values
from geodistill.scenes.reading import (
    MOST_BANDS,
    NOTHING,
    PLAIN,
    Reading,
    parsed_scale,
    scale_of,
    some_files,
    some_pixels,
)
from geodistill.scenes.scenes import SceneData, SceneFile, Scenes
from geodistill.scenes.splits import PARTS, hold_out

# Keys of items, where the data set does not say which are its image and its class.
_IMAGES, _LABELS = ("image", "img"), ("label", "labels")
_EVERY, _MEASURED = "all", "auto"
# Types of values that a GeoTIFF can have, for sets that keep all bands.
_WRITTEN = ("uint8", "int16", "uint16", "int32", "uint32", "float32", "float64")
# Items are read one at a time: few data sets say whether threads may share them.
_ONE_AT_A_TIME = Lock()

Parts: TypeAlias = Mapping[str, Any]


def open_dataset(
    dataset: Any,
    *,
    classes: Sequence[str] = (),
    columns: tuple[str, str] | None = None,
    bands: Sequence[int] | str = (),
    scale: str | tuple[float, ...] = "",
    strict: bool = False,
) -> SceneData:
    """Return the items of a data set as scenes; they are read when they are needed, not kept in memory.

    dataset: has a length, and items that are mappings, {"image": …, "label": …}, or pairs (image, label). Or a mapping
    of parts (train, test, val or validation) to data sets, such as a `datasets.DatasetDict`; without one, a fifth of
    the items by a hash of their pixels becomes the test part. Images are PIL images, encoded bytes ({"bytes"}), arrays
    [h, w] or [h, w, bands], or tensors [h, w] or [bands, h, w]. Labels are numbers or names of classes.

    Every item is read once to find unreadable ones now, as `open_scenes` does.

    Args:
        dataset: the data.
        classes: names of the classes by their numbers; by default those of a ClassLabel column, or `dataset.classes`.
        columns: keys of image and label; by default the Image and ClassLabel columns, or image (img), label (labels).
        bands: numbers of one or three bands, counted from 1, of arrays with other numbers of bands. "all", or another
            number of them from 2 to 16, keeps all of these; the first three are shown as red, green and blue.
        scale: "LOW,HIGH" or (low, high), values that become black and white, or a pair for each band; "auto" for
            percentiles of the values of the part train, or of all items if there are no parts. Only uint8 needs none.
        strict: raise an error if a scene is in two parts.

    Raises:
        SceneError: `dataset` is not like that; its items are not the same each time they are read, have no class, or
            are of a type that needs `scale` or `bands`; more than 5 % are unreadable; or the errors of `open_scenes`.

    >>> red, blue = (np.full((16, 16, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))
    >>> data = open_dataset({"train": [(red, 1), (blue, 0)], "test": [(red, 1)]}, classes=["blue", "red"])
    >>> data.train.classes, data.train.labels.tolist(), data.test.pixels(size=1).flatten().tolist()
    (('blue', 'red'), [1, 0], [255, 0, 0])
    """
    given = _parts(dataset)
    first = next(iter(given.values()))
    names = tuple(classes) or _classes_of(first, columns)
    ends = scale if isinstance(scale, str) else ",".join(map(str, scale))
    form = _Form(columns or _columns_of(first), names, (), "" if ends == _MEASURED else ends)
    form = _with_bands(form, bands, first)
    if ends == _MEASURED:
        form = replace(form, scale=_measured(first, form))
    reading = form.reading(first, measured=ends == _MEASURED)
    if len(set(names)) != len(names):
        raise SceneError("two classes have the same name: give classes=, all different")
    forms = {part: form if classes else _form_of(part, own, form, columns) for part, own in given.items()}
    found = {part: list(_read(part, own, forms[part])) for part, own in given.items()}
    every = [one for some in found.values() for one in some]
    skipped = tuple(one for one in every if isinstance(one, str))
    tell_of_unreadable("the data set", skipped, len(every))
    files = {part: [one for one in some if not isinstance(one, str)] for part, some in found.items()}
    data = _data({part: _scenes(some, form.classes, reading) for part, some in files.items()})
    data = replace(data, skipped=skipped, leaks=find_leaks(_in_parts(data, files)))
    tell_of_leaks(data.leaks, strict=strict)
    return data


@dataclass(frozen=True)
class _Form:
    """What the items are like: keys of image and label, names of the classes by number, bands and scale.

    whole: whether the bands are all kept, not shown as RGB.
    """

    columns: tuple[str, str]
    names: tuple[str, ...]
    bands: tuple[int, ...]
    scale: str
    whole: bool = False

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the names of the classes, sorted, as scenes have them."""
        return tuple(sorted(self.names))

    def split(self, item: Any) -> tuple[Any, Any]:
        """Return image and label of an item."""
        if isinstance(item, Mapping):
            missing = [name for name in self.columns if name not in item]
            if missing:
                raise SceneError(f"an item has no {missing[0]!r}, but {', '.join(map(str, item))}: give columns=")
            return item[self.columns[0]], item[self.columns[1]]
        if isinstance(item, Sequence) and len(item) >= 2:
            return item[0], item[1]
        raise SceneError(f"an item is of type {type(item).__name__}: expected a mapping or (image, label)")

    def label(self, label: Any) -> int:
        """Return the number of a class among `classes`."""
        if isinstance(label, str) and label in self.names:
            return self.classes.index(label)
        number = int(label) if not isinstance(label, str) else -1
        if not 0 <= number < len(self.names):
            raise SceneError(
                f"an item has the class {label!r}, known are 0 to {len(self.names) - 1}: give classes=, or filter "
                "these items out"
            )
        return self.classes.index(self.names[number])

    def image(self, image: Any) -> NDArray[np.uint8]:
        """Return an item's image as uint8 [h, w, channels]: RGB, or all bands."""
        image = _opened(image)
        values = self.values(image)
        return values.transpose(1, 2, 0) if _is_picture(image) and not self.whole else self._pixels(values)

    def values(self, image: Any) -> NDArray[Any]:
        """Return the values of the bands of an item's image, [bands, h, w]; an 8-bit picture is RGB."""
        image = _opened(image)
        if _is_picture(image):
            bands = np.asarray(to_rgb(image)).transpose(2, 0, 1)
            if not self.whole:
                return bands
        else:
            bands = _bands(image)
        if self.bands:
            if not all(1 <= band <= len(bands) for band in self.bands):
                raise SceneError(f"an image has {len(bands)} bands, bands= names {', '.join(map(str, self.bands))}")
            bands = bands[[band - 1 for band in self.bands]]
        if len(bands) not in (1, 3) and not self.whole:
            raise SceneError(
                f'an image has {len(bands)} bands: give bands=, one (grey), three (red, green, blue) or "all"'
            )
        return bands

    def first(self, dataset: Any) -> NDArray[Any]:
        """Return the values of the first item that can be read; raise SceneError if none can."""
        why = ""
        for index in range(len(dataset)):
            try:
                return self.values(self.split(dataset[index])[0])
            except SceneError as error:
                raise SceneError(f"item {index}: {error}") from error
            except Exception as error:  # a data set may raise anything
                why = why or f"item {index} cannot be read ({error or type(error).__name__})"
        raise SceneError(why)

    def reading(self, dataset: Any, *, measured: bool) -> Reading:
        """Return how values became images: for all bands, their type, range and names; else images are as they are."""
        if not self.whole:
            return PLAIN
        values = self.first(dataset)
        if str(values.dtype) not in _WRITTEN:
            raise SceneError(f"values of type {values.dtype} cannot be kept, only {', '.join(_WRITTEN)}: convert them")
        scale = parsed_scale(self.scale, len(values)) if self.scale else ()
        names = tuple(f"band {band}" for band in self.bands)
        return Reading(self.bands, scale, measured=measured, dtype=str(values.dtype), names=names)

    def _pixels(self, bands: NDArray[Any]) -> NDArray[np.uint8]:
        """Return uint8 [h, w, channels] from values [bands, h, w]."""
        if self.scale:
            valid = np.isfinite(bands).all(axis=0)
            if not valid.any():
                # One such image is left out, as a file without a measurement is.
                raise ValueError(NOTHING)
            kept = str(bands.dtype) if self.whole else ""
            reading = Reading(self.bands, parsed_scale(self.scale, len(bands)), dtype=kept)
            bands = reading.of_values(Values(bands, valid), Path("an image"))
        if bands.dtype != np.uint8:
            raise SceneError(
                f'an image is of type {bands.dtype}, {bands.min():g} to {bands.max():g}: give scale="LOW,HIGH", the '
                "values that become black and white, such as 0,1 or 0,255"
            )
        channels = len(bands) if self.whole else 3
        return np.broadcast_to(bands.transpose(1, 2, 0), (*bands.shape[1:], channels)).copy()


def _opened(image: Any) -> Any:
    """Return an item's image, decoded if it is {"bytes": …}."""
    encoded = isinstance(image, Mapping) and isinstance(image.get("bytes"), bytes)
    return _decoded(image["bytes"]) if encoded else image


def _is_picture(image: Any) -> bool:
    return isinstance(image, Image.Image) and not is_deep(image)


def _decoded(content: bytes) -> Image.Image:
    try:
        return decode_image(content, "its image")
    except SceneError as error:
        # One damaged image is left out, as a damaged file is.
        raise ValueError(str(error)) from error


def _bands(image: Any) -> NDArray[Any]:
    """Return values [bands, h, w] of a tensor [bands, h, w], an array [h, w, bands], or either as [h, w]."""
    if isinstance(image, torch.Tensor):
        values = image.detach().cpu().numpy()
        values = values[None] if values.ndim == 2 else values
    else:
        values = np.asarray(image)
        values = values[None] if values.ndim == 2 else values.transpose(2, 0, 1) if values.ndim == 3 else values
    if values.ndim != 3 or values.dtype.kind not in "buif":
        raise SceneError(f"an image is {type(image).__name__} of shape {list(np.shape(image))}: expected an image")
    return values


@dataclass(frozen=True, eq=False)
class Item:
    """An item of a data set as the source of a scene."""

    dataset: Any
    index: int
    form: _Form

    def read(self) -> tuple[NDArray[np.uint8], int]:
        """Return the image, uint8 [h, w, channels], and the number of its class."""
        with _ONE_AT_A_TIME:
            image, label = self.form.split(self.dataset[self.index])
            return self.form.image(image), self.form.label(label)

    def image(self) -> NDArray[np.uint8]:
        """Return the image, uint8 [h, w, channels]."""
        return self.read()[0]


@dataclass(frozen=True)
class _Read(SceneFile):
    """What is known of an item after it was read, with the item itself; its path is none of a file."""

    item: Item | None = None


def _parts(dataset: Any) -> Parts:
    """Return the data sets by part; {"": dataset} if it has none."""
    if not isinstance(dataset, Mapping):
        _check_length("the data set", dataset)
        return {"": dataset}
    unknown = [name for name in dataset if str(name).lower() not in PARTS]
    if unknown or not dataset:
        raise SceneError(f"{', '.join(map(repr, unknown)) or 'an empty mapping'}: the parts are train, test and val")
    given = {PARTS[str(name).lower()]: own for name, own in dataset.items()}
    if "train" not in given:
        raise SceneError(f"no part train, only {', '.join(map(str, dataset))}: add one")
    for name, own in given.items():
        _check_length(f"the part {name}", own)
    return {name: given[name] for name in ("train", "test", "val") if name in given}


def _check_length(what: str, dataset: Any) -> None:
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise SceneError(f"{what} is {type(dataset).__name__}, without a length or items by number: do not stream it")
    if not len(dataset):
        raise SceneError(f"{what} has no items")


def _features(dataset: Any, kind: str) -> list[tuple[str, Any]]:
    """Return the columns of a data set of `datasets` whose feature is of a kind, "Image" or "ClassLabel"."""
    features = getattr(dataset, "features", None)
    items = features.items() if isinstance(features, Mapping) else ()
    return [(name, one) for name, one in items if type(one).__name__ == kind]


def _columns_of(dataset: Any) -> tuple[str, str]:
    try:
        first = dataset[0]
    except Exception as error:  # a data set may raise anything
        raise SceneError(f"item 0 cannot be read ({error or type(error).__name__})") from error
    keys = list(first) if isinstance(first, Mapping) else []
    image = [name for name, _ in _features(dataset, "Image")] or [name for name in _IMAGES if name in keys]
    label = [name for name, _ in _features(dataset, "ClassLabel")] or [name for name in _LABELS if name in keys]
    if keys and not (image and label):
        raise SceneError(f"items have {', '.join(map(str, keys))}: give columns=, the keys of image and label")
    return (image[0], label[0]) if keys else ("", "")


def _with_bands(form: _Form, bands: Sequence[int] | str, dataset: Any) -> _Form:
    """Return `form` with the numbers of the bands that `bands` asks for, by the first item where these are all."""
    if isinstance(bands, str):
        if bands != _EVERY:
            raise SceneError(f"bands={bands!r}: give numbers of bands, or {_EVERY!r}")
        numbers = tuple(range(1, len(replace(form, whole=True).first(dataset)) + 1))
    else:
        numbers = tuple(int(band) for band in bands)
    whole = bands == _EVERY if isinstance(bands, str) else len(numbers) not in (0, 1, 3)
    if whole and not 2 <= len(numbers) <= MOST_BANDS:
        raise SceneError(f"an image of {len(numbers)} bands cannot keep them all, only 2 to {MOST_BANDS}: name some")
    return replace(form, bands=numbers, whole=whole)


def _measured(dataset: Any, form: _Form) -> str:
    """Return the percentiles of the values of some of the items as scale, a pair for each band."""
    found = []
    for index in some_files(range(len(dataset))):
        try:
            values = form.values(form.split(dataset[index])[0])
        except SceneError:
            raise
        except Exception:  # told of when all items are read
            continue
        if values.dtype == np.uint8:
            return ""
        found.append(some_pixels(values[:, np.isfinite(values).all(axis=0)]))
    if not sum(one.shape[1] for one in found):
        raise SceneError(f"{NOTHING}: give scale=")
    ends = scale_of(np.concatenate(found, axis=1))
    return ",".join(f"{low:.17g},{high:.17g}" for low, high in ends)


def _classes_of(dataset: Any, columns: tuple[str, str] | None) -> tuple[str, ...]:
    labels = [one.names for name, one in _features(dataset, "ClassLabel") if columns is None or name == columns[1]]
    names = labels[0] if labels else getattr(dataset, "classes", None)
    if not names:
        raise SceneError("the data set does not name its classes: give classes=, their names by number")
    return tuple(map(str, names))


def _form_of(part: str, dataset: Any, first: _Form, columns: tuple[str, str] | None) -> _Form:
    """Return `first` with the part's own numbers of the classes; raise SceneError if it has other classes."""
    names = _classes_of(dataset, columns)
    if set(names) != set(first.names):
        odd = min(set(names) ^ set(first.names))
        where = part if odd in names else "another part"
        raise SceneError(f"only {where} has a class {odd!r}: give classes=, the names of all classes by number")
    return replace(first, names=names)


def _read(part: str, dataset: Any, form: _Form) -> Iterator[SceneFile | str]:
    """Yield what is known of each item of a part, or why it cannot be read."""
    items = [Item(dataset, index, form) for index in range(len(dataset))]
    _check_steady(items[0])
    with progress("checking images", len(items), least=SHOW_PROGRESS_FROM) as advance:
        for done, item in enumerate(items, start=1):
            yield _verified(part, item)
            advance(done)


def _verified(part: str, item: Item) -> SceneFile | str:
    where = f"item {item.index}" + (f" of {part}" if part else "")
    try:
        image, label = item.read()
    except SceneError as error:
        # What the items are like is wrong, not one of them.
        raise SceneError(f"{where}: {error}") from error
    except Exception as error:  # a data set may raise anything
        return f"{where}: cannot be read ({next(iter(str(error).splitlines()), '') or type(error).__name__})"
    height, width = image.shape[:2]
    if min(height, width) < LEAST_SIDE:
        return f"{where}: {width} x {height} pixels show no scene"
    look = look_of(image.transpose(2, 0, 1), np.ones((height, width), np.bool_))
    name = f"{item.form.classes[label]}/{item.index}"
    key = hashlib.sha256(image.tobytes()).hexdigest()
    return _Read(Path(part, str(item.index)), label, name, key, look=look, item=item)


def _check_steady(item: Item) -> None:
    """Raise SceneError if the item is another one when it is read again."""
    try:
        first, second = (item.image() for _ in range(2))
    except Exception:  # told of when all items are read
        return
    if not np.array_equal(first, second):
        raise SceneError("the data set gives another image each time it is read: take its random transform off")


def _scenes(files: Sequence[SceneFile], classes: tuple[str, ...], reading: Reading) -> Scenes:
    items = [one.item for one in files if isinstance(one, _Read) and one.item is not None]
    keys, names = [one.key for one in files], [one.name for one in files]
    return Scenes(items, [one.label for one in files], classes, keys, names, reading)


def _data(scenes: Mapping[str, Scenes]) -> SceneData:
    """Return the parts as they are, or a split by content of the only one."""
    if "" in scenes:
        return parted(
            scenes[""], dict(zip(("train", "test"), hold_out(scenes[""], TEST_FRACTION, "test"), strict=True))
        )
    train = scenes["train"]
    missing = set(range(len(train.classes))) - set(train.labels.tolist())
    if missing:
        raise SceneError(f"class {train.classes[min(missing)]!r} has no training image: leave it out of classes=")
    return SceneData(train, scenes.get("test"), val=scenes.get("val"))


def _in_parts(data: SceneData, files: Mapping[str, Sequence[SceneFile]]) -> dict[str, list[SceneFile]]:
    known = {one.item: one for some in files.values() for one in some if isinstance(one, _Read)}
    parts = {"train": data.train, "test": data.test, "val": data.val}
    return {name: [known[source] for source in own.sources] for name, own in parts.items() if own}  # type: ignore[index]
