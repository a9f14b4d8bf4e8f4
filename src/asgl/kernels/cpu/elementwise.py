"""What happens between the matrix products: embedding, norms, rotation and storing of keys and
values, gating.

Each is a phase over rows. Widths are multiples of 16 (a head's, of 32). `a` is an entry's record.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from asgl.kernels.cpu import team
from asgl.kernels.cpu.activations import gated
from asgl.kernels.cpu.formats import DENSE_CODE, ROW
from asgl.kernels.cpu.llvm import ELEMENT, LANES
from asgl.kernels.cpu.packing import read_dense_row, read_row
from asgl.kernels.cpu.simd import (
    add,
    fma,
    get_f32,
    get_i32,
    kernel,
    load,
    mul,
    set_f32,
    splat,
    store,
    store_bf16,
    store_elements,
    sub,
    total,
    zero,
)

GRAIN = 4
"""Rows that a thread claims at once."""


@kernel
def embed_phase(a: Any, number: int) -> None:
    """a.out [rows, d] float32 = rows of the table: float32, or, if a.tiled, tiles of the format
    a.code."""
    for row in team.pieces(a.job, 0, number, GRAIN, a.rows):
        of, out = get_i32(a.ids + row * 4), a.out + row * a.d * 4
        if a.tiled == 0:
            for i in range(0, a.d, LANES):
                store(out + i * 4, load(a.table + (of * a.d + i) * 4))
        elif a.code == DENSE_CODE:
            read_dense_row(a.table, of, a.d, out)
        else:
            read_row(a.table, a.formats + a.code * ROW, of, a.d, out)


@kernel
def _scale_of(x: int, delta: int, d: int, eps: float) -> Any:
    """1 / rms(x) of d float32, in every lane; x += delta first, if its address is not 0."""
    first, second = zero(), zero()
    for i in range(0, d, LANES):
        value = load(x + i * 4)
        if delta:
            value = add(value, load(delta + i * 4))
            store(x + i * 4, value)
        if i & LANES:
            second = fma(value, value, second)
        else:
            first = fma(value, value, first)
    return splat(
        np.float32(1.0)
        / np.float32(np.sqrt(total(add(first, second)) / np.float32(d) + np.float32(eps)))
    )


@kernel
def norm_phase(
    job: int, phase: int, number: int, hidden: int, delta: int, rows: int, d: int, weight: int,
    eps: float, out: int,
) -> None:  # fmt: skip
    """hidden += delta (if its address is not 0); out [rows, d] = hidden / rms(hidden) * weight, or
    hidden itself if the address of the weight is 0."""
    for row in team.pieces(job, phase, number, GRAIN, rows):
        of = row * d * 4
        x, target = hidden + of, out + of
        if weight == 0:
            for i in range(0, d, LANES):
                store(target + i * 4, load(x + i * 4))
        else:
            scale = _scale_of(x, delta + of if delta else 0, d, eps)
            for i in range(0, d, LANES):
                value = mul(load(x + i * 4), scale)
                store(target + i * 4, mul(value, load(weight + i * 4)))


@kernel
def add_normed_phase(
    job: int, phase: int, number: int, hidden: int, delta: int, rows: int, d: int, weight: int,
    eps: float,
) -> None:  # fmt: skip
    """hidden [rows, d] += delta / rms(delta) * weight."""
    for row in team.pieces(job, phase, number, GRAIN, rows):
        x, own = hidden + row * d * 4, delta + row * d * 4
        scale = _scale_of(own, 0, d, eps)
        for i in range(0, d, LANES):
            value = mul(load(own + i * 4), scale)
            store(x + i * 4, fma(value, load(weight + i * 4), load(x + i * 4)))


@kernel
def _norm_heads(x: int, count: int, d: int, weight: int, eps: float) -> None:
    """Norms `count` vectors of d float32, one after the other, in place, by the same weight."""
    for i in range(count):
        at = x + i * d * 4
        scale = _scale_of(at, 0, d, eps)
        for j in range(0, d, LANES):
            store(at + j * 4, mul(mul(load(at + j * 4), scale), load(weight + j * 4)))


@kernel
def _rotate(x: int, angles: int, half: int) -> None:
    """One head, in place: (x1 cos - x2 sin, x2 cos + x1 sin) of the two halves of its first 2 half
    float32."""
    whole = half // LANES * LANES
    for i in range(0, whole, LANES):
        low, high = load(x + i * 4), load(x + (half + i) * 4)
        cos, sin = load(angles + i * 4), load(angles + (half + i) * 4)
        store(x + i * 4, sub(mul(low, cos), mul(high, sin)))
        store(x + (half + i) * 4, fma(high, cos, mul(low, sin)))
    for i in range(whole, half):
        left, right = get_f32(x + i * 4), get_f32(x + (half + i) * 4)
        along, across = get_f32(angles + i * 4), get_f32(angles + (half + i) * 4)
        set_f32(x + i * 4, left * along - right * across)
        set_f32(x + (half + i) * 4, right * along + left * across)


@kernel
def _store_head(keys: int, values: int, head_dim: int, k_place: int, v_place: int) -> None:
    """A key and a value to the cache. What is not finite: see `Kernels.rotate_and_store`."""
    marks = zero()  # stays 0 if all numbers of the head are finite, else is NaN
    for i in range(0, head_dim, LANES):
        key, value = load(keys + i * 4), load(values + i * 4)
        marks = fma(value, zero(), fma(key, zero(), marks))
        store_bf16(k_place + i * 2, key)
        store_bf16(v_place + i * 2, value)
    if total(marks) != 0:
        for i in range(0, head_dim, LANES):
            store_bf16(k_place + i * 2, splat(np.float32(np.nan)))
            store_bf16(v_place + i * 2, zero())


@kernel
def rotate_phase(
    job: int, phase: int, number: int, rows: int, qkv: int, out: int, k_cache: int, v_cache: int,
    positions: int, slots: int, heads: int, kv_heads: int, head_dim: int, rope: int, half: int,
    q_norm: int, k_norm: int, normed: int, eps: float, q_scale: int,
) -> None:  # fmt: skip
    """Queries of qkv [rows, heads + 2 kv_heads, head_dim] float32 to `out` as elements; keys and
    values to the caches [slots, kv_heads, head_dim] as bfloat16. qkv is changed.

    Norms (if the address of their weights is not 0) are over `normed` numbers of the queries, and
    over as many heads of the keys: head_dim or all of them. Then the first 2 half dimensions of
    each head are rotated. `q_scale` float32 [positions] unless 0.
    """
    size = head_dim * 4
    for row in team.pieces(job, phase, number, GRAIN, rows):
        queries = qkv + row * (heads + 2 * kv_heads) * size
        keys = queries + heads * size
        values = keys + kv_heads * size
        position = get_i32(positions + row * 4)
        if q_norm:
            if normed == head_dim:
                _norm_heads(queries, heads, head_dim, q_norm, eps)
                _norm_heads(keys, kv_heads, head_dim, k_norm, eps)
            else:
                _norm_heads(queries, 1, heads * head_dim, q_norm, eps)
                _norm_heads(keys, 1, kv_heads * head_dim, k_norm, eps)
        angles = rope + position * half * 8
        target = out + row * heads * head_dim * ELEMENT
        factor = splat(get_f32(q_scale + position * 4)) if q_scale else splat(np.float32(1.0))
        for _ in range(heads):
            if half:
                _rotate(queries, angles, half)
            for i in range(0, head_dim, LANES):
                store_elements(target + i * ELEMENT, mul(load(queries + i * 4), factor))
            queries += size
            target += head_dim * ELEMENT
        place = get_i32(slots + row * 4) * kv_heads * head_dim * 2
        for _ in range(kv_heads):
            if half:
                _rotate(keys, angles, half)
            _store_head(keys, values, head_dim, k_cache + place, v_cache + place)
            keys += size
            values += size
            place += head_dim * 2


@kernel
def gate_phase(
    job: int, phase: int, number: int, rows: int, width: int, gate_up: int, out: int,
    activation: int,
) -> None:  # fmt: skip
    """out [rows, width] = the gate's activation times up, of gate_up [rows, 2 width] float32."""
    for row in team.pieces(job, phase, number, GRAIN, rows):
        gate = gate_up + row * width * 8
        for i in range(0, width, LANES):
            value = gated(load(gate + i * 4), load(gate + (width + i) * 4), activation)
            store(out + (row * width + i) * 4, value)
