"""Micro-kernels: small blocks of a matrix product whose sums stay in registers, emitted as unrolled
LLVM instructions.

For dense weights, for attention, and for packed weights where the processor has products of
bfloat16 (elsewhere: pairs.py).

All multiply words (see `PER_WORD`): A holds rows of words; B is a *tile*: for each step (one word
of k) 32 outputs, as two vectors. A block of R rows keeps 2 R sums in registers; per step it loads
two vectors of B and R words of A. Every sum is taken over k in order, whatever R is: a row's result
does not depend on its neighbours.

Weights are stored in tiles of 32 outputs, streamed in the order of k (see `weights.py` for who
packs them):

    16 bits   for each step of a pair: [2][16] words of two bfloat16
     8 bits   for each group of 32 k: [2][8][16] words of 4 signed bytes (of neighbouring k), then
              scales, offsets
     4 bits   for each group of 32 k: [2][4][16] words of 8 nibbles, then scales, offsets

Scales and offsets are float16, [2][16] of each. Nibble i of half h of word j is k = 2 (4 j + i) +
h: one shift gives a step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from asgl.kernels.cpu import llvm
from asgl.kernels.cpu.llvm import F32, FVEC, HVEC, I16, I32, IVEC, const
from asgl.kernels.cpu.simd import i64, operation, rows_operation, void
from asgl.kernels.cpu.target import TARGET

OUTPUTS = 32
"""Outputs of a tile."""
GROUP = 32
"""Weights along k that share a scale."""
SCALES = 4 * OUTPUTS
"""Bytes of a group's scales and offsets."""
GROUP_BYTES = {4: 16 * OUTPUTS + SCALES, 8: 32 * OUTPUTS + SCALES, 16: 64 * OUTPUTS}
"""Bytes of 32 k of a tile, by the bits of a weight."""
GROUP_BYTES_4, GROUP_BYTES_8, GROUP_BYTES_16 = GROUP_BYTES[4], GROUP_BYTES[8], GROUP_BYTES[16]
TILE_STEP = 4 * OUTPUTS
"""Bytes of a step of a tile of words."""

ROWS = {32: (1, 2, 3, 4, 4, 6, 6, 8), 8: (1, 2), 4: (1,)}[TARGET.vector_registers]
"""Rows of the next block, by how many are left: two sums a row, two vectors of B and one of A must
fit the registers."""
FEW = (1, 2, 3, 4)
"""The same for blocks that unpack weights on the way, with 32 registers."""
VECTORS = {4: 4, 8: 8}
"""Vectors of packed words in a group, for each half of its outputs, by the bits of a weight."""


class _Sums:
    """R x 2 sums in allocas that LLVM turns into registers."""

    def __init__(self, builder: Any, rows: int) -> None:
        self.builder, self.rows = builder, rows
        self.slots = [[cgutils.alloca_once(builder, FVEC) for _ in range(2)] for _ in range(rows)]

    def clear(self) -> None:
        for row in self.slots:
            for slot in row:
                self.builder.store(const(0.0, FVEC), slot)

    def _place(self, c: Any, ldc: Any, row: int, half: int) -> Any:
        return llvm.offset(self.builder, llvm.step(self.builder, c, ldc, row), 64 * half)

    def read(self, c: Any, ldc: Any) -> None:
        for row in range(self.rows):
            for half in range(2):
                place = self._place(c, ldc, row, half)
                self.builder.store(llvm.load(self.builder, place, FVEC, 4), self.slots[row][half])

    def write(self, c: Any, ldc: Any) -> None:
        for row in range(self.rows):
            for half in range(2):
                value = self.builder.load(self.slots[row][half], typ=FVEC)
                llvm.store(self.builder, self._place(c, ldc, row, half), value, 4)

    def dot(self, row: int, half: int, a: Any, b: Any) -> None:
        slot = self.slots[row][half]
        self.builder.store(llvm.dot(self.builder, self.builder.load(slot, typ=FVEC), a, b), slot)

    def fma(self, row: int, half: int, a: Any, b: Any) -> None:
        slot = self.slots[row][half]
        self.builder.store(llvm.fma(self.builder, a, b, self.builder.load(slot, typ=FVEC)), slot)


def _word(builder: Any, address: Any) -> Any:
    return llvm.splat(builder, llvm.load(builder, address, I32, 4))


def _product(name: str, *, accumulate: bool) -> Any:
    """c = a . b, or c += a . b, for any number of rows and one tile: (rows, a, lda, c, ldc, b,
    steps). c is float32 [rows, 32]; lda and ldc are bytes from row to row."""

    def emit(
        builder: Any, rows: int, a: Any, lda: Any, c: Any, ldc: Any, b: Any, steps: Any
    ) -> None:
        sums = _Sums(builder, rows)
        if accumulate:
            sums.read(c, ldc)
        else:
            sums.clear()
        starts = [llvm.step(builder, a, lda, row) for row in range(rows)]
        with cgutils.for_range(builder, steps) as loop:
            at_b = llvm.step(builder, b, TILE_STEP, loop.index)
            halves = [
                llvm.load(builder, llvm.offset(builder, at_b, 64 * half), IVEC, 4)
                for half in range(2)
            ]
            for row in range(rows):
                word = _word(builder, llvm.step(builder, starts[row], 4, loop.index))
                for half in range(2):
                    sums.dot(row, half, word, halves[half])
        sums.write(c, ldc)

    emit.__name__ = name
    return rows_operation(ROWS, moving=2, fixed=2)(emit)


def _nibble_steps(builder: Any, words: Any) -> list[Any]:
    """The steps of 8 nibbles a word, as bfloat16 128 + q: 0x4300 is 128, and a unit in its last
    place is 1."""
    steps = []
    for i in range(4):
        halves = builder.bitcast(words, ir.VectorType(I16, 32))
        shifted = builder.lshr(halves, const(4 * i, ir.VectorType(I16, 32))) if i else halves
        masked = builder.and_(builder.bitcast(shifted, IVEC), const(0x000F000F))
        steps.append(builder.or_(masked, const(0x43004300)))
    return steps


def _nibble_floats(builder: Any, words: Any) -> list[Any]:
    """128 + the 8 nibbles of each word as float32, in the order of k: bits 16 to 19 of 128 are its
    units."""
    floats = []
    for place in (4 * i + 16 * h for i in range(4) for h in range(2)):
        moved = builder.shl(words, const(16 - place)) if place < 16 else words
        moved = builder.lshr(words, const(place - 16)) if place > 16 else moved
        floats.append(
            builder.bitcast(
                builder.or_(builder.and_(moved, const(0xF0000)), const(0x43000000)), FVEC
            )
        )
    return floats


def _byte_floats(builder: Any, words: Any) -> list[Any]:
    """The 4 signed bytes of each word as float32."""
    tops = [builder.shl(words, const(24 - 8 * i)) if i < 3 else words for i in range(4)]
    return [builder.sitofp(builder.ashr(top, const(24)), FVEC) for top in tops]


def _byte_steps(builder: Any, words: Any) -> list[Any]:
    bits = [
        builder.bitcast(value, IVEC) for value in _byte_floats(builder, words)
    ]  # 8 bits fit a bfloat16: cutting is exact
    return [
        builder.or_(builder.lshr(bits[i], const(16)), builder.and_(bits[i + 1], const(-65536)))
        for i in (0, 2)
    ]


_STEPS: dict[int, Callable[[Any, Any], list[Any]]] = {4: _nibble_steps, 8: _byte_steps}
_FLOATS: dict[int, Callable[[Any, Any], list[Any]]] = {4: _nibble_floats, 8: _byte_floats}
_BIAS = {4: 128.0, 8: 0.0}
"""What these add to a weight."""


def scales(builder: Any, group: Any, bits: int, half: int) -> tuple[Any, Any]:
    """The scales and the offsets of a half of a group's outputs."""
    base = GROUP_BYTES[bits] - SCALES + 32 * half
    first, second = (
        llvm.half_to_f32(
            builder, llvm.load(builder, llvm.offset(builder, group, base + place), HVEC, 2)
        )
        for place in (0, SCALES // 2)
    )
    return first, second


def _biased_scales(builder: Any, group: Any, bits: int, half: int) -> tuple[Any, Any]:
    """The same, with offsets for biased weights."""
    scale, offset = scales(builder, group, bits, half)
    if _BIAS[bits]:
        offset = llvm.fma(builder, scale, const(-_BIAS[bits], FVEC), offset)
    return scale, offset


def _words(builder: Any, group: Any, bits: int, half: int, vector: int) -> Any:
    """One of the vectors of packed words of a group."""
    place = llvm.offset(builder, group, 64 * (half * VECTORS[bits] + vector))
    return llvm.load(builder, place, IVEC, 4)


def _few(bits: int) -> Any:
    """c = a . b for a few rows of bfloat16 and one tile of packed weights: (rows, a, lda, sums,
    ld_sums, c, ldc, b, groups). Over groups, the sum of scale * (quants . x) + offset * sum(x).

    Exact but for the rounding of x: weights are never rounded. `sums` holds sum(x) of each group,
    float32 [rows, groups].
    """

    def emit(
        builder: Any, rows: int, a: Any, lda: Any, sums_of: Any, ld_sums: Any, c: Any, ldc: Any,
        b: Any, groups: Any,
    ) -> None:  # fmt: skip
        results, partial = _Sums(builder, rows), _Sums(builder, rows)
        results.clear()
        starts = [llvm.step(builder, a, lda, row) for row in range(rows)]
        totals = [llvm.step(builder, sums_of, ld_sums, row) for row in range(rows)]
        with cgutils.for_range(builder, groups) as loop:
            group = llvm.step(builder, b, GROUP_BYTES[bits], loop.index)
            inputs = [llvm.step(builder, start, 2 * GROUP, loop.index) for start in starts]
            partial.clear()
            step = 0
            for vector in range(VECTORS[bits]):
                halves = [
                    _STEPS[bits](builder, _words(builder, group, bits, half, vector))
                    for half in range(2)
                ]
                for words in zip(*halves, strict=True):
                    for row in range(rows):
                        word = _word(builder, llvm.offset(builder, inputs[row], 4 * step))
                        for half in range(2):
                            partial.dot(row, half, word, words[half])
                    step += 1
            for half in range(2):
                scale, offset = _biased_scales(builder, group, bits, half)
                for row in range(rows):
                    place = llvm.step(builder, totals[row], 4, loop.index)
                    summed = llvm.splat(builder, llvm.load(builder, place, F32, 4))
                    results.fma(row, half, offset, summed)
                    results.fma(row, half, scale, builder.load(partial.slots[row][half], typ=FVEC))
        results.write(c, ldc)

    emit.__name__ = f"few_rows_{bits}"
    return rows_operation(FEW, moving=3, fixed=2)(emit)


def _unpack(bits: int) -> Any:
    """Groups of packed weights to a tile of bfloat16 pairs: scale * q + offset, rounded."""

    def emit(builder: Any, b: Any, groups: Any, out: Any) -> None:
        with cgutils.for_range(builder, groups) as loop:
            group = llvm.step(builder, b, GROUP_BYTES[bits], loop.index)
            tile = llvm.step(builder, out, GROUP // 2 * TILE_STEP, loop.index)
            for half in range(2):
                scale, offset = _biased_scales(builder, group, bits, half)
                step = 0
                for vector in range(VECTORS[bits]):
                    floats = _FLOATS[bits](builder, _words(builder, group, bits, half, vector))
                    values = [llvm.fma(builder, scale, value, offset) for value in floats]
                    for pair in zip(values[::2], values[1::2], strict=True):
                        place = llvm.offset(builder, tile, step * TILE_STEP + 64 * half)
                        llvm.store(builder, place, llvm.pair(builder, *pair), 4)
                        step += 1

    emit.__name__ = f"unpack_{bits}"
    return operation(void, i64, i64, i64)(emit)


@operation(void, i64, i64, i64)
def widen_pairs(builder: Any, b: Any, pairs: Any, out: Any) -> None:
    """A tile of bfloat16 pairs to one of float32 words, which has twice the steps."""
    with cgutils.for_range(builder, pairs) as loop:
        source = llvm.step(builder, b, TILE_STEP, loop.index)
        target = llvm.step(builder, out, 2 * TILE_STEP, loop.index)
        for half in range(2):
            words = llvm.load(builder, llvm.offset(builder, source, 64 * half), IVEC, 4)
            low, high = builder.shl(words, const(16)), builder.and_(words, const(-65536))
            llvm.store(builder, llvm.offset(builder, target, 64 * half), low, 4)
            llvm.store(builder, llvm.offset(builder, target, TILE_STEP + 64 * half), high, 4)


dot_rows = _product("dot_rows", accumulate=False)
add_dot_rows = _product("add_dot_rows", accumulate=True)
few_rows_4, few_rows_8 = _few(4), _few(8)
unpack_4, unpack_8 = _unpack(4), _unpack(8)
