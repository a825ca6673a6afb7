"""Opening a folder of labelled images."""

import hashlib
import logging
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import count as count_up
from pathlib import Path

import numpy as np
import torch

from geodistill.errors import SceneError
from geodistill.progress import progress
from geodistill.scenes.archives import is_archive, unpacked_archive
from geodistill.scenes.fetched import folder_named
from geodistill.scenes.files import Files
from geodistill.scenes.images import read_bytes
from geodistill.scenes.leaks import find_leaks, tell_of_leaks
from geodistill.scenes.lists import SUFFIXES as LISTS
from geodistill.scenes.lists import list_with_images, read_list
from geodistill.scenes.looks import look_of
from geodistill.scenes.readers import SUFFIXES, Info, is_mask, reader_of, undecodable_messages_ignored
from geodistill.scenes.reading import NOTHING, PLAIN, Reading, bands_used, choose_bands, with_scale
from geodistill.scenes.scenes import (
    UNLABELLED,
    WORKERS,
    Leak,
    SceneData,
    SceneFile,
    Scenes,
    check_class_name,
    check_classes,
)
from geodistill.scenes.splits import BLOCK, PARTS, hold_out, listed, spatial_hold_out
from geodistill.scenes.tiles import SUFFIXES as VECTORS

SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir", "lost+found"})
TEST_FRACTION = 0.2
# The split that tests on nothing, unless the data has its own.
EVERY = "all"
MAX_UNREADABLE = 0.05
# Side in pixels below which an image shows no scene.
LEAST_SIDE = 2
SHOW_PROGRESS_FROM = 500
# Files that are checked together.
_TOGETHER = 4096
_NUMBER = re.compile(r"\d+")
LAYOUT = "expected FOLDER/<class>/<image> or FOLDER/<split>/<class>/<image>"

log = logging.getLogger("geodistill")


def open_scenes(
    folder: Path | str,
    *,
    bands: str = "rgb",
    scale: str = "auto",
    split: str = "auto",
    reading: Reading | None = None,
    strict: bool = False,
    least: int = 2,
) -> SceneData:
    """Read `folder` as FOLDER/<split>/<class>/<image> or FOLDER/<class>/<image>, or as a list (`lists.read_list`).

    Every file is decoded once to find unreadable ones now: they are logged, listed in `skipped` and left out. If
    `folder` contains only one folder, which contains the classes, that one is read. An archive is unpacked once. Test
    and validation scenes that are also in another part, as they are or as near-duplicates (`leaks.find_leaks`), are
    logged, but never left out.

    Args:
        folder: the data, as a folder, a list or an archive (`archives.SUFFIXES`); or the name of an archive that
            `geodistill fetch` has downloaded.
        bands: "rgb" for what the files say are the colours; else numbers or names of one or three bands: "4,3,2".
        scale: "auto" takes values of 8 bits as they are, and stretches others between the 1st and the 99th percentile
            of the training scenes, band by band; "LOW,HIGH" or a pair for each band sets the range.
        split: "auto" takes the splits that the data has, else "hash"; "hash" tests on a fifth of the files by their
            content, "spatial" or "spatial:METRES" on a fifth of the squares of the ground, so that neighbours stay
            together, "column" by the split column of a list, "all" takes the splits that the data has, else tests on
            nothing; else a folder of lists of names, such as NAME-train.txt.
        reading: the reading of other scenes, such as those that a set was made from, in place of `bands` and `scale`.
        strict: raise an error if a scene is in two parts.
        least: smallest number of classes.

    Raises:
        SceneError: unusable data: no images, fewer classes than `least`, images beside the class folders, other
            classes in test, more than 5 % unreadable, images of several kinds; or no such bands or range; or, if
            `strict`, a scene in two parts.
    """
    used = bands if reading is None else ",".join(map(str, reading.bands))
    data, files = _opened(folder, split, used)
    if len(data.train.classes) < least:
        raise SceneError(f"{folder}: only one class, {data.train.classes[0]!r}: a classifier needs at least {least}")
    data = replace(data, leaks=_leaks(data, files))
    tell_of_leaks(data.leaks, strict=strict, spatial=split.startswith("spatial"))
    if reading is None:
        kept = set(data.train.keys)
        train = files.take(torch.tensor([k for k, key in enumerate(files.keys) if key in kept], dtype=torch.int64))
        reading = _reading(files, train, bands, scale)
    else:
        _check_fit(files, reading)
    return replace(data.read_by(reading), files=files)


def _check_fit(files: Files, reading: Reading) -> None:
    """Raise SceneError if a file has other bands or values than the files that `reading` was chosen for."""
    for file in files:
        if (other := _other(file.info, reading)) is not None:
            has, made = other
            raise SceneError(
                f"{file.path} has {has}, and the set or model was made from {made}: give scenes of the same kind"
            )


def _other(info: Info | None, reading: Reading) -> tuple[str, str] | None:
    """Return in words what a file with `info` has that does not fit `reading`, and what this was chosen for, if any."""
    if info is None:
        return None
    if reading.lacks(info):
        return f"{info.bands} band(s)", reading.told
    if not reading.bands and _coloured(info) not in (1, 3):
        return f"{_coloured(info)} bands", "images of one or three"
    if not reading.scale and info.dtype != "uint8":
        return f"values of type {info.dtype}", "8-bit values"
    return None


def _coloured(info: Info) -> int:
    """Return the number of bands besides a mask."""
    return info.bands - (info.alpha is not None)


def _opened(folder: Path | str, split: str, bands: str) -> tuple[SceneData, Files]:
    """Return the scenes of `folder` in their parts, and their files; see `open_scenes`."""
    root = folder_named(folder)
    root = unpacked_archive(root) if is_archive(root) else root
    if root.suffix.lower() in VECTORS and root.is_file():
        raise SceneError(
            f"{root}: labels without images: cut their tiles from a raster, geodistill tiles {root} --raster RASTER "
            "--tile 64 --out FOLDER, and give FOLDER as DATA"
        )
    visited = {root.resolve()}
    while (labels := _list_in(root)) is None and (only := _only_folder(root, visited)) is not None:
        log.warning("using %s, the only folder in %s", only, root)
        root = only
    if labels is not None:
        return _open_list(labels, split, bands)
    if not root.is_dir():
        raise SceneError(
            f"{root}: {'not a folder, a list or an archive' if root.exists() else 'no such folder'}: {LAYOUT}"
        )
    folders = _class_folders(root, visited)
    if all(name.lower() in PARTS for name in folders):
        if split not in ("auto", EVERY):
            raise SceneError(f"{root} has splits of its own ({', '.join(folders)}): leave --split {split} out")
        return _open_splits(root, folders, visited, bands)
    classes, names = _list_classes(root, folders)
    found, skipped = _read([names], root, bands)
    data = _split(_scenes(found[0], classes, root), found[0], split)
    return replace(data, skipped=skipped), found[0]


def _leaks(data: SceneData, files: Files) -> tuple[Leak, ...]:
    if data.test is None and data.val is None:
        return ()
    places = {str(path): place for place, path in enumerate(files.paths)}
    parts = {"train": data.train, "test": data.test, "val": data.val}
    return find_leaks(
        {
            name: files.take(torch.tensor([places[str(one)] for one in part.sources], dtype=torch.int64))
            for name, part in parts.items()
            if part
        }
    )


def _list_in(root: Path) -> Path | None:
    """Return the list that `root` is, the metadata.jsonl in it, or that of the images in Parquet files."""
    if (images := list_with_images(root)) is not None:
        return images
    if root.is_file() and root.suffix.lower() in LISTS:
        return root
    found = root / "metadata.jsonl"
    return found if found.is_file() else None


def _open_list(path: Path, split: str, bands: str) -> tuple[SceneData, Files]:
    """Return the scenes of a list of files, split by its own column or as `split` says."""
    entries = read_list(path)
    classes = tuple(sorted(set(entries.labels)))
    check_classes(classes)
    labels = {name: label for label, name in enumerate(classes)}
    listing = Files.of(SceneFile(one.path, labels[one.label], f"{one.label}/{one.path.name}") for one in entries)
    found, skipped = _read([listing], path, bands)
    scenes, files = _scenes(found[0], classes, path), found[0]
    own = any(entries.splits)
    if split == "column" and not own:
        raise SceneError(f"{path}: the list has no split column: leave --split column out")
    if own and split in ("auto", EVERY, "column"):
        # The files are the entries in their order, without those that cannot be read.
        remaining = iter(entries)
        parts = _by_column(path, [next(one.split for one in remaining if one.path == where) for where in files.paths])
        return replace(parted(scenes, parts), skipped=skipped), files
    return replace(_split(scenes, files, split), skipped=skipped), files


def _by_column(path: Path, values: Sequence[str]) -> dict[str, torch.Tensor]:
    unknown = sorted({value for value in values if value and value.lower() not in PARTS})
    if unknown:
        raise SceneError(f"{path}: {unknown[0]!r} in the split column is no part: write train, test or val")
    parts = [PARTS.get(value.lower(), "") for value in values]
    if "" in parts:
        log.warning("%d images of %s are in no part, and are left out", parts.count(""), path)
    names = [name for name in ("train", "test", "val") if name in parts]
    if "train" not in names:
        raise SceneError(f"{path}: no image is in the part train")
    return {name: torch.tensor([k for k, part in enumerate(parts) if part == name]) for name in names}


def _only_folder(root: Path, visited: set[Path]) -> Path | None:
    """Return the only folder in `root`, if it is no class and no split; add it to the folders `visited`."""
    entries = _entries(root) if root.is_dir() else []
    only, *others = [path for path in entries if path.is_dir()] or [root]
    if only == root or others or only.name.lower() in PARTS or only.resolve() in visited:
        return None
    if any(map(_is_image, entries)) or (_list_in(only) is None and any(map(_is_image, _entries(only)))):
        return None
    visited.add(only.resolve())
    return only


def _reading(files: Files, train: Files, bands: str, scale: str) -> Reading:
    # The first file of each kind stands for all of them.
    kinds: dict[Info, Path] = {}
    for file in files:
        if file.info is not None:
            kinds.setdefault(file.info, file.path)
    known = [(path, info) for info, path in kinds.items()]
    reading = choose_bands(known, bands, masks=all(file.masked for file in files))
    _tell_of_missing(files)
    _tell_of_contradictions(files)
    reading = with_scale(reading, known[0][1].dtype, train.paths, scale)
    if reading != PLAIN:
        log.info("images are read as %s", reading)
    return reading


def _tell_of_contradictions(files: Files) -> None:
    """Log which images are in more than one class."""
    first, labels = files.keys.first_equal(), files.labels.numpy()
    twice = np.flatnonzero(labels[first] != labels)
    if len(twice):
        log.warning(
            "%d images are in several classes, %s and %s first: no classifier can have both right",
            *(len(twice), files.names[first[twice[0]]], files.names[twice[0]]),
        )


def _tell_of_missing(files: Sequence[SceneFile]) -> None:
    holed = [file for file in files if file.missing]
    if holed:
        log.warning(
            "%d of %d images have pixels without a measurement, %.1f %% of theirs, %s first: they get the mean of the "
            "image's others",
            *(len(holed), len(files), 100 * sum(file.missing for file in holed) / len(holed), holed[0].name),
        )


def open_unlabelled(*folders: Path | str) -> Scenes:
    """Return all images in `folders` and their subfolders as scenes without classes, for training a base only.

    Unreadable files are logged and left out. Raises SceneError if there are no images or more than 5 % unreadable ones.
    """
    files: list[SceneFile] = []
    for root in map(Path, folders):
        if not root.is_dir():
            raise SceneError(f"{root}: {'not a folder' if root.exists() else 'no such folder'}: expected images in it")
        paths = images_in(root)
        files += [SceneFile(path, 0, str(path.relative_to(root))) for path in paths]
    first = Path(folders[0])
    found, _ = _read([files], first, "rgb")
    return _scenes(found[0], UNLABELLED, first).read_by(_reading(found[0], found[0], "rgb", "auto"))


def _open_splits(root: Path, folders: dict[str, Path], visited: set[Path], bands: str) -> tuple[SceneData, Files]:
    splits: dict[str, Path] = {}
    for name, path in folders.items():
        part = PARTS[name.lower()]
        if part in splits:
            raise SceneError(f"{root}: {splits[part].name} and {name} are the same part of the data: keep one")
        splits[part] = path
    if "train" not in splits:
        raise SceneError(f"{root}: has {', '.join(sorted(folders))} but no train folder: add train/<class>/<image>")
    used = {name: splits[name] for name in ("train", "test", "val") if name in splits}
    listings = {name: _list_classes(path, _class_folders(path, visited)) for name, path in used.items()}
    classes = listings["train"][0]
    for name, (own, _) in listings.items():
        _check_same_classes(root, classes, own, splits[name].name)
    found, skipped = _read([files for _, files in listings.values()], root, bands)
    parts = {name: _scenes(files, classes, used[name]) for name, files in zip(used, found, strict=True)}
    every = Files.of(file for part in found for file in part)
    return SceneData(parts["train"], parts.get("test"), skipped, val=parts.get("val")), every


def _split(scenes: Scenes, files: Sequence[SceneFile], split: str) -> SceneData:
    """Return `scenes`, which come from `files`, split as `open_scenes` says."""
    kind, _, metres = split.partition(":")
    if split == EVERY:
        return SceneData(scenes, None)
    if split in ("auto", "hash"):
        parts = dict(zip(("train", "test"), hold_out(scenes, TEST_FRACTION, "test"), strict=True))
    elif kind == "spatial":
        block = _metres(metres, split)
        parts = dict(zip(("train", "test"), spatial_hold_out(files, TEST_FRACTION, "test", block), strict=True))
    elif Path(split).is_dir():
        parts = listed(files, Path(split))
        left = len(files) - sum(map(len, parts.values()))
        if left:
            log.warning("%d image(s) are in none of the lists in %s, and are left out", left, split)
    else:
        raise SceneError(f"--split {split!r}: give hash, spatial, spatial:METRES or a folder of lists of names")
    return parted(scenes, parts)


def parted(scenes: Scenes, parts: Mapping[str, torch.Tensor]) -> SceneData:
    """Return the scenes in their parts, by indices; raise SceneError for a class without a training image."""
    missing = _missing_classes(scenes.classes, scenes.labels[parts["train"]])
    if missing:
        raise SceneError(f"class {missing[0]!r} has no training image after the split: add images, or split by folders")
    test = parts.get("test", torch.zeros(0, dtype=torch.int64))
    missing = _missing_classes(scenes.classes, scenes.labels[test])
    if missing:
        names = ", ".join(map(repr, missing))
        log.warning("no test image fell to %s: add images, split by folders, or by smaller squares of ground", names)
    val = scenes.subset(parts["val"]) if len(parts.get("val", ())) else None
    return SceneData(scenes.subset(parts["train"]), scenes.subset(test) if len(test) else None, val=val)


def _metres(text: str, split: str) -> float:
    try:
        block = float(text or BLOCK)
    except ValueError:
        block = 0.0
    if not 0 < block < float("inf"):
        raise SceneError(f"--split {split!r}: give the side of a block in metres, such as spatial:5000")
    return block


def _check_same_classes(root: Path, train: Sequence[str], other: Sequence[str], name: str) -> None:
    missing, extra = sorted(set(train) - set(other)), sorted(set(other) - set(train))
    if missing:
        raise SceneError(
            f"{root}: {name} has no class {missing[0]!r}, which train has: add it to {name} or take it from train"
        )
    if extra:
        raise SceneError(
            f"{root}: {name} has a class {extra[0]!r} that train has not: add it to train or take it from {name}"
        )


# Listing: names only, nothing decoded.


def _class_folders(folder: Path, visited: set[Path]) -> dict[str, Path]:
    """Return {name: path} of the folders in `folder`, sorted by name; `visited` guards against link loops."""
    entries = _entries(folder)
    images = [path for path in entries if _is_image(path)]
    if images:
        raise SceneError(
            f"{folder}: {len(images)} image(s) beside the class folders, {_shown(images[0])} first: {LAYOUT}"
        )
    folders: dict[str, Path] = {}
    for path in entries:
        if is_run(path):
            log.warning("%s is a run folder of geodistill, not a class: not read", _shown(path))
        elif _is_new_folder(path, visited):
            _add_folder(folders, path)
    if not folders:
        raise SceneError(f"{folder}: no folders with images in it: {LAYOUT}")
    return dict(sorted(folders.items()))


def _add_folder(folders: dict[str, Path], path: Path) -> None:
    # Some systems store é as one character, others as two: both must be the same class.
    name = unicodedata.normalize("NFC", path.name)
    check_class_name(name)
    if name in folders:
        raise SceneError(f"{path.parent}: two folders are named {name!r}, differing in Unicode form only: merge them")
    folders[name] = path


def _is_new_folder(path: Path, visited: set[Path]) -> bool:
    """Return whether `path` is a folder; raise SceneError for a broken link, or one to a folder already read."""
    if not path.is_dir():
        if path.is_symlink() and not path.is_file():
            raise SceneError(f"{_shown(path)}: a link that leads nowhere or to itself: remove it")
        return False
    target = path.resolve()
    if target in visited:
        raise SceneError(f"{_shown(path)}: leads to {target}, which is read already: remove the link")
    visited.add(target)
    return True


def images_in(root: Path) -> list[Path]:
    """Return the images in `root` and its subfolders, sorted, without hidden ones and those of runs.

    Raises SceneError if there are none.
    """
    runs = {path.parent for path in root.rglob("run.json") if is_run(path.parent)}
    paths = sorted(path for path in root.rglob("*") if _is_image(path) and not path.name.startswith("."))
    paths = [path for path in paths if not runs.intersection(path.parents)] if runs else paths
    if not paths:
        raise SceneError(f"{root}: no images in it or its subfolders")
    return paths


def is_run(path: Path) -> bool:
    """Return whether `path` is the folder of a run, which a command left among the images."""
    return (path / "run.json").is_file() and (path / "stages").is_dir()


def _list_classes(root: Path, folders: dict[str, Path]) -> tuple[tuple[str, ...], list[SceneFile]]:
    classes = tuple(folders)
    files: list[SceneFile] = []
    ignored: list[Path] = []
    for label, (name, folder) in enumerate(folders.items()):
        entries = _entries(folder)
        images = [path for path in entries if _is_image(path)]
        if not images:
            raise SceneError(f"{_shown(folder)}: no images in this class folder: {LAYOUT}")
        files += [SceneFile(path, label, f"{name}/{path.name}") for path in images]
        ignored += [path for path in entries if not _is_image(path)]
    _tell_of_subfolders(root, [path for path in ignored if path.is_dir()])
    ignored = [path for path in ignored if not path.is_dir()]
    if ignored:
        log.warning("%s: %d entries are no images and ignored, %s first", root, len(ignored), _shown(ignored[0]))
    return classes, files


def _tell_of_subfolders(root: Path, folders: Sequence[Path]) -> None:
    """Log how many images lie one level too deep."""
    deep = [path for folder in folders for path in sorted(folder.rglob("*")) if _is_image(path)]
    if deep:
        log.warning(
            "%s: %d images in subfolders of class folders are not read, %s first: move them up",
            *(root, len(deep), _shown(deep[0])),
        )


def _entries(folder: Path) -> list[Path]:
    """Return the entries of `folder`, sorted by name, without hidden and system entries."""
    try:
        entries = sorted(folder.iterdir(), key=lambda path: path.name)
    except OSError as error:
        raise SceneError(f"{_shown(folder)}: cannot be listed ({error.strerror or error})") from error
    return [path for path in entries if not path.name.startswith(".") and path.name not in SYSTEM_FOLDERS]


def _is_image(path: Path) -> bool:
    # Not a pipe or a device, on which reading would wait.
    return path.suffix.lower() in SUFFIXES and (path.is_file() or path.is_symlink()) and not path.is_dir()


# Reading: every file decoded and hashed once.


def _read(parts: Sequence[Sequence[SceneFile]], root: Path, bands: str) -> tuple[list[Files], tuple[str, ...]]:
    """Return the readable files of each part with their keys, and "path: reason" of the others.

    `bands` are those that will be read: what the others hold does not count.
    """
    count, skipped = sum(map(len, parts)), list[str]()
    show = progress("checking images", count, least=SHOW_PROGRESS_FROM)
    found: list[Files] = []
    with ThreadPoolExecutor(WORKERS) as pool, show as advance, undecodable_messages_ignored():
        done, verify = count_up(1), partial(pool.map, partial(_verify, bands=bands))
        for part in parts:
            found.append(Files.of(_readable(part, skipped, verify, lambda: advance(next(done)))))
    tell_of_unreadable(root, skipped, count)
    return found, tuple(skipped)


def _readable(
    files: Sequence[SceneFile],
    skipped: list[str],
    verify: Callable[[Sequence[SceneFile]], Iterator[SceneFile | str]],
    advance: Callable[[], None],
) -> Iterator[SceneFile]:
    """Yield the readable ones of `files` with what was found in them; add why others are not readable to `skipped`."""
    for start in range(0, len(files), _TOGETHER):
        # A thread pool holds an object for each file it is given.
        for result in verify(files[start : start + _TOGETHER]):
            advance()
            if isinstance(result, str):
                skipped.append(result)
            else:
                yield result


def log_skipped(skipped: Sequence[str]) -> None:
    """Log why images were left out, each as "path: reason": the first of each kind, and how many others there are.

    Reasons that differ in numbers alone are of one kind.
    """
    kinds: dict[str, list[str]] = {}
    for reason in skipped:
        kinds.setdefault(_NUMBER.sub("0", reason.partition(": ")[2]), []).append(reason)
    for alike in kinds.values():
        more = f" (and {len(alike) - 1:,} more for this reason)" if len(alike) > 1 else ""
        log.warning("unreadable image left out: %s%s", alike[0], more)


def tell_of_unreadable(where: object, skipped: Sequence[str], count: int) -> None:
    """Log the reasons of `skipped`; raise SceneError if more than MAX_UNREADABLE of `count` images are unreadable.

    A reason is logged once, with the first image and the number of the others.
    """
    log_skipped(skipped)
    if len(skipped) > MAX_UNREADABLE * count:
        raise SceneError(
            f"{where}: {len(skipped)} of {count} images are unreadable, more than {MAX_UNREADABLE:.0%}: "
            f"replace or remove them, first " + "; ".join(skipped[:3])
        )


def _verify(file: SceneFile, bands: str) -> SceneFile | str:
    reader = reader_of(file.path)
    try:
        info = reader.info(file.path)
        found = reader.values(file.path, ())
        used = bands_used(info, bands)
        # What is missing from other bands does not count.
        partly = len(used) < info.bands and (info.nodata is not None or not found.valid.all())
        valid = reader.values(file.path, used).valid if used and partly else found.valid
        key = hashlib.sha256(found.bands.tobytes() if _refers(file.path) else read_bytes(file.path)).hexdigest()
    except SceneError as error:
        return str(error).replace(str(file.path), _shown(file.path))
    if min(info.width, info.height) < LEAST_SIDE:
        return f"{_shown(file.path)}: {info.width} x {info.height} pixels show no scene"
    masked = True
    if info.alpha is not None:
        opacity = found.bands[info.alpha - 1]
        masked = is_mask(opacity)
        valid = valid & (opacity != 0) if masked else valid
    missing = 1 - float(valid.mean())
    if missing == 1:
        return f"{_shown(file.path)}: {NOTHING}"
    look = look_of(found.bands, valid)
    return replace(file, key=key, info=info, missing=missing, masked=masked, look=look)


def _refers(path: Path) -> bool:
    """Return whether the file at `path` refers to others that hold the pixels."""
    return path.suffix.lower() == ".vrt"


def _scenes(files: Files, classes: tuple[str, ...], where: Path) -> Scenes:
    missing = _missing_classes(classes, files.labels)
    if missing:
        raise SceneError(f"{where}: class {missing[0]!r} has no readable image: replace its files")
    return Scenes(files.paths, files.labels, classes, files.keys, files.names)


def _missing_classes(classes: Sequence[str], labels: torch.Tensor) -> list[str]:
    present = set(labels.unique().tolist())
    return [name for label, name in enumerate(classes) if label not in present]


def _shown(path: Path) -> str:
    """Return `path` for a message, with control characters and undecodable bytes escaped."""
    text = str(path)
    return text if text.isprintable() else text.encode("unicode_escape", "backslashreplace").decode()
