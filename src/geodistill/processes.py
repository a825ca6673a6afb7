"""Several processes that work on one run, as `accelerate launch` or torchrun starts them.

The main process does what cannot be shared and writes what is kept; encoding, sampling and the adapter's training are
shared. Everything that is random depends on what it is for, so that any number of processes makes the same images.
"""

import os
from collections.abc import Sequence
from datetime import timedelta
from functools import cache

import torch
from torch import Tensor

from geodistill.devices import accelerator

# One process may wait for another through a stage that is not shared, such as the descriptions by a large model.
_PATIENCE = timedelta(days=7)


class Processes:
    """One of `count` processes, which is number `rank`."""

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count

    @property
    def main(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.count > 1:
            torch.distributed.barrier()

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Put into each of `tensors` its sum over all processes."""
        if self.count > 1:
            for tensor in tensors:
                torch.distributed.all_reduce(tensor)

    def any(self, happened: bool) -> bool:
        """Whether it happened in any of the processes."""
        flag = torch.tensor(float(happened), device=accelerator())
        self.add([flag])
        return bool(flag > 0)


@cache
def processes() -> Processes:
    """Return this process among those that were started together; alone, if it was."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Processes()
    from accelerate import PartialState

    state = PartialState(cpu=accelerator().type == "cpu", timeout=_PATIENCE)
    return Processes(state.process_index, state.num_processes)
