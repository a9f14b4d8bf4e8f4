"""Linear layers: a phase over rows, which makes of inputs what weights multiply (inputs.py), and a
phase over tiles.

What multiplies a tile is called by its address. Inputs have 16 bits for packed weights, or 8 on
request; dense weights take elements (bfloat16 where the processor multiplies those, else float32 as
they are).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir

from asgl.kernels.cpu import team
from asgl.kernels.cpu.activations import gated
from asgl.kernels.cpu.inputs import (
    BYTE_BYTES,
    WHOLE_BYTES,
    describe_bytes,
    describe_dense,
    describe_whole,
)
from asgl.kernels.cpu.llvm import ELEMENT, I64, LANES, PER_WORD
from asgl.kernels.cpu.multiply import PRODUCTS, ROOM, ROWS
from asgl.kernels.cpu.simd import (
    add,
    fma,
    get_f32,
    i64,
    kernel,
    load,
    operation,
    set_f32,
    splat,
    store,
    void,
)
from asgl.kernels.cpu.tiles import GROUP, OUTPUTS

STORE, ADD, GATE = 0, 1, 2
"""What becomes of a product: stored; added, times a factor; the gate's activation times up."""
DENSE, WHOLE, BYTES = range(3)
"""What inputs are described as: elements; of 16 bits; of 8."""
AS_THEY_ARE = PER_WORD == 1
"""Whether dense weights take inputs as they are."""
GRAIN = 4
"""Rows that a thread claims at once."""
SCRATCH = 2 * PRODUCTS + ROOM
"""Bytes that a thread needs: two products, and what multiplies needs itself."""


def described_bytes(kind: int, k: int) -> int:
    """Bytes of a described row of k inputs."""
    groups = k // GROUP
    return (k * ELEMENT, groups * WHOLE_BYTES, groups * BYTE_BYTES)[kind]


@kernel
def describe_phase(
    job: int, phase: int, number: int, rows: int, x: int, k: int, kind: int, out: int, size: int
) -> None:
    """Rows of x [rows, k] float32 as what weights multiply, `size` bytes from one to the next."""
    for row in team.pieces(job, phase, number, GRAIN, rows):
        source, target = x + row * k * 4, out + row * size
        if kind == DENSE:
            describe_dense(source, k, target)
        elif kind == BYTES:
            describe_bytes(source, k, target)
        else:
            describe_whole(source, k, target)


@kernel
def _gate(
    gate: int, up: int, rows: int, activation: int, gate_bias: int, up_bias: int, out: int,
    ldo: int,
) -> None:  # fmt: skip
    """The gate's activation times up, of products [rows, 32]. Biases unless their address is 0."""
    for row in range(rows):
        for half in range(0, 4 * OUTPUTS, 64):
            at = row * 4 * OUTPUTS + half
            first, second = load(gate + at), load(up + at)
            if gate_bias:
                first = add(first, load(gate_bias + half))
                second = add(second, load(up_bias + half))
            store(out + row * ldo + half, gated(first, second, activation))


@kernel
def _deliver(
    products: int, rows: int, columns: int, adding: bool, factor: float, bias: int, out: int,
    ldo: int,
) -> None:  # fmt: skip
    """Products [rows, 32], of which `columns` count, and their biases unless the address is 0, to
    float32 rows at `out`; or `factor` times that is added there."""
    for row in range(rows):
        source, target = products + row * 4 * OUTPUTS, out + row * ldo
        whole = min(columns, OUTPUTS) // LANES * LANES
        for i in range(0, whole, LANES):
            value = load(source + i * 4)
            if bias:
                value = add(value, load(bias + i * 4))
            if adding:
                value = fma(value, splat(factor), load(target + i * 4))
            store(target + i * 4, value)
        for i in range(whole, min(columns, OUTPUTS)):
            last = get_f32(source + i * 4)
            if bias:
                last += get_f32(bias + i * 4)
            if adding:
                last = get_f32(target + i * 4) + last * np.float32(factor)
            set_f32(target + i * 4, last)


@operation(void, *[i64] * 8)
def _multiply(builder: Any, function: Any, *values: Any) -> None:
    """Calls what multiplies a tile, see `multiply.SIGNATURE`."""
    kind = ir.FunctionType(ir.VoidType(), [I64] * len(values))
    builder.call(builder.inttoptr(function, kind.as_pointer()), values)


@kernel
def multiply_tile(
    multiply: int, rows: int, x: int, ldx: int, groups: int, b: int, other: int, mode: int,
    columns: int, activation: int, factor: float, bias: int, other_bias: int, out: int, ldo: int,
    scratch: int,
) -> None:  # fmt: skip
    """Inputs `x`, described, times the tile `b` (with mode GATE and the tile `other`), to `out`:
    see `STORE` for the modes. `columns` is how many outputs the tile has."""
    other_products, room = scratch + PRODUCTS, scratch + 2 * PRODUCTS
    for row in range(0, rows, ROWS):
        count, at_x, at_out = min(ROWS, rows - row), x + row * ldx, out + row * ldo
        _multiply(multiply, count, at_x, ldx, scratch, b, groups, room)
        if mode == GATE:
            _multiply(multiply, count, at_x, ldx, other_products, other, groups, room)
            _gate(scratch, other_products, count, activation, bias, other_bias, at_out, ldo)
        else:
            _deliver(scratch, count, columns, mode == ADD, factor, bias, at_out, ldo)


@kernel
def linear_phase(
    job: int, phase: int, number: int, rows: int, x: int, ldx: int, multiply: int, weight: int,
    tile_bytes: int, groups: int, outputs: int, mode: int, activation: int, factor: float,
    bias: int, out: int, ldo: int, waits: bool, scratch: int,
) -> None:  # fmt: skip
    """One thread's part of out = x . weight, x as it was described. With mode GATE, `outputs`
    counts those of the gate, whose tiles are followed by as many of the other factor."""
    tiles = (outputs + OUTPUTS - 1) // OUTPUTS
    for tile in team.pieces(job, phase, number, team.RUNS, tiles, waits):
        b, first = weight + tile * tile_bytes, tile * OUTPUTS
        own = bias + first * 4 if bias else 0
        multiply_tile(
            multiply, rows, x, ldx, groups, b, b + tiles * tile_bytes, mode, outputs - first,
            activation, factor, own, own + outputs * 4, out + first * 4, ldo, scratch,
        )  # fmt: skip
