"""Lays out the rows of a step: the next tokens of requests and of their branches, each with the
slots that it fills."""

from __future__ import annotations

from array import array

from asgl.plan import INT
from asgl.scheduling.ledger import Ledger
from asgl.scheduling.plan_builder import Row
from asgl.scheduling.request import Request


def next_row(ledger: Ledger, request: Request, count: int) -> Row:
    """The next `count` tokens of the request's sequence; or the one that is pending."""
    start = len(request.slots)
    continues = start == len(request.tokens)
    tokens = array(INT, [0]) if continues else request.tokens[start : start + count]
    request.slots.extend(ledger.allocate(count))
    return Row(request, tokens, start, request.slots, continues=continues)


def extend(ledger: Ledger, request: Request, budget: int, rows: list[Row]) -> int:
    """Lays out what fits of the request's sequence, and of its branches; returns how many tokens
    that is."""
    used = 0
    if request.unplanned > 1:
        used = min(request.unplanned, budget, ledger.available)
        if used > 0:
            rows.append(next_row(ledger, request, used))
    if request.branches is not None and len(request.slots) == len(request.tokens):
        used += _branches(ledger, request, budget - used, rows)
    return used


def _branches(ledger: Ledger, request: Request, budget: int, rows: list[Row]) -> int:
    branches = request.branches
    assert branches is not None
    used = 0
    for edge, offset in branches.pending():
        count = min(len(edge.tokens) - offset, budget - used, ledger.available)
        if count <= 0:
            break
        branches.take(edge, ledger.allocate(count))
        context = request.slots[:]
        for above in edge.path():
            context.extend(above.slots)
        rows.append(
            Row(
                request,
                edge.tokens[offset : offset + count],
                len(request.tokens) + edge.start + offset,
                context,
                edge,
                offset,
            )
        )
        used += count
        if offset + count < len(edge.tokens):
            break  # an edge below this one needs all of it
    return used
