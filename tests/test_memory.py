import numpy as np

from geodistill.memory import peak_memory_mib


def test_the_peak_holds_what_was_allocated() -> None:
    before = peak_memory_mib()
    taken = np.ones(2 * before * 2**20, np.uint8)
    assert peak_memory_mib() >= 2 * before
    del taken
    assert peak_memory_mib() >= 2 * before
