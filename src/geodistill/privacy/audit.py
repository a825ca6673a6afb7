"""The audit: what a distilled set gives away of the training images, read against what fresh real images give away."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from geodistill.distilled import DistilledSet
from geodistill.errors import ConfigError
from geodistill.privacy.copies import COPY, Likenesses, find_copies
from geodistill.privacy.nearness import MAX_HELD_OUT, Nearness, nearness_ratio, real_distances
from geodistill.progress import progress
from geodistill.run import write_atomic
from geodistill.scenes.scenes import SceneData, Scenes
from geodistill.seeding import generator

# Training images that are audited as if they had been handed out: what a full leak looks like.
_LEAKED = 100
_PAIRS, _SHOWN, _GAP = 10, 128, 6


@dataclass(frozen=True)
class ImageAudit:
    """One image: its class, the training image most like it, how much, and whether it is a copy (see Likenesses)."""

    name: str
    nearest: str
    correlation: float
    ratio: float
    copy: bool


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    `images`: most suspicious first. `held_out_flagged` and `leaked_flagged`: the shares that the same test takes for
    copies of real images that are not in the training set, which should be about none, and of training images, which
    should be all. `nearness`: see privacy.nearness. Both need held-out images, and are None without.
    """

    images: tuple[ImageAudit, ...]
    threshold: float
    held_out_flagged: float | None
    held_out_count: int
    leaked_flagged: float
    nearness: Nearness | None

    @property
    def copies(self) -> int:
        """How many images are copies."""
        return sum(image.copy for image in self.images)

    @property
    def verdict(self) -> str:
        """One sentence, with the threshold and what it was checked against."""
        found = f"{self.copies} of {len(self.images)} images are copies of training images"
        checked = "no held-out images to check that against"
        if self.held_out_flagged is not None:
            checked = f"of {self.held_out_count} held-out real images {self.held_out_flagged:.1%} are taken for copies"
        ratio = "" if self.nearness is None else f"; nearness ratio {self.nearness.ratio:.2f} (1: as far as fresh ones)"
        return (
            f"{found} (distance to the nearest under {self.threshold} of that to the second nearest; {checked}, of "
            f"training images {self.leaked_flagged:.0%}){ratio}"
        )


def audit(distilled: DistilledSet, data: SceneData, *, out: Path | None = None) -> Audit:
    """Look for training images in `distilled`; the test part of `data` is what fresh real images are.

    With `out`, audit.json and pairs.png, the ten most suspicious images beside the training images most like them, are
    written there. Both name or show training images: they are for the owner of the data alone.

    Raises:
        ConfigError: the set is of other classes than the data.
    """
    strange = sorted(set(distilled.classes) - set(data.train.classes))
    if strange:
        raise ConfigError(f"the set has a class {strange[0]!r} that the data have not: audit it against its own data")
    train = data.train.pixels(size=distilled.size)
    with progress("audit", len(distilled)) as advance:
        found = find_copies(distilled.images, train, advance)
    order = found.ratio.argsort(stable=True)
    held = _some(data.test, distilled.size) if data.test else None
    leaked = train[torch.randperm(len(train), generator=generator(0, "audited training images"))[:_LEAKED]]
    result = Audit(
        images=tuple(_image(int(index), distilled, found, data.train) for index in order),
        threshold=COPY,
        held_out_flagged=None if held is None else _flagged(held, train, "held-out"),
        held_out_count=0 if held is None else len(held),
        leaked_flagged=_flagged(leaked, train, "training"),
        nearness=None if held is None else nearness_ratio(distilled.images, real_distances(train, held)),
    )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        values = {"verdict": result.verdict, "copies": result.copies, **asdict(result)}
        write_atomic(out / "audit.json", json.dumps(values, indent=1, ensure_ascii=False))
        _draw_pairs(distilled.images[order[:_PAIRS]], train[found.nearest[order[:_PAIRS]]], result, out / "pairs.png")
    return result


def _some(scenes: Scenes, size: int) -> Tensor:
    """Return the pixels of at most as many scenes as are used elsewhere for what fresh images are like."""
    chosen = torch.randperm(len(scenes), generator=generator(0, "audited held-out images"))[:MAX_HELD_OUT]
    return scenes.pixels(chosen.sort().values, size=size)


def _flagged(images: Tensor, train: Tensor, title: str) -> float:
    with progress(title, len(images)) as advance:
        return float(find_copies(images, train, advance).copies.float().mean())


def _image(index: int, distilled: DistilledSet, found: Likenesses, train: Scenes) -> ImageAudit:
    name = distilled.classes[int(distilled.labels[index])]
    rank = int((distilled.labels[:index] == distilled.labels[index]).sum())
    return ImageAudit(
        name=f"{name} {rank}",
        nearest=train.names[int(found.nearest[index])],
        correlation=round(float(found.correlation[index]), 4),
        ratio=round(float(found.ratio[index]), 4),
        copy=bool(found.copies[index]),
    )


def _draw_pairs(images: Tensor, nearest: Tensor, result: Audit, path: Path) -> None:
    """Write a PNG with each image above the training image most like it, most suspicious first."""
    font, cell = ImageFont.load_default(12), _SHOWN + _GAP
    sheet = Image.new("RGB", (len(images) * cell + _GAP, 2 * cell + 3 * 16 + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((_GAP, 2), "distilled, above the training image most like it", fill="black", font=font)
    for column, (image, other, about) in enumerate(zip(images, nearest, result.images, strict=False)):
        left = _GAP + column * cell
        for row, pixels in enumerate((image, other)):
            tile = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
            sheet.paste(tile.resize((_SHOWN, _SHOWN), Image.Resampling.BICUBIC), (left, 20 + row * cell))
        told = f"ratio {about.ratio:.2f}{' COPY' if about.copy else ''}"
        pen.text((left, 20 + 2 * cell), told, fill="black", font=font)
    sheet.save(path)
