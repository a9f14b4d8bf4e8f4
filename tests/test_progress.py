from __future__ import annotations

import io

from rich.console import Console

from asgl.progress import ProgressBar


def terminal() -> tuple[Console, io.StringIO]:
    screen = io.StringIO()
    return Console(file=screen, force_terminal=True, width=150, color_system=None), screen


def test_every_step_has_a_bar() -> None:
    console, screen = terminal()
    with ProgressBar(console) as progress:
        progress(0, 1000, "fetching x")
        progress(900, 1000, "fetching x")
        progress(0, 500, "unpacking x")
        progress(500, 500, "unpacking x")
    last = screen.getvalue().rsplit("fetching x", 1)[1]
    assert "1.0/1.0 kB" in last, "a step that is over is shown as whole"
    assert "unpacking x" in last
    assert "500/500 bytes" in last


def test_an_error_leaves_the_bar_where_it_was() -> None:
    console, screen = terminal()
    progress = ProgressBar(console)
    progress(200, 1000, "fetching x")
    progress.__exit__(RuntimeError, RuntimeError("broken"), None)
    assert "0.2/1.0 kB" in screen.getvalue()
    assert "1.0/1.0 kB" not in screen.getvalue()


def test_an_unknown_total() -> None:
    console, screen = terminal()
    with ProgressBar(console) as progress:
        progress(200, None, "fetching x")
    assert "fetching x" in screen.getvalue()


def test_nothing_is_shown_before_the_first_call_or_outside_a_terminal() -> None:
    console, screen = terminal()
    with ProgressBar(console):
        pass
    assert screen.getvalue() == ""
    file = io.StringIO()
    with ProgressBar(Console(file=file)) as progress:
        progress(1, 2, "fetching x")
    assert file.getvalue() == ""
