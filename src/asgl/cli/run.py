"""`asgl run`: a script with tracers attached to every Runtime that it opens."""

from __future__ import annotations

import runpy
import sys
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from asgl.errors import AsglError, ConfigError
from asgl.trace import JsonlTracer, Tracer, default_tracers


def run(
    program: Annotated[Path, typer.Argument(help="A Python script that opens a Runtime.")],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="Arguments of the script; after -- also those that asgl run has."),
    ] = None,
    view: Annotated[bool, typer.Option("--view", help="Show what it does, live.")] = False,
    trace: Annotated[
        Path | None, typer.Option("--trace", help="Write a trace to this file.")
    ] = None,
) -> None:
    """Run a script, and watch it."""
    if not program.is_file():
        what = "is a directory" if program.is_dir() else "is not there"
        raise ConfigError(f"the script {str(program)!r} {what}")
    with ExitStack() as stack:
        tracers: list[Tracer] = []
        if trace is not None:
            tracers.append(stack.enter_context(JsonlTracer(trace)))
        if view:
            from asgl.viewer import Live  # here: other commands need not wait for it

            tracers.append(Live())
        default_tracers.set((*default_tracers.get(), *tracers))
        sys.argv = [str(program), *(arguments or ())]
        sys.path.insert(0, str(program.resolve().parent))
        try:
            runpy.run_path(str(program), run_name="__main__")
        except AsglError:  # the script's own, which Python would show so, and not one of a command
            traceback.print_exc()
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
