"""`geodistill distill SET --add NEWDATA`: update a set with new scenes, without the archive it was made from.

The images of the set take part as scenes, so that new images are chosen beside what is there (as exemplars do in
class-incremental learning: Rebuffi et al., iCaRL, CVPR 2017). A class without new scenes keeps its images. A class that
is new gets new ones. A class with both gets those of the old and new images whose mean features are nearest to the mean
of all that it stands for (herding).
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from geodistill.commands.distill import distill
from geodistill.config import Config, without_self_test
from geodistill.distilled import BATCHES, MANIFEST, UPDATED, DistilledSet
from geodistill.errors import ConfigError, DistilledSetError
from geodistill.networks import backbone_features
from geodistill.pipeline import OWN
from geodistill.privacy.screen import LEAST
from geodistill.processes import processes
from geodistill.run import mean_of
from geodistill.scenes.pixels import Pixels, in_blocks
from geodistill.scenes.scenes import Scenes
from geodistill.selection import herd

log = logging.getLogger("geodistill")


def add(
    old: DistilledSet, new: Scenes, config: Config | None = None, *, out: Path | str, command: str = ""
) -> DistilledSet:
    """Return `old` updated with the scenes `new`, from a run in folder `out`; it is saved as out/updated.

    The set counts as much as `new` in a class with scenes in both, and as much as all batches of scenes that it was
    updated with. There is no self-test: the old scenes are not there.

    Args:
        old: the set.
        new: training scenes; they may have classes that the set has not, and lack others.
        config: settings; its size must be that of the set. The IPC counts for classes with new scenes.
        out: the run folder, which is kept; an interrupted run there is resumed.
        command: the command line, for the record.

    Raises:
        ConfigError: the images have another size, or another number of channels; the set has real images, or images of
            unknown origin; `config` asks for differential privacy, which the choice among old and new images would
            break.
        GeodistillError: what `distill` raises.

    >>> import geodistill, tempfile
    >>> data = geodistill.builtin_scenes(train_per_class=12, test_per_class=3, size=32).train
    >>> config = geodistill.load_config("tiny", ["sampling.strength=0.6"])
    >>> old = geodistill.distill(data.of_classes(data.classes[:7]), config)
    >>> updated = add(old, data.of_classes(data.classes[6:]), config, out=tempfile.mkdtemp())
    >>> len(old), len(updated), len(updated.classes)
    (14, 20, 10)
    """
    config = without_self_test(config or Config())
    _check(old, new, config)
    made = distill(joined(old, new), config, out=out, adds_to=old, command=command)
    updated = compose(old, made, new)
    if processes().main and not _is_there(updated, Path(out) / UPDATED):
        updated.save(Path(out) / UPDATED)
    processes().wait()
    return updated


def _is_there(updated: DistilledSet, folder: Path) -> bool:
    """Return whether `folder` is `updated`; its card, which later commands add to, is kept then."""
    if not (folder / MANIFEST).is_file():
        return False
    try:
        found = DistilledSet.load(folder)
    except DistilledSetError:  # damaged: it is written again
        return False
    alike = found.content_hash() == updated.content_hash() and found.classes == updated.classes
    return alike and found.about == json.loads(json.dumps(updated.about))


def _check(old: DistilledSet, new: Scenes, config: Config) -> None:
    if config.privacy == "dp":
        raise ConfigError(
            "a set cannot be updated under --privacy dp: the choice among old and new images looks at the new scenes, "
            "which no guarantee covers; make a set of the new scenes alone"
        )
    method = old.about.get("method", "unknown")
    if old.kind != "synthetic" or method == "unknown":
        what = "of unknown origin" if method == "unknown" else f"{old.kind} images (method {method})"
        raise ConfigError(f"the images of the set are {what}: --add updates sets of synthetic images alone")
    _warn_of_protection(old, config)
    _check_counts(old, new, config)
    _check_soft_labels(old, new, config)
    if config.size != old.size:
        raise ConfigError(f"the set has images of {old.size} px: use --size {old.size}")
    if new.channels != old.images.shape[1]:
        raise ConfigError(
            f"the set has {old.images.shape[1]} bands and the new scenes have {new.channels}: give --bands as for the "
            "set"
        )


def _check_counts(old: DistilledSet, new: Scenes, config: Config) -> None:
    """Raise ConfigError if a class of the set without new scenes has fewer images than new ones are drawn or needed."""
    screened = config.privacy == "screen"
    needed = max(config.ipc, LEAST if screened else 0)
    for label, count in enumerate(torch.bincount(old.labels).tolist()):
        name = old.classes[label]
        if count < needed and not len(_of(new, name)):
            why = f"screening needs {LEAST}" if count >= config.ipc else f"--ipc {config.ipc} needs as many"
            raise ConfigError(
                f"class {name!r} has {count} images in the set and no new scenes: {why}: add scenes of it"
                + ("" if count >= config.ipc else f", or give --ipc {count}")
            )


def _check_soft_labels(old: DistilledSet, new: Scenes, config: Config) -> None:
    """Raise ConfigError if new images would get soft labels that the updated set cannot have for all its images."""
    if not config.soft_labels:
        return
    fresh = sorted({*new.classes} - {*old.classes})
    bare = sum("soft_label" not in record for record in old.records)
    if fresh or bare:
        why = f"class {fresh[0]!r} is new" if fresh else f"{bare} images of the set have none"
        raise ConfigError(f"soft labels cannot be had for all images of the updated set: {why}: leave them out")


def _warn_of_protection(old: DistilledSet, config: Config) -> None:
    """Log what the updated set will not have, although its old or its new images have it."""
    if old.about.get("guarantee"):
        log.warning("the set's differential-privacy guarantee does not cover new images: the updated set has none")
    if bool(old.about.get("screened")) != (config.privacy == "screen"):
        which = "old" if config.privacy == "screen" else "new"
        log.warning("the %s images are not screened: the card of the updated set does not say that it is", which)


def joined(old: DistilledSet, new: Scenes) -> Scenes:
    """Return the images of `old` and the scenes `new` as scenes of all their classes."""
    classes = tuple(sorted({*old.classes, *new.classes}))
    images = [image.permute(1, 2, 0).contiguous().numpy() for image in old.images]
    own = Scenes(
        images,
        old.labels,
        old.classes,
        [hashlib.sha256(image.tobytes()).hexdigest() for image in images],
        [f"{old.classes[label]}/distilled {k}" for k, label in enumerate(old.labels.tolist())],
        new.reading,
    )
    return own.of_classes(classes).followed_by(new.of_classes(classes))


def compose(old: DistilledSet, made: DistilledSet, new: Scenes) -> DistilledSet:
    """Return the updated set: for each class of `made` images of `old`, of `made`, or of both (see the module)."""
    batches = int(old.about.get(BATCHES, 1))
    images, labels, records = [], [], []
    for label, name in enumerate(made.classes):
        own, drawn, scenes = _of(old, name), _of(made, name), _of(new, name)
        if not len(scenes):
            chosen = [(old, int(k)) for k in own]
        elif not len(own):
            chosen = [(made, int(k)) for k in drawn]
        else:
            seen = in_blocks(Pixels(new, old.size, scenes))
            chosen = _nearest_to_all(old, made, own, drawn, mean_of(map(backbone_features, seen)), batches)
        images += [one.images[k] for one, k in chosen]
        records += [one.records[k] for one, k in chosen]
        labels += [label] * len(chosen)
    about = _about(old, made) | {BATCHES: batches + 1}
    whole = _with_soft_labels_of_all(records, same_classes=old.classes == made.classes)
    return DistilledSet(torch.stack(images), torch.tensor(labels), made.classes, whole, about)


def _with_soft_labels_of_all(records: Sequence[dict[str, Any]], *, same_classes: bool) -> tuple[dict[str, Any], ...]:
    """Return `records`, without soft labels unless all have them, for the same classes."""
    having = sum("soft_label" in record for record in records)
    if not having or (same_classes and having == len(records)):
        return tuple(records)
    log.warning("soft labels are left out of the updated set: old and new images do not both have them for all classes")
    return tuple({key: value for key, value in record.items() if key != "soft_label"} for record in records)


def _about(old: DistilledSet, made: DistilledSet) -> dict[str, Any]:
    """Return what is true of the images of both sets."""
    about = made.about | {"base": _bases(old.about.get("base"), made.about.get("base"))}
    about["method"] = _joined_names(old.about.get("method", OWN), made.about.get("method", OWN))
    if old.follows_scenes or made.follows_scenes:
        about["follows_scenes"] = True
    if not old.about.get("screened"):
        about.pop("screened", None)
    if old.replayable and not made.replayable:
        about["config"] = about.get("config", {}) | {"seed": old.about.get("config", {}).get("seed", 0)}
    return {key: value for key, value in about.items() if value is not None}


def _bases(one: dict[str, Any] | None, other: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the joint facts about two bases: `one` drew the old images, `other` the new ones."""
    if not one or not other or one == other:
        return other or one
    terms = [facts["terms"] for facts in (one, other) if facts["terms"]]
    return {
        "name": _joined_names(one["name"], other["name"]),
        "archives": list(dict.fromkeys([*one["archives"], *other["archives"]])),
        "terms": "; ".join(dict.fromkeys(terms)),
    }


def _joined_names(one: str, other: str) -> str:
    """Return both names, each of which may have been joined before, as one; none occurs twice.

    >>> _joined_names("aid and compact", "compact")
    'aid and compact'
    """
    return " and ".join(dict.fromkeys([*one.split(" and "), *other.split(" and ")]))


def _of(labelled: DistilledSet | Scenes, name: str) -> Tensor:
    """Return which images are of class `name`, int64 [n]."""
    if name not in labelled.classes:
        return torch.zeros(0, dtype=torch.int64)
    return (labelled.labels == labelled.classes.index(name)).nonzero()[:, 0]


def _nearest_to_all(
    old: DistilledSet, made: DistilledSet, own: Tensor, drawn: Tensor, new_mean: Tensor, batches: int
) -> list[tuple[DistilledSet, int]]:
    """Return as many images as `drawn` has, by herding towards the mean of the old images and the new scenes."""
    before, after = backbone_features(old.images[own]), backbone_features(made.images[drawn])
    wanted = (batches * before.mean(dim=0) + new_mean) / (batches + 1)
    every = [*((old, int(k)) for k in own), *((made, int(k)) for k in drawn)]
    return [every[k] for k in herd(torch.cat([before, after]), len(drawn), wanted).tolist()]
