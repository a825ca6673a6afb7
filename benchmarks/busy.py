"""A training step of the adapter alone on the machine, and beside another busy process.

    python benchmarks/busy.py

Threads of OpenMP that wait for each other can spin or sleep. Beside another process, a spinning thread takes the core
that the awaited thread needs. A row of benchmarks/results/busy.csv has one way: seconds of a step alone and beside a
process that keeps one core busy, and the ratio of the latter to a step of all threads alone. Sleeping threads were
slower in both cases, so `geodistill` leaves torch's way as it is. One thread is fastest beside a busy process:
`distill` and `pretrain` say so when they find cores busy. They do not change the number of threads themselves, because
results are rounded otherwise, and a resumed run would end with other bytes.
"""

import os
import subprocess
import sys
import time
from statistics import median

SHEET = "busy.csv"
STEPS, ROUNDS, LATENTS = 12, 3, 64
WAYS: dict[str, dict[str, str]] = {
    "as torch sets it": {},
    "sleeping": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}


def main() -> None:
    """Measure both ways in turn, each alone and beside a busy process, and write the rows."""
    if sys.argv[1:] == ["step"]:
        print(_seconds_of_a_step())
        return
    from record import circumstances, to_csv

    alone: dict[str, list[float]] = {way: [] for way in WAYS}
    busy: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(ROUNDS):
        for way in WAYS:
            alone[way].append(_measured(way))
            other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            try:
                busy[way].append(_measured(way))
            finally:
                other.kill()
                other.wait()
    lines, best = [], min(median(seconds) for seconds in alone.values())
    for way in WAYS:
        ratio = median(busy[way]) / best
        line = {"way": way, "alone_seconds": f"{median(alone[way]):.3f}"}
        line |= {"busy_seconds": f"{median(busy[way]):.3f}", "ratio": f"{ratio:.2f}"}
        print(line, flush=True)
        lines.append(line | circumstances())
    to_csv(lines, SHEET)


def _measured(way: str) -> float:
    """Return the seconds of a step in a process of its own, because the way of waiting is read when torch is loaded."""
    names = {name for settings in WAYS.values() for name in settings}
    environment = {name: value for name, value in os.environ.items() if name not in names}
    command = [sys.executable, __file__, "step"]
    done = subprocess.run(command, env=environment | WAYS[way], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def _seconds_of_a_step() -> float:
    """Return the median seconds of a step that trains all weights of the compact base's U-Net at 64 px."""
    import torch

    from geodistill.prior.attention import CachedAttention
    from geodistill.prior.base import load_prior, source_of
    from geodistill.prior.finetune import free_all

    prior = load_prior(source_of("compact", 64))
    free_all(prior)
    prior.unet.train().set_attn_processor(CachedAttention())
    noisy = torch.randn(LATENTS, *prior.latent_shape(64)).contiguous(memory_format=torch.channels_last)
    times, text = torch.randint(0, 1000, (LATENTS,)), prior.embed(["a beach"]).repeat(LATENTS, 1, 1).clone()
    seconds = []
    for _ in range(STEPS):
        start = time.perf_counter()
        with prior.mixed():
            output = prior.unet(noisy, times, text).sample
        output.float().square().mean().backward()
        seconds.append(time.perf_counter() - start)
    # The first steps include preparation that later ones reuse.
    return median(seconds[3:])


if __name__ == "__main__":
    main()
