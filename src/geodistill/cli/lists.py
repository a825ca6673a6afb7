"""Commands that list what there is: methods, bases, settings."""

from typing import Annotated

import typer
from rich.table import Table

from geodistill.cli.options import console, plain, say, told

app = typer.Typer()


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
