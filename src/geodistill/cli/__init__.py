"""The command line: reads what was asked, calls the library, prints what came out."""

from importlib.metadata import version
from typing import Annotated

import typer

from geodistill.cli import lists, making, measuring, models, scenes
from geodistill.cli.options import say

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


for part in (making, measuring, models, scenes, lists):
    app.add_typer(part.app)


@app.callback()
def _general(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass
