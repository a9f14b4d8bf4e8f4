"""The command `asgl`. Errors of asgl are printed, without a traceback, and exit with status 1."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.text import Text

from asgl.cli.commands import app
from asgl.errors import AsglError

__all__ = ["main"]


def main() -> None:
    """Runs the command line of this process."""
    try:
        app()
    except AsglError as error:
        Console(stderr=True).print(
            Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True
        )
        sys.exit(1)
