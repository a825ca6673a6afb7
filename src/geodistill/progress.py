"""Progress of long work: bars on a terminal, lines elsewhere, both with the time left; or a function of the caller."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from geodistill.processes import processes

# Takes what is done, how many items are done, and their total number.
Report = Callable[[str, int, int], None]
# Seconds below which no line states the time left.
_SHORT = 5.0
_report: ContextVar[Report | None] = ContextVar("report", default=None)


class Advance(Protocol):
    """Sets the position of a progress bar, with a short note."""

    def __call__(self, done: int, note: str = "") -> None:
        """Set how many items are done."""


@contextmanager
def progress(title: str, total: int, *, least: int = 0) -> Iterator[Advance]:
    """Show a bar titled `title` on standard error; the yielded function sets how many of `total` are done.

    Work of fewer than `least` items is soon done: nothing is shown or reported.

    If standard error is not a terminal (a log file), a line with the time left is printed at each tenth instead. Within
    `reported_to(report)`, `report(title, done, total)` is called and nothing is printed.
    """
    if total < least:
        yield lambda done, note="": None
        return
    report = _report.get()
    if report is not None:
        yield lambda done, note="": report(title, done, total)
        return
    if not processes().main:
        yield lambda done, note="": None
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(title, total)
        return
    columns = (TextColumn("{task.description:<14}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=console) as bars:
        task = bars.add_task(title, total=total, note="")
        yield lambda done, note="": bars.update(task, completed=done, note=note)


@contextmanager
def reported_to(report: Report) -> Iterator[None]:
    """Call `report(what, done, total)` as work within the block proceeds, in place of bars and lines.

    >>> with reported_to(print), progress("reading", 2) as advance:
    ...     advance(1)
    reading 1 2
    """
    before = _report.set(report)
    try:
        yield
    finally:
        _report.reset(before)


def duration(seconds: float) -> str:
    """Return `seconds` in the largest unit that fits.

    >>> duration(50), duration(150), duration(6000)
    ('50 s', '2 min', '1.7 h')
    """
    minutes = seconds / 60
    return f"{minutes / 60:.1f} h" if minutes >= 90 else f"{minutes:.0f} min" if minutes >= 1.5 else f"{seconds:.0f} s"


class _Lines:
    def __init__(self, title: str, total: int) -> None:
        self._title, self._total, self._tenth = title, total, -1
        self._first: tuple[int, float] | None = None

    def __call__(self, done: int, note: str = "") -> None:
        tenth = done * 10 // max(self._total, 1)
        left = self._left(done)
        if tenth != self._tenth:
            self._tenth = tenth
            print(f"{self._title}: {done}/{self._total}{left} {note}".rstrip(), file=sys.stderr, flush=True)

    def _left(self, done: int) -> str:
        """Return the time left in words, "" if it is less than _SHORT.

        The rate is that since the first call: what a resumed run found done does not count.
        """
        now = time.monotonic()
        if self._first is None or done <= self._first[0]:
            self._first = self._first or (done, now)
            return ""
        before, start = self._first
        seconds = (self._total - done) * (now - start) / (done - before)
        return f", {duration(seconds)} left" if seconds >= _SHORT else ""
