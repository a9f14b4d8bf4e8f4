"""Micro-kernels of packed weights: a block of rows of inputs (see inputs.py) times a tile of
weights (tiles.py), in the arithmetic of integers.py. One emitter for all formats.

For each group of 32 k, weights become words of four unsigned bytes, which meet all rows of the
block; sums of a group are exact, and become float32 once, where the scales of weights and inputs
are applied:

    c += offset * sum of inputs
    c += weight scale * (input scale * (sum of products - zero * sum of inputs))

Integers add up in any order, and groups always in that of k: a row's result does not depend on its
neighbours, nor on which kernel computed it.

Few rows unpack words as they go. For more a tile is unpacked once, a few groups at a time, so that
they stay in the first cache, and all rows go over them (`Unpacked`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from asgl.kernels.cpu import llvm
from asgl.kernels.cpu.inputs import (
    BYTE_BYTES,
    FLOAT_SUM,
    INTEGER_SUM,
    META,
    SCALE,
    WHOLE_BYTES,
)
from asgl.kernels.cpu.integers import Arithmetic, joined, parts
from asgl.kernels.cpu.llvm import F32, FVEC, HVEC, I8, I32, IVEC, LANES, const
from asgl.kernels.cpu.simd import i64, operation, rows_operation, void
from asgl.kernels.cpu.target import TARGET
from asgl.kernels.cpu.tiles import OUTPUTS, STEPS, Tiling

AHEAD = 8192
"""How far ahead of their use weights are asked for, in bytes. Without it a core reads and computes
in turns; and nothing is wrong with asking past the end of the weights."""
_HALF = OUTPUTS // 2
_STEP_BYTES = 4 * OUTPUTS
"""Bytes of a step of unpacked words: four of each output."""
_SHUFFLES = {
    16: "llvm.x86.avx512.pshuf.b.512",
    8: "llvm.x86.avx2.pshuf.b",
    4: "llvm.x86.ssse3.pshuf.b.128",
}


# --- weights ---


def _shifted(builder: Any, words: Any, left: int) -> Any:
    """Words moved to the left, or to the right if that is negative."""
    if left > 0:
        return builder.shl(words, const(left))
    return builder.lshr(words, const(-left)) if left else words


def _looked_up(builder: Any, levels: tuple[int, ...], nibbles: Any) -> Any:
    """The bytes that these nibbles, one a byte, stand for."""
    width = TARGET.shuffle_words
    table_kind = ir.VectorType(I8, 4 * width)
    table = ir.Constant(table_kind, list(levels) * (width // 4))
    found = [
        builder.bitcast(
            llvm.call(
                builder,
                _SHUFFLES[width],
                table_kind,
                table,
                builder.bitcast(register, table_kind),
            ),
            ir.VectorType(I32, width),
        )
        for register in parts(builder, nibbles, width)
    ]
    return joined(builder, found)


class Packed:
    """A tile as it lies in memory."""

    def __init__(self, tiling: Tiling) -> None:
        self.tiling, self.group_bytes = tiling, tiling.group_bytes

    def _vector(self, builder: Any, group: Any, number: int) -> Any:
        return llvm.load(builder, llvm.offset(builder, group, 64 * number), IVEC, 4)

    def words(self, builder: Any, group: Any, half: int) -> list[Callable[[], Any]]:
        """The words of a group for a half of its outputs, step by step: functions of no argument,
        so that each is emitted where it is used."""
        bits, loaded = self.tiling.bits, {}

        def vector(number: int) -> Any:
            if number not in loaded:
                loaded[number] = self._vector(builder, group, number)
            return loaded[number]

        def word(step: int) -> Any:
            if bits == 8:
                return vector(half * STEPS + step)
            nibbles = _shifted(builder, vector(half * 4 + step // 2), -4 * (step % 2))
            nibbles = builder.and_(nibbles, const(0x0F0F0F0F))
            if self.tiling.levels:
                return _looked_up(builder, self.tiling.levels, nibbles)
            if bits == 5:
                more = _shifted(builder, vector(8 + half), 4 - step)
                return builder.or_(builder.and_(more, const(0x10101010)), nibbles)
            if bits == 6:
                more = _shifted(builder, vector(8 + half * 2 + step // 4), 4 - 2 * (step % 4))
                return builder.or_(builder.and_(more, const(0x30303030)), nibbles)
            return nibbles

        return [lambda step=step: word(step) for step in range(STEPS)]

    def end(self, builder: Any, group: Any, part: int, half: int, *, offset: bool) -> Any:
        """The scales, or the offsets, of a part of a group and a half of its outputs."""
        row = part + (self.tiling.parts if offset else 0)
        place = llvm.offset(builder, group, self.tiling.ends + 2 * (row * OUTPUTS + half * _HALF))
        halves = llvm.load(builder, place, HVEC, 2)
        if self.tiling.wide:
            return builder.bitcast(builder.shl(builder.zext(halves, IVEC), const(16)), FVEC)
        return llvm.half_to_f32(builder, halves)


class Unpacked:
    """Groups as `unpack` writes them: [8][2][16] words, then scales and offsets in float32."""

    def __init__(self, tiling: Tiling) -> None:
        self.tiling = tiling
        self.group_bytes = STEPS * _STEP_BYTES + 4 * OUTPUTS * tiling.parts * (
            2 if tiling.offsets else 1
        )

    def place(self, builder: Any, group: Any, row: int, half: int) -> Any:
        """Where the vector of a row of words, scales or offsets is."""
        return llvm.offset(builder, group, row * _STEP_BYTES + 64 * half)

    def words(self, builder: Any, group: Any, half: int) -> list[Callable[[], Any]]:
        """See `Packed.words`."""
        return [
            lambda step=step: llvm.load(builder, self.place(builder, group, step, half), IVEC, 4)
            for step in range(STEPS)
        ]

    def end(self, builder: Any, group: Any, part: int, half: int, *, offset: bool) -> Any:
        """See `Packed.end`."""
        row = STEPS + part + (self.tiling.parts if offset else 0)
        return llvm.load(builder, self.place(builder, group, row, half), FVEC, 4)


def unpacking(tiling: Tiling) -> Any:
    """(b, groups, out): groups of a tile to words."""
    packed, unpacked = Packed(tiling), Unpacked(tiling)

    def emit(builder: Any, b: Any, groups: Any, out: Any) -> None:
        with cgutils.for_range(builder, groups) as loop:
            group = llvm.step(builder, b, packed.group_bytes, loop.index)
            target = llvm.step(builder, out, unpacked.group_bytes, loop.index)
            _ask_ahead(builder, group, packed.group_bytes)
            for half in range(2):
                rows = [word() for word in packed.words(builder, group, half)]
                for offset in (False, True) if tiling.offsets else (False,):
                    rows += [
                        packed.end(builder, group, part, half, offset=offset)
                        for part in range(tiling.parts)
                    ]
                for row, value in enumerate(rows):
                    llvm.store(builder, unpacked.place(builder, target, row, half), value, 4)

    emit.__name__ = f"unpack_{tiling.name}"
    return operation(void, i64, i64, i64)(emit)


def _ask_ahead(builder: Any, group: Any, size: int) -> None:
    for line in range(0, size, 64):
        llvm.prefetch(builder, llvm.offset(builder, group, AHEAD + line))


# --- products ---


def product(
    name: str, source: Packed | Unpacked, arithmetic: Arithmetic, sizes: Sequence[int]
) -> Any:
    """c [rows, 32] += weights . inputs, for any number of rows and some groups of a tile: (rows, x,
    ldx, c, ldc, b, groups), where ld* are bytes. `sizes`: see `llvm.in_blocks`."""
    tiling, width = source.tiling, arithmetic.width
    per_vector = LANES // width
    inputs_bytes = BYTE_BYTES if arithmetic.byte_inputs else WHOLE_BYTES
    meta = inputs_bytes - META

    def group_of(
        builder: Any, group: Any, inputs: list[Any], results: list[Any], halves: tuple[int, ...]
    ) -> None:
        """One group of some rows."""
        words = [source.words(builder, group, half) for half in halves]
        steps = STEPS // tiling.parts
        for part in range(tiling.parts):
            # of the sums of the inputs: that of all 32, or of one of the halves
            which = 4 * (part + 1 if tiling.parts > 1 else 0)
            sums: list[list[Any]] = []
            for row in inputs:
                initial: Any = const(0, ir.VectorType(I32, width))
                if tiling.zero:
                    place = llvm.offset(builder, row, meta + INTEGER_SUM + which)
                    total = llvm.load(builder, place, I32, 4)
                    total = builder.mul(total, ir.Constant(I32, -tiling.zero))
                    initial = llvm.splat(builder, total, width)
                sums += [arithmetic.zeros(initial) for _ in range(len(halves) * per_vector)]
            for step in range(part * steps, (part + 1) * steps):
                weights = [
                    arithmetic.weights(builder, register)
                    for of_half in words
                    for register in parts(builder, of_half[step](), width)
                ]
                at = 0
                for row in inputs:
                    met = [
                        llvm.splat(
                            builder,
                            llvm.load(builder, llvm.offset(builder, row, place), I32, 4),
                            width,
                        )
                        for place in arithmetic.input_places(step)
                    ]
                    for weight in weights:
                        sums[at] = arithmetic.multiply(builder, step, sums[at], weight, met)
                        at += 1
                sums = arithmetic.settle(builder, sums)
            for i, half in enumerate(halves):
                scale = source.end(builder, group, part, half, offset=False)
                offset = (
                    source.end(builder, group, part, half, offset=True) if tiling.offsets else None
                )
                for number, (row, result) in enumerate(zip(inputs, results, strict=True)):

                    def about(place: int, row: Any = row) -> Any:
                        at = llvm.offset(builder, row, meta + place)
                        return llvm.splat(builder, llvm.load(builder, at, F32, 4))

                    held = builder.load(result[half], typ=FVEC)
                    if offset is not None:
                        held = llvm.fma(builder, offset, about(FLOAT_SUM + which), held)
                    first = (number * len(halves) + i) * per_vector
                    own = [
                        arithmetic.total(builder, one) for one in sums[first : first + per_vector]
                    ]
                    # in this order, for weights whose scales are the smallest that there are
                    value = builder.fmul(builder.sitofp(joined(builder, own), FVEC), about(SCALE))
                    builder.store(llvm.fma(builder, value, scale, held), result[half])

    def emit(
        builder: Any, rows: int, x: Any, ldx: Any, c: Any, ldc: Any, b: Any, groups: Any
    ) -> None:
        starts, results = (
            [llvm.step(builder, base, distance, row) for row in range(rows)]
            for base, distance in ((x, ldx), (c, ldc))
        )
        # both halves at once where their sums fit the registers
        wide = TARGET.vector_registers == 32 and width == LANES
        passes = ((0, 1),) if rows == 1 or wide else ((0,), (1,))
        for halves in passes:
            slots = [{half: cgutils.alloca_once(builder, FVEC) for half in halves} for _ in results]
            for own, result in zip(slots, results, strict=True):
                for half, slot in own.items():
                    place = llvm.offset(builder, result, 64 * half)
                    builder.store(llvm.load(builder, place, FVEC, 4), slot)
            with cgutils.for_range(builder, groups) as loop:
                group = llvm.step(builder, b, source.group_bytes, loop.index)
                if isinstance(source, Packed) and halves[0] == 0:
                    _ask_ahead(builder, group, source.group_bytes)
                inputs = [llvm.step(builder, start, inputs_bytes, loop.index) for start in starts]
                group_of(builder, group, inputs, slots, halves)
            for own, result in zip(slots, results, strict=True):
                for half, slot in own.items():
                    value = builder.load(slot, typ=FVEC)
                    llvm.store(builder, llvm.offset(builder, result, 64 * half), value, 4)

    emit.__name__ = name
    return rows_operation(sizes, moving=2, fixed=2)(emit)
