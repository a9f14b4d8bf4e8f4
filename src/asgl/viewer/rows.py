"""Which rows of the tree are shown: all of them if they fit, else what one has to see.

    ▸ thoughts[3]            a stream that does something, below what it was forked from
    ├╴✓ branch 0
    ├╴▸ branch 1
    └╴… 30 more: 28 done, 2 waiting        its other branches
    … 900 more: 899 done, 1 idle           the other programs

First come failures, then what generates, computes, retries, runs a tool or waits, then what has
ended last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

from asgl.trace.nodes import STATES, Op, Run, State, Stream


class Row(NamedTuple):
    """A line of the tree: of a stream, of an op, or of what is folded."""

    prefix: str
    stream: Stream | None = None
    op: Op | None = None
    folded: Counter[State] | None = None


@dataclass
class Choice:
    """What the user wants to see."""

    folded: bool = True
    ops: bool = False
    """Whether ops have rows of their own."""
    filter: str = ""
    """Only streams whose title or state has this in it."""
    offset: int = 0
    """How many rows are above the window."""


def rows_of(run: Run, choice: Choice, limit: int) -> list[Row]:
    """At most `limit` rows."""
    if limit <= 0:
        return []
    if choice.filter:
        return _window(lambda: _matching(run, choice), choice, limit)
    everything = len(run.streams) + _op_count(run, choice.ops, limit)
    if not choice.folded or choice.offset or everything <= limit:
        return _window(lambda: _tree(run.roots, None, choice.ops), choice, limit)
    return _folded(run, choice.ops, limit)


def _op_count(run: Run, ops: bool, limit: int) -> int:
    if not ops or len(run.streams) > limit:
        return 0
    return sum(len(stream.ops) for stream in run.streams.values())


def _window(rows: Callable[[], Iterator[Row]], choice: Choice, limit: int) -> list[Row]:
    while True:
        shown = list(islice(rows(), choice.offset, choice.offset + limit))
        if shown or not choice.offset:
            return shown
        choice.offset = max(choice.offset - limit, 0)  # what was there is gone


def _tree(streams: Iterable[Stream], chosen: set[int] | None, ops: bool) -> Iterator[Row]:
    """The rows of streams and of all below them, or of those that are chosen."""
    for stream in streams:
        if chosen is not None and stream.id not in chosen:
            continue
        yield Row("", stream)
        if ops:
            yield from _ops(stream, "")
        yield from _branches(stream, chosen, ops, "")


def _branches(stream: Stream, chosen: set[int] | None, ops: bool, prefix: str) -> Iterator[Row]:
    """The rows below a stream. A loop over a stack, since forks may be nested deeply."""
    stack: list[Iterator[Row]] = [_level(stream, chosen, ops, prefix)]
    while stack:
        row = next(stack[-1], None)
        if row is None:
            stack.pop()
            continue
        yield row
        if row.op is None and row.stream is not None and row.stream.children:
            below = row.prefix[:-2] + ("│ " if row.prefix.endswith("├╴") else "  ")
            stack.append(_level(row.stream, chosen, ops, below))


def _ops(stream: Stream, prefix: str) -> Iterator[Row]:
    for op in stream.ops.values():
        if op.kind != "snapshot":  # what a fork starts from: it has rows of its own
            yield Row(prefix + ("│ " if stream.children else "  "), stream, op)


def _level(stream: Stream, chosen: set[int] | None, ops: bool, prefix: str) -> Iterator[Row]:
    shown = [child for child in stream.children if chosen is None or child.id in chosen]
    hidden = len(stream.children) - len(shown)
    for index, child in enumerate(shown):
        last = index == len(shown) - 1 and not hidden
        yield Row(prefix + ("└╴" if last else "├╴"), child)
        if ops:
            yield from _ops(child, prefix + ("  " if last else "│ "))
    if hidden and chosen is not None:
        folded = stream.child_states.copy()
        folded.subtract(Counter(child.state for child in shown))
        yield Row(prefix + "└╴", folded=+folded)


def _folded(run: Run, ops: bool, limit: int) -> list[Row]:
    take = limit
    while True:
        chosen = _choose(run, take)
        roots = [root for root in run.roots if root.id in chosen] if take < 64 else run.roots
        rows = list(_tree(roots, chosen, ops))
        hidden = run.root_states.copy()
        hidden.subtract(Counter(root.state for root in run.roots if root.id in chosen))
        if hidden := +hidden:
            rows.append(Row("", folded=hidden))
        if len(rows) <= limit or take <= 1:
            return rows[:limit]
        take = max(min(take - 1, take * limit // len(rows)), 1)


def _choose(run: Run, most: int) -> set[int]:
    """The streams to show, with all above them."""
    chosen: set[int] = set()
    for stream in _by_importance(run, most):
        path: list[Stream] = []
        above: Stream | None = stream
        while above is not None and above.id not in chosen:
            path.append(above)
            above = above.parent
        if len(chosen) + len(path) > most:
            if chosen:
                break
            path = path[-most:]
        chosen.update(one.id for one in path)
    return chosen


def _by_importance(run: Run, most: int) -> Iterator[Stream]:
    yield from islice(reversed(run.failed.values()), most)
    order = {state: place for place, state in enumerate(STATES)}
    # the state of a stream that waits for its branches says less than theirs
    active = sorted(
        run.active.values(), key=lambda stream: (order[stream.state], stream.active_below > 0)
    )
    yield from active[:most]
    yield from islice(reversed(run.ended.values()), most)
    yield from run.roots[-most:]


def _matching(run: Run, choice: Choice) -> Iterator[Row]:
    wanted = choice.filter.lower()
    chosen: set[int] = set()
    for stream in run.streams.values():
        if wanted in stream.state or wanted in stream.title.lower():
            above: Stream | None = stream
            while above is not None and above.id not in chosen:
                chosen.add(above.id)
                above = above.parent
    for row in _tree(run.roots, chosen, choice.ops):
        if row.folded is None:
            yield row
