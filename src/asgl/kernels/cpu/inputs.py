"""Inputs of linear layers, as products want them: a row of k float32 becomes k / 32 groups.

    of 16 bits    [64] bytes: by VNNI [32] int8, the low halves, and [32] int8, the high halves;
                  else [32] int16, each four in the order 0, 2, 1, 3
    of 8 bits     [32] int8
    then, of either: float32 scale; float32 sum of all 32, of the first 16, of the last 16 (of what
    the integers stand for); the same three sums of the integers themselves, int32; 4 bytes unused

Inputs of 16 bits are rounded to a 32639th of the largest of the 32, where bfloat16 keeps 8 bits of
each; inputs of 8 bits to a 127th. If any is not finite, the scale is not a number, and so nothing
is that comes of it.

Dense weights take a row of elements.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from asgl.kernels.cpu import llvm
from asgl.kernels.cpu.llvm import BVEC, ELEMENT, F32, FVEC, HVEC, I32, IVEC, LANES, const
from asgl.kernels.cpu.simd import i64, kernel, load, operation, store_elements, void
from asgl.kernels.cpu.target import TARGET
from asgl.kernels.cpu.tiles import GROUP

META = 32
"""Bytes of a group's scale and sums."""
WHOLE_BYTES, BYTE_BYTES = 2 * GROUP + META, GROUP + META
"""Bytes of a group of inputs of 16 and of 8 bits."""
SCALE, FLOAT_SUM, INTEGER_SUM = 0, 4, 16
"""Where they are in it: of the sums the first, of all 32."""
_MOST = 127 * 256 + 127
"""The largest input of 16 bits: one more, and its high half would not be a signed byte."""
_ROUND = 12582912.0
"""Adding 1.5 * 2^23 rounds a small float32 to an integer, which then stands in its low bits."""
_ROUND_BITS = 0x4B400000


def _quantized(builder: Any, source: Any, meta: Any, most: int) -> list[Any]:
    """32 float32 as two vectors of words, of whole numbers up to `most`; writes what belongs at
    `meta`."""
    values = [
        llvm.load(builder, llvm.offset(builder, source, 64 * half), FVEC, 4) for half in range(2)
    ]
    # in the order of their bits, which puts what is not finite above all else
    magnitudes = [builder.and_(builder.bitcast(value, IVEC), const(0x7FFFFFFF)) for value in values]

    def greater(b: Any, x: Any, y: Any) -> Any:
        return b.select(b.icmp_signed(">", x, y), x, y)

    top = llvm.reduce(builder, greater(builder, *magnitudes), greater)
    finite = builder.icmp_signed("<", top, ir.Constant(I32, 0x7F800000))
    top, tiny = builder.bitcast(top, F32), ir.Constant(F32, 2.0**-100)
    divisor = builder.select(builder.fcmp_ordered(">", top, tiny), top, tiny)
    by = llvm.splat(builder, builder.fdiv(ir.Constant(F32, float(most)), divisor))
    scale = builder.fmul(divisor, ir.Constant(F32, 1.0 / most))
    scale = builder.select(finite, scale, ir.Constant(F32, float("nan")))
    shifted = [llvm.fma(builder, value, by, const(_ROUND, FVEC)) for value in values]
    whole = [builder.sub(builder.bitcast(v, IVEC), const(_ROUND_BITS)) for v in shifted]
    halves = [llvm.reduce(builder, v, lambda b, low, high: b.add(low, high)) for v in whole]
    llvm.store(builder, llvm.offset(builder, meta, SCALE), scale, 4)
    for i, total in enumerate([builder.add(*halves), *halves]):
        place = llvm.offset(builder, meta, INTEGER_SUM + 4 * i)
        llvm.store(builder, place, total, 4)
        place = llvm.offset(builder, meta, FLOAT_SUM + 4 * i)
        llvm.store(builder, place, builder.fmul(builder.sitofp(total, F32), scale), 4)
    return whole


@operation(void, i64, i64)
def _whole_group(builder: Any, source: Any, target: Any) -> None:
    """32 float32 to a group of 16 bits."""
    words = _quantized(builder, source, llvm.offset(builder, target, 2 * GROUP), _MOST)
    if not TARGET.dot_words:
        order = [4 * four + place for four in range(4) for place in (0, 2, 1, 3)]
        for half, of in enumerate(words):
            narrow = builder.trunc(of, HVEC)
            narrow = builder.shuffle_vector(narrow, narrow, ir.Constant(IVEC, order))
            llvm.store(builder, llvm.offset(builder, target, 32 * half), narrow, 2)
        return
    for half, of in enumerate(words):
        low = builder.trunc(of, BVEC)
        high = builder.trunc(builder.ashr(builder.add(of, const(128)), const(8)), BVEC)
        for place, narrow in ((16 * half, low), (GROUP + 16 * half, high)):
            llvm.store(builder, llvm.offset(builder, target, place), narrow, 1)


@operation(void, i64, i64)
def _byte_group(builder: Any, source: Any, target: Any) -> None:
    """32 float32 to a group of 8 bits."""
    words = _quantized(builder, source, llvm.offset(builder, target, GROUP), 127)
    for half, of in enumerate(words):
        place = llvm.offset(builder, target, 16 * half)
        llvm.store(builder, place, builder.trunc(of, BVEC), 1)


@kernel
def describe_whole(source: int, k: int, target: int) -> None:
    """A row of k float32 to inputs of 16 bits."""
    for group in range(k // GROUP):
        _whole_group(source + group * GROUP * 4, target + group * WHOLE_BYTES)


@kernel
def describe_bytes(source: int, k: int, target: int) -> None:
    """A row of k float32 to inputs of 8 bits."""
    for group in range(k // GROUP):
        _byte_group(source + group * GROUP * 4, target + group * BYTE_BYTES)


@kernel
def describe_dense(source: int, k: int, target: int) -> None:
    """A row of k float32 to elements."""
    for i in range(0, k, LANES):
        store_elements(target + i * ELEMENT, load(source + i * 4))
