"""The files of a data folder in little memory."""

from collections.abc import Iterable
from dataclasses import fields
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from geodistill.scenes.packed import OnDemand, Packed, Paths, Texts, joined, packed
from geodistill.scenes.scenes import SceneFile

# Files that are Python objects together while they are packed.
_TOGETHER = 4096
_OTHERS = tuple(field.name for field in fields(SceneFile) if field.name not in ("path", "name", "key"))


class Files(OnDemand[SceneFile]):
    """An immutable sequence of SceneFiles, each made when it is asked for; slices are tuples.

    Paths, names and keys are packed. Of all other values, equal ones are kept once.
    """

    def __init__(self, paths: Texts, names: Texts, keys: Packed, others: dict[str, list[Any]]) -> None:
        self._paths, self.names, self.keys, self._others = paths, names, keys, others

    @classmethod
    def of(cls, files: Iterable[SceneFile]) -> "Files":
        """Return `files` packed; they are read once, a few at a time."""
        paths: list[Texts] = []
        names: list[Texts] = []
        keys: list[Packed] = []
        others: dict[str, list[Any]] = {name: [] for name in _OTHERS}
        known: dict[str, dict[Any, Any]] = {name: {} for name in _OTHERS}
        remaining = iter(files)
        while some := list(islice(remaining, _TOGETHER)):
            paths.append(Texts.of(str(file.path) for file in some))
            names.append(Texts.of(file.name for file in some))
            keys.append(packed(file.key for file in some))
            for name in _OTHERS:
                values = (getattr(file, name) for file in some)
                others[name] += [known[name].setdefault(value, value) for value in values]
        return cls(Texts.join(paths), Texts.join(names), joined(keys), others)

    def __len__(self) -> int:
        return len(self._paths)

    def _at(self, index: int) -> SceneFile:
        others = {name: values[index] for name, values in self._others.items()}
        return SceneFile(Path(self._paths[index]), name=self.names[index], key=self.keys[index], **others)

    @property
    def paths(self) -> Paths:
        """The path of each file."""
        return Paths(self._paths)

    @property
    def labels(self) -> torch.Tensor:
        """The number of the class of each file, int64 [N]."""
        return torch.tensor(self._others["label"], dtype=torch.int64)

    def take(self, indices: torch.Tensor) -> "Files":
        """Return the files at `indices`, int64 [n], in that order."""
        chosen = indices.tolist()
        others = {name: [values[k] for k in chosen] for name, values in self._others.items()}
        return Files(self._paths.take(indices), self.names.take(indices), self.keys.take(indices), others)
