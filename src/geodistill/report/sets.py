"""The distilled sets of a run and their images, ready for a page.

Without the user's consent no real image is shown: neither sources nor sets that consist of real images.
"""

import base64
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from geodistill.distilled import UPDATED, DistilledSet, set_in
from geodistill.errors import RunError
from geodistill.evaluation.rows import Row
from geodistill.methods import METHODS
from geodistill.pipeline import CHOSEN, OWN, PROTOTYPES
from geodistill.prototypes import Prototypes
from geodistill.scenes.scenes import Scenes
from geodistill.scenes.views import as_rgb
from geodistill.stages.chosen import Chosen

_NEIGHBOURS = 3
_THUMB = 64


@dataclass(frozen=True)
class SetFolder:
    """One set of a run: its run folder, its method and its number of images per class."""

    run: Path
    method: str
    ipc: int

    @property
    def name(self) -> str:
        """Return a readable name of the set."""
        return f"{self.method}, IPC {self.ipc}"

    @property
    def finished(self) -> bool:
        """Return whether its images exist."""
        return set_in(self.run).is_dir()

    @property
    def updated(self) -> bool:
        """Return whether the set is an earlier one that the run updated: only some images are the run's own."""
        return set_in(self.run).name == UPDATED

    @cached_property
    def images(self) -> DistilledSet:
        """Return the images, which are read once."""
        return DistilledSet.load(set_in(self.run))

    @property
    def scenes(self) -> str | None:
        """Return the fingerprint of the training scenes that it was made from, or None if its run has none."""
        about = self.run / "run.json"
        found = json.loads(about.read_text(encoding="utf-8"))["settings"].get("scenes") if about.is_file() else None
        return found if isinstance(found, str) else None

    def check_scenes(self, scenes: Scenes) -> None:
        """Raise RunError unless `scenes` are the training scenes that the set was made from.

        An updated set was made from several archives, so any scenes pass.
        """
        if not self.updated and self.scenes is not None and self.scenes != scenes.fingerprint():
            raise RunError(f"{self.run} was made from other scenes than these: give the data that it was made from")

    def holds_real(self, rows: Sequence[Row]) -> bool:
        """Return whether its images are or may be real: images not known to be generated count as real."""
        told = [row.kind != "synthetic" for row in rows if row.method == self.method]
        # Tables of earlier releases do not separate derived images from synthetic ones.
        known = METHODS.get(self.method)
        if known is None:
            return any(told) or not told
        return any(told) or known.kind != "synthetic"


def compared_sets(run: Path, rows: Sequence[Row]) -> list[SetFolder]:
    """Return the sets of a `compare` run: methods in the order of `rows`, those without figures last; then by IPC."""
    place = {method: k for k, method in enumerate(dict.fromkeys(row.method for row in rows))}
    found = []
    for folder in sorted((run / "sets").glob("*-ipc*/")):
        match = re.fullmatch(r"(.+)-ipc(\d+)", folder.name)
        if match:
            found.append(SetFolder(folder, match[1], int(match[2])))
    return sorted(found, key=lambda one: (place.get(one.method, len(place)), one.method, one.ipc))


def main_set(sets: Sequence[SetFolder]) -> SetFolder | None:
    """Return the set that represents the run: `dpd` if it exists, else the last method, at its largest IPC."""
    last = [one for one in sets if one.method == OWN] or [one for one in sets if one.method == sets[-1].method]
    return max(last, key=lambda one: one.ipc, default=None)


@dataclass(frozen=True)
class Picture:
    """An image on a page; `sources` are real images near its prototype."""

    uri: str
    alt: str
    facts: tuple[str, ...] = ()
    description: str = ""
    sources: tuple["Picture", ...] = ()


def gallery(one: SetFolder, per_class: int, scenes: Scenes | None = None) -> dict[str, list[Picture]]:
    """Return at most `per_class` pictures of every class, with sources if its own scenes are given as `scenes`."""
    distilled = one.images
    sources = None if scenes is None or one.updated else _Sources(one, scenes, distilled.size)
    found = {}
    for label, name in enumerate(distilled.classes):
        own = (distilled.labels == label).nonzero().flatten().tolist()[:per_class]
        found[name] = [_picture(distilled, index, rank, sources) for rank, index in enumerate(own, start=1)]
    return found


def _picture(distilled: DistilledSet, index: int, rank: int, sources: "_Sources | None") -> Picture:
    record, name = distilled.records[index], distilled.classes[distilled.labels[index]]
    return Picture(
        png_uri(distilled.images[index]),
        f"distilled image {rank} of {name}",
        _facts(record),
        record.get("description", ""),
        () if sources is None else sources.of(index),
    )


def _facts(record: dict[str, Any]) -> tuple[str, ...]:
    probability = record.get("scores", {}).get("teacher_probability")
    return () if probability is None else (f"teacher {probability:.2f}",)


class _Sources:
    """The real images nearest the centre of each prototype's cluster."""

    def __init__(self, one: SetFolder, scenes: Scenes, size: int) -> None:
        self._scenes, self._size = scenes, size
        self._members: list[Tensor] = []
        if (one.run / PROTOTYPES.name).is_dir() and (one.run / CHOSEN.name).is_dir():
            prototypes = Prototypes.load(one.run / PROTOTYPES.name)
            slots = Chosen.load(one.run / CHOSEN.name).rows // one.images.about["config"]["sampling"]["candidates"]
            self._members = [prototypes.members[slot] for slot in slots.tolist()]

    def of(self, index: int) -> tuple[Picture, ...]:
        """Return pictures of the members of image `index`'s prototype; none if there are no prototypes."""
        if not self._members:
            return ()
        members = self._members[index][:_NEIGHBOURS]
        name = self._scenes.classes[int(self._scenes.labels[members[0]])]
        pixels = self._scenes.pixels(members, size=self._size)
        return tuple(Picture(png_uri(image), f"real image of {name} near this prototype") for image in pixels)


def thumbnails(distilled: DistilledSet) -> dict[str, Picture]:
    """Return one small picture of each class: its first image."""
    found = {}
    for label, name in enumerate(distilled.classes):
        first = int((distilled.labels == label).nonzero()[0, 0])
        found[name] = Picture(png_uri(distilled.images[first], most=_THUMB), f"distilled image of {name}")
    return found


def png_uri(image: torch.Tensor, most: int | None = None) -> str:
    """Return uint8 [channels, s, s] as the data URI of a PNG, in its own size or with sides of at most `most`."""
    picture = Image.fromarray(as_rgb(image[None])[0].permute(1, 2, 0).contiguous().numpy())  # [3, s, s] -> [s, s, 3]
    if most is not None:
        picture.thumbnail((most, most))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
