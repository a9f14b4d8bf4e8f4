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

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from asgl.kernels.cpu import llvm
from asgl.kernels.cpu.llvm import BVEC, ELEMENT, FVEC, HVEC, I32, I64, IVEC, LANES, const
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


_AT_ONCE = 4
"""Groups that are described together: what is reduced of each fills a vector."""


def _shuffled(builder: Any, a: Any, b: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(lanes)), lanes))


def _reduced(builder: Any, vectors: list[Any], combine: Callable[[Any, Any, Any], Any]) -> Any:
    """Each of 1, 2, 4, 8 or 16 vectors reduced to one number, which fills its share of the lanes of
    one vector."""
    share = LANES
    while len(vectors) > 1:
        share //= 2
        # of each vector's share the lower half of lanes, and the upper half
        low = [lane for lane in range(2 * LANES) if lane // share % 2 == 0]
        high = [lane + share for lane in low]
        vectors = [
            combine(builder, *(_shuffled(builder, a, b, lanes) for lanes in (low, high)))
            for a, b in zip(vectors[::2], vectors[1::2], strict=True)
        ]
    (found,) = vectors
    while share > 1:
        share //= 2
        swapped = _shuffled(builder, found, found, [lane ^ share for lane in range(LANES)])
        found = combine(builder, found, swapped)
    return found


def _quantized(
    builder: Any, source: Any, target: Any, size: int, groups: int, most: int
) -> list[list[Any]]:
    """So many groups of 32 float32, each as two vectors of words, of whole numbers up to `most`;
    writes scales and sums to the end of each group of `size` bytes at `target`."""
    values = [
        [
            llvm.load(builder, llvm.offset(builder, source, 128 * group + 64 * half), FVEC, 4)
            for half in range(2)
        ]
        for group in range(groups)
    ]

    def greater(b: Any, x: Any, y: Any) -> Any:
        return b.select(b.icmp_signed(">", x, y), x, y)

    # in the order of their bits, which puts what is not finite above all else
    bits = [[builder.bitcast(v, IVEC) for v in own] for own in values]
    tops = [greater(builder, *(builder.and_(v, const(0x7FFFFFFF)) for v in own)) for own in bits]
    top = _reduced(builder, tops, greater)
    finite = builder.icmp_signed("<", top, const(0x7F800000))
    top = builder.bitcast(top, FVEC)
    tiny = const(2.0**-100, FVEC)
    divisor = builder.select(builder.fcmp_ordered(">", top, tiny), top, tiny)
    by = builder.fdiv(const(float(most), FVEC), divisor)
    scale = builder.fmul(divisor, const(1.0 / most, FVEC))
    scale = builder.select(finite, scale, const(float("nan"), FVEC))
    share = LANES // groups
    whole: list[list[Any]] = []
    for group, own in enumerate(values):
        factor = _shuffled(builder, by, by, [group * share] * LANES)
        shifted = [llvm.fma(builder, value, factor, const(_ROUND, FVEC)) for value in own]
        whole.append([builder.sub(builder.bitcast(v, IVEC), const(_ROUND_BITS)) for v in shifted])
    halves = _reduced(builder, [v for own in whole for v in own], lambda b, x, y: b.add(x, y))
    lanes = [lane ^ (share // 2) for lane in range(LANES)]
    totals = builder.add(halves, _shuffled(builder, halves, halves, lanes))
    of_halves, of_all = (
        builder.fmul(builder.sitofp(sums, FVEC), scale) for sums in (halves, totals)
    )
    for group in range(groups):
        first, last = group * share, group * share + share // 2
        meta = llvm.offset(builder, target, (group + 1) * size - META)
        begin = _shuffled(builder, scale, of_all, [first, LANES + first])
        end = _shuffled(builder, of_halves, of_halves, [first, last])
        words = _shuffled(builder, begin, end, [0, 1, 2, 3])
        llvm.store(builder, llvm.offset(builder, meta, SCALE), words, 4)
        words = _shuffled(builder, totals, halves, [first, LANES + first, LANES + last, first])
        llvm.store(builder, llvm.offset(builder, meta, INTEGER_SUM), words, 4)
    return whole


def _write_whole(builder: Any, words: list[Any], target: Any) -> None:
    """A group of 16 bits."""
    if not TARGET.dot_words:
        order = [4 * four + place for four in range(4) for place in (0, 2, 1, 3)]
        for half, of in enumerate(words):
            narrow = builder.trunc(of, HVEC)
            narrow = _shuffled(builder, narrow, narrow, order)
            llvm.store(builder, llvm.offset(builder, target, 32 * half), narrow, 2)
        return
    for half, of in enumerate(words):
        low = builder.trunc(of, BVEC)
        high = builder.trunc(builder.ashr(builder.add(of, const(128)), const(8)), BVEC)
        for place, narrow in ((16 * half, low), (GROUP + 16 * half, high)):
            llvm.store(builder, llvm.offset(builder, target, place), narrow, 1)


def _write_bytes(builder: Any, words: list[Any], target: Any) -> None:
    """A group of 8 bits."""
    for half, of in enumerate(words):
        place = llvm.offset(builder, target, 16 * half)
        llvm.store(builder, place, builder.trunc(of, BVEC), 1)


def _description(
    name: str, size: int, most: int, write: Callable[[Any, list[Any], Any], None]
) -> Any:
    """(source, k, target): a row of k float32 to groups of `size` bytes."""

    def groups(builder: Any, source: Any, target: Any, count: int) -> None:
        whole = _quantized(builder, source, target, size, count, most)
        for group, words in enumerate(whole):
            write(builder, words, llvm.offset(builder, target, group * size))

    def emit(builder: Any, source: Any, k: Any, target: Any) -> None:
        many = builder.udiv(k, ir.Constant(I64, GROUP * _AT_ONCE))
        with cgutils.for_range(builder, many) as loop:
            groups(
                builder,
                llvm.step(builder, source, GROUP * 4 * _AT_ONCE, loop.index),
                llvm.step(builder, target, size * _AT_ONCE, loop.index),
                _AT_ONCE,
            )
        done = builder.mul(many, ir.Constant(I64, _AT_ONCE))
        rest = builder.sub(builder.udiv(k, ir.Constant(I64, GROUP)), done)
        source, target = (
            llvm.step(builder, source, GROUP * 4, done),
            llvm.step(builder, target, size, done),
        )
        with cgutils.for_range(builder, rest) as loop:
            groups(
                builder,
                llvm.step(builder, source, GROUP * 4, loop.index),
                llvm.step(builder, target, size, loop.index),
                1,
            )

    emit.__name__ = name
    return operation(void, i64, i64, i64)(emit)


describe_whole = _description("describe_whole", WHOLE_BYTES, _MOST, _write_whole)
describe_bytes = _description("describe_bytes", BYTE_BYTES, 127, _write_bytes)


@kernel
def describe_dense(source: int, k: int, target: int) -> None:
    """A row of k float32 to elements."""
    for i in range(0, k, LANES):
        store_elements(target + i * ELEMENT, load(source + i * 4))
