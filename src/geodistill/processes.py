"""Several processes that work on one run, started by `accelerate launch` or torchrun.

The main process does all work that cannot be shared and writes all files; encoding, sampling and the adapter's training
are shared. All randomness depends on its purpose only, so any number of processes makes the same images.
"""

import os
from collections.abc import Sequence
from datetime import timedelta
from functools import cache

import torch
from torch import Tensor

from geodistill.devices import accelerator

# A process may have to wait for another during an unshared stage, such as descriptions by a large model.
_PATIENCE = timedelta(days=7)


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

    def any(self, happened: bool) -> bool:
        """Return whether it happened in any of the processes."""
        flag = torch.tensor(float(happened), device=accelerator())
        self.add([flag])
        return bool(flag > 0)


@cache
def processes() -> Processes:
    """Return this process as one of those started together, or as the only one if it was started alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Processes()
    from accelerate import PartialState

    state = PartialState(cpu=accelerator().type == "cpu", timeout=_PATIENCE)
    return Processes(state.process_index, state.num_processes)
