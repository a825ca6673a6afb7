"""Commands on scenes: fetch an archive, look at one, cut tiles from a raster, draw the built-in scenes."""

from pathlib import Path
from typing import Annotated

import typer

from geodistill.cli import options
from geodistill.cli.options import refuse_inside, say, tell_next, told, unless
from geodistill.cli.output import print_inspection
from geodistill.errors import ConfigError

app = typer.Typer()
# Suffixes of pictures that a contact sheet can be.
SHEETS = (".png", ".jpg", ".jpeg", ".webp")


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
        Path, typer.Option(help="File or folder for the contact sheet. It shows training images; do not share it.")
    ] = Path("contact-sheet.png"),
) -> None:
    """Show what DATA holds and how it would be read: classes, types, bands, nodata, georeference, duplicates, leaks.

    Nothing is computed. The contact sheet shows the first images of each class, as `distill` would see them.
    """
    with told():
        refuse_inside(data, out=out)
        from geodistill.commands.inspect import contact_sheet
        from geodistill.commands.inspect import inspect as inspect_data
        from geodistill.report.grid import draw_grid
        from geodistill.run import explain_os_errors
        from geodistill.scenes import open_scenes

        # Reading the data takes long: a sheet that cannot be written is told before.
        out = out / "contact-sheet.png" if out.is_dir() else out
        if out.suffix.lower() not in SHEETS:
            raise ConfigError(f"--out {out} is no name of a picture: end it with one of {', '.join(SHEETS)}")
        with explain_os_errors(out.parent):
            out.parent.mkdir(parents=True, exist_ok=True)
        scenes = open_scenes(data, bands=bands, scale=scale, split=split, strict=strict)
        print_inspection(inspect_data(scenes))
        with explain_os_errors(out.parent):
            draw_grid(contact_sheet(scenes.train), out)
        say(f"contact sheet: {out}")
        tell_next(
            "distill",
            data,
            *unless("--bands", bands, "rgb"),
            *unless("--scale", scale, "auto"),
            *unless("--split", split, "auto"),
            *([] if scenes.train.channels == 3 else ["--base", "scratch"]),
            "--out",
            "RUN",
        )


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
