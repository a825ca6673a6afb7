"""Long work in parts: each part is kept once it is made, so that a resumed run repeats none."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from geodistill.devices import kept_memory
from geodistill.processes import processes
from geodistill.progress import progress
from geodistill.run.files import fsync, save_tensors


def kept_parts(title: str, parts: Iterable[slice], make: Callable[[slice], Tensor], folder: Path) -> Tensor:
    """Return the results of `make(part)` for all `parts`, joined along the first axis; see `make_parts`."""
    whole = torch.cat([load_file(path)["part"] for path in make_parts(title, parts, make, folder)])
    # Otherwise the main process might remove files that another process is still reading.
    processes().wait()
    return whole


def make_parts(title: str, parts: Iterable[slice], make: Callable[[slice], Tensor], folder: Path) -> list[Path]:
    """Return files with the results of `make(part)` for all `parts`, made with a progress bar titled `title`.

    Each part is kept in `folder` once it is made, so a call after an interruption makes only the missing ones. Parts
    are consecutive; the stop of the last one is the number of items. When the whole is saved, `forget_parts` removes
    the kept files. Of n processes each makes every n-th part, and all get all parts.
    """
    slices, group = list(parts), processes()
    paths = [folder / f".part-{index:05d}.safetensors" for index in range(len(slices))]
    with progress(title, slices[-1].stop) as advance, kept_memory():
        for index, (path, which) in enumerate(zip(paths, slices, strict=True)):
            if index % group.count == group.rank and not path.exists():
                save_tensors({"part": make(which)}, path)
            advance(which.stop)
    group.wait()
    return paths


def join_parts(paths: Sequence[Path], name: str, target: Path) -> None:
    """Write tensor `name` to the safetensors file `target`: the parts in `paths`, joined along the first axis.

    Only one part at a time is in memory. The file has a header in JSON, preceded by its length and followed by the
    numbers row by row (https://huggingface.co/docs/safetensors).
    """
    shapes = [_shape_of(path) for path in paths]
    kind, (_, *rest) = shapes[0]
    shape = [sum(rows for _, (rows, *_) in shapes), *rest]
    aside = target.with_name(f".{target.name}.tmp")
    with aside.open("wb") as file:
        size = math.prod(shape) * load_file(paths[0])["part"].element_size()
        header = json.dumps({name: {"dtype": kind, "shape": shape, "data_offsets": [0, size]}}).encode()
        # The numbers must begin at a multiple of eight bytes.
        header += b" " * (-len(header) % 8)
        file.write(len(header).to_bytes(8, "little") + header)
        for path in paths:
            part = load_file(path)["part"].contiguous()
            file.write(part.view(torch.uint8).numpy().tobytes())
    fsync(aside)
    aside.replace(target)


def save_rows(parts: Iterable[Tensor], name: str, target: Path) -> None:
    """Write tensor `name` to the safetensors file `target`: `parts`, joined along the first axis; see `join_parts`.

    The parts are kept beside the file until it is complete.
    """
    paths = []
    for index, part in enumerate(parts):
        paths.append(target.parent / f".part-{index:05d}.safetensors")
        save_tensors({"part": part}, paths[-1])
    join_parts(paths, name, target)
    for path in paths:
        path.unlink()


def _shape_of(path: Path) -> tuple[str, list[int]]:
    with safe_open(path, "pt") as tensors:
        found = tensors.get_slice("part")
        return str(found.get_dtype()), list(found.get_shape())


def forget_parts(folder: Path) -> None:
    """Remove the parts kept in `folder`."""
    for path in folder.glob(".part-*.safetensors"):
        path.unlink()


def forget_part_folders(folder: Path, pattern: str) -> None:
    """Remove the folders in `folder` whose names match `pattern`, which hold parts and nothing else."""
    for parts in folder.glob(pattern):
        forget_parts(parts)
        parts.rmdir()
