"""The distilled set: a few synthetic images per class, and the folder that contains them.

The folder is a plain image folder, `<class>/<class-slug>_<k>.png`, which `datasets.load_dataset("imagefolder", ...)`
and torchvision's `ImageFolder` read directly. Images with all bands are GeoTIFFs, and `preview.png` shows them. Beside
the class folders are README.md (data card), class_map.txt, manifest.json and croissant.json. No file names a source
file, and the same set always gives the same bytes.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from geodistill.errors import DistilledSetError, SceneError
from geodistill.pipeline import DISTILLED
from geodistill.provenance import Kind, fingerprint
from geodistill.run import explain_os_errors, write_atomic
from geodistill.scenes.images import bands_to_square
from geodistill.scenes.readers import SUFFIXES, reader_of
from geodistill.scenes.reading import MOST_BANDS, PLAIN, Reading
from geodistill.scenes.scenes import check_class_name, unfit_for_windows
from geodistill.scenes.sheet import draw_sheet
from geodistill.scenes.splits import PARTS
from geodistill.scenes.views import as_rgb

log = logging.getLogger("geodistill")

MANIFEST, CLASS_MAP, PREVIEW = "manifest.json", "class_map.txt", "preview.png"
# The set in the folder of a run that updated another set.
UPDATED = "updated"
_FORMAT = 1
# Keys allowed in an image's record. The list is fixed, so that no file name of a real image gets into shared files.
RECORD_KEYS = frozenset({"seed", "scores", "description", "prototype", "candidate", "soft_label"})
# Keys that say where an image was drawn from: with them, anyone can redraw it from any scene and see which scene fits.
_ORIGIN = frozenset({"seed", "prototype", "candidate"})
# The sentence on every page that must not be shared, and names of other files that must not be shared.
FOR_THE_OWNER = "It is for the owner of the data; do not share it with the set."
_OWNERS = frozenset({"audit.json", "run.json", "secret"})
# Files of every set besides its images; names in lower case.
_FILES = frozenset({MANIFEST, CLASS_MAP, PREVIEW, "readme.md", "croissant.json"})
# What may lie beside the images without being looked at: texts and what GDAL notes about an image.
_TEXTS = frozenset({"", ".cff", ".html", ".md", ".txt", ".xml"})
_PICTURES = SUFFIXES | {".gif"}


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
        return _kind(self.about)

    @property
    def replayable(self) -> bool:
        """Return whether the set contains seeds of its images, with which an outsider could identify their sources.

        In a differentially private set they do no harm: no image has a source.
        """
        if self.kind == "real" or self.about.get("guarantee"):
            return False
        return "seed" in self.about.get("config", {}) or any(_ORIGIN & record.keys() for record in self.records)

    @property
    def follows_scenes(self) -> bool:
        """Return whether images were sampled from latents of training images, with no noise that hides which ones.

        Methods that follow no training image state `sampling.follow=none` in the set's settings.
        """
        return _follows_scenes(self.about)

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
        _complete(target)
        _check_target(target)
        aside = target.with_name(f".{target.name}.partial")
        with explain_os_errors(target):
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            self.write(aside)
            _flush(aside)
            # From here on a process that is killed leaves a complete set, which the next one puts in its place.
            aside.rename(_ready(target))
            _complete(target)
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
        (folder / "README.md").write_text(_data_card(self), encoding="utf-8", newline="\n")
        croissant = json.dumps(_croissant(self, text), indent=2, ensure_ascii=False) + "\n"
        (folder / "croissant.json").write_text(croissant, encoding="utf-8", newline="\n")
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
        ready = _ready(Path(folder).absolute())
        root = ready if ready.is_dir() else Path(folder)
        if not root.is_dir():
            raise DistilledSetError(f"{root}: {'not a folder' if root.exists() else 'no such folder'}")
        if (root / MANIFEST).is_file():
            found = _load_own(root, size)
        else:
            classes, files = _list_plain(root)
            images = _read_images([path for path, _ in files], size, root, reading)
            found = cls(images, torch.tensor([label for _, label in files]), classes, (), {"method": "unknown"})
        if other := strays(root):
            log.warning("%s holds %s: not used", root, told_strays(other))
        return found


def _kind(about: dict[str, Any]) -> Kind:
    if about.get("real_pixels"):
        return "real"
    return "derived" if about.get("derived") else "synthetic"


def _follows_scenes(about: dict[str, Any]) -> bool:
    follow = about.get("config", {}).get("sampling", {}).get("follow", "none")
    return _kind(about) == "synthetic" and follow != "none" and not about.get("guarantee")


def run_of(what: Path) -> Path | None:
    """Return the folder of the run that made a set, or None if the set has no run.

    `what` is the run, or the folder of the set. An updated set has no run: its run made only the new images.
    """
    folder = set_folder(what)
    place = folder.resolve()
    if place.name != DISTILLED.name or not (place.parent / "run.json").is_file():
        return None
    return place.parent if folder == what else what


def set_folder(what: Path) -> Path:
    """Return the folder of the set of the run in `what`, or `what` itself if it is no run.

    The set of a run that updated another one is the updated set.
    """
    if not (what / "run.json").is_file():
        return what
    return what / UPDATED if (what / UPDATED).is_dir() else what / DISTILLED.name


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
    if name.casefold() in _FILES:
        raise DistilledSetError(f"class name {name!r} is that of a file of the distilled set: rename the class")


def _check_records(records: tuple[dict[str, Any], ...], count: int) -> None:
    if len(records) != count:
        raise DistilledSetError(f"{count} images but {len(records)} records: give one for each image")
    unknown = sorted({key for record in records for key in record} - RECORD_KEYS)
    if unknown:
        raise DistilledSetError(
            f"record key {unknown[0]!r} is not among those shared: {', '.join(sorted(RECORD_KEYS))}"
        )


def _check_target(target: Path) -> None:
    if target.exists() and not target.is_dir():
        raise DistilledSetError(f"{target} is a file: choose a folder for the distilled set")
    if target.is_dir() and any(target.iterdir()) and not (target / MANIFEST).is_file():
        raise DistilledSetError(f"{target} is not empty and holds no distilled set: choose another folder")


def _warn_of_names(classes: tuple[str, ...]) -> None:
    for name, unfit in ((name, unfit_for_windows(name)) for name in classes):
        if unfit:
            log.warning("class name %r %s: the set cannot be unpacked on Windows", name, unfit)
    # `datasets` takes "train_station" for a part of a train split and then drops all other classes. The card's own
    # list of files, which load_dataset(FOLDER) reads, prevents that.
    words = re.compile(r"(^|[ ._-])(train|training|test|testing|eval|evaluation|val|valid|validation|dev)($|[ ._-])")
    for name in filter(words.search, classes):
        log.warning("class %r reads like a split: load the set by datasets.load_dataset(FOLDER), not by data_dir", name)


def _flush(folder: Path) -> None:
    """Flush the files in `folder` to disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _ready(target: Path) -> Path:
    """Return where a complete set waits that is to replace the set at `target`."""
    return target.with_name(f".{target.name}.ready")


def _complete(target: Path) -> None:
    """Put the set that waits for the place of `target` there, if there is one; an earlier set is removed."""
    ready, old = _ready(target), target.with_name(f".{target.name}.old")
    if not ready.is_dir():
        return
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    ready.rename(target)
    shutil.rmtree(old, ignore_errors=True)


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


def _list_plain(root: Path) -> tuple[tuple[str, ...], list[tuple[Path, int]]]:
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    classes = tuple(path.name for path in folders)
    if not classes:
        raise DistilledSetError(f"{root}: no class folders in it: expected <class>/<image>")
    if {name.lower() for name in classes} <= PARTS.keys():
        raise DistilledSetError(
            f"{root}: an archive with the parts {', '.join(classes)}, no set: give a run, or the folder of a set"
        )
    files = []
    for label, folder in enumerate(folders):
        images = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
        if not images:
            raise DistilledSetError(f"{folder}: no images in this class folder: expected <class>/<image>")
        files += [(path, label) for path in images]
    return classes, files


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


# The data card and the Croissant metadata. huggingface_hub's DatasetCard covers the YAML header alone.

_CARD = """\
---
pretty_name: {title}
license: other
license_name: as-the-source-data
task_categories:
- image-classification
tags:
- dataset-distillation
- remote-sensing
- {kind}
size_categories:
- {bucket}
configs:
- config_name: {name}
  data_files:
  - split: train
    path: "*/*{suffix}"
---

# {title}

{warning}{count} {kind} overhead images of {size} x {size} pixels, {classes} classes, made by geodistill with the method
`{method}`. They stand for a larger set of real images when a classifier is trained; {nature}.

{loading}
A label is the place of a class in the list below, counted from 0. `class_map.txt` has the classes in this order, for
readers that sort numbers otherwise (timm: `--class-map class_map.txt`).
`manifest.json` has the settings, the versions and the scores of each image, and where they were asked for its soft
label, probabilities of the classes in alphabetical order; `croissant.json` describes the folder in Croissant 1.0.

## Classes

{listing}

## Privacy

{privacy}

{base}## Limits

The images are for training classifiers, not for interpreting the ground. Biases of the source data carry over. The
licence of the source data may also cover this set: check it before sharing.
"""


_LOADING = """\
Load them with `datasets.load_dataset(FOLDER)`, `datasets.load_dataset("imagefolder", data_dir=FOLDER)` or
`torchvision.datasets.ImageFolder(FOLDER)`."""
_LOADING_BANDS = """\
They are GeoTIFFs without a georeference: {count} bands of {dtype}, in the units of the source data. Read them with
`rasterio.open(FILE).read()`, which gives [bands, height, width]; Pillow cannot, so `datasets` and torchvision's default
loader cannot either. `preview.png` shows them in colour.{ranges}
Bands: {names}.
"""


def _loading(distilled: DistilledSet) -> str:
    """Return how the image files are read."""
    if distilled.suffix == ".png":
        return _LOADING
    bands = distilled.bands
    names = bands.names or tuple(f"band {k}" for k in range(1, bands.channels + 1))
    each = sorted(zip(bands.bands, names, bands.scale or [None] * bands.channels, strict=True))
    ranged = " Each band has 256 levels within the range given below." if bands.scale else ""
    told = [f"{_markdown(name)} ({ends[0]:g} to {ends[1]:g})" if ends else _markdown(name) for _, name, ends in each]
    return _LOADING_BANDS.format(count=bands.channels, dtype=bands.dtype, ranges=ranged, names=", ".join(told))


_REPLAYABLE = (
    "**Do not share this set.** It was made reproducibly: its images follow from a seed in `manifest.json`. Anyone who "
    "has the base can repeat the sampling, and test for any scene whether an image was sampled from it. Removing the "
    "seed does not help: it can be guessed. Without `--reproducible`, `geodistill distill` draws the images from a "
    "secret."
)
_NO_AUDIT = "What these images reveal of the real ones has not been audited: `geodistill audit` does that."
_NO_START = "No image started from a training image."
_SCREENED = (
    "Screened: candidates were rejected if, in structure (SSIM), they were nearer to a training image of their class "
    "than 99 % of held-out training images are to the others, and so were copies. The audit says whether the set "
    "reveals which images were training images."
)
_NOT_ANONYMOUS = (
    "Not anonymous: images were sampled from the latents of training images, with noise added, and may show their "
    "layout. For sensitive scenes, make the set with `--privacy screen` and without settings for `sampling`, or with "
    "`--privacy dp`."
)
_PRIVACY = re.compile(r"(?<=\n## Privacy\n\n).*?(?=\n\n## )", re.DOTALL)
# Only sets of runs that tested themselves have this section.
_SELF_TEST = re.compile(r"## Self-test\n\n.*?\n\n(?=## Privacy\n)|(?=## Privacy\n)", re.DOTALL)

# Only sets whose owner named the archive have this section.
_SOURCE = re.compile(r"## Source\n\n.*?\n\n(?=## Classes\n)|(?=## Classes\n)", re.DOTALL)


def owner_files(folder: Path) -> list[str]:
    """Return the names of files in the set's `folder` that are for the owner of the data only.

    These are pages that show training images or say how to repeat a run, the records of an audit and of a run, and a
    run's secret.
    """

    def private(path: Path) -> bool:
        if path.suffix == ".html":
            return FOR_THE_OWNER in path.read_text(encoding="utf-8", errors="replace")
        return path.name in _OWNERS

    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and private(path))


def strays(folder: Path) -> list[str]:
    """Return the names of the files in `folder`, a set, that are neither of the set nor named by `owner_files`.

    Whoever gets the folder reads them as well, but nothing here does. Hidden files and texts (.txt, .md) do not count;
    in a plain image folder <class>/<image>, neither does any other file than an image.
    """
    own = (folder / MANIFEST).is_file()
    if own:
        entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["images"]
        known = {*_FILES, *(entry["file"] for entry in entries)}
    else:
        known = {path.relative_to(folder).as_posix() for path, _ in _list_plain(folder)[1]}
    known |= set(owner_files(folder))
    names = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    counted = {
        name
        for name, path in names.items()
        if not any(part.startswith(".") for part in Path(name).parts)
        and (path.suffix.lower() not in _TEXTS if own else path.suffix.lower() in _PICTURES)
    }
    return sorted(counted - known)


def told_strays(names: Sequence[str]) -> str:
    """Return in words which files are no images of a set; the first is named."""
    return f"{len(names):,} file(s) that are not of the set, {names[0]} first"


def tell_of_audit(folder: Path, summary: str) -> None:
    """Insert `summary`, the result of an audit, into the data card of the set in `folder`, if it is geodistill's."""
    text = _card_in(folder)
    if _PRIVACY.search(text):
        about = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["about"]
        write_atomic(folder / "README.md", _PRIVACY.sub(lambda _: _privacy(about, summary), text, count=1))


def tell_of_self_test(folder: Path, summary: str) -> None:
    """Insert `summary`, the result of a self-test, into the data card of the set in `folder`, if it is geodistill's.

    It replaces an earlier result; inserting the same one again changes nothing.
    """
    before = _card_in(folder)
    after = _SELF_TEST.sub(lambda _: f"## Self-test\n\n{summary}\n\n", before, count=1)
    if after != before:
        write_atomic(folder / "README.md", after)


def tell_of_source(folder: Path, name: str, licence: str) -> None:
    """State in the data card of the set in `folder` which archive it was made from, and under which licence that is.

    An empty text leaves what the card has. Stating the same again changes nothing.
    """
    before = _card_in(folder)
    after = before
    if licence:
        line = f"license_name: {json.dumps(licence, ensure_ascii=False)}"
        after = re.sub(r"^license_name: .*$", lambda _: line, after, count=1, flags=re.MULTILINE)
    told = [f"Made from {_markdown(name)}."] if name else []
    told += [f"Licence of the source: {_markdown(licence)}."] if licence else []
    if told:
        after = _SOURCE.sub(lambda _: f"## Source\n\n{' '.join(told)}\n\n", after, count=1)
    if after != before:
        write_atomic(folder / "README.md", after)


def copy_source(old: Path, folder: Path) -> None:
    """State in the data card of the set in `folder` the source and the licence that the card of set `old` states."""
    before, card = _card_in(folder), _card_in(old)
    section, licence = _SOURCE.search(card), re.search(r"^license_name: .*$", card, flags=re.MULTILINE)
    after = _SOURCE.sub(lambda _: section[0] if section else "", before, count=1)
    if licence:
        after = re.sub(r"^license_name: .*$", lambda _: licence[0], after, count=1, flags=re.MULTILINE)
    if after != before:
        write_atomic(folder / "README.md", after)


def told_licence(folder: Path) -> str:
    """Return the licence of the source that the data card of the set in `folder` states; "" if it states none."""
    found = re.search(r"^license_name: (.*)$", _card_in(folder), flags=re.MULTILINE)
    # As `tell_of_source` writes it: the card of a set whose licence nobody stated has a word without quotes there.
    return str(json.loads(found[1])) if found and found[1].startswith('"') else ""


def _card_in(folder: Path) -> str:
    card = folder / "README.md"
    return card.read_text(encoding="utf-8") if (folder / MANIFEST).is_file() and card.is_file() else ""


def _privacy(about: dict[str, Any], audit: str) -> str:
    """Return the card's text on privacy: the guarantee, what the images started from, the screening, the audit."""
    follows = _follows_scenes(about)
    made = [about["guarantee"]] if about.get("guarantee") else []
    made += [_NOT_ANONYMOUS] if follows else []
    if about.get("screened"):
        made += [_SCREENED if follows else f"{_SCREENED} {_NO_START}"]
    return "\n\n".join([*made, audit])


def _base(facts: dict[str, Any] | None) -> str:
    """Return the section on the base that drew the images, or "" if there are no facts about it."""
    if not facts:
        return ""
    archives = f", trained on {', '.join(facts['archives'])}" if facts["archives"] else ""
    terms = f" Its terms: {facts['terms']}." if facts["terms"] else ""
    return f"## Base\n\nDrawn by the base `{facts['name']}`{archives}.{terms}\n\n"


def _title(distilled: DistilledSet) -> str:
    return f"Distilled overhead scenes, {len(distilled.classes)} classes"


_NATURE: dict[Kind, str] = {
    "real": "each of them is one of those",
    "derived": "each of them is one of those, changed by a computation",
    "synthetic": "none of them is a photograph",
}


def _markdown(text: str) -> str:
    """Return `text` with everything escaped that Markdown or HTML would read as markup."""
    return re.sub(r"([\\`*_{}\[\]()#+!|~<>&$-])", r"\\\1", text)


def _data_card(distilled: DistilledSet) -> str:
    buckets = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"))
    counts = torch.bincount(distilled.labels, minlength=len(distilled.classes)).tolist()
    return _CARD.format(
        title=_title(distilled),
        # `datasets` keeps what it has read by this name: two sets in folders of the same name must not share it.
        name=f"set-{fingerprint(distilled.classes, distilled.content_hash())[:16]}",
        bucket=next((name for limit, name in buckets if len(distilled) < limit), "100K<n<1M"),
        count=len(distilled),
        size=distilled.size,
        classes=len(distilled.classes),
        method=distilled.about.get("method", "unknown"),
        kind=distilled.kind,
        suffix=distilled.suffix,
        loading=_loading(distilled),
        warning=f"{_REPLAYABLE}\n\n" if distilled.replayable else "",
        nature=_NATURE[distilled.kind],
        privacy=_privacy(distilled.about, _NO_AUDIT),
        base=_base(distilled.about.get("base")),
        listing="\n".join(
            f"- {_markdown(name)}: {count}" for name, count in zip(distilled.classes, counts, strict=True)
        ),
    )


# Written by hand: mlcroissant would bring 29 packages (pandas, rdflib, a git client) for one fixed file. Where it is
# installed, a test validates the file with it.
# The context required by the Croissant 1.0 specification: each term without a line of its own is cr:<term>.
_CROISSANT_TERMS = (
    "citeAs column extract field fileProperty fileObject fileSet format includes isLiveDataset "
    "jsonPath key md5 parentField path recordSet references regex repeated replace separator source subField transform"
)
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "rai": "http://mlcommons.org/croissant/RAI/",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    **{term: f"cr:{term}" for term in _CROISSANT_TERMS.split()},
}


def _croissant(distilled: DistilledSet, manifest: str) -> dict[str, Any]:
    """Return Croissant 1.0 metadata (https://docs.mlcommons.org/croissant/docs/croissant-spec.html) as JSON-LD."""
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": "distilled-overhead-scenes",
        "description": f"{_title(distilled)}: {len(distilled)} images made or chosen by geodistill.",
        "license": "As the source data",
        "version": "1.0.0",
        "distribution": [_manifest_object(manifest), _image_files(distilled.suffix)],
        "recordSet": [_scene_records(distilled.suffix)],
    }


def _manifest_object(manifest: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": MANIFEST,
        "name": MANIFEST,
        "contentUrl": MANIFEST,
        "encodingFormat": "application/json",
        "sha256": hashlib.sha256(manifest.encode()).hexdigest(),
    }


def _image_files(suffix: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileSet",
        "@id": "images",
        "name": "images",
        "encodingFormat": {".png": "image/png", ".tif": "image/tiff"}[suffix],
        "includes": f"*/*{suffix}",
    }


def _scene_records(suffix: str) -> dict[str, Any]:
    image = {"fileSet": {"@id": "images"}, "extract": {"fileProperty": "content"}}
    label = {
        "fileSet": {"@id": "images"},
        "extract": {"fileProperty": "fullpath"},
        "transform": {"regex": f"([^/]+)/[^/]+\\{suffix}$"},
    }
    return {
        "@type": "cr:RecordSet",
        "@id": "scenes",
        "name": "scenes",
        "field": [
            {
                "@type": "cr:Field",
                "@id": "scenes/image",
                "name": "image",
                "dataType": "sc:ImageObject",
                "source": image,
            },
            {"@type": "cr:Field", "@id": "scenes/class", "name": "class", "dataType": "sc:Text", "source": label},
        ],
    }
