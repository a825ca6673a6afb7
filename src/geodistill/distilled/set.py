"""The distilled set: a few synthetic images per class, and the folder that contains them.

The folder is a plain image folder, `<class>/<class-slug>_<k>.png`, which `datasets.load_dataset("imagefolder", ...)`
and torchvision's `ImageFolder` read directly. Images with all bands are GeoTIFFs, and `preview.png` shows them. Beside
the class folders are README.md (data card), class_map.txt, manifest.json and croissant.json. No file names a source
file, and the same set always gives the same bytes.
"""

import hashlib
import json
import logging
import re
import shutil
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from geodistill.distilled.about import follows_scenes, kind_of
from geodistill.distilled.card import data_card
from geodistill.distilled.croissant import croissant
from geodistill.distilled.folder import CLASS_MAP, FILES, MANIFEST, PREVIEW, list_plain, strays, told_strays
from geodistill.distilled.placing import check_target, complete, flush, ready
from geodistill.errors import DistilledSetError, SceneError
from geodistill.provenance import Kind
from geodistill.run import explain_os_errors
from geodistill.scenes.images import bands_to_square
from geodistill.scenes.readers import reader_of
from geodistill.scenes.reading import MOST_BANDS, PLAIN, Reading
from geodistill.scenes.scenes import check_class_name, unfit_for_windows
from geodistill.scenes.sheet import draw_sheet
from geodistill.scenes.views import as_rgb

log = logging.getLogger("geodistill")

_FORMAT = 1
# Keys allowed in an image's record. The list is fixed, so that no file name of a real image gets into shared files.
RECORD_KEYS = frozenset({"seed", "scores", "description", "prototype", "candidate", "soft_label"})
# Keys that say where an image was drawn from: with them, anyone can redraw it from any scene and see which scene fits.
_ORIGIN = frozenset({"seed", "prototype", "candidate"})


@dataclass
class DistilledSet:
    """Images that represent a data set.

    `images`: uint8 [n, C, s, s]: RGB, or 2 to 16 channels that begin with these. `labels`: int64 [n]. `classes`:
    sorted names. `records`: one dict per image with keys from RECORD_KEYS. `about`: method, real_pixels (true if the
    images are unchanged real ones), derived (true if they are changed real ones), config, versions, base (name,
    archives and terms, if known), reading (how files became images, if they were not plain 8-bit images), guarantee (of
    privacy, if any), screened (true if the set was screened); all of it representable in JSON.
    Raises DistilledSetError if these do not fit together.
    """

    images: torch.Tensor
    labels: torch.Tensor
    classes: tuple[str, ...]
    records: tuple[dict[str, Any], ...] = ()
    about: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.labels = self.labels.to(torch.int64)
        self.classes = tuple(self.classes)
        self.records = tuple(self.records) or tuple({} for _ in range(len(self.labels)))
        _check_images(self.images)
        _check_labels(self.labels, len(self.images), self.classes)
        _check_records(self.records, len(self.images))

    def __len__(self) -> int:
        return len(self.images)

    @property
    def size(self) -> int:
        """Return the side of the images in pixels."""
        return int(self.images.shape[-1])

    @property
    def ipc(self) -> int:
        """Return the number of images in the smallest class."""
        return int(torch.bincount(self.labels, minlength=len(self.classes)).min())

    @property
    def kind(self) -> Kind:
        """Return what the images are: real ones, ones derived from them, or synthetic ones."""
        return kind_of(self.about)

    @property
    def replayable(self) -> bool:
        """Return whether the set contains seeds of its images, with which an outsider could identify their sources.

        Real and derived images were not sampled. In a differentially private set seeds do no harm: no image has a
        source.
        """
        if self.kind != "synthetic" or self.about.get("guarantee"):
            return False
        return "seed" in self.about.get("config", {}) or any(_ORIGIN & record.keys() for record in self.records)

    @property
    def follows_scenes(self) -> bool:
        """Return whether images were sampled from latents of training images, with no noise that hides which ones.

        Methods that follow no training image state so in the set's settings (`sampling.follow`).
        """
        return follows_scenes(self.about)

    @property
    def suffix(self) -> str:
        """Return the suffix of the image files: ".png", or ".tif" for images with all bands."""
        units = self.reading is not None and self.reading.dtype
        return ".tif" if units or self.images.shape[1] != 3 else ".png"

    @property
    def bands(self) -> Reading:
        """Return how the GeoTIFFs of images with all bands are written."""
        plain = Reading(tuple(range(1, self.images.shape[1] + 1)), dtype="uint8")
        return self.reading if self.reading is not None and self.reading.dtype else plain

    @property
    def reading(self) -> Reading | None:
        """Return how the files of the source scenes became images; None if the set does not say."""
        found = self.about.get("reading")
        return None if found is None else Reading.from_dict(found)

    def content_hash(self) -> str:
        """Return a SHA-256 over images and labels; class names and other metadata do not count."""
        digest = hashlib.sha256(json.dumps([list(self.images.shape), self.labels.tolist()]).encode())
        digest.update(self.images.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def save(self, folder: Path | str) -> Path:
        """Write the set to `folder`, completely or not at all, and return the path; an earlier set there is replaced.

        Raises DistilledSetError if `folder` contains something else, RunError if it cannot be written.
        """
        target = Path(folder).absolute()
        complete(target)
        check_target(target)
        aside = target.with_name(f".{target.name}.partial")
        with explain_os_errors(target):
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            self.write(aside)
            flush(aside)
            # From here on a process that is killed leaves a complete set, which the next one puts in its place.
            aside.rename(ready(target))
            complete(target)
        return target

    def write(self, folder: Path) -> None:
        """Write the set's files into the existing `folder`; `save` or a run's stage makes this atomic."""
        entries = []
        for (path, label), image, record in zip(self._paths(), self.images, self.records, strict=True):
            (folder / path).parent.mkdir(exist_ok=True)
            self.write_image(image, folder / path)
            entries.append({"file": path, "class": self.classes[label], "label": label, **record})
        manifest = {"format": _FORMAT, "classes": self.classes, "size": self.size, "about": self.about}
        text = json.dumps({**manifest, "images": entries}, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        (folder / MANIFEST).write_text(text, encoding="utf-8", newline="\n")
        (folder / "README.md").write_text(data_card(self), encoding="utf-8", newline="\n")
        metadata = croissant(text, len(self), len(self.classes), self.suffix)
        described = json.dumps(metadata, indent=2, ensure_ascii=False) + "\n"
        (folder / "croissant.json").write_text(described, encoding="utf-8", newline="\n")
        class_map = "".join(f"{name}\n" for name in self.classes)
        (folder / CLASS_MAP).write_text(class_map, encoding="utf-8", newline="\n")
        if self.suffix == ".tif":
            draw_sheet(as_rgb(self.images), self.labels, self.classes).save(folder / PREVIEW)
        _warn_of_names(self.classes)

    def write_image(self, image: torch.Tensor, path: Path) -> None:
        """Write `image`, uint8 [C, s, s], to `path` as an image of this set."""
        if self.suffix == ".tif":
            self.bands.write(path, image.numpy())
        else:
            Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(path)  # [3, s, s] -> [s, s, 3]

    def _paths(self) -> list[tuple[str, int]]:
        """Return ("class/slug_k.png", label) of each image, where k counts within its class."""
        counts, paths = [0] * len(self.classes), []
        for label in self.labels.tolist():
            paths.append(
                (f"{self.classes[label]}/{_slug(self.classes[label])}_{counts[label]:03d}{self.suffix}", label)
            )
            counts[label] += 1
        return paths

    @classmethod
    def load(cls, folder: Path | str, *, size: int | None = None, reading: Reading = PLAIN) -> "DistilledSet":
        """Read a set from `folder`: one that `save` wrote, or any plain image folder `<class>/<image>`.

        Images are cropped to their central square; with `size` all are resized to it, otherwise they must have one
        size. `reading` says how files of a plain folder become images. Raises DistilledSetError if the folder is
        neither.
        """
        # A set that waits to be put in place is read where it is: moving it could collide with a process that saves.
        waiting = ready(Path(folder).absolute())
        root = waiting if waiting.is_dir() else Path(folder)
        if not root.is_dir():
            raise DistilledSetError(f"{root}: {'not a folder' if root.exists() else 'no such folder'}")
        if (root / MANIFEST).is_file():
            found = _load_own(root, size)
        else:
            classes, files = list_plain(root)
            images = _read_images([path for path, _ in files], size, root, reading)
            found = cls(images, torch.tensor([label for _, label in files]), classes, (), {"method": "unknown"})
        if other := strays(root):
            log.warning("%s holds %s: not used", root, told_strays(other))
        return found


def _check_images(images: torch.Tensor) -> None:
    shape = list(images.shape)
    right = images.dtype == torch.uint8 and images.ndim == 4 and 2 <= shape[1] <= MOST_BANDS
    if not right or shape[2] != shape[3] or not len(images):
        raise DistilledSetError(
            f"images are {images.dtype} of shape {shape}: give uint8 RGB [n, 3, s, s] with n >= 1, or 2 to "
            f"{MOST_BANDS} channels"
        )


def _check_labels(labels: torch.Tensor, count: int, classes: tuple[str, ...]) -> None:
    if labels.shape != (count,):
        raise DistilledSetError(f"{count} images but labels of shape {list(labels.shape)}: give one for each image")
    if len(classes) < 2 or list(classes) != sorted(set(classes)):
        raise DistilledSetError(f"classes {list(classes)}: give at least 2 different names, sorted")
    for name in classes:
        _check_name(name)
    if int(labels.min()) < 0 or int(labels.max()) >= len(classes):
        raise DistilledSetError(f"labels must lie between 0 and {len(classes) - 1}, one for each class")
    empty = [name for label, name in enumerate(classes) if label not in set(labels.tolist())]
    if empty:
        raise DistilledSetError(f"class {empty[0]!r} has no image: every class of a distilled set needs one")


def _check_name(name: str) -> None:
    try:
        check_class_name(name)
    except SceneError as error:
        raise DistilledSetError(str(error)) from error
    if name.casefold() in FILES:
        raise DistilledSetError(f"class name {name!r} is that of a file of the distilled set: rename the class")


def _check_records(records: tuple[dict[str, Any], ...], count: int) -> None:
    if len(records) != count:
        raise DistilledSetError(f"{count} images but {len(records)} records: give one for each image")
    unknown = sorted({key for record in records for key in record} - RECORD_KEYS)
    if unknown:
        raise DistilledSetError(
            f"record key {unknown[0]!r} is not among those shared: {', '.join(sorted(RECORD_KEYS))}"
        )


def _warn_of_names(classes: tuple[str, ...]) -> None:
    for name, unfit in ((name, unfit_for_windows(name)) for name in classes):
        if unfit:
            log.warning("class name %r %s: the set cannot be unpacked on Windows", name, unfit)
    # `datasets` takes "train_station" for a part of a train split and then drops all other classes. The card's own
    # list of files, which load_dataset(FOLDER) reads, prevents that.
    words = re.compile(r"(^|[ ._-])(train|training|test|testing|eval|evaluation|val|valid|validation|dev)($|[ ._-])")
    for name in filter(words.search, classes):
        log.warning("class %r reads like a split: load the set by datasets.load_dataset(FOLDER), not by data_dir", name)


def _slug(name: str) -> str:
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", ascii_name.lower()).strip("-") or "image"


def _load_own(root: Path, size: int | None) -> DistilledSet:
    try:
        manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
        entries, classes, about = manifest["images"], tuple(manifest["classes"]), dict(manifest["about"])
        files = [_inside(root, entry["file"]) for entry in entries]
        labels = torch.tensor([entry["label"] for entry in entries], dtype=torch.int64)
        records = tuple({key: entry[key] for key in entry if key in RECORD_KEYS} for entry in entries)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DistilledSetError(f"{root / MANIFEST}: not the manifest of a distilled set ({error!r})") from error
    reading = Reading.from_dict(about["reading"]) if about.get("reading") else PLAIN
    if reading.dtype:
        reading = reading.of_written()
    elif files and files[0].suffix == ".tif":
        reading = Reading(tuple(range(1, reader_of(files[0]).info(files[0]).bands + 1)), dtype="uint8")
    else:
        reading = PLAIN
    return DistilledSet(_read_images(files, size, root, reading), labels, classes, records, about)


def _inside(root: Path, name: str) -> Path:
    """Return root/name; raise DistilledSetError if it lies outside `root`."""
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        raise DistilledSetError(f"{root / MANIFEST}: file {name!r} lies outside the folder")
    return path


def _read_images(paths: list[Path], size: int | None, root: Path, reading: Reading = PLAIN) -> torch.Tensor:
    """Return uint8 [n, channels, s, s] of the central squares."""
    images = [_read_square(path, size, reading) for path in paths]
    sizes = sorted({image.shape[-1] for image in images})
    if len(sizes) > 1:
        raise DistilledSetError(f"{root}: images of {len(sizes)} sizes ({sizes[0]} to {sizes[-1]} px): give one size")
    if not images:
        raise DistilledSetError(f"{root}: no images in it: expected <class>/<image>")
    return torch.stack(images)


def _read_square(path: Path, size: int | None, reading: Reading) -> torch.Tensor:
    try:
        pixels = reading.pixels(path)
    except SceneError as error:
        raise DistilledSetError(str(error)) from error
    height, width = pixels.shape[1:]
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    return bands_to_square(pixels[:, top : top + side, left : left + side], size or side)
