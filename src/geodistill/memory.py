"""How much memory this process has taken; without torch, which a measured process may not have."""

import contextlib
import sys
from pathlib import Path

import psutil


def peak_memory_mib() -> int:
    """Return this process's peak resident memory in MiB, since the last reset if the system can reset it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) // 1024
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset) // 2**20
    import resource  # missing on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (1024 * 1024 if sys.platform == "darwin" else 1024)
