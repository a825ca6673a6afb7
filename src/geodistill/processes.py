"""Several processes that work on one run, started by torchrun, or on GPUs by `accelerate launch`.

The main process writes all files and does the work that cannot be shared. Encoding, the trainings of the latent teacher
and of the adapter, sampling and refinement are shared, and so is the audit. All randomness depends on its purpose only,
so any number of processes makes the same images.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from functools import cache
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

from geodistill.devices import accelerator

# A process may have to wait for another during an unshared stage, such as descriptions by a large model.
_PATIENCE = timedelta(days=7)
_alone: ContextVar[bool] = ContextVar("alone", default=False)
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Processes:
    """Process number `rank` of `count`."""

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count

    @property
    def main(self) -> bool:
        """Return whether this is the process that writes files."""
        return self.rank == 0

    def wait(self) -> None:
        """Return when all processes have called this."""
        if self.count > 1:
            torch.distributed.barrier()

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace each of `tensors` by its sum over all processes."""
        if self.count > 1:
            for tensor in tensors:
                torch.distributed.all_reduce(tensor)

    def own(self, items: Iterable[_Item]) -> Iterator[_Item]:
        """Yield the items that are this process's: of n processes each has every n-th one."""
        return islice(items, self.rank, None, self.count)

    def gathered(self, part: _Item) -> list[_Item]:
        """Return what each process gave as its `part`, in the order of the processes."""
        if self.count == 1:
            return [part]
        found: list[_Item] = [part] * self.count
        torch.distributed.all_gather_object(found, part)
        return found

    def shared(self, items: Sequence[_Item], work: Callable[[_Item], _Result]) -> list[_Result]:
        """Return `work(item)` for all items, in order; each process does its `own`, and all get all results.

        >>> Processes().shared((1, 2, 3), str)
        ['1', '2', '3']
        """
        return self.in_order([work(item) for item in self.own(items)], len(items))

    def in_order(self, results: Sequence[_Item], count: int) -> list[_Item]:
        """Return the results for all of `count` items, in order, where each process gives those for its `own` ones."""
        parts = self.gathered(results)
        return [parts[k % self.count][k // self.count] for k in range(count)]

    def any(self, happened: bool) -> bool:
        """Return whether it happened in any of the processes."""
        flag = torch.tensor(float(happened), device=accelerator())
        self.add([flag])
        return bool(flag > 0)


def processes() -> Processes:
    """Return this process as one of those that share the work at hand, or as the only one if it does it alone."""
    return Processes() if _alone.get() else _started()


@contextmanager
def alone() -> Iterator[None]:
    """Do what follows in this process alone, while others wait: nothing in it is shared with them."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


@cache
def _started() -> Processes:
    """Return this process as one of those started together, or as the only one if it was started alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Processes()
    from accelerate import PartialState

    state = PartialState(cpu=accelerator().type == "cpu", timeout=_PATIENCE)
    return Processes(state.process_index, state.num_processes)


def end_together() -> None:
    """Wait until all processes have done their part, then end the connection between them.

    A process that ends with an open connection may abort, and the launcher then stops those that are not done.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
