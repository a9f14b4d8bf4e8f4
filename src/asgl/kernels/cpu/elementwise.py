"""What happens between the matrix products: embedding, norms, rotation and storing of keys and
values, gating.

Each is a phase over rows. Widths are multiples of 16 (a head's, of 32). `a` is an entry's record.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from asgl.kernels.cpu import team
from asgl.kernels.cpu.formats import DENSE_CODE, ROW
from asgl.kernels.cpu.linear import silu
from asgl.kernels.cpu.llvm import ELEMENT, LANES
from asgl.kernels.cpu.packing import read_dense_row, read_row
from asgl.kernels.cpu.simd import (
    add,
    fma,
    get_i32,
    kernel,
    load,
    load_bf16,
    mul,
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
    """a.out [rows, d] float32 = rows of the table, which is bfloat16 (`kind` 16), float32 (32) or
    tiles (0) of the format a.code."""
    for row in team.pieces(a.job, 0, number, GRAIN, a.rows):
        of, out = get_i32(a.ids + row * 4), a.out + row * a.d * 4
        if a.kind == 0 and a.code == DENSE_CODE:
            read_dense_row(a.table, of, a.d, out)
        elif a.kind == 0:
            read_row(a.table, a.formats + a.code * ROW, of, a.d, out)
        else:
            for i in range(0, a.d, LANES):
                if a.kind == 16:
                    value = load_bf16(a.table + (of * a.d + i) * 2)
                else:
                    value = load(a.table + (of * a.d + i) * 4)
                store(out + i * 4, value)


@kernel
def _norm_row(hidden: int, delta: int, weight: int, d: int, eps: float, out: int) -> None:
    first, second = zero(), zero()
    for i in range(0, d, LANES):
        value = load(hidden + i * 4)
        if delta:
            value = add(value, load(delta + i * 4))
            store(hidden + i * 4, value)
        if i & LANES:
            second = fma(value, value, second)
        else:
            first = fma(value, value, first)
    shrink = splat(
        np.float32(1.0)
        / np.float32(np.sqrt(total(add(first, second)) / np.float32(d) + np.float32(eps)))
    )
    for i in range(0, d, LANES):
        store(out + i * 4, mul(mul(load(hidden + i * 4), shrink), load(weight + i * 4)))


@kernel
def norm_phase(
    job: int, phase: int, number: int, hidden: int, delta: int, rows: int, d: int, weight: int,
    eps: float, out: int,
) -> None:  # fmt: skip
    """hidden += delta (if its address is not 0); out [rows, d] = hidden / rms(hidden) * weight."""
    for row in team.pieces(job, phase, number, GRAIN, rows):
        of = row * d * 4
        _norm_row(hidden + of, delta + of if delta else 0, weight, d, eps, out + of)


@kernel
def _rotate(source: int, angles: int, half: int, out: int, elements: bool) -> None:
    """One head: (x1 cos - x2 sin, x2 cos + x1 sin) of its two halves, to elements or to
    bfloat16."""
    for i in range(0, half, LANES):
        low, high = load(source + i * 4), load(source + (half + i) * 4)
        cos, sin = load(angles + i * 4), load(angles + (half + i) * 4)
        first, second = sub(mul(low, cos), mul(high, sin)), fma(high, cos, mul(low, sin))
        if elements:
            store_elements(out + i * ELEMENT, first)
            store_elements(out + (half + i) * ELEMENT, second)
        else:
            store_bf16(out + i * 2, first)
            store_bf16(out + (half + i) * 2, second)


@kernel
def rope_phase(
    a: Any, phase: int, number: int, bias: int, k_cache: int, v_cache: int, out: int
) -> None:
    """Queries of a.qkv [rows, heads + 2 kv_heads, head_dim] float32, rotated, to `out` as elements;
    keys, rotated, and values to the caches [slots, kv_heads, head_dim] as bfloat16. `bias` (unless
    0) is added to qkv first, in place. What is not finite: see `Kernels.rope_and_store`."""
    half, width = a.head_dim // 2, (a.heads + 2 * a.kv_heads) * a.head_dim
    for row in team.pieces(a.job, phase, number, GRAIN, a.rows):
        source = a.qkv + row * width * 4
        if bias:
            for i in range(0, width, LANES):
                store(source + i * 4, add(load(source + i * 4), load(bias + i * 4)))
        angles = a.rope + get_i32(a.positions + row * 4) * a.head_dim * 4
        for head in range(a.heads):
            target = out + (row * a.heads + head) * a.head_dim * ELEMENT
            _rotate(source, angles, half, target, True)
            source += a.head_dim * 4
        place = get_i32(a.slots + row * 4) * a.kv_heads * a.head_dim * 2
        for _ in range(a.kv_heads):
            _rotate(source, angles, half, k_cache + place, False)
            values = source + a.kv_heads * a.head_dim * 4
            marks = zero()  # stays 0 if all numbers of the head are finite, else is NaN
            for i in range(0, a.head_dim, LANES):
                value = load(values + i * 4)
                marks = fma(value, zero(), fma(load(source + i * 4), zero(), marks))
                store_bf16(v_cache + place + i * 2, value)
            if total(marks) != 0:
                for i in range(0, a.head_dim, LANES):
                    store_bf16(k_cache + place + i * 2, splat(np.float32(np.nan)))
                    store_bf16(v_cache + place + i * 2, zero())
            source += a.head_dim * 4
            place += a.head_dim * 2


@kernel
def silu_phase(a: Any, number: int) -> None:
    """a.out [rows, width] = silu(gate) * up of a.gate_up [rows, 2 width] float32."""
    for row in team.pieces(a.job, 0, number, GRAIN, a.rows):
        gate = a.gate_up + row * a.width * 8
        for i in range(0, a.width, LANES):
            value = mul(silu(load(gate + i * 4)), load(gate + (a.width + i) * 4))
            store(a.out + (row * a.width + i) * 4, value)
