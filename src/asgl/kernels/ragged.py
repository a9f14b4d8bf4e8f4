"""Cuts the rows of a ragged batch into rectangles, for back ends that attend by dense matrix
products."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from asgl.kernels.api import Batch

_QUERIES = 128
"""The most new tokens of a row in one tile: what a tile computes above the causal diagonal is
wasted."""
_SCORES = 4 * 2**20
"""The most scores of a tile, over all heads (a single query may need more): 16 MiB in float32, and
so at any prompt length."""
FIXED_QUERIES, BLOCK = 16, 64
"""The shape of fixed tiles: so many queries, and contexts of whole blocks of absolute positions."""
_SLACK = 2**12
"""Padding of so many scores per head is always worth a tile less."""


@dataclass(frozen=True, slots=True)
class Tile:
    """Pieces of rows, padded to the same number of queries and the same context. Padding repeats
    what is real."""

    queries: Tensor
    """int64 [pieces, queries]: flattened tokens."""
    slots: Tensor
    """int64 [pieces, context]"""
    last: Tensor
    """int64 [pieces, queries]: the last position in the context that the query sees."""
    real: Tensor
    """int64: which of the pieces * queries, flattened, are no padding."""
    flat: Tensor
    """int64, as long as `real`: their flattened tokens."""


@dataclass(frozen=True, slots=True, order=True)
class _Piece:
    queries: int
    context: int
    token: int
    kv_start: int


def tiles(batch: Batch, heads: int, *, fixed: bool = False) -> list[Tile]:
    """Tiles that cover each new token of the batch once, of similar pieces each: at most half of a
    tile is padding.

    `fixed`: all tiles have 16 queries and contexts of a multiple of 64 (and so more padding).
    """
    qo, kv = batch.qo_indptr.tolist(), batch.kv_indptr.tolist()
    pieces: list[_Piece] = []
    for row in range(batch.rows):
        new, context = qo[row + 1] - qo[row], kv[row + 1] - kv[row]
        block = (
            FIXED_QUERIES if fixed else max(1, min(_QUERIES, _SCORES // (heads * max(context, 1))))
        )
        for start in range(0, new, block):
            queries = min(block, new - start)
            pieces.append(
                _Piece(queries, context - new + start + queries, qo[row] + start, kv[row])
            )
    pieces.sort(reverse=True)
    made: list[Tile] = []
    begin = 0
    while begin < len(pieces):
        end = _fill(pieces, begin, heads)
        made.append(_tile(pieces[begin:end], batch, fixed))
        begin = end
    return made


def _fill(pieces: list[_Piece], begin: int, heads: int) -> int:
    """The end of the longest run of pieces from `begin` that makes a good tile."""
    queries, context, needed = pieces[begin].queries, 0, 0
    for end in range(begin, len(pieces)):
        piece = pieces[end]
        context = max(context, piece.context)
        needed += piece.queries * piece.context
        padded = (end + 1 - begin) * queries * context
        if end > begin and (padded * heads > _SCORES or padded > 2 * needed + _SLACK):
            return end
    return len(pieces)


def _tile(pieces: list[_Piece], batch: Batch, fixed: bool) -> Tile:
    device = batch.kv_indices.device
    table = torch.tensor(
        [(p.queries, p.context, p.token, p.kv_start) for p in pieces], device=device
    )
    queries, context, token, kv_start = table.unsqueeze(2).unbind(dim=1)
    longest = max(p.context for p in pieces)
    query = torch.arange(FIXED_QUERIES if fixed else pieces[0].queries, device=device)
    position = torch.arange(-(-longest // BLOCK) * BLOCK if fixed else longest, device=device)
    within = torch.minimum(query, queries - 1)
    flat = token + within
    real = (query < queries).view(-1).nonzero().view(-1)
    return Tile(
        queries=flat,
        slots=batch.kv_indices[kv_start + torch.minimum(position, context - 1)].long(),
        last=context - queries + within,
        real=real,
        flat=flat.view(-1)[real],
    )
