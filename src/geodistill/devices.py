"""The device and precision of models, determined here for the whole run."""

import ctypes
import platform
from typing import Literal

import psutil
import torch
from torch import nn

from geodistill.errors import ConfigError

Precision = Literal["auto", "bf16", "f16", "f32"]
_TYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}

# Constants of glibc's malloc.h, and the largest block size that it can be set to keep.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _LARGEST = -1, -3, 32 * 2**20


def keep_freed_memory() -> bool:
    """Make this process keep memory freed by tensors for the next ones; return whether its C library supports that.

    Otherwise each layer's output goes back to the kernel, which zeroes the same pages for the next one: on a CPU this
    takes 5 to 10 % of the time of training and drawing. Only for the process of a command, not for library use.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    kept = libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1), libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST)
    return all(kept)


def accelerator() -> torch.device:
    """Return the device that models run on: a CUDA device if torch sees one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


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
    if platform.machine().lower() in ("x86_64", "amd64"):
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def compile_in_place(module: nn.Module) -> None:
    """Compile `module` when it is first called; code that cannot be compiled runs uncompiled.

    A compiled small U-Net trains 2.2 times as fast on a CPU with matrix units. Without a C++ compiler, torch runs the
    module uncompiled.
    """
    torch._dynamo.config.suppress_errors = True
    # Shapes recur, and one program per shape is faster than one for all shapes.
    module.compile(dynamic=False)


def mixed(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Return the context in which matrix products and convolutions run in `dtype`, sums and weights in f32."""
    enabled = dtype != torch.float32
    return torch.autocast(device.type, dtype if enabled else torch.bfloat16, enabled=enabled)
