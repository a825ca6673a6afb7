"""What a stage makes, and what it was made from, in one value.

The fingerprint of a stage covers everything that the stage was given. `Made` holds a value and this fingerprint. While
a stage is built, a `Made` can be read only if the stage was given it, or if it follows from what the stage was given.
So no stage can depend on something that its fingerprint leaves out: the run stops with a message instead.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

T = TypeVar("T")
# Images of a set: training images as they are, training images changed, or drawn by a model.
Kind = Literal["real", "derived", "synthetic"]

# Name of the stage that is being built, and the inputs that it may read.
_building: ContextVar[tuple[str, frozenset[str]] | None] = ContextVar("building", default=None)


@dataclass(frozen=True)
class Stage:
    """A stage of a run; each is declared once, in `pipeline`.

    name: its folder in the run, and its file in `RUN/stages`. version: of its code; raise it if the same inputs give
    another result. title: of its loss curve in the report, if it is a training. shared: several processes work on it;
    otherwise the main process makes it alone. lent: it depends on neither method nor images per class, so that a
    comparison makes it once.
    """

    name: str
    version: int
    title: str = ""
    shared: bool = False
    lent: bool = False


@dataclass(frozen=True)
class Method:
    """One way to make a distilled set.

    name: what users call it. summary: in one line, what it does. kind: what its images are. home: the module with its
    `make(context)`, which is imported when it is needed.
    """

    name: str
    summary: str
    kind: Kind
    home: str


def fingerprint(*parts: Any) -> str:
    """Return the SHA-256 (hex) of `parts`, which must be representable in JSON."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


class Made(Generic[T]):
    """A value with its provenance.

    >>> latents = Made.source([1.0, 2.0], "fingerprint of the latents")
    >>> mean = derived(lambda: sum(latents.value) / 2, latents)
    >>> mean.value
    1.5
    >>> mean.marks
    ('fingerprint of the latents',)
    """

    def __init__(self, read: Callable[[], T], marks: Sequence[str], given: Sequence[Any]) -> None:
        """Take a function that returns the value, its fingerprints, and what it was made from."""
        self._read = read
        self._kept: list[T] = []
        self.marks = tuple(dict.fromkeys(marks))
        self.roots = roots_of(given)
        self.lineage = lineage_of(given) | {_text(mark) for mark in self.marks}

    @classmethod
    def source(cls, value: T, mark: str) -> "Made[T]":
        """Return a value that no stage made, such as a base, with the fingerprint of its content."""
        return cls(lambda: value, (mark,), (mark,))

    @property
    def value(self) -> T:
        """The value.

        Raises RuntimeError inside a stage that was given neither this nor what it follows from.
        """
        stage = _building.get()
        if stage is not None and not self._covered(stage[1]):
            raise RuntimeError(
                f"stage {stage[0]!r} reads what it was not given (of fingerprint {', '.join(self.marks)}): add it to "
                "`given`"
            )
        if not self._kept:
            self._kept.append(self._read())
        return self._kept[0]

    def _covered(self, allowed: frozenset[str]) -> bool:
        return {_text(mark) for mark in self.marks} <= allowed or self.roots <= allowed


def derived(compute: Callable[[], T], *given: Made[Any]) -> Made[T]:
    """Return what `compute` makes of the values of `given`, computed in memory when it is first read."""
    return Made(compute, [mark for one in given for mark in one.marks], given)


def inputs_of(given: Sequence[Any]) -> list[Any]:
    """Return `given` as a fingerprint covers it: each `Made` by its fingerprints, none of them twice."""
    inputs: list[Any] = []
    marks: set[str] = set()
    for one in given:
        own = one.marks if isinstance(one, Made) else ()
        inputs += [mark for mark in own if mark not in marks] if isinstance(one, Made) else [one]
        marks.update(own)
    return inputs


def roots_of(given: Sequence[Any]) -> frozenset[str]:
    """Return all inputs that are no results themselves, of `given` and of what these were made from."""
    return frozenset().union(*(one.roots if isinstance(one, Made) else {_text(one)} for one in given))


def lineage_of(given: Sequence[Any]) -> frozenset[str]:
    """Return everything that `given` follows from, itself included."""
    return frozenset().union(*(one.lineage if isinstance(one, Made) else {_text(one)} for one in given))


@contextmanager
def building(stage: Stage, given: Sequence[Any]) -> Iterator[None]:
    """Let only what follows from `given` be read while `stage` is built."""
    token = _building.set((stage.name, lineage_of(given)))
    try:
        yield
    finally:
        _building.reset(token)


def _text(part: Any) -> str:
    return json.dumps(part, sort_keys=True, default=str)
