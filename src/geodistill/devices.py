"""The device and precision of models, determined here for the whole run."""

import ctypes
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

import psutil
import torch
from torch import nn

from geodistill.errors import ConfigError

Precision = Literal["auto", "bf16", "f16", "f32"]
_TYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}

# Seconds for which the cores are watched.
_WATCHED = 0.5
# Environment variable with the device that models run on. Worker processes inherit it.
DEVICE = "GEODISTILL_DEVICE"

# Parameters of mallopt, from glibc's malloc.h, and their defaults: the amount of free memory above which some is
# returned to the system, and the largest number of arrays with a memory mapping of their own.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_TRIM_THRESHOLD, _MMAP_MAX, _NEVER = 128 * 1024, 65536, 2**31 - 1


# Number of blocks of `kept_memory` that this process is in.
_depth = 0


@contextmanager
def kept_memory() -> Iterator[None]:
    """Make glibc reuse freed memory, and return it to the system when the block ends; other C libraries stay as is.

    By default glibc returns every freed array above 32 MiB to the system. A training that allocates the same arrays at
    each step then waits for their pages to be cleared, which takes a third of ConvNet-3's time and 5 to 10 % of a
    U-Net's. When the outermost block ends, glibc gets its default settings back.
    """
    global _depth
    libc = _glibc()
    if libc is None:
        yield
        return
    _depth += 1
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        _depth -= 1
        if not _depth:
            libc.mallopt(_M_MMAP_MAX, _MMAP_MAX)
            libc.mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD)
            libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if platform.libc_ver()[0] != "glibc":
        return None
    with suppress(OSError, TypeError):
        library = ctypes.CDLL(None)
        if hasattr(library, "mallopt") and hasattr(library, "malloc_trim"):
            return library
    return None


def told_of_busy_cores() -> str:
    """Return a sentence on cores that other processes keep busy, with what to do; "" if there are none, or no need.

    Threads that share a core with another process are awaited by all others at every layer: beside one busy process on
    two cores, a training step takes 3.0 times as long with two threads, and 1.7 times with one (benchmarks/busy.py).
    """
    if accelerator().type != "cpu":
        return ""
    shares = psutil.cpu_percent(interval=_WATCHED, percpu=True)
    busy, cores = round(sum(shares) / 100), len(shares)
    free = max(1, cores - busy)
    if not busy or torch.get_num_threads() <= free:
        return ""
    return (
        f"other processes keep {busy} of {cores} cores busy: set OMP_NUM_THREADS={free} before you begin, which is up "
        "to twice as fast as sharing them"
    )


def accelerator() -> torch.device:
    """Return the device that models run on: that of `on_device`, else a CUDA device, else Apple's MPS, else the CPU."""
    chosen = os.environ.get(DEVICE)
    if chosen:
        return torch.device(chosen)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


@contextmanager
def on_device(name: str | None) -> Iterator[None]:
    """Run all models within the block on device `name`: cpu, cuda, cuda:N or mps; None leaves the choice as it is.

    Raises:
        ConfigError: torch does not know the device, or this machine does not have it.

    >>> with on_device("cpu"):
    ...     print(accelerator())
    cpu
    """
    if name is None:
        yield
        return
    _check_device(name)
    before = os.environ.get(DEVICE)
    os.environ[DEVICE] = name
    try:
        yield
    finally:
        os.environ.pop(DEVICE)
        if before is not None:
            os.environ[DEVICE] = before


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"unknown device {name!r}: use cpu, cuda, cuda:N or mps")
    count = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[device.type]
    if (device.index or 0) >= count:
        raise ConfigError(f"there is no device {name!r}: torch sees {count} of type {device.type!r} on this machine")
    if device.index is not None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(f"device {name!r} is one for all processes, and each needs its own: use {device.type}")


def free_memory(device: torch.device) -> int:
    """Return the number of bytes that this process could still allocate on `device`."""
    if device.type != "cuda":
        return int(psutil.virtual_memory().available)
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def dtype_for(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the type that `precision` means on `device`.

    auto is bf16 on a device with hardware for it, else f32: a CPU without it emulates bf16 at a third of the speed.

    Raises:
        ConfigError: bf16 is requested on a GPU without hardware for it.
    """
    if precision == "bf16" and device.type == "cuda" and not _has_bf16_units(device):
        raise ConfigError("this GPU has no units for bf16: use --set precision=f16 or f32, or leave it at auto")
    if precision == "auto":
        return torch.bfloat16 if _has_bf16_units(device) else torch.float32
    return _TYPES[precision]


def _has_bf16_units(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "mps":  # bf16 depends on chip and system there: float32 always works
        return False
    if platform.machine().lower() in ("x86_64", "amd64"):
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@contextmanager
def compiled_in_place(*modules: nn.Module) -> Iterator[None]:
    """Compile each of `modules` within the block, when it is first called; code that cannot be compiled runs as it is.

    A compiled small U-Net trains 2.2 times as fast on a CPU with matrix units. Without a C++ compiler, torch runs the
    module uncompiled. After the block the modules are uncompiled, and torch's settings are as before.
    """
    if not modules:
        yield
        return
    with torch._dynamo.config.patch(suppress_errors=True):
        for module in modules:
            # Shapes recur, and one program per shape is faster than one for all shapes.
            module.compile(dynamic=False)
        try:
            yield
        finally:
            for module in modules:
                module._compiled_call_impl = None


def mixed(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return the context in which matrix products and convolutions run in `dtype`, sums and weights in f32."""
    enabled = dtype != torch.float32
    return torch.autocast(device.type, dtype if enabled else torch.bfloat16, enabled=enabled)
