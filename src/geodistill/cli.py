"""The command line: reads what was asked, calls the library, prints what came out."""

import json
import shlex
import sys
from dataclasses import replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from geodistill import cli_models
from geodistill import cli_options as options
from geodistill.cli_options import console, plain, refuse_inside, say, tell_next, tell_of_busy_cores, told
from geodistill.errors import ConfigError
from geodistill.pipeline import DISTILLED, OWN, SCREENED, words_of

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""Condense a labelled remote-sensing scene data set into a few realistic synthetic images per class.

Try it on the built-in scenes:

- `geodistill scenes demo/scenes`
- `geodistill distill demo/scenes --config demo --out demo/run`
- `geodistill evaluate demo/run --data demo/scenes --protocol probe`
""",
)


def _show_version(asked: bool) -> None:
    if asked:
        say(f"geodistill {version('geodistill')}")
        raise typer.Exit


app.add_typer(cli_models.app)


@app.callback()
def _general(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command(epilog="Example: **geodistill distill ~/AID --ipc 10 --out runs/aid --set sampling.follow=guide**")
def distill(
    data: options.Data,
    out: options.Out,
    method: Annotated[str, typer.Option(help="How the set is made. `geodistill methods` lists all methods.")] = OWN,
    ipc: options.Ipc = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="Pretrained diffusion model: 'compact' (in the package), the name of an installed base such as 'aid', "
            "'scratch' (trained in the run, on the scenes only), a diffusers pipeline folder, or a hub name [default: "
            "compact]."
        ),
    ] = None,
    describe: options.Describe = None,
    size: options.Size = None,
    bands: options.Bands = "rgb",
    scale: options.Scale = "auto",
    split: options.Split = "auto",
    strict: options.Strict = False,
    config: options.Config = None,
    set_: options.Set = None,
    seed: options.Seed = None,
    reproducible: Annotated[
        bool,
        typer.Option(
            "--reproducible",
            help="Draw the images from --seed: the same command gives the same bytes anywhere. For benchmarks only; do "
            "not share this set. The default draws them from a secret in OUT/secret.",
        ),
    ] = False,
    privacy: options.Privacy = None,
    epsilon: options.Epsilon = None,
    delta: options.Delta = None,
    source_name: Annotated[str, typer.Option(help="Name of the archive, for the set's data card.")] = "",
    source_license: Annotated[
        str, typer.Option(help="Licence of the archive, for the set's data card. It may bind the set too.")
    ] = "",
    soft_labels: Annotated[
        bool, typer.Option("--soft-labels", help="Also store the class probabilities of each image, in the manifest.")
    ] = False,
    add: Annotated[
        Path | None,
        typer.Option(
            help="New scenes, with which the set DATA (a run, or its folder `distilled`) is updated: new classes, or "
            "more scenes of known ones. The archive that the set was made from is not needed. The result is "
            "OUT/updated."
        ),
    ] = None,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile",
            help="At the end, say which stages took the most time and memory, and, if there is one, the setting that "
            "would halve each. It works on a finished run too.",
        ),
    ] = False,
    device: options.Device = None,
) -> None:
    """Condense the training scenes of DATA into a few synthetic images per class.

    Loads the base, fine-tunes it on the scenes, draws candidate images, selects among them and optimises the selected
    ones. OUT/distilled is the result, OUT/grid.png shows it, OUT/config.toml has all settings (`geodistill settings`
    explains them). A tenth of the training scenes is held out. At the end a classifier trained on the set and one
    trained on random real images are tested on them. `--set self_test.held_out=0` switches this test off.
    """
    with told(device):
        refuse_inside(data, out)
        from geodistill.commands.distill import distill as run_distillation
        from geodistill.config import load_config
        from geodistill.distilled import UPDATED, DistilledSet, copy_source, set_folder, tell_of_source
        from geodistill.methods import METHODS, check_method
        from geodistill.processes import processes
        from geodistill.report.grid import draw_grid
        from geodistill.scenes import open_scenes
        from geodistill.stages.checks import check_base, warn_of_seen_tests

        flags: dict[str, Any] = {"ipc": ipc, "base": base, "size": size, "seed": seed, "privacy": privacy}
        flags |= {"soft_labels": soft_labels or None, "epsilon": epsilon, "delta": delta}
        flags["reproducible"] = reproducible or None
        old = DistilledSet.load(set_folder(data)) if add else None
        if old is not None:
            flags |= {"ipc": ipc or old.ipc, "size": size or old.size}
            flags["privacy"] = privacy or ("screen" if old.about.get("screened") else None)
        settings = load_config(config, _with_describer(set_, describe), **flags)
        if old is not None and base is None:
            settings = _drawn_by_base_of(data, settings)
        read: dict[str, Any] = {"bands": bands, "scale": scale, "split": split, "strict": strict}
        # Reading the images takes long: what is wrong with the settings is told before.
        check_method(method, settings.privacy)
        if old is not None and add is not None:
            if method != OWN:
                raise ConfigError(f"--add draws new images as {OWN} does: leave --method {method} out")
            if old.reading is not None and (bands, scale) != ("rgb", "auto"):
                raise ConfigError("--add reads new scenes as those of the set were read: leave --bands and --scale out")
            _update(old, open_scenes(add, **read, reading=old.reading, least=1).train, settings, out)
            if processes().main:
                copy_source(set_folder(data), out / UPDATED)
                tell_of_source(out / UPDATED, source_name, source_license)
                if profile:
                    _print_profile(out, settings)
                say(f"to test it: geodistill evaluate {out / UPDATED} --data DATA, with test scenes of all its classes")
            return
        if METHODS[method].kind != "real":
            check_base(settings)
        opened = open_scenes(data, **read)
        scenes = opened.train
        if METHODS[method].kind != "real":
            warn_of_seen_tests(settings.base, opened)
        tell_of_busy_cores()
        before = _last_made(out)
        result = run_distillation(
            scenes, settings, method=method, out=out, command=shlex.join(["geodistill", *sys.argv[1:]])
        )
        if not processes().main:
            return
        if before and _last_made(out) == before:
            say(f"nothing to do: {out} was finished on {datetime.fromtimestamp(before):%Y-%m-%d at %H:%M}")
        tell_of_source(out / DISTILLED.name, source_name, source_license)
        draw_grid(result, out / "grid.png")
        _print_stages(out)
        if profile:
            _print_profile(out, settings)
        _print_screening(out)
        _print_nearness(result)
        _print_replayable(result)
        _print_self_test(out, settings)
        say(f"{len(result)} images of {len(result.classes)} classes: {out / DISTILLED.name}")
        say(f"sample grid: {out / 'grid.png'}")
        if not (source_name and source_license):
            say("the data card does not name the archive and its licence: --source-name and --source-license add them")
        tell_next("evaluate", out, "--data", data)


@app.command(epilog="Example: **geodistill plan ~/AID --base stabilityai/stable-diffusion-2-1-base --preset paper**")
def plan(
    data: options.Data,
    out: Annotated[Path, typer.Option(help="Run folder of the planned run; its free disk space is checked.")] = Path(
        "."
    ),
    ipc: options.Ipc = None,
    base: Annotated[str | None, typer.Option(help="As in `distill`.")] = None,
    describe: options.Describe = None,
    size: options.Size = None,
    bands: options.Bands = "rgb",
    scale: options.Scale = "auto",
    split: options.Split = "auto",
    config: options.Config = None,
    set_: options.Set = None,
    privacy: options.Privacy = None,
    epsilon: options.Epsilon = None,
    delta: options.Delta = None,
    device: options.Device = None,
) -> None:
    """Estimate downloads, memory, disk and time of `distill` with these options. Nothing is downloaded or computed.

    Operations are counted on the models' configs. Time is operations over the speed of this machine. With the compact
    base it is right to a factor of two; for large models the estimate is too high.
    """
    with told(device):
        from geodistill.commands.plan import plan as make_plan
        from geodistill.config import load_config
        from geodistill.scenes import open_scenes
        from geodistill.stages.checks import check_base, warn_of_seen_tests

        sets = _with_describer(set_, describe)
        protection = {"privacy": privacy, "epsilon": epsilon, "delta": delta}
        settings = load_config(config, sets, ipc=ipc, base=base, size=size, **protection)
        check_base(settings)
        scenes = open_scenes(data, bands=bands, scale=scale, split=split)
        warn_of_seen_tests(settings.base, scenes)
        _print_plan(make_plan(scenes.train, settings, out))
        say("nothing was written: `geodistill distill` with the same options makes the set")


@app.command(
    epilog="Example: **geodistill pretrain ~/archive --out runs/base**, then **distill … --base runs/base/base**"
)
def pretrain(
    data: Annotated[
        list[str],
        typer.Argument(
            help="One or more archives, each `PATH` or `PATH=WEIGHT`. The weight is the archive's share of every "
            "batch, relative to the others [default: 1]. If an archive has splits, only its training part is read."
        ),
    ],
    out: options.Out,
    size: options.Size = None,
    config: options.Config = "pretrain",
    set_: options.Set = None,
    base: Annotated[
        str | None,
        typer.Option(help="Continue training the U-Net of this base: an installed base, a folder or a hub name."),
    ] = None,
    unlabelled: Annotated[
        list[str] | None,
        typer.Option(help="Folder of images without classes, `PATH` or `PATH=WEIGHT`. Can be repeated."),
    ] = None,
    seed: options.Seed = None,
    data_note: Annotated[str, typer.Option(help="Text for the model card on the data and their licence.")] = "",
    footprint: Annotated[
        bool,
        typer.Option(
            "--footprint",
            help="Put the hashes of the training images into the base, so that others can check whether it was trained "
            "on their files. For public data only. By default the list stays in OUT, beside the base.",
        ),
    ] = False,
    device: options.Device = None,
) -> None:
    """Train a base on the training scenes of one or more archives, for any number of later runs.

    Takes hours on two cores, or a quarter of an hour on a large GPU with --config pretrain-gpu. First a convolutional
    autoencoder is trained, then the U-Net, with flips, right-angle rotations and zoomed-in views as augmentation.
    OUT/base is a diffusers pipeline with a model card, for --base. With --base, the U-Net of an existing base is
    trained further on DATA; its autoencoder and text encoder stay as they are.
    """
    with told(device):
        from geodistill.commands.pretrain import open_sources
        from geodistill.commands.pretrain import pretrain as run_pretraining
        from geodistill.config import load_config

        settings = load_config(config, set_ or [], size=size, seed=seed)
        command = shlex.join(["geodistill", *sys.argv[1:]])
        tell_of_busy_cores()
        sources = open_sources(data, unlabelled or [])
        folder = run_pretraining(
            sources, settings, out=out, start=base, data_note=data_note, footprint=footprint, command=command
        )
        _print_stages(out)
        say(f"base: {folder}   its model card: {folder / 'README.md'}")
        tell_next("distill", "DATA", "--base", folder, "--out", "RUN")


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
        Path | None, typer.Option(help="Folder for predictions, which the next call uses again [default: the run].")
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
        refuse_inside(data, out, save)
        from geodistill.commands.source import recorded_base, recorded_reading, warn_of_other_scenes
        from geodistill.distilled import UPDATED, set_folder
        from geodistill.evaluation.evaluate import class_table, cross_table, summary_table
        from geodistill.evaluation.evaluate import evaluate as run_evaluation
        from geodistill.scenes import open_scenes
        from geodistill.stages.checks import warn_of_seen_tests

        folder, store = set_folder(what), out or (what if (what / "run.json").is_file() else None)
        opened = open_scenes(data, split=split, reading=recorded_reading(what), strict=strict)
        scenes, results = opened.tested_on(on), []
        # A set that was updated stands for scenes of several archives.
        if folder.name != UPDATED:
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
            tell_next("report", what, "--data", data)


@app.command(
    cls=options.ManyValues,
    epilog="Example: **geodistill compare ~/AID --ipc 1 10 --methods random dpd --protocols probe --out runs/all**",
)
def compare(
    data: options.Data,
    out: options.Out,
    ipc: Annotated[
        list[int] | None, typer.Option(help="Images per class. Several values can be given [default: 10].")
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
        refuse_inside(data, out)
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
            ipcs=ipc or [10],
            protocols=protocols or ["finetune"],
            networks=networks or ["efficientnet-lite0"],
            seeds=seeds,
            full=full,
            command=shlex.join(["geodistill", *sys.argv[1:]]),
        )
        console.print(*comparison_tables(out))
        say(f"table: {out / 'compare.csv'}   sets: {out / 'sets'}")
        tell_next("report", out, "--data", data)


@app.command(epilog='Example: **geodistill sample runs/aid --prompt "A satellite image of storage tanks, snow" --n 8**')
def sample(
    run: Annotated[Path, typer.Argument(help="Folder of a finished `distill` run.")],
    prompt: Annotated[str, typer.Option(help="Text prompt. It names the class that the images are labelled with.")],
    n: Annotated[int, typer.Option(min=1, help="Images.")] = 8,
    class_: Annotated[
        str | None, typer.Option("--class", help="Label of the images, if the prompt does not name a class.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Image folder [default: a new folder in RUN/samples].")] = None,
    device: options.Device = None,
) -> None:
    """Draw images under a text prompt with the fine-tuned base of RUN, for example of rare conditions.

    The images start from noise, not from training images, and are not part of the distilled set.
    """
    with told(device):
        from geodistill.commands.sample import sample as draw_targeted

        folder = draw_targeted(run, prompt, count=n, class_name=class_, seed=seed, out=out)
        say(f"{n} images: {folder}")


@app.command(epilog="Example: **geodistill methods**")
def methods() -> None:
    """List the methods of `distill --method` and `compare`; their images are real, derived from real, or synthetic."""
    from geodistill.methods import METHODS

    table = Table("method", "what it makes", "images")
    for method in METHODS.values():
        table.add_row(method.name, method.summary, method.kind)
    console.print(table)


@app.command(epilog="Example: **geodistill bases**")
def bases() -> None:
    """List the bases that `--base` knows by name: image sizes, training data, terms of use."""
    with told():
        from geodistill.prior.catalogue import base_names

        table = Table("base", "sizes", "trained on", "terms of use")
        for name in base_names():
            table.add_row(name, *_about_base(name))
        console.print(table)
        also = "`--base` also accepts the folder of a Stable Diffusion pipeline, or its name on the hub."
        say(also)


def _about_base(name: str) -> tuple[str, str, str]:
    """Return sizes, training data and terms of use of the base `name`, as `bases` shows them."""
    from geodistill.errors import PriorError
    from geodistill.prior.catalogue import SCRATCH, folder_of, read_facts

    if name == SCRATCH:
        return "multiples of 16", "your training scenes alone, in each run", ""
    try:
        facts = read_facts(folder_of(name) or "")
    except PriorError as error:
        return "", f"[red]{plain(str(error))}[/]", ""
    if facts is None:
        return "not told", "not told", "not told"
    sizes = ", ".join(map(str, facts.sizes))
    return f"{sizes} px", plain(", ".join(facts.archives)) or "not told", plain(facts.terms) or "any use"


@app.command(epilog="Example: **geodistill settings refinement**")
def settings(
    section: Annotated[
        str, typer.Argument(help="Only settings that begin with this, such as sampling or finetune.lr.")
    ] = "",
) -> None:
    """List all settings with default and meaning. `--set NAME=VALUE` changes one."""
    from geodistill.config import explain_settings

    table = Table("setting", "default", "what it does")
    for setting in explain_settings():
        if setting.name.startswith(section):
            table.add_row(*map(plain, (setting.name, setting.default, setting.meaning)))
    if not table.row_count:
        raise typer.BadParameter(f"no setting begins with {section!r}: `geodistill settings` lists all")
    console.print(table)


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
        typer.Option(help="Folder for audit.json and audit.html, which contain training images [default: RUN/audit]."),
    ] = None,
    shadows: Annotated[
        int,
        typer.Option(min=0, help="Number of shadow sets, made from random halves. Each takes about as long as RUN."),
    ] = 0,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            "--fail-on",
            help="Exit with code 3: 'copy' if an image is a copy, 'membership' if an attack or a replay succeeds.",
        ),
    ] = None,
    device: options.Device = None,
    split: options.Split = "auto",
) -> None:
    """Measure what a distilled set reveals: copies, nearness, membership of training images, sources of its images.

    Every figure is compared with the same figure for held-out real images. The verdict names the thresholds.
    """
    with told(device):
        refuse_inside(data, out)
        from geodistill.commands.audit import audit as audit_folder
        from geodistill.commands.audit import unanswerable
        from geodistill.commands.source import recorded_reading
        from geodistill.distilled import run_of
        from geodistill.privacy.audit import MEASURES
        from geodistill.processes import processes
        from geodistill.report.audit_page import write_audit_page
        from geodistill.scenes import open_scenes

        scenes = open_scenes(data, split=split, reading=recorded_reading(what))
        run = run_of(what)
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

        scenes = open_scenes(data, split=split, reading=recorded_reading(run)) if data else None
        page = write_report(run, out=out, data=scenes, owner=owner)
        say(f"report: {page}")


@app.command(
    epilog="Example: **geodistill fetch ucmerced --out ~/archives**, then **geodistill distill ucmerced --out RUN**"
)
def fetch(
    name: Annotated[str, typer.Argument(help="Archive: ucmerced, resisc45, eurosat-ms or patternnet.")],
    out: Annotated[Path, typer.Option(help="Folder for archives; this one is unpacked to OUT/NAME.")] = Path(
        "archives"
    ),
) -> None:
    """Download a public archive from its pinned address, check it, and unpack it.

    A download that stopped goes on. Afterwards NAME stands for the archive's folder in every command.
    """
    with told():
        from geodistill.commands.fetch import ARCHIVES
        from geodistill.commands.fetch import fetch as download

        if name in ARCHIVES:
            say(f"{ARCHIVES[name].what}\nterms: {ARCHIVES[name].terms}")
        say(f"{name}: {download(name, out)}")
        tell_next("inspect", name)


@app.command(epilog="Example: **geodistill inspect ~/naip --bands 4,1,2**")
def inspect(
    data: options.Data,
    bands: options.Bands = "rgb",
    scale: options.Scale = "auto",
    split: options.Split = "auto",
    strict: options.Strict = False,
    out: Annotated[
        Path, typer.Option(help="PNG file for the contact sheet. It shows training images; do not share it.")
    ] = Path("contact-sheet.png"),
) -> None:
    """Show what DATA holds and how it would be read: classes, types, bands, nodata, georeference, duplicates, leaks.

    Nothing is computed. The contact sheet shows the first images of each class, as `distill` would see them.
    """
    with told():
        refuse_inside(data, out)
        from geodistill.commands.inspect import contact_sheet
        from geodistill.commands.inspect import inspect as inspect_data
        from geodistill.report.grid import draw_grid
        from geodistill.run import explain_os_errors
        from geodistill.scenes import open_scenes

        with explain_os_errors(out.parent):
            out.parent.mkdir(parents=True, exist_ok=True)
        scenes = open_scenes(data, bands=bands, scale=scale, split=split, strict=strict)
        _print_inspection(inspect_data(scenes))
        with explain_os_errors(out.parent):
            draw_grid(contact_sheet(scenes.train), out)
        say(f"contact sheet: {out}")
        tell_next(
            "distill",
            data,
            *_unless("--bands", bands, "rgb"),
            *_unless("--scale", scale, "auto"),
            *_unless("--split", split, "auto"),
            *([] if scenes.train.channels == 3 else ["--base", "scratch"]),
            "--out",
            "RUN",
        )


def _unless(option: str, value: str, default: str) -> list[str]:
    return [] if value == default else [option, value]


def _print_inspection(found: Any) -> None:
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


@app.command(epilog="Example: **geodistill tiles samples.gpkg --raster mosaic.tif --tile 64 --out DATA**")
def tiles(
    labels: Annotated[Path, typer.Argument(help="GeoPackage or GeoJSON of points or polygons, with a class column.")],
    raster: Annotated[Path, typer.Option(help="Georeferenced raster of any size. Only the tiles are read.")],
    out: Annotated[Path, typer.Option(help="Folder for `OUT/<class>/<feature>.tif`. It must not exist, or be empty.")],
    tile: Annotated[
        int | None,
        typer.Option(
            help="Side of a tile in pixels. A point is its centre; a polygon gives the tiles that lie in it wholly. "
            "Without it, a polygon gives its bounding box."
        ),
    ] = None,
    column: Annotated[
        str, typer.Option(help="Column with the classes [default: label, class, class_name or category].")
    ] = "",
) -> None:
    """Cut tiles from a raster at labelled points or polygons; OUT is then DATA for all other commands.

    Labels in another coordinate system are reprojected. Features outside the raster, or at its edge, are counted.
    """
    with told():
        from geodistill.scenes.tiles import cut_tiles

        cut = cut_tiles(labels, raster, out, tile=tile, column=column)
        for line in cut.told():
            say(line)
        counts = ", ".join(f"{name} {count}" for name, count in sorted(cut.classes.items()))
        say(f"{cut.classes.total()} tiles of {len(cut.classes)} classes ({counts}): {out}")
        tell_next("inspect", out)


@app.command(epilog="Example: **geodistill scenes demo/scenes --train 60 --test 30**")
def scenes(
    out: Annotated[Path, typer.Argument(help="Folder for `OUT/train/<class>` and `OUT/test/<class>`.")],
    train: Annotated[int, typer.Option(min=1, help="Training images per class.")] = 60,
    test: Annotated[int, typer.Option(min=1, help="Test images per class.")] = 30,
    size: Annotated[int, typer.Option(min=16, help="Side in pixels.")] = 64,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
) -> None:
    """Draw the built-in scenes: ten classes of procedural overhead imagery for a first try."""
    with told():
        from geodistill.scenes.procedural import write_scenes

        write_scenes(out, train_per_class=train, test_per_class=test, size=size, seed=seed)
        say(f"built-in scenes: {out}")
        tell_next("distill", out, "--config", "demo", "--out", "RUN")


def _drawn_by_base_of(run: Path, settings: Any) -> Any:
    """Return `settings` with the base that drew the set of `run`; a base that a preset or file names stays."""
    from geodistill.commands.source import recorded_base
    from geodistill.config import Config

    known = recorded_base(run) if settings.base == Config().base else None
    return settings.model_copy(update={"base": known}) if known else settings


def _update(old: Any, scenes: Any, settings: Any, out: Path) -> None:
    """Update the set `old` with the training scenes `scenes`, and print what came of it."""
    from geodistill.commands.add import add as update
    from geodistill.distilled import UPDATED
    from geodistill.processes import processes
    from geodistill.report.grid import draw_grid

    tell_of_busy_cores()
    result = update(old, scenes, settings, out=out, command=shlex.join(["geodistill", *sys.argv[1:]]))
    if not processes().main:
        return
    draw_grid(result, out / "grid.png")
    _print_stages(out)
    fresh = sorted(set(result.classes) - set(old.classes))
    say(f"new classes: {', '.join(fresh) or 'none'}")
    say(f"{len(result)} images of {len(result.classes)} classes: {out / UPDATED}   grid: {out / 'grid.png'}")


def _last_made(run: Path) -> float:
    """Return when the last stage of the run was finished, in seconds since 1970; 0 if none was."""
    return max((path.stat().st_mtime for path in (run / "stages").glob("*.json")), default=0.0)


def _with_describer(sets: list[str] | None, describe: str | None) -> list[str]:
    return [*(sets or []), *([f"descriptions.describer={json.dumps(describe)}"] if describe else [])]


def _print_plan(found: Any) -> None:
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


def _print_screening(run: Path) -> None:
    """Print how many candidates were too like a training image, where that was looked for."""
    from geodistill.run import records

    for record in (one for one in records(run) if one["stage"] == SCREENED.name):
        first, *again = record["facts"]["rejected"]
        drawn = f", {len(again)} times drawn again, following less: {', '.join(map(str, again))}" if again else ""
        say(f"screening: {first} candidates too like a training image{drawn} rejected")


def _print_nearness(distilled: Any) -> None:
    """Print, where nothing protects the sources, that the images are near them and what to do about it."""
    if distilled.kind != "synthetic":
        real = distilled.kind == "real"
        what = "training images as they are" if real else "training images, changed by a computation"
        say(f"the images are {what}: the set protects none of them")
        return
    if distilled.follows_scenes:
        say(
            "images start from training images and may show their layout: before you share a set of sensitive "
            "scenes, make it with --privacy screen or run `geodistill audit`",
        )


def _print_replayable(distilled: Any) -> None:
    """Print that the set must not be shared, where its images can be drawn again."""
    if distilled.replayable:
        say(
            "reproducible: do not share this set, its seeds let anyone repeat the sampling",
            style="bold red",
        )


def _print_self_test(run: Path, settings: Any) -> None:
    """Print what the set is worth beside random real images, where that was tested, and what to try if it is less."""
    from geodistill.evaluation.worth import advice
    from geodistill.stages.self_test import read_self_test

    found = read_self_test(run)
    if found is None:
        return
    for line in found.figures:
        say(line)
    colour = {"better than random": "bold green", "below random": "bold red"}.get(found.verdict or "", "yellow")
    say(found.conclusion, style=colour)
    if found.verdict == "below random":
        say(advice(settings), style=colour)


def _print_profile(out: Path, settings: Any) -> None:
    from geodistill.commands.profile import profile

    for line in profile(out, settings).lines():
        say(line)


def _print_stages(out: Path) -> None:
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
