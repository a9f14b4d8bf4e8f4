from __future__ import annotations

import io

from rich.console import Console

from asgl.progress import BatchBar, ProgressBar
from asgl.types import EngineStatistics


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


def counted(prompt: int, cached: int, generated: int) -> EngineStatistics:
    return EngineStatistics(
        capacity=0,
        free=0,
        evictable=0,
        pinned=0,
        running=0,
        waiting=0,
        steps=0,
        prompt_tokens=prompt,
        cached_tokens=cached,
        generated_tokens=generated,
        forced_tokens=0,
        evicted_tokens=0,
        retractions=0,
        cancelled=0,
        plan_seconds=0.0,
        run_seconds=0.0,
        idle_seconds=0.0,
        namespaces={},
    )


def test_a_batch_shows_how_fast_it_goes_and_how_much_was_cached() -> None:
    console, screen = terminal()
    now, seen = 10.0, counted(100, 0, 50)
    with BatchBar(4, "tips", lambda: seen, console=console, clock=lambda: now) as advance:
        now, seen = 12.0, counted(300, 150, 250)
        advance()
        assert advance.rates() == "0.5 programs/s  100 tokens/s  75% cached"
    assert "tips" in screen.getvalue()
    assert "1/4" in screen.getvalue()
    assert "75% cached" in screen.getvalue()


def test_a_batch_without_a_terminal_draws_nothing() -> None:
    screen = io.StringIO()
    with BatchBar(
        1, "tips", lambda: counted(0, 0, 0), console=Console(file=screen), clock=lambda: 1.0
    ) as advance:
        advance()
        assert advance.rates().endswith("0% cached")
    assert screen.getvalue() == ""
