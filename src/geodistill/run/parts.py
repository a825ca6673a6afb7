"""Long work in parts: each is kept once it is made, so that a run that stopped makes none a second time."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from geodistill.processes import processes
from geodistill.progress import progress
from geodistill.run.files import fsync, save_tensors


def kept_parts(title: str, parts: Iterable[slice], make: Callable[[slice], Tensor], folder: Path) -> Tensor:
    """Return `make(part)` of all `parts`, joined along the first axis; see `make_parts`."""
    whole = torch.cat([load_file(path)["part"] for path in make_parts(title, parts, make, folder)])
    # The main process may go on to remove the files that another is still reading.
    processes().wait()
    return whole


def make_parts(title: str, parts: Iterable[slice], make: Callable[[slice], Tensor], folder: Path) -> list[Path]:
    """Return files with `make(part)` of all `parts`, made with a progress bar titled `title`.

    Each is kept in `folder` once it is made: called again after an interruption, none is made a second time. Parts
    follow on each other, the last one's stop is the number of items. When the whole is saved, `forget_parts` removes
    what was kept. Several processes make every one of their number each, and all get all of them.
    """
    slices, group = list(parts), processes()
    paths = [folder / f".part-{index:05d}.safetensors" for index in range(len(slices))]
    with progress(title, slices[-1].stop) as advance:
        for index, (path, which) in enumerate(zip(paths, slices, strict=True)):
            if index % group.count == group.rank and not path.exists():
                save_tensors({"part": make(which)}, path)
            advance(which.stop)
    group.wait()
    return paths


def join_parts(paths: Sequence[Path], name: str, target: Path) -> None:
    """Write tensor `name` to the safetensors file `target`: what is in `paths`, joined along the first axis.

    One part at a time is in memory, however many there are. The format: a header in JSON, its length before it, and
    then the numbers row after row (https://huggingface.co/docs/safetensors).
    """
    shapes = [_shape_of(path) for path in paths]
    kind, (_, *rest) = shapes[0]
    shape = [sum(rows for _, (rows, *_) in shapes), *rest]
    aside = target.with_name(f".{target.name}.tmp")
    with aside.open("wb") as file:
        size = math.prod(shape) * load_file(paths[0])["part"].element_size()
        header = json.dumps({name: {"dtype": kind, "shape": shape, "data_offsets": [0, size]}}).encode()
        # The numbers begin at a multiple of eight bytes.
        header += b" " * (-len(header) % 8)
        file.write(len(header).to_bytes(8, "little") + header)
        for path in paths:
            part = load_file(path)["part"].contiguous()
            file.write(part.view(torch.uint8).numpy().tobytes())
    fsync(aside)
    aside.replace(target)


def _shape_of(path: Path) -> tuple[str, list[int]]:
    with safe_open(path, "pt") as tensors:
        found = tensors.get_slice("part")
        return str(found.get_dtype()), list(found.get_shape())


def forget_parts(folder: Path) -> None:
    """Remove what `kept_parts` kept in `folder`."""
    for path in folder.glob(".part-*.safetensors"):
        path.unlink()
