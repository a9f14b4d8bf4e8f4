"""`asgl trace`: what a trace on disk says."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from asgl import checks
from asgl.errors import ConfigError
from asgl.trace import Event, Trace
from asgl.trace.diff import Difference, Pair, cached_share, difference
from asgl.trace.model import Model
from asgl.trace.perfetto import trace_events
from asgl.trace.stats import PARTS, OpStatistics, percentile, statistics_of
from asgl.viewer.canvas import harmless
from asgl.viewer.page import page_of

app = typer.Typer(help="Look at traces, which asgl.JsonlTracer writes.", no_args_is_help=True)
_Path = Annotated[Path, typer.Argument(help="A trace.")]
_Output = Annotated[Path | None, typer.Option("--output", "-o", help="The file to write.")]
_SHOWN = 10
"""So many ops are named for each kind of difference."""


def events_of(path: Path) -> list[Event]:
    """The events of a trace; says on standard error if it is cut short."""
    trace = Trace(path)
    events = list(trace)
    if trace.cut_short:
        Console(stderr=True).print(
            f"the last line of {str(path)!r} is cut off: the process was stopped as it wrote it",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
    return events


@app.command()
def show(
    path: _Path,
    speed: Annotated[float, typer.Option(help="So many times as fast as it was.")] = 1.0,
    end: Annotated[bool, typer.Option("--end", help="Show the end of it, and no more.")] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Show the end, with a row for every stream.")
    ] = False,
) -> None:
    """Show it in the live view, as it went."""
    from asgl.viewer.replay import replay, show_end  # here: other commands need not wait for it

    checks.number("--speed", speed, 0, above=True)
    events = events_of(path)
    console = Console()
    if end or everything:
        show_end(events, console, everything=everything)
    else:
        replay(events, console, speed=speed)


@app.command()
def stats(path: _Path) -> None:
    """Say how often each op ran, what it cost, and where its time went."""
    model = Model(events_of(path))
    entries = statistics_of(model)
    console = Console()
    if not entries:
        console.print("the trace has no ops")
        return
    console.print(_ops_table(entries))
    console.print(_times_table(entries))
    for run in model.runs.values():
        states = ", ".join(f"{number} {state}" for state, number in run.counts.items() if number)
        hits = "" if run.hit_rate is None else f"; {run.hit_rate:.0%} of prompt tokens cached"
        console.print(
            f"{run.model or 'a run'}: {run.now - run.opened_at:.2f} s; streams: {states or 'none'};"
            f" {run.generated} tokens generated ({run.forced} forced){hits}; "
            f"{run.evicted} evicted, {run.retractions} retractions",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )


def _ops_table(entries: Sequence[OpStatistics]) -> Table:
    heads = ["op", "count", "bad", "again", "tokens", "cached"]
    for name in ("ttft", "tok/s", "secs"):
        heads += [f"{name}\np50", "\np99"]
    table = Table(*heads, box=None, padding=(0, 1, 0, 0))
    table.caption = (
        "bad: failed or cancelled; again: texts that were not valid;\n"
        "ttft: seconds to the first token; tok/s: of each request; secs: of each op"
    )
    for entry in entries:
        share = entry.cached_share
        table.add_row(
            Text(harmless(entry.title)),
            str(entry.count),
            str(entry.failed + entry.cancelled or ""),
            str(entry.retried or ""),
            str(entry.generated),
            "" if share is None else f"{share:.0%}",
            *_both(entry.first_token, 2),
            *_both(entry.rates, 1),
            *_both(entry.seconds, 2),
        )
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    return table


def _times_table(entries: Sequence[OpStatistics]) -> Table:
    table = Table("seconds spent", *PARTS, box=None)
    for entry in entries:
        shown = [f"{entry.spent[part]:.3f}" if entry.spent[part] else "" for part in PARTS]
        table.add_row(Text(harmless(entry.title)), *shown)
    for column in table.columns[1:]:
        column.justify = "right"
    return table


def _both(values: Sequence[float], digits: int) -> tuple[str, str]:
    found = (percentile(values, 0.5), percentile(values, 0.99))
    first, second = ("" if value is None else f"{value:.{digits}f}" for value in found)
    return first, second


@app.command()
def diff(before: _Path, after: _Path) -> None:
    """Say what became slower, less cached, or says something else. Exits with 1 if anything did."""
    found = difference(Model(events_of(before)), Model(events_of(after)))
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"{found.same} ops are in both")
    _say_places(console, "only in the first", [" / ".join(one) for one in found.only_before])
    _say_places(console, "only in the second", [" / ".join(one) for one in found.only_after])
    _say_pairs(console, found)
    if found.nothing:
        console.print("they say the same, as quickly, from the same cache")
    else:
        raise typer.Exit(1)


def _say_pairs(console: Console, found: Difference) -> None:
    def named(pair: Pair) -> str:
        return " / ".join(pair.place)

    ends = [f"{named(pair)}: {pair.before.state} -> {pair.after.state}" for pair in found.other_end]
    _say_places(console, "ended in another way", ends)
    texts = [
        f"{named(pair)}: {pair.before.text[:60]!r} -> {pair.after.text[:60]!r}"
        for pair in found.other_text
    ]
    _say_places(console, "say something else", texts)
    for what, pairs in (("slower", found.slower), ("faster", found.faster)):
        times = [
            f"{named(pair)}: {pair.before.seconds(pair.before.stream.run.now):.3f} s -> "
            f"{pair.after.seconds(pair.after.stream.run.now):.3f} s"
            for pair in pairs
        ]
        _say_places(console, what, times)
    shares = [
        f"{named(pair)}: {cached_share(pair.before):.0%} -> {cached_share(pair.after):.0%}"
        for pair in found.less_cached
    ]
    _say_places(console, "less cached", shares)


def _say_places(console: Console, what: str, lines: Sequence[str]) -> None:
    if not lines:
        return
    console.print(Text(f"{what}: {len(lines)}", style="bold"))
    for line in lines[:_SHOWN]:
        console.print(f"    {harmless(line)}", markup=False)
    if len(lines) > _SHOWN:
        console.print(f"    and {len(lines) - _SHOWN} more")


@app.command()
def perfetto(path: _Path, output: _Output = None) -> None:
    """Write it for ui.perfetto.dev, or chrome://tracing."""
    target = output or path.with_suffix(".perfetto.json")
    write(target, json.dumps(trace_events(Model(events_of(path))), default=repr))


@app.command()
def html(path: _Path, output: _Output = None) -> None:
    """Write it as a page to open in a browser, which needs no network."""
    target = output or path.with_suffix(".html")
    write(target, page_of(Model(events_of(path)), f"asgl: {path.name}"))


def write(path: Path, text: str) -> None:
    """Writes the file, and says where it is; to standard output if the path is "-"."""
    if str(path) == "-":
        sys.stdout.write(text)
        return
    try:
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigError(f"{str(path)!r} cannot be written: {error.strerror}") from error
    typer.echo(path)
