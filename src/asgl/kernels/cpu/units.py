"""Which pieces of attention a step consists of: units of some queries over some consecutive
positions.

A span of positions that several rows share is a segment of all their queries; what a row has to
itself is a segment of its own. Segments are cut into units of similar cost, along the queries and
along the positions: one long request, one prefix under many rows and many short rows all come out
as a few units for each thread.

    row 0   [ shared ~~~~~~~~~~~~~~ | own ~~~ ]
    row 1   [ shared ~~~~~~~~~~~~~~ | own ]
    units   [  A  |   B   |   C     | D  / E  ]

A query that met more than one unit has its partial results merged, in the order of positions. With
`deterministic`, units begin and end at fixed absolute positions, so that what a query computes does
not depend on who else is there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from asgl.kernels.cpu.simd import kernel

Ints = NDArray[Any]

UNIT = 6
TOKENS, COUNT, INDEX, LENGTH, POSITION, PARTIAL = range(UNIT)
"""The columns of a unit: first of its tokens and their number, first of its slots in kv_indices and
their number, the position of that slot, and the row of its first token's partial results (-1: they
are final)."""
BLOCK = 64
"""Positions that are scored at a time."""
FIXED = 256
"""Positions of a unit in deterministic mode."""
QUERIES = 96
"""Queries of a KV head in a unit: enough to pay for packing its keys and values, few enough for
scratch to stay in L2."""
PACKING = 12
"""Packing a position costs as much as scoring it for so many queries; reading it from memory is of
the same order."""
_SHARES = 5
"""Units of a thread, if they can be cut so fine: each costs a merge, and without them threads would
end unevenly."""


_START, _END, _SLOT, _FIRST, _TOKENS = range(5)
"""The columns of a segment: its positions, the first of its slots in kv_indices, the first of its
tokens and their number."""


@kernel
def _set(segments: Ints, i: int, start: int, end: int, slot: int, first: int, count: int) -> None:
    segments[i, _START], segments[i, _END], segments[i, _SLOT] = start, end, slot
    segments[i, _FIRST], segments[i, _TOKENS] = first, count


@kernel
def _list(tokens: Ints, listed: int, first: int, last: int) -> int:
    """Lists the tokens first:last from `listed` on; returns how many are listed then."""
    for token in range(first, last):
        tokens[listed + token - first] = token
    return listed + last - first


@kernel
def _segments(
    qo: Ints, kv: Ints, bounds: Ints, span_ptr: Ints, span_rows: Ints, window: int,
    deterministic: bool,
) -> tuple[Ints, Ints]:  # fmt: skip
    """The segments [count, 5] of a step, and the tokens that they list. What no token of a row sees
    through its window is in none."""
    rows, listed = qo.shape[0] - 1, qo[-1]
    for i in range(span_rows.shape[0]):
        listed += 2 * (qo[span_rows[i] + 1] - qo[span_rows[i]])
    found = np.empty((rows + bounds.shape[0] + span_rows.shape[0], 5), np.int64)
    tokens = np.empty(listed, np.int64)
    covered = np.zeros(rows, np.int64)
    lowest = np.zeros(rows, np.int64)
    if window:
        for row in range(rows):
            first_limit = kv[row + 1] - kv[row] - (qo[row + 1] - qo[row]) + 1
            lowest[row] = max(0, first_limit - window) // BLOCK * BLOCK
            covered[row] = lowest[row]
    inside = np.empty(span_rows.shape[0], np.int64)
    count, listed = 0, 0
    for span in range(bounds.shape[0] + 1):
        own_only = span == bounds.shape[0]  # what is left of each row after its last span
        start, end, many = 0, 0, rows
        if not own_only:
            start, end, many = bounds[span, 0], bounds[span, 1], 0
            first_seen = end
            for i in range(span_ptr[span], span_ptr[span + 1]):
                if lowest[span_rows[i]] < end:
                    inside[many] = span_rows[i]
                    first_seen = min(first_seen, lowest[span_rows[i]])
                    many += 1
            start = max(start, first_seen)
            if deterministic:
                start, end = (start + FIXED - 1) // FIXED * FIXED, end // FIXED * FIXED
            if end <= start or many < 2:
                continue
        for i in range(many):
            row = i if own_only else inside[i]
            until = kv[row + 1] - kv[row] if own_only else start
            if covered[row] < until:
                new = qo[row + 1] - qo[row]
                _set(found, count, covered[row], until, kv[row] + covered[row], listed, new)
                listed = _list(tokens, listed, qo[row], qo[row + 1])
                count += 1
            covered[row] = max(covered[row], end)
        if not own_only:
            shared = listed
            for i in range(many):
                row = int(inside[i])
                listed = _list(tokens, listed, qo[row], qo[row + 1])
            _set(found, count, start, end, kv[int(inside[0])] + start, shared, listed - shared)
            count += 1
    return found[:count], tokens[:listed]


@kernel
def _length(positions: int, queries: int, target: int, deterministic: bool) -> int:
    """How many positions a unit of so many queries gets."""
    if deterministic:
        return FIXED
    length = max(BLOCK, target // (PACKING + queries))
    units = max(1, (positions + length // 2) // length)
    return (positions + units * BLOCK - 1) // (units * BLOCK) * BLOCK


@kernel
def _cut(
    segments: Ints,
    tokens: Ints,
    limits: Ints,
    group: int,
    window: int,
    target: int,
    deterministic: bool,
    units: Ints,
) -> int:
    """Cuts segments into units; returns how many. Writes them if there is room for any."""
    made = 0
    block = max(1, QUERIES // group)
    for s in range(segments.shape[0]):
        start, end, slot = segments[s, _START], segments[s, _END], segments[s, _SLOT]
        first, count = segments[s, _FIRST], segments[s, _TOKENS]
        for at in range(first, first + count, block):
            queries = min(block, first + count - at)
            begin, last = end if window else start, start
            for i in range(at, at + queries):
                last = max(last, min(end, limits[tokens[i]]))
                if window:
                    begin = min(begin, max(start, limits[tokens[i]] - window) // BLOCK * BLOCK)
            begin = max(begin, start)
            length = _length(last - begin, queries * group, target, deterministic)
            position = begin
            while position < last:
                stop = min(last, position + length)
                if deterministic:
                    stop = min(last, (position // FIXED + 1) * FIXED)
                if units.shape[0]:
                    units[made, TOKENS], units[made, COUNT], units[made, INDEX] = (
                        at,
                        queries,
                        slot + position - start,
                    )
                    units[made, LENGTH], units[made, POSITION], units[made, PARTIAL] = (
                        stop - position,
                        position,
                        -1,
                    )
                made += 1
                position = stop
    return made


@kernel
def _merges(units: Ints, tokens: Ints, limits: Ints) -> tuple[int, Ints, Ints, Ints]:
    """Numbers the partial results of tokens that are in several units.

    Returns (their number, the tokens to merge, where each one's partial results begin in the next,
    and the partial results).
    """
    parts = np.zeros(limits.shape[0] + 1, np.int64)
    for u in range(units.shape[0]):
        for i in range(units[u, TOKENS], units[u, TOKENS] + units[u, COUNT]):
            parts[tokens[i] + 1] += 1
    rows, many = 0, 0
    for u in range(units.shape[0]):
        single = True
        for i in range(units[u, TOKENS], units[u, TOKENS] + units[u, COUNT]):
            single &= parts[tokens[i] + 1] == 1
        if not single:
            units[u, PARTIAL] = rows
            rows += units[u, COUNT]
    merged = np.empty(limits.shape[0], np.int64)
    for token in range(limits.shape[0]):
        # a token in one unit is merged from that one part, if others of the unit have more
        merged[many] = token
        many += parts[token + 1] > 0
        parts[token + 1] += parts[token]
    order = np.empty(parts[-1], np.int64)
    position = np.empty(parts[-1], np.int64)
    filled = parts[:-1].copy()
    for u in range(units.shape[0]):
        for i in range(units[u, COUNT]):
            token = tokens[units[u, TOKENS] + i]
            place = filled[token]
            filled[token] += 1
            while place > parts[token] and position[place - 1] > units[u, POSITION]:
                order[place], position[place] = order[place - 1], position[place - 1]
                place -= 1
            order[place], position[place] = (
                units[u, PARTIAL] + i if units[u, PARTIAL] >= 0 else -1,
                units[u, POSITION],
            )
    kept = 0
    for i in range(many):
        if order[parts[merged[i]]] >= 0:
            merged[kept] = merged[i]
            kept += 1
    return rows, merged[:kept], parts, order


SIGNATURE = (
    "Tuple((int64[:,::1], int64[::1], int64[::1], int64[::1], int64[::1], int64[::1], int64))"
    "(int32[::1], int32[::1], int64[:,::1], int64[::1], int64[::1], int64, int64, int64, "
    "boolean)"
)


def plan_units(
    qo: Ints,
    kv: Ints,
    bounds: Ints,
    span_ptr: Ints,
    span_rows: Ints,
    group: int,
    window: int,
    threads: int,
    deterministic: bool,
) -> tuple[Ints, Ints, Ints, Ints, Ints, Ints, int]:
    """The units of a step of rows `qo`, `kv` (see `asgl.kernels.api.Batch`).

    Shared spans are given by `bounds` [spans, 2], and their rows in CSR form; `group` is the query
    heads of a KV head; `window` is how many positions a token sees, 0 for all. Returns units
    [units, 6]; the tokens that they name; limits: up to where a token sees its row's positions; the
    tokens to merge; where a token's partial results begin, and partial results (rows) in the order
    of positions; the number of those.
    """
    limits = np.empty(qo[-1], np.int64)
    for row in range(qo.shape[0] - 1):
        for token in range(qo[row], qo[row + 1]):
            limits[token] = kv[row + 1] - kv[row] - (qo[row + 1] - 1 - token)
    segments, tokens = _segments(qo, kv, bounds, span_ptr, span_rows, window, deterministic)
    cost = 0
    for s in range(segments.shape[0]):
        length = segments[s, _END] - segments[s, _START]
        if window:  # about what is left when it is cut
            length = min(length, window + QUERIES // group)
        cost += length * (PACKING + segments[s, _TOKENS] * group)
    target = cost // (threads * _SHARES)
    none = np.empty((0, UNIT), np.int64)
    count = _cut(segments, tokens, limits, group, window, target, deterministic, none)
    units = np.empty((count, UNIT), np.int64)
    _cut(segments, tokens, limits, group, window, target, deterministic, units)
    partials, merged, parts, order = _merges(units, tokens, limits)
    return units, tokens, limits, merged, parts, order, partials
