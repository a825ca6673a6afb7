"""The page of an audit: the most suspicious images next to training images, nearness, membership, attribution.

It shows training images, so it is for the owner of the data only.
"""

from pathlib import Path

from geodistill.distilled import FOR_THE_OWNER, DistilledSet
from geodistill.privacy.audit import COPYPRINT, FEATURES, FRESH, PIXELS, STRUCTURE, Audit, ImageAudit, Reading
from geodistill.privacy.membership import Attack, Interval
from geodistill.privacy.null import ALARM, Null
from geodistill.privacy.replay import Replay
from geodistill.report.page import render
from geodistill.report.parts import ABSENT, Cell, Plot, Table, number, percent
from geodistill.report.plots import distances_plot, roc_plot
from geodistill.report.sets import Picture, png_uri
from geodistill.run import write_atomic
from geodistill.scenes.scenes import Scenes

_SECTIONS = {
    "pairs": "The most suspicious images",
    "nearness": "Nearness to the training images",
    "membership": "Who was a training image?",
    "attribution": "What remains of the starting scenes",
}
_PAIRS = 10
_WORDS = {
    PIXELS: "1 - correlation of pixels, aligned",
    STRUCTURE: "1 - SSIM of grey images at 32 px",
    FEATURES: "1 - cosine in the ImageNet backbone",
    COPYPRINT: "1 - cosine of copy-detection embeddings",
}


def _overlap(told: str) -> str:
    """Return a sentence on the training images that the base has seen, `told` by the audit; "" if there are none."""
    return f"{told[0].upper()}{told[1:]}: figures measured on them are too optimistic." if told else ""


def write_audit_page(result: Audit, distilled: DistilledSet, train: Scenes, path: Path) -> None:
    """Write the page of `result`, the audit of `distilled` against its training scenes `train`, to `path`."""
    page = {
        "title": f"geodistill audit: {len(distilled)} images, {len(distilled.classes)} classes",
        "verdict": result.verdict,
        "warning": f"This page shows training images. {FOR_THE_OWNER}",
        "overlap": _overlap(result.overlap),
        "pairs": _pairs(result, distilled, train),
        "readings": _readings(result),
        "distances": [_distances(reading) for reading in result.readings],
        "attacks": _attacks(result.attacks),
        "null": _null(result.null),
        "roc": _roc(result.attacks),
        "attribution": _attribution(result),
        "replay": _replay(result.replay),
        "notes": _notes(result),
    }
    write_atomic(path, render("audit.html.j2", _SECTIONS, page))


def _notes(result: Audit) -> dict[str, list[str]]:
    absent = [] if result.held_out_count else ["There are no held-out images: this cannot be measured without them."]
    return {
        "pairs": [
            f"An image is a copy if the distance to its nearest training image is below {result.threshold} times the "
            "distance to the second nearest: only one training image is like it. The search covers rotations by any "
            "angle, mirror images, crops to 70 %, and changes of each channel's gain and offset.",
        ],
        "nearness": [
            *_told_of_nearness(result),
            f"The last column is the share of images that are nearer than all but {FRESH:.0%} of the held-out images. "
            f"It is about {FRESH:.0%} if the set contains nothing of the training images. In the copy-detection "
            "embedding, an image lies near its changed copies and far from other images.",
            *absent,
        ],
        "membership": [
            "An attacker who has only the set tries to distinguish training images from held-out ones. Intervals are "
            "95 % bootstrap intervals over images. The best attack is also made on sets of held-out images. The set "
            f"leaks if at most {ALARM:.0%} of these sets reveal as much as it does (p).",
            *absent,
        ],
        "attribution": (
            []
            if result.attribution
            else [
                "No image was sampled from a training image, or the audit does not know: only runs of the method dpd "
                "record this."
            ]
        ),
    }


def _told_of_nearness(result: Audit) -> list[str]:
    near = result.nearness
    if near is None:
        return []
    return [
        f"Aligned nearness: {near.ratio:.2f} ({near.low:.2f} to {near.high:.2f}). It is the median aligned distance in "
        "pixels, divided by that of equally sharp held-out images: 1 is no nearer than these, 0 is copies. The sharper "
        f"group was blurred to match the other; before, the set was {near.sharpness:.2f} times as sharp.",
    ]


def _pairs(result: Audit, distilled: DistilledSet, train: Scenes) -> Table:
    shown = result.images[:_PAIRS]
    nearest = train.pixels([image.nearest_index for image in shown], size=distilled.size)
    rows = [
        (
            Cell(image.name, picture=Picture(png_uri(distilled.images[image.index]), f"distilled: {image.name}")),
            Cell(image.nearest, picture=Picture(png_uri(other), f"training image {image.nearest}")),
            *(number(image.ratios[measure]) for measure in image.ratios),
            _copied(image),
        )
        for image, other in zip(shown, nearest, strict=True)
    ]
    heads = ("image", "most like it", *(f"ratio, {measure}" for measure in shown[0].ratios), "copy")
    return Table("Smallest distance ratios in pixels", heads, rows, frozenset(range(2, len(heads) - 1)))


def _copied(image: ImageAudit) -> Cell:
    return Cell("copy" if image.copy else "no", flag=image.copy)


def _readings(result: Audit) -> Table:
    rows = [
        (
            Cell(f"{reading.measure}: {_WORDS[reading.measure]}"),
            number(_middle(reading.own)),
            number(_middle(reading.held_out)),
            number(_middle(reading.leaked)),
            number(_middle(reading.own_ratios)),
            number(_middle(reading.held_out_ratios)),
            percent(reading.nearer),
        )
        for reading in result.readings
    ]
    heads = (
        "measure",
        "distance, distilled",
        "held-out",
        "training",
        "ratio, distilled",
        "held-out",
        "nearer, %",
    )
    return Table("Medians of distances to the nearest training image", heads, rows, frozenset(range(1, len(heads))))


def _middle(values: tuple[float, ...]) -> float | None:
    return sorted(values)[len(values) // 2] if values else None


def _distances(reading: Reading) -> Plot:
    groups = {"distilled": reading.own, "held-out real": reading.held_out}
    shown = {name: values for name, values in groups.items() if values}
    rows = [
        (Cell(f"{share} % of images"), *(number(_part(values, share)) for values in shown.values()))
        for share in (1, 5, 25, 50, 75, 95, 99)
    ]
    table = Table(f"Distances, {reading.measure}", ("no farther than", *shown), rows, frozenset(range(1, 3)))
    words = _WORDS[reading.measure]
    svg = distances_plot(f"distances-{reading.measure}", shown, words)
    return Plot(svg, f"{words}: share of images no farther than that.", f"Distances in {reading.measure}", table)


def _part(values: tuple[float, ...], share: int) -> float:
    return sorted(values)[round((len(values) - 1) * share / 100)]


def _attacks(attacks: tuple[Attack, ...]) -> Table | None:
    if not attacks:
        return None
    rows = [
        (
            Cell(one.name),
            _interval(one.auc, 3),
            *map(_share, one.found),
        )
        for one in attacks
    ]
    heads = ("attack", "AUC (0.5: guessing)", "% found at 1 % false positives", "at 0.1 %")
    return Table("Membership attacks", heads, rows, frozenset((1, 2, 3)))


def _null(null: Null | None) -> Table | None:
    if null is None:
        return None
    rows = []
    for rank, rate in enumerate(null.rates):
        own = sorted(one[rank] for one in null.drawn)
        rows.append(
            (
                Cell(f"{100 * rate:.3g}", rate),
                percent(null.observed[rank]),
                percent(null.mean[rank]),
                percent(own[-1 - len(own) // 100]),
                Cell(f"{null.p:.3f}", flag=null.leaks),
            )
        )
    heads = ("% false positives", "% found, this set", "mean of held-out sets", "99th percentile of held-out sets", "p")
    return Table("The best attack on this set and on sets of held-out images", heads, rows, frozenset(range(5)))


def _interval(found: Interval, digits: int) -> Cell:
    return Cell(f"{found.value:.{digits}f} ({found.low:.{digits}f} to {found.high:.{digits}f})", found.value)


def _share(found: Interval | None) -> Cell:
    if found is None:
        return ABSENT
    return Cell(f"{100 * found.value:.2f} ({100 * found.low:.2f} to {100 * found.high:.2f})", found.value)


def _roc(attacks: tuple[Attack, ...]) -> Plot | None:
    curves = {one.name: one.curve for one in attacks if one.curve}
    if not curves:
        return None
    rows: list[tuple[Cell, ...]] = [
        (Cell(name), Cell(", ".join(f"{100 * y:.1f} at {100 * x:.1f}" for x, y in curve[::8])))
        for name, curve in curves.items()
    ]
    table = Table("Points of the curves", ("attack", "% found at % false positives"), rows)
    words = "Share of training images found against the share of held-out images taken for training images."
    return Plot(roc_plot("roc", curves), words, "ROC curves of the membership attacks", table)


def _attribution(result: Audit) -> Table | None:
    found = result.attribution
    if found is None:
        return None
    rows: list[tuple[Cell, ...]] = [
        (Cell("mean SSIM with its starting scene"), number(found.own)),
        (Cell("mean SSIM with other scenes of the class"), number(found.others)),
        (Cell("images most similar to their starting scene among those of the class, %"), percent(found.recognised)),
        (Cell("the same by guessing, %"), percent(found.chance)),
    ]
    return Table("Images and their starting scenes", ("", "value"), rows, frozenset((1,)))


def _replay(found: Replay | None) -> Table | None:
    if found is None:
        return None
    heads = ("attacker", "sources identified", "by guessing", "p")
    who = (
        ("outsider: set, base, settings, a guessed seed", found.outsider, found.p_outsider),
        ("insider: adapter and secret as well", found.insider, found.p_insider),
    )
    rows: list[tuple[Cell, ...]] = [
        (Cell(name), Cell(f"{named} of {found.images}", named), number(found.guessed), Cell(f"{p:.3f}", p))
        for name, named, p in who
    ]
    return Table(f"Replay from {found.suspects} suspects for each image", heads, rows, frozenset((1, 2, 3)))
