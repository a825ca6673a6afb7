"""Commands that measure sets: as training data, beside other methods, for what they reveal; and the report."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from geodistill.cli import options
from geodistill.cli.options import (
    check_there,
    command_line,
    console,
    plain,
    refuse_inside,
    say,
    tell_next,
    told,
    unless,
)
from geodistill.errors import ConfigError

app = typer.Typer()


@app.command(
    cls=options.ManyValues,
    epilog="Example: **geodistill evaluate runs/aid --data ~/AID --network resnet18 convnet3 --seeds 3**",
)
def evaluate(
    what: options.Subject,
    data: Annotated[
        Path, typer.Option(help="Real scenes with the same class names. Classifiers are tested on their test part.")
    ],
    protocol: Annotated[
        str,
        typer.Option(
            help="probe: logistic regression on frozen features of efficientnet-lite0 (seconds). finetune: all "
            "weights, from ImageNet weights if the network has them. scratch: from random weights. finetune-soft, "
            "scratch-soft: on soft labels from a classifier trained on all real scenes."
        ),
    ] = "finetune",
    network: options.Networks = None,
    seeds: options.Seeds = 3,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for predictions, which the next call uses again [default: the run; none for a set alone]."
        ),
    ] = None,
    full: options.Full = True,
    save: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the trained classifiers, a folder each, which `export`, `bench` and `predict` read "
            "[default: they are not kept]."
        ),
    ] = None,
    clip: Annotated[
        str | None, typer.Option(help="CLIP model (folder or hub name) for the CLIP score of images and descriptions.")
    ] = None,
    device: options.Device = None,
    split: options.Split = "auto",
    strict: options.Strict = False,
    on: Annotated[
        str, typer.Option(help="Part of DATA that classifiers are tested on: test, or val for choices.")
    ] = "test",
) -> None:
    """Train a classifier on a distilled set, test it on real scenes, and compare.

    Prints overall accuracy (OA), average accuracy over classes (AA) and Cohen's kappa after training on the distilled
    set, on as many random real images, and on all real images; OA as a share of that of all real images; the
    improvement over random images (IOR); the points lost to all real images (HLR); the accuracy of each class; the
    nearness ratio ρ (1: as far from the training images as held-out images, 0: copies); nearest similarity; KID and
    FID to the test images.
    """
    with told(device):
        refuse_inside(data, out=out, save=save)
        from geodistill.commands.source import recorded_base, recorded_reading, warn_of_other_scenes
        from geodistill.distilled import UPDATED, set_folder
        from geodistill.evaluation.evaluate import class_table, cross_table, summary_table
        from geodistill.evaluation.evaluate import evaluate as run_evaluation
        from geodistill.scenes import open_scenes
        from geodistill.stages.checks import warn_of_seen_tests

        check_there(what)
        folder, store = set_folder(what), out or (what if (what / "run.json").is_file() else None)
        opened = open_scenes(data, split=split, reading=recorded_reading(what), strict=strict)
        scenes, results = opened.tested_on(on), []
        warn_of_other_scenes(what, scenes.train)
        warn_of_seen_tests(recorded_base(what), opened)
        for name in network or ["efficientnet-lite0"]:
            result = run_evaluation(
                folder,
                scenes,
                protocol=protocol,
                network=name,
                seeds=seeds,
                full=full,
                clip=clip,
                out=store,
                save=save,
            )
            console.print(class_table(result))
            console.print(summary_table(result))
            results.append(result)
        if len(results) > 1:
            console.print(cross_table(results))
        if store is not None:
            say(f"predictions and figures: {store / 'evaluation'}")
        if save is not None:
            kept = "none is kept, as the probe trains no network" if protocol == "probe" else save
            say(f"classifiers: {kept}")
        if store == what:
            # The report of an updated set takes no scenes: those that it was made from are in several archives.
            shown = [] if folder.name == UPDATED else ["--data", data, *unless("--split", split, "auto")]
            tell_next("report", what, *shown)


@app.command(
    cls=options.ManyValues,
    epilog="Example: **geodistill compare ~/AID --ipc 1 10 --methods random dpd --protocols probe --out runs/all**",
)
def compare(
    data: options.Data,
    out: options.Out,
    ipc: Annotated[
        list[int] | None,
        typer.Option(help="Images per class. Several values can be given [default: the setting `ipc`, 10]."),
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option("--method", "--methods", help="Names that `geodistill methods` lists [default: all of them]."),
    ] = None,
    protocols: Annotated[
        list[str] | None,
        typer.Option(
            "--protocol",
            "--protocols",
            help="probe, finetune, scratch, finetune-soft, scratch-soft [default: finetune].",
        ),
    ] = None,
    networks: options.Networks = None,
    seeds: options.Seeds = 3,
    full: options.Full = True,
    base: Annotated[str | None, typer.Option(help="As in `distill`. All methods share it.")] = None,
    size: options.Size = None,
    bands: options.Bands = "rgb",
    scale: options.Scale = "auto",
    split: options.Split = "auto",
    strict: options.Strict = False,
    config: options.Config = None,
    set_: options.Set = None,
    seed: options.Seed = None,
    device: options.Device = None,
) -> None:
    """Compare methods on DATA: same base, same training scenes, same evaluation, one table.

    OUT/compare.csv and OUT/compare.json have the rows, OUT/sets the images of each method. Existing rows are used
    again, so another method or IPC costs only the new rows. If the nearness ratio ρ of a row is marked * (below 0.5),
    its images are near copies of training images. `geodistill report OUT` draws plots.
    """
    with told(device):
        refuse_inside(data, out=out)
        from geodistill.commands.compare import compare as run_comparison
        from geodistill.commands.compare import comparison_tables
        from geodistill.config import load_config
        from geodistill.methods import METHODS
        from geodistill.scenes import open_scenes

        settings = load_config(config, set_ or [], base=base, size=size, seed=seed)
        run_comparison(
            open_scenes(data, bands=bands, scale=scale, split=split, strict=strict),
            settings,
            out=out,
            methods=methods or tuple(METHODS),
            ipcs=ipc or [settings.ipc],
            protocols=protocols or ["finetune"],
            networks=networks or ["efficientnet-lite0"],
            seeds=seeds,
            full=full,
            command=command_line(),
        )
        console.print(*comparison_tables(out))
        say(f"table: {out / 'compare.csv'}   sets: {out / 'sets'}")
        tell_next("report", out, "--data", data, *unless("--split", split, "auto"))


@app.command(
    cls=options.ManyValues, epilog="Example: **geodistill audit runs/aid --data ~/AID --fail-on copy membership**"
)
def audit(
    what: options.Subject,
    data: Annotated[
        Path, typer.Option(help="The scenes that the set was made from. Their test part serves as held-out images.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for audit.json and audit.html, which contain training images [default: RUN/audit, or "
            "./audit for a set without its run]."
        ),
    ] = None,
    shadows: Annotated[
        int,
        typer.Option(min=0, help="Number of shadow sets, made from random halves. Each takes about as long as RUN."),
    ] = 0,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-on",
            help="Exit with code 3: 'copy' if an image is a copy, 'membership' if an attack or a replay succeeds, or "
            "if one that the set needs could not be made.",
        ),
    ] = None,
    device: options.Device = None,
    split: options.Split = "auto",
) -> None:
    """Measure what a distilled set reveals: copies, nearness, membership of training images, sources of its images.

    Every figure is compared with the same figure for held-out real images. The verdict names the thresholds.
    """
    with told(device):
        refuse_inside(data, out=out)
        from geodistill.commands.audit import audit as audit_folder
        from geodistill.commands.audit import unanswerable
        from geodistill.commands.source import recorded_reading
        from geodistill.distilled import run_of
        from geodistill.privacy.audit import MEASURES
        from geodistill.processes import processes
        from geodistill.report.audit_page import write_audit_page
        from geodistill.scenes import open_scenes

        check_there(what)
        scenes = open_scenes(data, split=split, reading=recorded_reading(what))
        # An updated set has no run that made all its images, but a folder of a run that it lies in.
        run = run_of(what) or (what if (what / "run.json").is_file() else None)
        target = out or (run / "audit" if run else Path("audit"))
        result, distilled, train = audit_folder(what, scenes, shadows=shadows, fail_on=fail_on or (), out=target)
        if not processes().main:
            return
        write_audit_page(result, distilled, train, target / "audit.html")
        table = Table("image", "most like", *(f"ratio, {name}" for name in MEASURES), "copy", title="most suspicious")
        for image in result.images[:10]:
            ratios = (f"{image.ratios[name]:.2f}" for name in MEASURES)
            table.add_row(plain(image.name), plain(image.nearest), *ratios, "yes" if image.copy else "no")
        console.print(table)
        say(result.verdict)
        if result.overlap:
            say(f"{result.overlap}: figures measured on them are too optimistic")
        say(f"all of it: {target / 'audit.html'}   {target / 'audit.json'}")
        if result.fails(fail_on or ()):
            raise typer.Exit(3)
        reason = unanswerable(distilled, replace(scenes, train=train)) if "membership" in (fail_on or ()) else ""
        if reason:
            raise ConfigError(reason)
        if run is not None:
            tell_next("report", run, "--data", data, *unless("--split", split, "auto"))


@app.command(epilog="Example: **geodistill report runs/aid --data ~/AID**")
def report(
    run: Annotated[Path, typer.Argument(help="Folder of a `distill` or `compare` run, finished or not.")],
    data: Annotated[
        Path | None, typer.Option(help="The run's scenes, for the map of embeddings and for --owner.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The page [default: RUN/report.html, with --owner RUN/report-owner.html].")
    ] = None,
    owner: Annotated[
        bool,
        typer.Option(
            "--owner",
            help="Write the data owner's page, with real training images, the command and the seed. Do not share it.",
        ),
    ] = False,
    split: options.Split = "auto",
) -> None:
    """Write one self-contained HTML page with the images of a run, their accuracy and their nearness.

    Without --owner the page contains no real image, no path, no command and no seed.
    """
    with told():
        from geodistill.commands.source import recorded_reading
        from geodistill.report import write_report
        from geodistill.scenes import open_scenes

        check_there(run)
        scenes = open_scenes(data, split=split, reading=recorded_reading(run)) if data else None
        page = write_report(run, out=out, data=scenes, owner=owner)
        say(f"report: {page}")
