"""A `compare` run as the command leaves it, with made-up figures."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from geodistill.distilled import DistilledSet
from geodistill.scenes import Scenes

VERSIONS = {"python": "3.11.7", "geodistill": "0.1.0", "torch": "2.13.0"}
# method: (accuracy at IPC 1, gain per tenfold IPC, nearness ratio, whether it consists of real images)
METHODS: dict[str, tuple[float, float, float, bool]] = {
    "random": (0.42, 0.2, 0.0, True),
    "k-means": (0.5, 0.18, 0.0, True),
    "reconstruction": (0.47, 0.18, 0.09, False),
    "template": (0.1, 0.05, 1.0, False),
    "+ prototypes": (0.3, 0.15, 0.65, False),
    "d4m": (0.33, 0.15, 0.71, False),
    "dpd": (0.4, 0.19, 0.64, False),
}
BENCHES = (("probe", "efficientnet-lite0"), ("scratch", "convnet3"))
_FULL = (0.85, 0.0, 0.0, True)


def make_scenes(classes: tuple[str, ...], per_class: int = 4) -> Scenes:
    """Scenes of noise: no two alike."""
    random = np.random.default_rng(5)
    images = random.integers(0, 256, (len(classes) * per_class, 32, 32, 3), dtype=np.uint8)
    return Scenes.from_arrays(images, torch.arange(len(images)) // per_class, classes)


def confusion_of(oa: float, classes: int, count: int = 30) -> list[list[int]]:
    """Of `count` test images about `oa` are right, less in later classes; the others are taken for the next class."""
    lines = []
    for label in range(classes):
        line = [0] * classes
        line[label] = round(count * max(0.0, oa - 0.02 * label))
        line[(label + 1) % classes] = count - line[label]
        lines.append(line)
    return lines


def make_row(method: str, ipc: int, bench: tuple[str, str], classes: int) -> dict[str, Any]:
    base, gain, rho, real = METHODS.get(method, _FULL)
    mean = base + gain * float(np.log10(max(ipc, 1))) - 0.1 * (bench[0] == "scratch")
    confusion = confusion_of(mean, classes)
    full = method == "full"
    return {
        "method": method,
        "ipc": ipc,
        "protocol": bench[0],
        "network": bench[1],
        "seeds": [0, 1, 2],
        "oa": [mean - 0.01, mean, mean + 0.01],
        "oa_mean": mean,
        "oa_std": 0.01,
        "aa_mean": mean,
        "aa_std": 0.01,
        "kappa_mean": mean - 0.03,
        "kappa_std": 0.01,
        "share_of_full": mean / 0.85,
        "hlr": 0.85 - mean,
        "ior": mean - 0.42,
        "rho": None if full else rho,
        "rho_pixel": None if full else rho,
        "rho_feature": None if full else rho + 0.2,
        "real_pixels": real,
        "images_per_second": None if real else 3.1,
        "wall_seconds": 64.2,
        "peak_memory_mib": 1210,
        "coverage": float("nan") if full else 0.71,
        "per_class": [line[label] / 30 for label, line in enumerate(confusion)],
        "confusion": confusion,
    }


def make_compare(
    folder: Path,
    scenes: Scenes,
    *,
    methods: tuple[str, ...] = tuple(METHODS),
    ipcs: tuple[int, ...] = (1, 3),
    command: str = "geodistill compare DATA --out x",
) -> Path:
    """Write a finished comparison of `methods` on `scenes`; sets of real images hold scenes, others hold noise."""
    for method in methods:
        for ipc in ipcs:
            _write_set(folder / "sets" / f"{method}-ipc{ipc}", scenes, method, ipc)
    count = len(scenes.classes)
    sets = [("full", 0), *((method, ipc) for method in methods for ipc in ipcs)]
    rows = [make_row(method, ipc, bench, count) for bench in BENCHES for method, ipc in sets]
    pair = {"protocol": "probe", "network": "efficientnet-lite0", "ipc": ipcs[-1], "a": "dpd", "b": "random"}
    pair |= {"difference": -0.03, "low": -0.06, "high": 0.01, "verdict": "no difference shown"}
    comparison = {"classes": scenes.classes, "rows": rows, "pairs": [pair]}
    (folder / "compare.json").write_text(json.dumps(comparison))
    write_about(folder, {"kind": "compare", "methods": methods, "ipcs": ipcs}, command)
    return folder


def write_about(folder: Path, settings: dict[str, Any], command: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    about = {"format": 1, "settings": settings, "command": command, "versions": VERSIONS}
    (folder / "run.json").write_text(json.dumps(about))


def _write_set(folder: Path, scenes: Scenes, method: str, ipc: int) -> None:
    real = METHODS[method][3] or method == "reconstruction"
    labels = torch.arange(len(scenes.classes)).repeat_interleave(ipc)
    if real:
        ranks = torch.arange(len(labels)) % ipc
        chosen = [int((scenes.labels == label).nonzero()[rank, 0]) for label, rank in zip(labels, ranks, strict=True)]
        images = scenes.pixels(chosen, size=32)
    else:
        random = np.random.default_rng([ipc, *method.encode()])
        images = torch.from_numpy(random.integers(0, 256, (len(labels), 3, 32, 32), dtype=np.uint8))
    told = {} if real else {"description": "A satellite image", "scores": {"teacher_probability": 0.9}}
    records = tuple({"seed": index, **told} for index in range(len(labels)))
    DistilledSet(images, labels, scenes.classes, records, {"method": method}).save(folder / "distilled")
    write_about(folder, {"method": method, "config": {"ipc": ipc}, "scenes": scenes.fingerprint()})
    (folder / "stages").mkdir()
    cost = {"fingerprint": "0", "facts": {}, "wall_seconds": 3.25, "cpu_seconds": 5.5, "peak_memory_mib": 900}
    (folder / "stages" / "distilled.json").write_text(json.dumps({"stage": "distilled", **cost}))
    if not real:
        (folder / "adapter").mkdir()
        losses = (1 / np.sqrt(np.arange(1, 200)) + 0.01 * len(method) + 0.01 * ipc).tolist()
        (folder / "adapter" / "losses.json").write_text(json.dumps(losses))
