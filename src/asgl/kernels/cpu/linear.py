"""Linear layers: a phase over rows, which makes of inputs what weights multiply (inputs.py), and a
phase over tiles.

What multiplies a tile is called by its address, from the table of formats. Inputs have 16 bits for
packed weights, or 8 on request; dense weights take elements (bfloat16 where the processor
multiplies those, else float32 as they are).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from asgl.kernels.cpu import formats, team
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
    div,
    exp,
    get_f32,
    get_i64,
    i64,
    kernel,
    load,
    mul,
    operation,
    set_f32,
    splat,
    store,
    sub,
    void,
    zero,
)
from asgl.kernels.cpu.tiles import GROUP, OUTPUTS

STORE, ADD, GATE = 0, 1, 2
"""What becomes of a product: stored; added; silu of its first half times its second half."""
GROUP_INPUTS = WHOLE_BYTES
"""Bytes that inputs may need of a group of 32, whatever multiplies them."""
PHASES = 2
GRAIN = 4
"""Rows that a thread claims at once."""
SCRATCH = 2 * PRODUCTS + ROOM
"""Bytes that a thread needs: two products, and what multiplies needs itself."""


@kernel
def silu(x: Any) -> Any:
    """x / (1 + exp(-x)), of a vector."""
    return div(x, add(splat(1.0), exp(sub(zero(), x))))


@kernel
def _gate(gate: int, up: int, rows: int, out: int, ldo: int) -> None:
    """silu(gate) * up of products [rows, 32]."""
    for row in range(rows):
        for half in range(0, 4 * OUTPUTS, 64):
            at = row * 4 * OUTPUTS + half
            store(out + row * ldo + half, mul(silu(load(gate + at)), load(up + at)))


@kernel
def _deliver(products: int, rows: int, out: int, ldo: int, columns: int, adding: bool) -> None:
    """Products [rows, 32], of which `columns` count, to float32 rows at `out`."""
    for row in range(rows):
        source, target = products + row * 4 * OUTPUTS, out + row * ldo
        whole = min(columns, OUTPUTS) // LANES * LANES
        for i in range(0, whole, LANES):
            value = load(source + i * 4)
            store(target + i * 4, add(load(target + i * 4), value) if adding else value)
        for i in range(whole, min(columns, OUTPUTS)):
            last = get_f32(source + i * 4)
            set_f32(target + i * 4, get_f32(target + i * 4) + last if adding else last)


@operation(void, *[i64] * 8)
def _multiply(builder: Any, function: Any, *values: Any) -> None:
    """Calls what multiplies a tile, see `multiply.SIGNATURE`."""
    kind = ir.FunctionType(ir.VoidType(), [I64] * len(values))
    builder.call(builder.inttoptr(function, kind.as_pointer()), values)


@kernel
def linear_phases(
    a: Any, phase: int, number: int, x: int, rows: int, weight: int, code: int, k: int,
    outputs: int, mode: int, out: int, scratch: int,
) -> None:  # fmt: skip
    """One thread's part of out = x . weight: a phase over the rows, and one over the tiles.

    x [rows, k], out [rows, outputs] float32: see `STORE` for the modes; `code` is the format of the
    weight. With mode GATE, `outputs` counts those of the gate, whose tiles are followed by as many
    of the other factor. `a` is the entry's record: `a.formats` the table of formats, `a.inputs` has
    room for `GROUP_INPUTS` of each row's groups; with `a.byte_inputs` they have 8 bits where that
    is of use.
    """
    form = a.formats + code * formats.ROW
    groups, tiles = k // GROUP, (outputs + OUTPUTS - 1) // OUTPUTS
    size, multiply = groups * get_i64(form + formats.GROUP_BYTES), get_i64(form + formats.WHOLE)
    dense, as_bytes = code == formats.DENSE_CODE, False
    if a.byte_inputs != 0 and get_i64(form + formats.BYTE) != 0:
        multiply, as_bytes = get_i64(form + formats.BYTE), True
    if PER_WORD == 1 and dense:
        ldx = k * 4
    else:
        ldx = k * ELEMENT if dense else groups * (BYTE_BYTES if as_bytes else WHOLE_BYTES)
        for row in team.pieces(a.job, phase, number, GRAIN, rows):
            source, target = x + row * k * 4, a.inputs + row * ldx
            if dense:
                describe_dense(source, k, target)
            elif as_bytes:
                describe_bytes(source, k, target)
            else:
                describe_whole(source, k, target)
        x = a.inputs
    other_products, room = scratch + PRODUCTS, scratch + 2 * PRODUCTS
    for tile in team.pieces(a.job, phase + 1, number, team.RUNS, tiles):
        b = weight + tile * size
        for row in range(0, rows, ROWS):
            count, at_x = min(ROWS, rows - row), x + row * ldx
            at_out = out + (row * outputs + tile * OUTPUTS) * 4
            _multiply(multiply, count, at_x, ldx, scratch, b, groups, room)
            if mode == GATE:
                _multiply(
                    multiply, count, at_x, ldx, other_products, b + tiles * size, groups, room
                )
                _gate(scratch, other_products, count, at_out, outputs * 4)
            else:
                left = outputs - tile * OUTPUTS
                _deliver(scratch, count, at_out, outputs * 4, left, mode == ADD)
