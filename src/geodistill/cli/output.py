"""What commands print about runs, plans and scenes."""

from pathlib import Path
from typing import Any

from rich.table import Table

from geodistill.cli.options import console, plain, say
from geodistill.pipeline import SCREENED, words_of


def print_inspection(found: Any) -> None:
    """Print what `inspect` found: classes, kinds of files, duplicates, leaks, how the scenes would be read."""
    parts = ["training images", "test images", "validation images"]
    # A validation part is the exception.
    parts = parts if any(one[3] for one in found.classes) else parts[:2]
    table = Table("class", *parts)
    for name, *counts in found.classes:
        table.add_row(plain(name), *map(str, counts[: len(parts)]))
    sums = (sum(one[k + 1] for one in found.classes) for k in range(len(parts)))
    table.add_row("all", *map(str, sums), style="bold")
    console.print(table)
    least_width, most_width, least_height, most_height = found.sizes
    width = f"{least_width}" if least_width == most_width else f"{least_width} to {most_width}"
    height = f"{least_height}" if least_height == most_height else f"{least_height} to {most_height}"
    lines = [f"{count} files: {kind}" for kind, count in found.kinds]
    lines += [f"size: {width} x {height} pixels", f"georeference: {found.located}"]
    holed, share = found.missing
    if holed:
        lines.append(f"nodata: {holed} files have pixels without a measurement, {share:.1%} of all pixels")
    lines += [f"same content: {', '.join(group)}" for group in found.duplicates[:10]]
    if len(found.duplicates) > 10:
        lines.append(f"and {len(found.duplicates) - 10} more groups of files with the same content")
    lines += [f"in two parts: {leak}" for leak in found.leaks[:50]]
    if len(found.leaks) > 50:
        lines.append(f"and {len(found.leaks) - 50} more scenes in two parts")
    lines += [f"unreadable: {reason}" for reason in found.skipped[:10]]
    lines.append(f"distill reads them as: {found.read_as()}")
    for line in lines:
        say(line)


def print_plan(found: Any) -> None:
    """Print the estimate of `plan`: downloads, memory, disk, and the time of each stage."""
    from geodistill.progress import duration

    for one in found.downloads:
        say(f"downloads {one.name}: {_giga(one.size)}, licence {one.licence}")
    if not found.downloads:
        say("downloads nothing")
    if found.overlap:
        say(f"base: {found.overlap}: figures measured on them are too optimistic")
    say(
        f"memory: about {_giga(found.memory)} ({found.device}); with less, training uses smaller batches\n"
        f"disk: {_giga(found.disk)} of {_giga(found.free_disk)} free",
    )
    if found.held_out:
        say(f"held out for the self-test: {found.held_out:,} of {found.scenes:,} training scenes")
    if found.no_test:
        say(f"no self-test: {found.no_test}")
    table = Table("stage", "work", "operations", "time", title="estimated time on this machine")
    for stage in found.stages:
        table.add_row(words_of(stage.name), stage.work, f"{stage.operations:.1e}", duration(stage.seconds))
    table.add_row("all", "", f"{sum(one.operations for one in found.stages):.1e}", duration(found.seconds))
    console.print(table)
    for what in found.not_estimated:
        say(f"not counted: {what}")


def _giga(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 5e7 else f"{size / 1e6:.1f} MB"


def print_screening(run: Path) -> None:
    """Print how many candidates were too like a training image, where that was looked for."""
    from geodistill.run import records

    for record in (one for one in records(run) if one["stage"] == SCREENED.name):
        first, *again = record["facts"]["rejected"]
        drawn = f", {len(again)} times drawn again, following less: {', '.join(map(str, again))}" if again else ""
        say(f"screening: {first} candidates too like a training image{drawn} rejected")


def print_nearness(distilled: Any) -> None:
    """Print, where nothing protects the sources, that the images are near them and what to do about it."""
    from geodistill.distilled.about import safer

    if distilled.kind != "synthetic":
        real = distilled.kind == "real"
        what = "training images as they are" if real else "training images, changed by a computation"
        say(f"the images are {what}: the set protects none of them")
        return
    if distilled.follows_scenes:
        say(
            "the images follow training images, or means of them, and may show their layout: before you share a set of "
            f"sensitive scenes, {safer(distilled.about)}, or run `geodistill audit`"
        )


def print_replayable(distilled: Any) -> None:
    """Print that the set must not be shared, where its images can be drawn again."""
    if distilled.replayable:
        say(
            "reproducible: do not share this set, its seeds let anyone repeat the sampling",
            style="bold red",
        )


def print_self_test(run: Path, settings: Any, split: str) -> None:
    """Print what the set is worth beside random real images, where that was tested, and what to try if it is less.

    `split` is how the scenes were split: the test holds out single scenes, and does not keep neighbours together.
    """
    from geodistill.evaluation.worth import advice
    from geodistill.stages.self_test import adapts_base, read_self_test

    found = read_self_test(run)
    if found is None:
        return
    for line in found.figures:
        say(line)
    colour = {"better than random": "bold green", "below random": "bold red"}.get(found.verdict or "", "yellow")
    say(found.conclusion, style=colour)
    if found.verdict and split.startswith("spatial"):
        say(
            "the held-out scenes are neighbours of scenes that the set was made from, so both figures may be too high: "
            "`geodistill evaluate` tests on the test part, which lies elsewhere"
        )
    if found.verdict == "below random":
        say(advice(settings, adapts=adapts_base(run, settings)), style=colour)


def print_profile(out: Path, settings: Any) -> None:
    """Print which stages of the run in `out` cost most, and which setting would halve that."""
    from geodistill.commands.profile import profile

    for line in profile(out, settings).lines():
        say(line)


def print_stages(out: Path) -> None:
    """Print time and memory of each stage of the run in `out`."""
    from geodistill.progress import duration
    from geodistill.run import records

    table = Table("stage", "wall time", "processor time", "peak memory", title="time and memory")
    found = records(out)
    for record in found:
        table.add_row(
            words_of(record["stage"]),
            f"{record['wall_seconds']:.0f} s",
            f"{record['cpu_seconds']:.0f} s",
            f"{record['peak_memory_mib']} MiB",
        )
    wall, cpu = (sum(record[name] for record in found) for name in ("wall_seconds", "cpu_seconds"))
    peak = max((record["peak_memory_mib"] for record in found), default=0)
    table.add_row("all", duration(wall), duration(cpu), f"{peak} MiB")
    console.print(table)
