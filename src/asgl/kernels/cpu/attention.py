"""Attention over paged keys and values: units of queries and positions (see units.py), then a merge
of partial results.

Within a unit, 64 positions at a time, keys and values of one KV head are packed into tiles of
words, and all queries that read them - of all rows of the unit, and of all query heads of the KV
head - are one small matrix product. The softmax is online (Milakov and Gimelshein, arXiv
1805.02867; Dao et al., arXiv 2205.14135); partial results merge by log-sum-exp.

Scratch of a thread, for Q = queries of a unit * heads of a group:

    zeros                  [kv_heads, head_dim] bfloat16: what positions past the end read
    addresses              of the keys and of the values of a block
    keys                   two tiles of 32 positions; values: head_dim / 32 tiles of 64 positions
    queries                [Q, head_dim] elements, of each KV head
    scores, weights        [Q, 64] float32, and as elements
    tops, sums, results    of each KV head: [Q], [Q], [Q, head_dim] float32
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from asgl.kernels.cpu import llvm, streaming, team, widening
from asgl.kernels.cpu.activations import tanh
from asgl.kernels.cpu.dots import add_dot_rows, dot_rows
from asgl.kernels.cpu.llvm import ELEMENT, IVEC, LANES, PER_WORD
from asgl.kernels.cpu.simd import (
    add,
    drop_first,
    exp,
    exp_scalar,
    fma,
    get_f32,
    get_i32,
    get_i64,
    greatest,
    i64,
    keep_first,
    kernel,
    load,
    load_words,
    maximum,
    mul,
    operation,
    set_f32,
    set_i64,
    splat,
    store,
    store_elements,
    store_words,
    sub,
    total,
    void,
    zero,
)
from asgl.kernels.cpu.streaming import touch
from asgl.kernels.cpu.tiles import OUTPUTS, TILE_STEP
from asgl.kernels.cpu.units import BLOCK, COUNT, INDEX, LENGTH, PARTIAL, POSITION, TOKENS, UNIT

PLAN = ("units", "count", "tokens", "limits", "merged", "merged_count", "parts", "order", "indices")
"""The int64 of a plan: addresses, and numbers of units and of tokens to merge."""
few = streaming if PER_WORD == 2 else widening
"""How a few queries read the cache."""
FEW_QUERIES, prepare_queries = few.QUERIES, few.prepare_queries
score_rows, mix_rows = few.score_rows, few.mix_rows
_LOWEST = np.float32(-1e30)
"""The top of no scores at all: finite, so that the difference of two is a number."""
_WEIGHTS = BLOCK * ELEMENT
"""Bytes of a query's weights."""


def _transpose(
    builder: Any, addresses: Any, offset: Any, out: Any, load: Callable[[Any, Any], Any]
) -> None:
    """Loads 16 words at `offset` from each of 16 addresses (int64 [16]); stores them transposed, a
    step of a tile apart."""
    places = [streaming.token(builder, addresses, i, offset) for i in range(LANES)]
    rows = [load(builder, place) for place in places]
    for i, row in enumerate(llvm.transpose(builder, rows)):
        llvm.store(builder, llvm.offset(builder, out, i * TILE_STEP), row, 4)


@operation(void, i64, i64, i64)
def _transpose_words(builder: Any, addresses: Any, offset: Any, out: Any) -> None:
    """16 words of 16 keys to a tile."""
    _transpose(builder, addresses, offset, out, lambda b, at: llvm.load(b, at, IVEC, 4))


@operation(void, i64, i64, i64)
def _transpose_widened(builder: Any, addresses: Any, offset: Any, out: Any) -> None:
    """16 bfloat16 of 16 keys, widened, to a tile."""
    _transpose(builder, addresses, offset, out, llvm.load_bf16)


@operation(void, i64, i64, i64)
def _zip_rows(builder: Any, first: Any, second: Any, out: Any) -> None:
    """32 bfloat16 of two values to the step of a tile: words with one of the first and one of the
    second."""
    for half, zipped in enumerate(streaming.zipped_rows(builder, first, second)):
        llvm.store(builder, llvm.offset(builder, out, 64 * half), zipped, 4)


@operation(void, i64, i64)
def _widen_row(builder: Any, source: Any, out: Any) -> None:
    """32 bfloat16 of a value to the step of a tile, widened."""
    for half in range(2):
        word = llvm.load_bf16(builder, llvm.offset(builder, source, 32 * half))
        llvm.store(builder, llvm.offset(builder, out, 64 * half), word, 4)


def room(queries: int, kv_heads: int, head_dim: int) -> int:
    """Bytes that a thread needs for units of up to `queries` queries of a KV head."""
    tiles = 2 * BLOCK * 8 + kv_heads * head_dim * 2 + 2 * BLOCK * head_dim * ELEMENT
    per_query = BLOCK * (4 + ELEMENT) + kv_heads * (head_dim * (ELEMENT + 4) + 8)
    return tiles + queries * per_query


@kernel
def _pack_keys(addresses: int, offset: int, count: int, head_dim: int, tiles: int) -> None:
    """Keys at `offset` from up to 64 addresses to two tiles [head_dim / PER_WORD][2][16] of words,
    by 16 of them."""
    steps = head_dim // PER_WORD
    for quarter in range((count + LANES - 1) // LANES):
        out = tiles + (quarter // 2) * steps * TILE_STEP + (quarter % 2) * 64
        for step in range(0, steps, LANES):
            if PER_WORD == 2:
                _transpose_words(
                    addresses + quarter * 8 * LANES, offset + step * 4, out + step * TILE_STEP
                )
            else:
                _transpose_widened(
                    addresses + quarter * 8 * LANES, offset + step * 2, out + step * TILE_STEP
                )


@kernel
def _pack_values(addresses: int, offset: int, steps: int, head_dim: int, tiles: int) -> None:
    """Values at `offset` from addresses to head_dim / 32 tiles [64 / PER_WORD][2][16] of words; the
    first `steps` of them."""
    for step in range(steps):
        out = tiles + step * TILE_STEP
        first = get_i64(addresses + step * PER_WORD * 8) + offset
        second = get_i64(addresses + (step * PER_WORD + 1) * 8) + offset
        for d in range(0, head_dim, OUTPUTS):
            if PER_WORD == 2:
                _zip_rows(first + d * 2, second + d * 2, out)
            else:
                _widen_row(first + d * 2, out)
            out += BLOCK // PER_WORD * TILE_STEP


@kernel
def _softmax_row(
    scores: int, weights: int, hidden: int, visible: int, scale: float, softcap: float, top: int,
    summed: int, result: int, head_dim: int,
) -> None:  # fmt: skip
    """Turns the first `visible` of a query's 64 scores, but for the first `hidden`, into weights,
    updates its top and sum, and shrinks its result. softcap: see `kernels.api.Attending`; 0 for
    none."""
    lowest, by = np.float32(-np.inf), splat(np.float32(scale))
    s0, s1 = mul(load(scores), by), mul(load(scores + 64), by)
    s2, s3 = mul(load(scores + 128), by), mul(load(scores + 192), by)
    if softcap != 0.0:
        cap, part = splat(softcap), splat(1.0 / softcap)
        s0, s1 = mul(tanh(mul(s0, part)), cap), mul(tanh(mul(s1, part)), cap)
        s2, s3 = mul(tanh(mul(s2, part)), cap), mul(tanh(mul(s3, part)), cap)
    s0, s1 = keep_first(s0, visible, lowest), keep_first(s1, visible - 16, lowest)
    s2, s3 = keep_first(s2, visible - 32, lowest), keep_first(s3, visible - 48, lowest)
    if hidden > 0:
        s0, s1 = drop_first(s0, hidden, lowest), drop_first(s1, hidden - 16, lowest)
        s2, s3 = drop_first(s2, hidden - 32, lowest), drop_first(s3, hidden - 48, lowest)
    old = get_f32(top)
    new = max(old, greatest(maximum(maximum(s0, s1), maximum(s2, s3))))
    high = splat(new)
    p0, p1, p2, p3 = exp(sub(s0, high)), exp(sub(s1, high)), exp(sub(s2, high)), exp(sub(s3, high))
    store_elements(weights, p0)
    store_elements(weights + LANES * ELEMENT, p1)
    store_elements(weights + 2 * LANES * ELEMENT, p2)
    store_elements(weights + 3 * LANES * ELEMENT, p3)
    part = total(add(add(p0, p1), add(p2, p3)))
    if new == old:
        set_f32(summed, get_f32(summed) + part)
        return
    shrink = exp_scalar(old - new)
    set_f32(top, new)
    set_f32(summed, get_f32(summed) * shrink + part)
    factor = splat(shrink)
    for d in range(0, head_dim, LANES):
        store(result + d * 4, mul(load(result + d * 4), factor))


@kernel
def _slots_of_block(
    indices: int, count: int, cache: int, token_bytes: int, zeros: int, addresses: int
) -> None:
    """The addresses of a block's tokens in a cache; of zeros past the end."""
    for i in range(BLOCK):
        at = zeros
        if i < count:
            at = cache + get_i32(indices + i * 4) * token_bytes
        set_i64(addresses + i * 8, at)


@kernel
def _unit(
    unit: int,
    tokens: int,
    limits: int,
    indices: int,
    q: int,
    k_cache: int,
    v_cache: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    scale: float,
    softcap: float,
    window: int,
    sinks: int,
    partials: int,
    out: int,
    scratch: int,
    packed_only: bool,
) -> None:
    """Computes a unit: its final results to `out`, or its partial ones to `partials` (see
    `attention_phases`)."""
    group, token_bytes, head_bytes = heads // kv_heads, kv_heads * head_dim * 2, head_dim * 2
    count, length = get_i64(unit + COUNT * 8), get_i64(unit + LENGTH * 8)
    tokens += get_i64(unit + TOKENS * 8) * 8
    indices += get_i64(unit + INDEX * 8) * 4
    position, partial = get_i64(unit + POSITION * 8), get_i64(unit + PARTIAL * 8)
    queries = count * group
    streamed = queries <= FEW_QUERIES and not packed_only

    zeros = scratch
    k_at = zeros + token_bytes
    v_at = k_at + BLOCK * 8
    keys = v_at + BLOCK * 8
    values = keys + BLOCK * head_dim * ELEMENT
    scores = values + BLOCK * head_dim * ELEMENT
    weights = scores + queries * BLOCK * 4
    gathered = weights + queries * _WEIGHTS
    tops = gathered + kv_heads * queries * head_dim * ELEMENT
    sums = tops + kv_heads * queries * 4
    results = sums + kv_heads * queries * 4

    for i in range(0, token_bytes, 8):
        set_i64(zeros + i, 0)
    for i in range(kv_heads * queries):
        set_f32(tops + i * 4, _LOWEST)
        set_f32(sums + i * 4, np.float32(0))
    for i in range(0, kv_heads * queries * head_dim, LANES):
        store(results + i * 4, zero())
    for head in range(kv_heads):
        for i in range(count):
            source = q + (get_i64(tokens + i * 8) * heads + head * group) * head_dim * ELEMENT
            target = gathered + (head * queries + i * group) * head_dim * ELEMENT
            for d in range(0, group * head_dim * ELEMENT, 64):
                store_words(target + d, load_words(source + d))
    if streamed:
        prepare_queries(gathered, kv_heads * queries * head_dim)

    for start in range(0, length, BLOCK):
        block = min(BLOCK, length - start)
        steps = (
            (block + LANES - 1) // LANES * (LANES // PER_WORD)
        )  # past the end are zeros, of weight 0
        _slots_of_block(indices + start * 4, block, k_cache, token_bytes, zeros, k_at)
        _slots_of_block(indices + start * 4, block, v_cache, token_bytes, zeros, v_at)
        touch(k_at, v_at, block, token_bytes)
        for head in range(kv_heads):
            own, mixed = (
                gathered + head * queries * head_dim * ELEMENT,
                results + head * queries * head_dim * 4,
            )
            if streamed:
                score_rows(
                    k_at, head * head_bytes, block, own, queries, head_dim, scores, BLOCK * 4
                )
            else:
                _pack_keys(k_at, head * head_bytes, block, head_dim, keys)
                for half in range((block + OUTPUTS - 1) // OUTPUTS):
                    tile, at = (
                        keys + half * (head_dim // PER_WORD) * TILE_STEP,
                        scores + half * 4 * OUTPUTS,
                    )
                    dot_rows(
                        queries, own, head_dim * ELEMENT, at, BLOCK * 4, tile, head_dim // PER_WORD
                    )
            for i in range(queries):
                seen = get_i64(limits + get_i64(tokens + i // group * 8) * 8) - position - start
                of = head * queries + i
                _softmax_row(
                    scores + i * BLOCK * 4, weights + i * _WEIGHTS,
                    seen - window if window else 0, min(seen, block), scale, softcap,
                    tops + of * 4, sums + of * 4, results + of * head_dim * 4, head_dim,
                )  # fmt: skip
            if streamed:
                mix_rows(
                    v_at, head * head_bytes, steps, weights, _WEIGHTS, queries, head_dim, mixed
                )
                continue
            _pack_values(v_at, head * head_bytes, steps, head_dim, values)
            for d in range(0, head_dim, OUTPUTS):
                tile = values + d // OUTPUTS * (BLOCK // PER_WORD) * TILE_STEP
                add_dot_rows(queries, weights, _WEIGHTS, mixed + d * 4, head_dim * 4, tile, steps)

    for head in range(kv_heads):
        for i in range(queries):
            of = head * queries + i
            result, query_head = results + of * head_dim * 4, head * group + i % group
            if partial < 0:
                at = out + (get_i64(tokens + i // group * 8) * heads + query_head) * head_dim * 4
                share = splat(_share(tops + of * 4, sums + of * 4, sinks, query_head))
                for d in range(0, head_dim, LANES):
                    store(at + d * 4, mul(load(result + d * 4), share))
            else:
                at = (
                    partials
                    + ((partial + i // group) * heads + query_head) * (head_dim + LANES) * 4
                )
                set_f32(at, get_f32(tops + of * 4))
                set_f32(at + 4, get_f32(sums + of * 4))
                for d in range(0, head_dim, LANES):
                    store(at + (LANES + d) * 4, load(result + d * 4))


@kernel
def _share(top: int, summed: int, sinks: int, head: int) -> Any:
    """What the result of a head is multiplied by: 1 / sum, in which its sink takes part."""
    if sinks == 0:
        return np.float32(1.0) / get_f32(summed)
    own, high = get_f32(sinks + head * 4), get_f32(top)
    highest = max(own, high)
    shrunk = exp_scalar(high - highest)
    return shrunk / (get_f32(summed) * shrunk + exp_scalar(own - highest))


@kernel
def _merge(
    parts: int, count: int, partials: int, heads: int, head_dim: int, sinks: int, out: int,
) -> None:  # fmt: skip
    """Merges `count` partial results (rows, at `parts`) of a token, in that order."""
    step = (head_dim + LANES) * 4
    for head in range(heads):
        top, summed = _LOWEST, np.float32(0)
        for i in range(count):
            top = max(top, get_f32(partials + (get_i64(parts + i * 8) * heads + head) * step))
        at = out + head * head_dim * 4
        for i in range(count):
            part = partials + (get_i64(parts + i * 8) * heads + head) * step
            summed += get_f32(part + 4) * exp_scalar(get_f32(part) - top)
        if sinks:
            own = get_f32(sinks + head * 4)
            highest = max(own, top)
            summed = summed * exp_scalar(top - highest) + exp_scalar(own - highest)
            top = highest
        share = np.float32(1.0) / summed
        for d in range(0, head_dim, LANES):
            merged = zero()
            for i in range(count):
                part = partials + (get_i64(parts + i * 8) * heads + head) * step
                merged = fma(
                    load(part + (LANES + d) * 4), splat(exp_scalar(get_f32(part) - top)), merged
                )
            store(at + d * 4, mul(merged, splat(share)))


@kernel
def attention_phases(
    job: int, phase: int, number: int, plan: int, q: int, k_cache: int, v_cache: int, heads: int,
    kv_heads: int, head_dim: int, scale: float, softcap: float, window: int, sinks: int,
    partials: int, out: int, scratch: int, packed_only: bool,
) -> None:  # fmt: skip
    """One thread's part of attention: the phases `phase` (units) and `phase + 1` (merges).

    q [n, heads, head_dim] elements, out the same in float32; caches [slots, kv_heads, head_dim]
    bfloat16. `plan` has what `plan_units` returned, as `PLAN` says, for this window (0: none).
    `partials` holds float32 [partial results, heads, 16 + head_dim]: top and sum, padding, result.
    `sinks` float32 [heads] unless 0. `packed_only` keeps to one way of computing for any number of
    queries. softcap: 0 for none.
    """
    units, tokens, limits = get_i64(plan), get_i64(plan + 16), get_i64(plan + 24)
    indices = get_i64(plan + 64)
    for unit in team.pieces(job, phase, number, 1, get_i64(plan + 8)):
        _unit(
            units + unit * UNIT * 8, tokens, limits, indices, q, k_cache, v_cache, heads, kv_heads,
            head_dim, scale, softcap, window, sinks, partials, out, scratch, packed_only,
        )  # fmt: skip
    merged, count, parts, order = (
        get_i64(plan + 32), get_i64(plan + 40), get_i64(plan + 48), get_i64(plan + 56),
    )  # fmt: skip
    if count == 0:
        return
    for i in team.pieces(job, phase + 1, number, 1, count):
        token = get_i64(merged + i * 8)
        first, last = get_i64(parts + token * 8), get_i64(parts + token * 8 + 8)
        target = out + token * heads * head_dim * 4
        _merge(order + first * 8, last - first, partials, heads, head_dim, sinks, target)
