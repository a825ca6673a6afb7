"""Progress bars with the remaining time, drawn only on a terminal."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from geodistill.processes import processes


class Advance(Protocol):
    """Sets the position of a progress bar, with a short note."""

    def __call__(self, done: int, note: str = "") -> None:
        """Set how many items are done."""


@contextmanager
def progress(title: str, total: int) -> Iterator[Advance]:
    """Show a bar titled `title` on standard error; the yielded function sets how many of `total` are done.

    If standard error is not a terminal (a log file), a line is printed at each tenth instead.
    """
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
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """Show one bar per kind of work as it comes up; the yielded function takes its name, done and total."""
    with ExitStack() as stack:
        bars: dict[tuple[str, int], Advance] = {}

        def advance(name: str, done: int, total: int) -> None:
            if (name, total) not in bars:
                # The previous bar stops at its current position.
                stack.close()
                bars.clear()
                bars[name, total] = stack.enter_context(progress(name, total))
            bars[name, total](done)

        yield advance


class _Lines:
    def __init__(self, title: str, total: int) -> None:
        self._title, self._total, self._tenth = title, total, -1

    def __call__(self, done: int, note: str = "") -> None:
        tenth = done * 10 // max(self._total, 1)
        if tenth != self._tenth:
            self._tenth = tenth
            print(f"{self._title}: {done}/{self._total} {note}".rstrip(), file=sys.stderr, flush=True)
