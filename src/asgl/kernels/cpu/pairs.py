"""Micro-kernels for processors without products of bfloat16: 4-bit and 8-bit weights times inputs
of 16 or 8 bits, in integers.

A word holds two int16, and one instruction multiplies 2 x 16 of them and adds each pair (`pmaddwd`,
as old as SSE2; with VNNI the sum is free too). That is twice the products of a float32
multiply-add, weights need no conversion, and they are never rounded. The inputs are: to 15 bits of
the largest of each 32, where bfloat16 keeps 8 of each. Sums of 32 products fit an int32 (8 + 15 + 5
bits); they become float32 once in a group, where the scales are applied. Integers add up in any
order, and groups always in that of k, so a row's result does not depend on its neighbours, nor on
which kernel computed it.

The idea of blockwise scales for weights and inputs is that of ggml's quantized products, which
round inputs to 8 bits. On request so do these, for weights of 4 bits: one instruction then
multiplies 4 x 16 bytes and adds each pair (`pmaddubsw`, of AVX2), and sums of 8 pairs fit an int16
(at most 2 * 15 * 127 * 8 = 30,480).

An input row of k elements, as `quantize_row` writes it: int16 [k], then (scale, sum) float32 of
each group of 32. As `quantize_row_to_bytes` writes it: int8 [k], each 8 of them in the order of
`BYTE_ORDER`, then the same.

Weights are the tiles of 4 and 8 bits of dots.py, with the bytes of a word in the order k, k + 2, k
+ 1, k + 3, so that two shifts make pairs of neighbours. They are unpacked again for each four rows:
unpacking a tile once for all gave nothing, since the two instructions of a pair are hidden among
the sixteen that four rows need of it.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from asgl.kernels.cpu import llvm
from asgl.kernels.cpu.dots import GROUP, GROUP_BYTES, VECTORS, scales
from asgl.kernels.cpu.llvm import BVEC, F32, FVEC, HVEC, I8, I16, I32, IVEC, LANES, const
from asgl.kernels.cpu.simd import i64, kernel, operation, rows_operation, void
from asgl.kernels.cpu.target import TARGET

STEPS = GROUP // 2
"""Pairs of a group."""
GROUP_INPUTS = 2 * GROUP + 8
"""Bytes of a group of an input row, its scale and its sum among them."""
ROWS = (1, 2, 3, 4)
"""Rows of the next block, by how many are left: two sums of 16 lanes a row at 8 lanes a register,
and what is multiplied, fill 16 registers."""
AHEAD = 8192
"""How far ahead of their use weights are asked for, in bytes. Without it a core reads and computes
in turns; and nothing is wrong with asking past the end of the weights."""
BYTE_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where the bytes of a word of 8 nibbles come from once it is masked, and once it is shifted and
masked."""
_PAIR_WORDS = TARGET.pair_words or LANES
_PARTS = LANES // _PAIR_WORDS
"""How many registers a vector takes where pairs of int16 are multiplied."""
_PVEC = ir.VectorType(I32, _PAIR_WORDS)
_BYTE_PRODUCTS = {16: "llvm.x86.avx512.pmaddubs.w.512", 8: "llvm.x86.avx2.pmadd.ub.sw"}
_PAIR_PRODUCTS = {
    16: "llvm.x86.avx512.pmaddw.d.512",
    8: "llvm.x86.avx2.pmadd.wd",
    4: "llvm.x86.sse2.pmadd.wd",
}
_ROUND = 12582912.0
"""Adding 1.5 * 2^23 rounds a small float32 to an integer, which then stands in its low bits."""


# --- inputs ---


def _quantized(builder: Any, source: Any, meta: Any, most: float) -> list[Any]:
    """32 float32 as words of whole numbers up to `most`; their scale, and the sum of what these
    stand for, to `meta`: not a number if an input is not finite."""
    values = [
        llvm.load(builder, llvm.offset(builder, source, 64 * half), FVEC, 4) for half in range(2)
    ]
    absolute = [
        builder.bitcast(builder.and_(builder.bitcast(v, IVEC), const(0x7FFFFFFF)), FVEC)
        for v in values
    ]
    top = llvm.reduce(builder, llvm.maximum(builder, *absolute), llvm.maximum)
    tiny = ir.Constant(F32, 2.0**-100)
    divisor = builder.select(builder.fcmp_ordered(">", top, tiny), top, tiny)
    by = llvm.splat(builder, builder.fdiv(ir.Constant(F32, most), divisor))
    shifted = [llvm.fma(builder, value, by, const(_ROUND, FVEC)) for value in values]
    rounded = [builder.fsub(value, const(_ROUND, FVEC)) for value in shifted]
    total = llvm.reduce(builder, builder.fadd(*rounded), lambda b, low, high: b.fadd(low, high))
    scale = builder.fmul(divisor, ir.Constant(F32, 1.0 / most))
    llvm.store(builder, meta, scale, 4)
    llvm.store(builder, llvm.offset(builder, meta, 4), builder.fmul(total, scale), 4)
    return [builder.bitcast(value, IVEC) for value in shifted]


@operation(void, i64, i64, i64)
def _quantize_group(builder: Any, source: Any, target: Any, meta: Any) -> None:
    """32 float32 to int16, their scale and sum."""
    for half, words in enumerate(_quantized(builder, source, meta, 32767.0)):
        llvm.store(builder, llvm.offset(builder, target, 32 * half), builder.trunc(words, HVEC), 2)


@operation(void, i64, i64, i64)
def _quantize_group_to_bytes(builder: Any, source: Any, target: Any, meta: Any) -> None:
    """32 float32 to int8 in the order of `BYTE_ORDER`, their scale and sum."""
    order = ir.Constant(IVEC, [8 * eight + place for eight in range(2) for place in BYTE_ORDER])
    for half, words in enumerate(_quantized(builder, source, meta, 127.0)):
        narrow = builder.trunc(words, BVEC)
        llvm.store(
            builder,
            llvm.offset(builder, target, 16 * half),
            builder.shuffle_vector(narrow, narrow, order),
            1,
        )


@kernel
def quantize_row_to_bytes(source: int, k: int, target: int) -> None:
    """A row of k float32 to an input row of bytes."""
    for group in range(k // GROUP):
        _quantize_group_to_bytes(
            source + group * GROUP * 4, target + group * GROUP, target + k + group * 8
        )


@kernel
def quantize_row(source: int, k: int, target: int) -> None:
    """A row of k float32 to an input row."""
    for group in range(k // GROUP):
        _quantize_group(
            source + group * GROUP * 4, target + group * GROUP * 2, target + 2 * k + group * 8
        )


# --- weights ---


def _nibble_pairs(builder: Any, words: Any) -> list[Any]:
    shifted = [builder.lshr(words, const(4 * i)) if i else words for i in range(4)]
    return [builder.and_(value, const(0x000F000F)) for value in shifted]


def _byte_pairs(builder: Any, words: Any) -> list[Any]:
    kind = ir.VectorType(I16, 2 * LANES)
    odd, eight = builder.bitcast(words, kind), const(8, kind)
    even = builder.shl(odd, eight)
    return [builder.bitcast(builder.ashr(value, eight), IVEC) for value in (even, odd)]


def _nibble_bytes(builder: Any, words: Any) -> list[Any]:
    return [
        builder.and_(value, const(0x0F0F0F0F)) for value in (words, builder.lshr(words, const(4)))
    ]


_UNPACKED = {(4, False): _nibble_pairs, (8, False): _byte_pairs, (4, True): _nibble_bytes}
"""What makes words for products of a vector of packed words, by their bits, and whether inputs are
bytes."""


def _words_of(builder: Any, group: Any, bits: int, half: int, *, byte_inputs: bool) -> list[Any]:
    """The words of a group, for a half of its outputs; functions of no argument, so that each is
    emitted where it is used."""
    pairs: list[Any] = []
    for vector in range(VECTORS[bits]):
        place = llvm.offset(builder, group, 64 * (half * VECTORS[bits] + vector))
        made: list[Any] = []

        def pair(i: int, place: Any = place, made: list[Any] = made) -> Any:
            if not made:
                made.extend(
                    _UNPACKED[bits, byte_inputs](builder, llvm.load(builder, place, IVEC, 4))
                )
            return made[i]

        steps = STEPS // 2 if byte_inputs else STEPS
        pairs += [lambda i=i, pair=pair: pair(i) for i in range(steps // VECTORS[bits])]
    return pairs


# --- products ---


def _parts(builder: Any, words: Any) -> list[Any]:
    """A vector of words as the registers that hold it."""
    parts = [list(range(first, first + _PAIR_WORDS)) for first in range(0, LANES, _PAIR_WORDS)]
    return [builder.shuffle_vector(words, words, ir.Constant(_PVEC, lanes)) for lanes in parts]


def _joined(builder: Any, parts: list[Any]) -> Any:
    """The vector that these registers hold."""
    while len(parts) > 1:
        width = 2 * parts[0].type.count
        lanes = ir.Constant(ir.VectorType(I32, width), list(range(width)))
        parts = [
            builder.shuffle_vector(low, high, lanes)
            for low, high in zip(parts[::2], parts[1::2], strict=True)
        ]
    return parts[0]


def _pair_products(builder: Any, accumulator: Any | None, a: Any, b: Any) -> Any:
    """accumulator + a . b of words of two int16, in int32, of one register. With VNNI, LLVM makes
    it one instruction."""
    if not TARGET.pair_words:
        sixteen = const(16)
        low = builder.mul(*(builder.ashr(builder.shl(v, sixteen), sixteen) for v in (a, b)))
        product = builder.add(low, builder.mul(*(builder.ashr(v, sixteen) for v in (a, b))))
        return product if accumulator is None else builder.add(accumulator, product)
    kind = ir.VectorType(I16, 2 * _PAIR_WORDS)
    product = llvm.call(
        builder,
        _PAIR_PRODUCTS[_PAIR_WORDS],
        _PVEC,
        builder.bitcast(a, kind),
        builder.bitcast(b, kind),
    )
    return product if accumulator is None else builder.add(accumulator, product)


def _byte_products(builder: Any, accumulator: Any | None, a: Any, b: Any) -> Any:
    """accumulator + a . b of words of four int8 and of four bytes below 16, in two int16 a word, of
    one register."""
    pairs, fours = ir.VectorType(I16, 2 * _PAIR_WORDS), ir.VectorType(I8, 4 * _PAIR_WORDS)
    product = llvm.call(
        builder,
        _BYTE_PRODUCTS[_PAIR_WORDS],
        pairs,
        builder.bitcast(b, fours),
        builder.bitcast(a, fours),
    )
    if accumulator is not None:
        product = builder.add(builder.bitcast(accumulator, pairs), product)
    return builder.bitcast(product, _PVEC)


def _fence(builder: Any, vectors: list[Any]) -> list[Any]:
    """The same vectors of words, of which LLVM knows nothing any more: what needs them comes after
    all of them are there.

    Without it LLVM rearranges many chains of sums into trees, one after the other, which needs
    several times the registers.
    """
    if not TARGET.pair_words:
        return vectors
    kinds = [vector.type for vector in vectors]
    outputs = ["=v" if _PAIR_WORDS == 16 else "=x"] * len(vectors)
    constraint = ",".join([*outputs, *map(str, range(len(vectors)))])
    if len(vectors) == 1:
        return [builder.asm(ir.FunctionType(kinds[0], kinds), "", constraint, vectors, False)]
    fenced = builder.asm(
        ir.FunctionType(ir.LiteralStructType(kinds), kinds), "", constraint, vectors, False
    )
    return [builder.extract_value(fenced, i) for i in range(len(vectors))]


def _product(bits: int, *, byte_inputs: bool = False) -> Any:
    """c [rows, 32] = sum over groups of (scale * input scale) * (quants . inputs) + offset * (sum
    of inputs), for any number of input rows and a tile of weights of so many bits: (rows, a, lda,
    meta, ld_meta, c, ldc, b, groups), where `meta` has the rows' scales and sums, and ld* are
    bytes."""
    multiply, size = (_byte_products, GROUP) if byte_inputs else (_pair_products, 2 * GROUP)
    ones = const(0x00010001, _PVEC)

    def emit(
        builder: Any, rows: int, a: Any, lda: Any, meta: Any, ld_meta: Any, c: Any, ldc: Any,
        b: Any, groups: Any,
    ) -> None:  # fmt: skip
        inputs, input_scales, results = (
            [llvm.step(builder, base, distance, row) for row in range(rows)]
            for base, distance in ((a, lda), (meta, ld_meta), (c, ldc))
        )
        for result in results:
            for half in range(2):
                llvm.store(builder, llvm.offset(builder, result, 64 * half), const(0.0, FVEC), 4)
        passes = ((0, 1),) if rows == 1 else ((0,), (1,))  # both at once if that fits the registers
        for halves in passes:
            with cgutils.for_range(builder, groups) as loop:
                group = llvm.step(builder, b, GROUP_BYTES[bits], loop.index)
                if halves[0] == 0:
                    for line in range(0, GROUP_BYTES[bits], 64):
                        llvm.prefetch(builder, llvm.offset(builder, group, AHEAD + line))
                own = [llvm.step(builder, start, size, loop.index) for start in inputs]
                words = [
                    _words_of(builder, group, bits, half, byte_inputs=byte_inputs)
                    for half in halves
                ]
                width = len(halves) * _PARTS
                sums: list[Any] = [None] * (rows * width)
                for step in range(size // 4):
                    weights = [
                        part for of_half in words for part in _parts(builder, of_half[step]())
                    ]
                    for row in range(rows):
                        at = llvm.offset(builder, own[row], 4 * step)
                        word = llvm.splat(builder, llvm.load(builder, at, I32, 4), _PAIR_WORDS)
                        for i, weight in enumerate(weights, row * width):
                            sums[i] = multiply(builder, sums[i], word, weight)
                    sums = _fence(builder, sums)
                if byte_inputs:
                    sums = [_pair_products(builder, None, pair, ones) for pair in sums]
                for i, half in enumerate(halves):
                    scale, offset = scales(builder, group, bits, half)
                    for row in range(rows):
                        at = llvm.step(builder, input_scales[row], 8, loop.index)
                        by, total = (
                            llvm.splat(builder, llvm.load(builder, place, F32, 4))
                            for place in (at, llvm.offset(builder, at, 4))
                        )
                        place = llvm.offset(builder, results[row], 64 * half)
                        held = llvm.load(builder, place, FVEC, 4)
                        first = row * width + i * _PARTS
                        product = builder.sitofp(
                            _joined(builder, sums[first : first + _PARTS]), FVEC
                        )
                        result = llvm.fma(builder, offset, total, held)
                        result = llvm.fma(builder, product, builder.fmul(scale, by), result)
                        llvm.store(builder, place, result, 4)

    emit.__name__ = f"{'byte' if byte_inputs else 'pair'}_rows_{bits}"
    return rows_operation(ROWS, moving=3, fixed=2)(emit)


pair_rows_4, pair_rows_8 = _product(4), _product(8)
byte_rows_4 = _product(4, byte_inputs=True)
"""For inputs of 8 bits, where `TARGET.pair_words` is 8 or more."""
