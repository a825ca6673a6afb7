"""Commands that make: a distilled set, images under a prompt, a base; and the estimate of what that takes."""

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from geodistill.cli import options
from geodistill.cli.options import command_line, refuse_inside, say, tell_next, tell_of_busy_cores, told, unless
from geodistill.cli.output import (
    print_nearness,
    print_plan,
    print_profile,
    print_replayable,
    print_screening,
    print_self_test,
    print_stages,
)
from geodistill.errors import ConfigError
from geodistill.pipeline import DISTILLED, OWN

app = typer.Typer()


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
    soft_labels: options.SoftLabels = False,
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
    trained on random real images are tested on them. `--set self_test.held_out=0` and `--privacy dp` switch this test
    off.
    """
    with told(device):
        from geodistill.config import load_config
        from geodistill.distilled import UPDATED, DistilledSet, set_folder, tell_of_source, tell_of_sources
        from geodistill.processes import processes

        refuse_inside(data, out=out)
        flags: dict[str, Any] = {"ipc": ipc, "base": base, "size": size, "seed": seed, "privacy": privacy}
        flags |= {"soft_labels": soft_labels or None, "epsilon": epsilon, "delta": delta}
        flags["reproducible"] = reproducible or None
        sets = _with_describer(set_, describe)
        read: dict[str, Any] = {"bands": bands, "scale": scale, "split": split, "strict": strict}
        if add is None:
            settings = load_config(config, sets, **flags)
            has_tests = _make(data, read, settings, method, out)
        else:
            refuse_inside(add, out=out)
            old = DistilledSet.load(set_folder(data))
            settings = load_config(config, sets, **_as_in_set(old, flags))
            if base is None:
                settings = _drawn_by_base_of(data, settings)
            _update(old, _new_scenes(old, add, read, method), settings, out)
        if not processes().main:
            return
        if profile:
            print_profile(out, settings)
        if add is None:
            tell_of_source(out / DISTILLED.name, source_name, source_license)
        else:
            tell_of_sources(out / UPDATED, set_folder(data), source_name, source_license)
        if not (source_name and source_license):
            say("the data card does not name the archive and its licence: --source-name and --source-license add them")
        if add is not None:
            say(f"to test it: geodistill evaluate {out / UPDATED} --data DATA, with test scenes of all its classes")
        elif has_tests:
            tell_next("evaluate", out, "--data", data, *unless("--split", split, "auto"))
        else:
            say("DATA has no test images, which `geodistill evaluate` needs: give it an archive that has some")


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
    soft_labels: options.SoftLabels = False,
    device: options.Device = None,
) -> None:
    """Estimate downloads, memory, disk and time of `distill` with these options. Nothing is downloaded or computed.

    Operations are counted on the models' configs. Time is operations over the speed of this machine. With the compact
    base it is right to a factor of two; for large models the estimate is too high.
    """
    with told(device):
        from geodistill.commands.plan import plan as make_plan
        from geodistill.config import load_config
        from geodistill.methods.dpd import check_settings
        from geodistill.scenes import open_scenes
        from geodistill.stages.checks import check_base, warn_of_seen_tests

        sets = _with_describer(set_, describe)
        flags: dict[str, Any] = {"ipc": ipc, "base": base, "size": size, "soft_labels": soft_labels or None}
        flags |= {"privacy": privacy, "epsilon": epsilon, "delta": delta}
        settings = load_config(config, sets, **flags)
        check_base(settings)
        scenes = open_scenes(data, bands=bands, scale=scale, split=split)
        warn_of_seen_tests(settings.base, scenes)
        check_settings(scenes.train, settings)
        print_plan(make_plan(scenes.train, settings, out))
        say("nothing was written: `geodistill distill` with the same options makes the set")


@app.command(
    epilog="Example: **geodistill pretrain ~/archive --out runs/base**, then **distill … --base runs/base/base**"
)
def pretrain(
    data: Annotated[
        list[str],
        typer.Argument(
            help="One or more archives, each `PATH` or `PATH=WEIGHT`. The weight is the archive's share of every "
            "batch, relative to the others [default: 1]. Only the training part is read, which is four fifths of an "
            "archive without splits."
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
            help="Put hashes of the training images into the base, of their files and of their pictures, so that "
            "others can check whether it was trained on their images. For public data only. By default the list stays "
            "in OUT, beside the base.",
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
        from geodistill.commands.pretrain import archive_folders, open_sources
        from geodistill.commands.pretrain import pretrain as run_pretraining
        from geodistill.config import load_config

        settings = load_config(config, set_ or [], size=size, seed=seed)
        # A preset for several commands may have a base; one that is typed here is meant.
        if any(one.startswith("base=") for one in set_ or []):
            raise ConfigError(f"the setting base={settings.base!r} has no effect here: give --base {settings.base}")
        for archive in archive_folders(data, unlabelled or []):
            refuse_inside(archive, out=out)
        tell_of_busy_cores()
        sources = open_sources(data, unlabelled or [])
        folder = run_pretraining(
            sources, settings, out=out, start=base, data_note=data_note, footprint=footprint, command=command_line()
        )
        print_stages(out)
        say(f"base: {folder}   its model card: {folder / 'README.md'}")
        tell_next("distill", "DATA", "--base", folder, *unless("--size", str(settings.size), "64"), "--out", "RUN")


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


def _drawn_by_base_of(run: Path, settings: Any) -> Any:
    """Return `settings` with the base that drew the set of `run`; a base that a preset or file names stays."""
    from geodistill.commands.source import recorded_base
    from geodistill.config import Config

    if settings.base != Config().base:
        return settings
    known = recorded_base(run)
    if known is None:
        say(f"the base that drew the set is not at hand: {settings.base!r} draws the new images")
    return settings.model_copy(update={"base": known}) if known else settings


def _as_in_set(old: Any, flags: dict[str, Any]) -> dict[str, Any]:
    """Return `flags` with what holds for the set `old` where they say nothing."""
    known = {"ipc": old.ipc, "size": old.size, "privacy": "screen" if old.about.get("screened") else None}
    return flags | {name: flags[name] or value for name, value in known.items()}


def _make(data: Path, read: dict[str, Any], settings: Any, method: str, out: Path) -> bool:
    """Make a set of the training scenes of `data`, print what came of it, and return whether `data` has test scenes."""
    from geodistill.commands.distill import distill as run_distillation
    from geodistill.methods import METHODS, check_method
    from geodistill.processes import processes
    from geodistill.report.grid import draw_grid
    from geodistill.scenes import open_scenes
    from geodistill.stages.checks import check_base, warn_of_seen_tests

    # Reading the images takes long: what is wrong with the settings is told before.
    check_method(method, settings.privacy)
    draws = METHODS[method].kind != "real"
    if draws:
        check_base(settings)
    opened = open_scenes(data, **read)
    if draws:
        warn_of_seen_tests(settings.base, opened)
    tell_of_busy_cores()
    before = _last_made(out)
    result = run_distillation(opened.train, settings, method=method, out=out, command=command_line())
    if processes().main:
        if before and _last_made(out) == before:
            say(f"nothing to do: {out} was finished on {datetime.fromtimestamp(before):%Y-%m-%d at %H:%M}")
        draw_grid(result, out / "grid.png")
        print_stages(out)
        print_screening(out)
        print_nearness(result)
        print_replayable(result)
        print_self_test(out, settings, read["split"])
        say(f"{len(result)} images of {len(result.classes)} classes: {out / DISTILLED.name}")
        say(f"sample grid: {out / 'grid.png'}")
    return opened.test is not None


def _new_scenes(old: Any, add: Path, read: dict[str, Any], method: str) -> Any:
    """Return the training scenes of `add`, read as those of the set `old` were."""
    from geodistill.scenes import open_scenes
    from geodistill.scenes.reading import PLAIN

    if method != OWN:
        raise ConfigError(f"--add draws new images as {OWN} does: leave --method {method} out")
    if (read["bands"], read["scale"]) != ("rgb", "auto"):
        raise ConfigError("--add reads new scenes as those of the set were read: leave --bands and --scale out")
    # Nothing tests the set, so no scene is kept for a test unless the data has a part for it.
    split = "all" if read["split"] == "auto" else read["split"]
    return open_scenes(add, **read | {"split": split}, reading=old.reading or PLAIN, least=1).train


def _update(old: Any, scenes: Any, settings: Any, out: Path) -> None:
    """Update the set `old` with the training scenes `scenes`, and print what came of it."""
    from geodistill.commands.add import add as update
    from geodistill.distilled import UPDATED
    from geodistill.processes import processes
    from geodistill.report.grid import draw_grid

    tell_of_busy_cores()
    result = update(old, scenes, settings, out=out, command=command_line())
    if not processes().main:
        return
    draw_grid(result, out / "grid.png")
    print_stages(out)
    print_nearness(result)
    print_replayable(result)
    fresh = sorted(set(result.classes) - set(old.classes))
    say(f"new classes: {', '.join(fresh) or 'none'}")
    say(f"{len(result)} images of {len(result.classes)} classes: {out / UPDATED}   grid: {out / 'grid.png'}")


def _last_made(run: Path) -> float:
    """Return when the last stage of the run was finished, in seconds since 1970; 0 if none was."""
    return max((path.stat().st_mtime for path in (run / "stages").glob("*.json")), default=0.0)


def _with_describer(sets: list[str] | None, describe: str | None) -> list[str]:
    return [*(sets or []), *([f"descriptions.describer={json.dumps(describe)}"] if describe else [])]
