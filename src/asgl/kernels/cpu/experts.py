"""A mixture of experts: which expert takes which rows, and products of each with its own.

`routed` of n rows, `used` experts each, says who does what, in int64:

    active    how many experts have rows
    source    [n * used] the row of a place: rows are sorted by experts
    place     [n, used] where a row's expert finds it
    chosen    [n, used] experts of a row, best first
    shares    [n, used] float32, in int64 cells
    experts   [active, 3] those that have rows: number, first place, places
    counts    [experts + 1] to sort with

So the rows of an expert lie together, each row's result is added up in the order of its experts,
whoever computed them, and nothing depends on which other rows there are.
"""

from __future__ import annotations

import numpy as np

from asgl.kernels.cpu import team
from asgl.kernels.cpu.linear import multiply_tile
from asgl.kernels.cpu.llvm import LANES
from asgl.kernels.cpu.simd import (
    add,
    exp_scalar,
    fma,
    get_f32,
    get_i64,
    kernel,
    load,
    set_f32,
    set_i64,
    splat,
    store,
    zero,
)
from asgl.kernels.cpu.tiles import OUTPUTS

GRAIN = 4
"""Rows that a thread claims at once."""
EXPERT = 3
"""int64 of an expert in a table of weights: what multiplies, the address of the weight, and of its
bias or 0."""


def routed_words(rows: int, experts: int, used: int) -> int:
    """int64 that `routed` takes."""
    return 2 + 4 * experts + 4 * rows * used


@kernel
def _part(routed: int, part: int, entries: int) -> int:
    """Where a part begins: 0 for sources, 1 for places, ..., 4 for experts; entries: n * used."""
    return routed + 8 + 8 * part * entries


@kernel
def _choose(logits: int, experts: int, used: int, chosen: int, shares: int) -> None:
    """The `used` greatest of a row of logits, greatest first, of equals the first; their logits go
    to shares."""
    for i in range(used):
        best, at = np.float32(-np.inf), -1
        for expert in range(experts):
            value, taken = get_f32(logits + expert * 4), False
            for j in range(i):
                taken = taken or get_i64(chosen + j * 8) == expert
            if not taken and (at < 0 or value > best):
                best, at = value, expert
        set_i64(chosen + i * 8, at)
        set_f32(shares + i * 8, best)


@kernel
def _share(
    logits: int, experts: int, used: int, over_used: bool, renormalized: bool, shares: int
) -> None:
    """Makes shares of the chosen logits. Not a number if a logit is not finite."""
    top = get_f32(shares)
    whole = np.float32(0)
    if over_used or renormalized:
        for i in range(used):
            whole += exp_scalar(get_f32(shares + i * 8) - top)
    else:
        for expert in range(experts):
            whole += exp_scalar(get_f32(logits + expert * 4) - top)
    for expert in range(experts):  # a comparison with NaN is false, so it may have been passed by
        whole += get_f32(logits + expert * 4) * np.float32(0)
    for i in range(used):
        set_f32(shares + i * 8, exp_scalar(get_f32(shares + i * 8) - top) / whole)


@kernel
def _sort(rows: int, experts: int, used: int, routed: int) -> None:
    """Sorts rows by experts."""
    entries = rows * used
    source, place, chosen, active = (
        _part(routed, 0, entries), _part(routed, 1, entries), _part(routed, 2, entries),
        _part(routed, 4, entries),
    )  # fmt: skip
    counts, found = active + 24 * experts, 0
    for expert in range(experts + 1):
        set_i64(counts + expert * 8, 0)
    for i in range(entries):
        at = counts + get_i64(chosen + i * 8) * 8 + 8
        set_i64(at, get_i64(at) + 1)
    for expert in range(experts):
        first, many = get_i64(counts + expert * 8), get_i64(counts + expert * 8 + 8)
        if many:
            at = active + found * 24
            set_i64(at, expert)
            set_i64(at + 8, first)
            set_i64(at + 16, many)
            found += 1
        set_i64(counts + expert * 8 + 8, first + many)
    for i in range(entries):
        at = counts + get_i64(chosen + i * 8) * 8
        free = get_i64(at)
        set_i64(place + i * 8, free)
        set_i64(source + free * 8, i // used)
        set_i64(at, free + 1)
    set_i64(routed, found)


@kernel
def route_phases(
    job: int, phase: int, number: int, rows: int, logits: int, experts: int, used: int,
    over_used: bool, renormalized: bool, routed: int,
) -> None:  # fmt: skip
    """Chooses experts by logits [rows, experts] float32: a phase over the rows, and one of one
    piece, which sorts them. For the rest see `kernels.api.ExpertWeights`."""
    entries = rows * used
    for row in team.pieces(job, phase, number, GRAIN, rows):
        own, first = logits + row * experts * 4, row * used * 8
        chosen, shares = _part(routed, 2, entries) + first, _part(routed, 3, entries) + first
        _choose(own, experts, used, chosen, shares)
        _share(own, experts, used, over_used, renormalized, shares)
    for _ in team.pieces(job, phase + 1, number, 1, 1):
        _sort(rows, experts, used, routed)


@kernel
def gather_phase(
    job: int, phase: int, number: int, rows: int, x: int, routed: int, used: int, d: int, out: int
) -> None:
    """out [rows * used, d] = rows of x [rows, d] float32, in the order of experts."""
    source = _part(routed, 0, rows * used)
    for place in team.pieces(job, phase, number, GRAIN, rows * used):
        at, target = x + get_i64(source + place * 8) * d * 4, out + place * d * 4
        for i in range(0, d, LANES):
            store(target + i * 4, load(at + i * 4))


@kernel
def expert_phase(
    job: int, phase: int, number: int, rows: int, x: int, ldx: int, routed: int, weights: int,
    tile_bytes: int, groups: int, outputs: int, mode: int, activation: int, used: int, out: int,
    scratch: int,
) -> None:  # fmt: skip
    """out [rows * used, outputs] = each place's x, as it was described, times the weight of its
    expert; pieces are tiles of experts that have rows. `weights` has `EXPERT` int64 of each expert;
    for the rest see `linear.linear_phase`."""
    experts, tiles = _part(routed, 4, rows * used), (outputs + OUTPUTS - 1) // OUTPUTS
    for piece in team.pieces(job, phase, number, team.RUNS, get_i64(routed) * tiles):
        expert, tile = experts + piece // tiles * 24, piece % tiles
        entry, place = weights + get_i64(expert) * 8 * EXPERT, get_i64(expert + 8)
        first = tile * OUTPUTS
        b, bias = get_i64(entry + 8) + tile * tile_bytes, get_i64(entry + 16)
        own = bias + first * 4 if bias else 0
        multiply_tile(
            get_i64(entry), get_i64(expert + 16), x + place * ldx, ldx, groups, b,
            b + tiles * tile_bytes, mode, outputs - first, activation, 1.0, own, own + outputs * 4,
            out + (place * outputs + first) * 4, outputs * 4, scratch,
        )  # fmt: skip


@kernel
def combine_phase(
    job: int, phase: int, number: int, rows: int, x: int, routed: int, used: int, d: int, out: int
) -> None:
    """out [rows, d] += the shares of a row's experts times what they made of it, x [rows * used,
    d]."""
    places, shares = _part(routed, 1, rows * used), _part(routed, 3, rows * used)
    for row in team.pieces(job, phase, number, GRAIN, rows):
        first = row * used * 8
        for i in range(0, d, LANES):
            value = zero()
            for j in range(used):
                at = x + get_i64(places + first + j * 8) * d * 4
                share = splat(get_f32(shares + first + j * 8))
                value = fma(load(at + i * 4), share, value)
            target = out + (row * d + i) * 4
            store(target, add(load(target), value))


@kernel
def add_share_phase(
    job: int, phase: int, number: int, rows: int, x: int, share: int, d: int, out: int
) -> None:
    """out [rows, d] += sigmoid(share [rows, 1]) * x [rows, d], all float32."""
    for row in team.pieces(job, phase, number, GRAIN, rows):
        one = np.float32(1)
        by = splat(one / (one + exp_scalar(-get_f32(share + row * 4))))
        for i in range(0, d, LANES):
            target = out + (row * d + i) * 4
            store(target, fma(load(x + (row * d + i) * 4), by, load(target)))
