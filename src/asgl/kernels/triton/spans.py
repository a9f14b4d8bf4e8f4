"""Plans shared-prefix (cascade) decoding on the host: which spans the span kernel reads, in which
pieces. Imports no triton.

row 0   [ span A          | span B  | own ]
row 1   [ span A          | span B  | own ]       A is read once for three rows, B once for two,
row 2   [ span A          | own           ]       each row's own positions by the decode kernel
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from asgl.kernels.api import Batch

UNIT, ENTRY, ROW = 6, 2, 3
"""Integers of a unit, an entry and a row in the tables; the kernels say what they mean."""
_PIECE = 256
"""No piece of a span is shorter, but for the last: its results cost a write and a read."""

SharedSpans = tuple[tuple[int, int, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class SpanPlan:
    """Tables of int32 on the host, see attention.py: units [u, 6], entries [e, 2], rows [decode
    rows, 3]; `partials` is how many partial results the units write, for each query head."""

    units: NDArray[np.int32]
    entries: NDArray[np.int32]
    rows: NDArray[np.int32]
    partials: int


@dataclass(frozen=True, slots=True)
class Spans:
    """The tables of a plan on the device. Units that a table has room for and a plan does not need
    are zero."""

    units: Tensor
    entries: Tensor
    rows: Tensor
    partials: int


@dataclass(frozen=True, slots=True)
class SpannedBatch(Batch):
    """A batch whose shared spans were planned by the caller, so that nothing is uploaded in a step.
    None: there are none."""

    spans: Spans | None = None


def plan_spans(
    shared: SharedSpans, decode_rows: int, kv_heads: int, rows_of_tile: int, multiprocessors: int
) -> SpanPlan | None:
    """The plan for the decode rows of a batch; None if no two of them share anything that can be
    used.

    A row takes part in its spans from position 0 on, up to the first gap: what lies behind a gap it
    reads by itself, as do rows with several new tokens, whose own tiles read keys for many queries
    as it is. `rows_of_tile` rows fit a tile; long spans are cut so that every multiprocessor has
    two programs.
    """
    covered = [0] * decode_rows
    used: list[tuple[int, int, list[int]]] = []
    for start, end, rows in sorted(shared):
        joined = [row for row in rows if row < decode_rows and covered[row] == start]
        if len(joined) > 1 and start < end:
            used.append((start, end, joined))
            for row in joined:
                covered[row] = end
    if not used:
        return None
    tiles = sum(-(-len(rows) // rows_of_tile) for _, _, rows in used)
    positions = sum((end - start) * -(-len(rows) // rows_of_tile) for start, end, rows in used)
    piece = max(_PIECE, -(-positions * kv_heads // max(2 * multiprocessors, tiles * kv_heads)))
    piece = -(-piece // _PIECE) * _PIECE
    return _tables(used, covered, piece, rows_of_tile)


def _tables(
    used: Sequence[tuple[int, int, list[int]]], covered: list[int], piece: int, rows_of_tile: int
) -> SpanPlan:
    pieces_of = [-(-(end - start) // piece) for start, end, _ in used]
    counts = [0] * len(covered)
    for pieces, (_, _, rows) in zip(pieces_of, used, strict=True):
        for row in rows:
            counts[row] += pieces
    bases = np.concatenate(([0], np.cumsum(counts))).tolist()
    following = list(bases)
    units: list[tuple[int, ...]] = []
    entries: list[tuple[int, int]] = []
    for pieces, (start, end, rows) in zip(pieces_of, used, strict=True):
        for begin in range(0, len(rows), rows_of_tile):
            tile = rows[begin : begin + rows_of_tile]
            for number in range(pieces):
                first = start + number * piece
                units.append(
                    (len(entries), len(tile), tile[0], first, min(first + piece, end), number)
                )
            for row in tile:
                entries.append((row, following[row]))
                following[row] += pieces
    table = np.array(
        [(bases[row], counts[row], covered[row]) for row in range(len(covered))], np.int32
    )
    return SpanPlan(np.array(units, np.int32), np.array(entries, np.int32), table, bases[-1])
