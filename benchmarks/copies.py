"""What the audit's search for copies finds: training images under known changes, and held-out images.

    python benchmarks/copies.py --data ../shared/data

On each archive 60 training images are changed in one way after the other (turned, cropped, mirrored, noisy, recoloured,
blurred) and looked for among all training images. 200 held-out images, as they are and blurred, must not be taken for
copies. Rows go to benchmarks/results/copies.csv, whose table is in docs/privacy.md.
"""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from record import ARCHIVES, circumstances, merged, to_csv
from torch import Tensor

from geodistill.privacy.aligned import aligned_nearness
from geodistill.privacy.copies import CopySearch, are_copies
from geodistill.scenes import open_scenes
from geodistill.seeding import generator

SHEET, KEY, SIZE = "copies.csv", ("archive", "change"), 64
PLANTED, FRESH = 60, 200


def turned(images: Tensor, degrees: float, share: float) -> Tensor:
    """Return `images` turned by an angle, then their middle squares, of `share` of the side, at the old size."""
    angle = math.radians(degrees)
    c, s = share * math.cos(angle), share * math.sin(angle)
    maps = torch.tensor([[c, -s, 0.0], [s, c, 0.0]]).expand(len(images), 2, 3)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    moved = F.grid_sample(images.float(), grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    return _bytes(moved)


def cropped(images: Tensor, share: float, top: float, left: float) -> Tensor:
    """Return squares of `share` of the side, at a place between 0 (first rows, columns) and 1 (last), enlarged."""
    whole = images.shape[-1]
    side = round(share * whole)
    y, x = round(top * (whole - side)), round(left * (whole - side))
    window = images[..., y : y + side, x : x + side].float()
    return _bytes(F.interpolate(window, (whole, whole), mode="bicubic", antialias=True, align_corners=False))


def noisy(images: Tensor, deviation: float) -> Tensor:
    """Return `images` with Gaussian noise of `deviation`, in values of 0 to 255."""
    return _bytes(images + deviation * torch.randn(images.shape, generator=generator(0, "noisy copies")))


def recoloured(images: Tensor) -> Tensor:
    """Return `images`, each channel under its own gain (0.6 to 1.4) and offset (-30 to 30)."""
    gains, offsets = torch.rand(2, len(images), 3, 1, 1, generator=generator(0, "recoloured copies")).unbind()
    return _bytes(images * (0.6 + 0.8 * gains) + 60 * (offsets - 0.5))


def blurred(images: Tensor, side: int) -> Tensor:
    """Return `images` under a mean over `side` x `side` pixels."""
    padded = F.pad(images.float(), (side // 2,) * 4, mode="reflect")
    return _bytes(F.avg_pool2d(padded, side, stride=1))


def _bytes(images: Tensor) -> Tensor:
    return images.round().clamp(0, 255).to(torch.uint8)


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda images: images,
    "mirrored": lambda images: images.flip(-1),
    "turned by 20°, cropped to 80 %": lambda images: turned(images, 20, 0.8),
    "turned by 45°, cropped to 70 %": lambda images: turned(images, 45, 0.7),
    "cropped to 70 %, a corner": lambda images: cropped(images, 0.7, 0, 1),
    "cropped to 75 %, off centre": lambda images: cropped(images, 0.75, 0.3, 0.6),
    "noise of deviation 20": lambda images: noisy(images, 20),
    "turned by 10°, cropped to 85 %, noise of 20": lambda images: noisy(turned(images, 10, 0.85), 20),
    "gain and offset of each channel": recoloured,
    "grey": lambda images: _bytes(images.float().mean(dim=1, keepdim=True).expand(images.shape)),
    "blurred, 5x5": lambda images: blurred(images, 5),
    "blurred, 7x7": lambda images: blurred(images, 7),
}
HELD_OUT = {"held-out": CHANGES["none"], "held-out, blurred, 7x7": CHANGES["blurred, 7x7"]}
ALL = {**CHANGES, **HELD_OUT}


def main() -> None:
    """Look for the changed images of one archive after the other; write a row for each change."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the archives")
    options.add_argument("--archives", nargs="+", choices=list(ARCHIVES), default=list(ARCHIVES))
    args = options.parse_args()
    for archive in args.archives:
        if not (args.data / archive).is_dir():
            print(f"benchmark skipped: {ARCHIVES[archive]} is not at {args.data / archive}")
            continue
        to_csv(merged(_lines(ARCHIVES[archive], args.data / archive), SHEET, KEY), SHEET)


def _lines(name: str, folder: Path) -> list[dict[str, str]]:
    data = open_scenes(folder)
    assert data.test is not None
    train = data.train.pixels(size=SIZE)
    planted = torch.randperm(len(train), generator=generator(0, "planted"))[:PLANTED]
    fresh = data.test.pixels(torch.randperm(len(data.test), generator=generator(0, "fresh"))[:FRESH], size=SIZE)
    start = time.perf_counter()
    search = CopySearch(train)
    groups = {change: changed(fresh if change in HELD_OUT else train[planted]) for change, changed in ALL.items()}
    together = search(torch.cat(list(groups.values())))
    found = dict(zip(groups, together.split([len(group) for group in groups.values()]), strict=True))
    seconds = (time.perf_counter() - start) / len(together.nearest)
    lines = []
    for change, own in found.items():
        right = "" if change in HELD_OUT else f"{float((own.nearest == planted).double().mean()):.3f}"
        near = aligned_nearness(groups[change], fresh, search, (own.distance, found["held-out"].distance))
        line = {"archive": name, "change": change, "images": str(len(groups[change]))}
        line |= {"copies": f"{float(are_copies(own).double().mean()):.3f}", "right": right}
        line |= {
            "nearness": f"{near.ratio:.3f}",
            "nearness_low": f"{near.low:.3f}",
            "nearness_high": f"{near.high:.3f}",
        }
        lines.append(line | {"seconds_per_image": f"{seconds:.3f}"} | circumstances())
        print(lines[-1], flush=True)
    return lines


if __name__ == "__main__":
    main()
