import subprocess
import sys

# In a process of its own: the peak of this one is what its largest test took.
_PROGRAM = """
import numpy as np
from geodistill.memory import peak_memory_mib

before = peak_memory_mib()
taken = np.ones(2 * before * 2**20, np.uint8)
assert peak_memory_mib() >= 2 * before, "not counted"
del taken
assert peak_memory_mib() >= 2 * before, "forgotten"
"""


def test_the_peak_holds_what_was_allocated() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
