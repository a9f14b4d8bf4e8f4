"""Linear layers: a phase over rows, a phase over tiles.

Packed weights are multiplied as integers (pairs.py), but where the processor has products of
bfloat16 as those (dots.py): as they are by few rows, unpacked once by more. Both want something of
each 32 inputs: the one a copy in 16 bits with scale and sum, the other the sum. Dense weights are
words (dots.py).

On request inputs of 4-bit weights have 8 bits, where the processor multiplies bytes and no bfloat16
(`BYTES`).
"""

from __future__ import annotations

from typing import Any

from asgl.kernels.cpu import dots, pairs, team
from asgl.kernels.cpu.dots import GROUP, OUTPUTS, TILE_STEP
from asgl.kernels.cpu.llvm import ELEMENT, LANES, PER_WORD
from asgl.kernels.cpu.simd import (
    add,
    div,
    exp,
    get_f32,
    kernel,
    load,
    load_elements,
    mul,
    set_f32,
    splat,
    store,
    store_elements,
    sub,
    total,
    zero,
)
from asgl.kernels.cpu.target import TARGET

STORE, ADD, GATE = 0, 1, 2
"""What becomes of a product: float32 stored; added to float32; silu of its first half times its
second half, as elements."""
ROWS = 64
"""Rows of a product that wait for their epilogue at a time."""
PRODUCTS = ROWS * 4 * OUTPUTS
"""Bytes of their products with one tile."""
PAIRS = not TARGET.bf16_dot
"""Whether packed weights are multiplied as integers."""
BYTES = PAIRS and TARGET.pair_words >= 8
"""Whether inputs can have 8 bits."""
UNPACK_FROM_4, UNPACK_FROM_8 = 17, 8
"""Rows from which one tile, unpacked to bfloat16 for all, is faster than packed weights of 4 or 8
bits for a few rows at a time. Integers never are."""
GROUP_INPUTS = pairs.GROUP_INPUTS if PAIRS else 4
"""Bytes that packed weights want to know of 32 inputs."""
PHASES = 2
GRAIN = 4
"""Rows that a thread claims at once."""

# the same parameters, whichever it is
_few_rows_4, _few_rows_8 = (
    (pairs.pair_rows_4, pairs.pair_rows_8) if PAIRS else (dots.few_rows_4, dots.few_rows_8)
)
_byte_rows_4 = pairs.byte_rows_4 if BYTES else _few_rows_4


def room(k: int) -> int:
    """Bytes that a thread needs for a layer of `k` inputs: products and unpacked tiles, two of
    each."""
    return 2 * (PRODUCTS + k // PER_WORD * TILE_STEP)


@kernel
def _group_sums(x: int, k: int, sums: int) -> None:
    """The sums of a row's groups of 32 elements."""
    for group in range(k // GROUP):
        at = x + group * GROUP * ELEMENT
        set_f32(
            sums + group * 4, total(add(load_elements(at), load_elements(at + LANES * ELEMENT)))
        )


# what packed weights want to know of a row of inputs: (row, k, where it goes)
_describe = pairs.quantize_row if PAIRS else _group_sums
_describe_bytes = pairs.quantize_row_to_bytes if PAIRS else _group_sums


@kernel
def silu(x: Any) -> Any:
    """x / (1 + exp(-x)), of a vector."""
    return div(x, add(splat(1.0), exp(sub(zero(), x))))


@kernel
def _gate(gate: int, up: int, rows: int, out: int, ldo: int) -> None:
    """silu(gate) * up of products [rows, 32], as elements."""
    for row in range(rows):
        for half in range(0, 4 * OUTPUTS, 64):
            at = row * 4 * OUTPUTS + half
            store_elements(
                out + row * ldo + half // 4 * ELEMENT, mul(silu(load(gate + at)), load(up + at))
            )


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


if PAIRS:

    @kernel
    def _unpacked(weight: int, bits: int, k: int, room: int) -> int:
        """The address of a tile of words: dense weights, widened into `room`."""
        dots.widen_pairs(weight, k // 2, room)
        return room

else:

    @kernel
    def _unpacked(weight: int, bits: int, k: int, room: int) -> int:
        """The address of a tile of words: dense weights themselves, or others unpacked into
        `room`."""
        if bits == 16:
            return weight
        if bits == 4:
            dots.unpack_4(weight, k // GROUP, room)
        else:
            dots.unpack_8(weight, k // GROUP, room)
        return room


@kernel
def _multiply(
    x: int, ldx: int, rows: int, as_bytes: bool, about: int, ld_about: int, b: int, bits: int,
    k: int, few: bool, out: int,
) -> None:  # fmt: skip
    """Products [rows, 32] of a tile, to `out`: packed if `few`, else of words. `about` is what was
    written beside the inputs, see `_describe`."""
    if as_bytes:
        _byte_rows_4(rows, x, ldx, about, ld_about, out, 4 * OUTPUTS, b, k // GROUP)
    elif few and bits == 4:
        _few_rows_4(rows, x, ldx, about, ld_about, out, 4 * OUTPUTS, b, k // GROUP)
    elif few:
        _few_rows_8(rows, x, ldx, about, ld_about, out, 4 * OUTPUTS, b, k // GROUP)
    else:
        dots.dot_rows(rows, x, ldx, out, 4 * OUTPUTS, b, k // PER_WORD)


@kernel
def tile_bytes(bits: int, k: int) -> int:
    """Bytes of the weights of 32 outputs."""
    if bits == 4:
        return k // GROUP * dots.GROUP_BYTES_4
    return k // GROUP * (dots.GROUP_BYTES_8 if bits == 8 else dots.GROUP_BYTES_16)


@kernel
def linear_phases(
    a: Any, phase: int, number: int, x: int, rows: int, weight: int, bits: int, k: int,
    outputs: int, mode: int, out: int, scratch: int,
) -> None:  # fmt: skip
    """One thread's part of out = x . weight: a phase over the rows, unless weights are dense, and
    one over the tiles.

    x [rows, k] elements, out [rows, outputs]: see `STORE` for the modes. With mode GATE, `outputs`
    counts those of the gate, whose tiles are followed by as many of the other factor. `a` is the
    entry's record: `a.inputs` has room for `GROUP_INPUTS` of each row's groups, `a.packed_only`
    computes in one way for any number of rows, for `a.byte_inputs` see `BYTES`.
    """
    tiles, size = (outputs + OUTPUTS - 1) // OUTPUTS, tile_bytes(bits, k)
    room = scratch + 2 * PRODUCTS
    other_room, other_products = room + k // PER_WORD * TILE_STEP, scratch + PRODUCTS
    ldx, ldo = k * ELEMENT, outputs * (ELEMENT if mode == GATE else 4)
    few, about, ld_about = False, a.inputs, k // GROUP * GROUP_INPUTS
    as_bytes = BYTES and a.byte_inputs != 0 and bits == 4
    if bits < 16:
        for row in team.pieces(a.job, phase, number, GRAIN, rows):
            if as_bytes:
                _describe_bytes(x + row * ldx, k, a.inputs + row * ld_about)
            else:
                _describe(x + row * ldx, k, a.inputs + row * ld_about)
        few = rows < (UNPACK_FROM_4 if bits == 4 else UNPACK_FROM_8) or a.packed_only != 0 or PAIRS
        if PAIRS:
            x, ldx, about = a.inputs, ld_about, a.inputs + (k if as_bytes else 2 * k)
    for tile in team.pieces(a.job, phase + 1, number, team.RUNS, tiles):
        b = weight + tile * size
        other = b + tiles * size
        if not few:
            b = _unpacked(b, bits, k, room)
            if mode == GATE:
                other = _unpacked(other, bits, k, other_room)
        for row in range(0, rows, ROWS):
            count = min(ROWS, rows - row)
            at_x, at_about, at_out = x + row * ldx, about + row * ld_about, out + row * ldo
            _multiply(at_x, ldx, count, as_bytes, at_about, ld_about, b, bits, k, few, scratch)
            if mode == GATE:
                _multiply(
                    at_x, ldx, count, as_bytes, at_about, ld_about, other, bits, k, few,
                    other_products,
                )  # fmt: skip
                _gate(scratch, other_products, count, at_out + tile * OUTPUTS * ELEMENT, ldo)
            else:
                left = outputs - tile * OUTPUTS
                _deliver(scratch, count, at_out + tile * OUTPUTS * 4, ldo, left, mode == ADD)
