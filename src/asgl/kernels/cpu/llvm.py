"""Instructions for code that emits LLVM: each function appends to a builder, and returns the value.

Values are llvmlite's: `FVEC` is 16 float32, `IVEC` 16 words of 32 bits. On processors with narrower
vectors LLVM splits each operation. Memory is named by its address in bytes (an i64). `simd` makes
of these what kernels in Numba call; inner loops whose sums must stay in registers are written in
them directly: see dots.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from asgl.kernels import noise
from asgl.kernels.cpu.target import TARGET

LANES = 16
PER_WORD = 2 if TARGET.bf16_dot else 1
"""Elements of a dot product in one 32-bit word: two bfloat16, or one float32."""
ELEMENT = 4 // PER_WORD
"""Bytes of such an element: what activations and queries are stored in."""

F32, I8, I16, I32, I64 = (
    ir.FloatType(),
    ir.IntType(8),
    ir.IntType(16),
    ir.IntType(32),
    ir.IntType(64),
)
FVEC, IVEC, HVEC = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES), ir.VectorType(I16, LANES)
BVEC = ir.VectorType(I8, LANES)


def const(value: float, kind: Any = IVEC) -> Any:
    """A vector with `value` in every lane."""
    return ir.Constant(kind, [value] * kind.count)


def call(builder: Any, name: str, result: Any, *values: Any) -> Any:
    """Calls an LLVM intrinsic by name."""
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(result, [v.type for v in values]), name
    )
    return builder.call(function, values)


def pointer(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def offset(builder: Any, base: Any, distance: int) -> Any:
    """The address so many bytes after another."""
    return builder.add(base, ir.Constant(I64, distance)) if distance else base


def step(builder: Any, base: Any, size: Any, index: Any) -> Any:
    """base + size * index, of which `size` and `index` may be int."""
    size, index = (v if isinstance(v, ir.Value) else ir.Constant(I64, v) for v in (size, index))
    return builder.add(base, builder.mul(size, index))


def load(builder: Any, address: Any, kind: Any, align: int) -> Any:
    return builder.load(pointer(builder, address, kind), align=align, typ=kind)


def store(builder: Any, address: Any, value: Any, align: int) -> None:
    builder.store(value, pointer(builder, address, value.type), align=align)


def load_bf16(builder: Any, address: Any) -> Any:
    """16 bfloat16 as the words of the same float32."""
    return builder.shl(builder.zext(load(builder, address, HVEC, 2), IVEC), const(16))


def store_bf16(builder: Any, address: Any, value: Any) -> None:
    """Stores 16 float32 as bfloat16, rounded to nearest even."""
    if TARGET.bf16_dot:
        halves = call(builder, "llvm.x86.avx512bf16.cvtneps2bf16.512", HVEC, value)
    else:
        halves = builder.trunc(builder.lshr(round_bf16(builder, value), const(16)), HVEC)
    store(builder, address, halves, 2)


def prefetch(builder: Any, address: Any) -> None:
    """Asks for the line at an address, which need not be one of ours."""
    byte = I8.as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    builder.call(
        function,
        [builder.inttoptr(address, byte), *(ir.Constant(I32, value) for value in (0, 3, 1))],
    )


def splat(builder: Any, scalar: Any, lanes: int = LANES) -> Any:
    kind = ir.VectorType(scalar.type, lanes)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(
        first, ir.Constant(kind, ir.Undefined), const(0, ir.VectorType(I32, lanes))
    )


def in_blocks(
    builder: Any, rows: Any, sizes: Sequence[int], emit: Callable[[Any, int], None]
) -> None:
    """Emits a loop that takes `rows` rows (0 or more) in blocks.

    `sizes[left - 1]` is how many rows the next block takes if `left` of them are left, `sizes[-1]`
    if there are more. `emit(first row, size)` emits a block, once for each size there is.
    """
    zero = ir.Constant(I64, 0)
    at = cgutils.alloca_once(builder, I64)
    head, done = builder.append_basic_block("blocks"), builder.append_basic_block("done")
    blocks = {size: builder.append_basic_block(f"rows_{size}") for size in sorted(set(sizes))}
    builder.store(zero, at)
    builder.branch(head)
    builder.position_at_end(head)
    first = builder.load(at, typ=I64)
    switch = builder.switch(builder.sub(rows, first), blocks[sizes[-1]])
    for left, block in enumerate([done, *(blocks[size] for size in sizes[:-1])]):
        switch.add_case(ir.Constant(I64, left), block)
    for size, block in blocks.items():
        builder.position_at_end(block)
        emit(first, size)
        builder.store(offset(builder, first, size), at)
        builder.branch(head)
    builder.position_at_end(done)


def fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    # fmuladd, not fma: without an FMA unit the latter is a call into the C library for every lane
    return call(builder, "llvm.fmuladd.v16f32", FVEC, a, b, c)


def dot(builder: Any, accumulator: Any, a: Any, b: Any) -> Any:
    """accumulator + a . b for each lane's word (two products of bfloat16, or one of float32)."""
    if TARGET.bf16_dot:
        return call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", FVEC, accumulator, a, b)
    return fma(builder, builder.bitcast(a, FVEC), builder.bitcast(b, FVEC), accumulator)


def maximum(builder: Any, a: Any, b: Any) -> Any:
    # compare and select is one instruction everywhere; llvm.maxnum also has to treat NaN
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def reduce(builder: Any, value: Any, combine: Callable[..., Any]) -> Any:
    width = LANES
    while width > 1:
        width //= 2
        halves = (
            ir.Constant(ir.VectorType(I32, width), list(range(start, start + width)))
            for start in (0, width)
        )
        low, high = (builder.shuffle_vector(value, value, half) for half in halves)
        value = combine(builder, low, high)
    return builder.extract_element(value, ir.Constant(I32, 0))


# exp(x) = 2^n exp(r), r = x - n ln 2 in [-ln 2 / 2, ln 2 / 2], by the polynomial of Cephes' expf: 2
# ulp.
_LOG2E, _LN2_HIGH, _LN2_LOW = 1.44269504088896341, 0.693359375, -2.12194440e-4
_EXP = (
    1.9875691500e-4,
    1.3981999507e-3,
    8.3334519073e-3,
    4.1665795894e-2,
    1.6666665459e-1,
    5.0000001201e-1,
)
_EXP_MAX, _EXP_MIN = 88.0, -87.3


def exp(builder: Any, x: Any) -> Any:
    tiny = builder.fcmp_ordered("<", x, const(_EXP_MIN, FVEC))
    x = builder.select(
        builder.fcmp_ordered(">", x, const(_EXP_MAX, FVEC)), const(_EXP_MAX, FVEC), x
    )
    x = builder.select(tiny, const(_EXP_MIN, FVEC), x)
    # adding 1.5 * 2^23 rounds to the nearest integer, which then stands in the low bits
    shifted = fma(builder, x, const(_LOG2E, FVEC), const(12582912.0, FVEC))
    n = builder.fsub(shifted, const(12582912.0, FVEC))
    r = fma(builder, n, const(-_LN2_HIGH, FVEC), x)
    r = fma(builder, n, const(-_LN2_LOW, FVEC), r)
    polynomial = const(_EXP[0], FVEC)
    for coefficient in _EXP[1:]:
        polynomial = fma(builder, polynomial, r, const(coefficient, FVEC))
    value = fma(builder, polynomial, builder.fmul(r, r), builder.fadd(r, const(1.0, FVEC)))
    exponent = builder.shl(builder.bitcast(shifted, IVEC), const(23))
    value = builder.bitcast(builder.add(builder.bitcast(value, IVEC), exponent), FVEC)
    return builder.select(tiny, const(0.0, FVEC), value)


def uniform(builder: Any, tokens: Any, low: Any, high: Any) -> Any:
    """float32 in (0, 1) for words that are the ids of tokens, and the halves of a key: see
    `asgl.kernels.noise`, where it is u."""

    def xor_shift(x: Any, count: int) -> Any:
        return builder.xor(x, builder.lshr(x, const(count)))

    x = builder.add(builder.mul(tokens, const(noise.WEYL)), low)
    x = builder.mul(xor_shift(x, 16), const(noise.FIRST))
    x = builder.mul(builder.xor(xor_shift(x, 15), high), const(noise.SECOND))
    x = builder.lshr(xor_shift(x, 15), const(1))
    halfway = builder.fadd(builder.sitofp(x, FVEC), const(0.5, FVEC))
    u = builder.fmul(halfway, const(noise.STEP, FVEC))
    below_one = const(1 - 2.0**-24, FVEC)  # what is above that was rounded to 1
    return builder.select(builder.fcmp_ordered("<", u, below_one), u, below_one)


def half_to_f32(builder: Any, halves: Any) -> Any:
    """16 float16 (as i16) to float32: exactly, but for infinities where there are no F16C
    instructions."""
    if TARGET.half_conversion:
        return builder.fpext(builder.bitcast(halves, ir.VectorType(ir.HalfType(), LANES)), FVEC)
    wide = builder.zext(halves, IVEC)
    magnitude = builder.shl(builder.and_(wide, const(0x7FFF)), const(13))
    scaled = builder.fmul(builder.bitcast(magnitude, FVEC), const(2.0**112, FVEC))
    sign = builder.shl(builder.and_(wide, const(0x8000)), const(16))
    return builder.bitcast(builder.or_(builder.bitcast(scaled, IVEC), sign), FVEC)


def round_bf16(builder: Any, value: Any) -> Any:
    """Words whose upper halves are the lanes rounded to bfloat16, to nearest even; the lower halves
    are rubbish."""
    bits = builder.bitcast(value, IVEC)
    odd = builder.and_(builder.lshr(bits, const(16)), const(1))
    return builder.add(bits, builder.add(odd, const(0x7FFF)))


def transpose(builder: Any, rows: list[Any]) -> list[Any]:
    """16 vectors of 16 words, transposed, in four rounds of butterflies."""
    step = 1
    while step < LANES:
        for first in range(LANES):
            if first & step:
                continue
            second = first + step
            keep, swap = [], []
            for lane in range(LANES):
                if lane & step:
                    keep.append(LANES + lane - step)
                    swap.append(LANES + lane)
                else:
                    keep.append(lane)
                    swap.append(lane + step)
            a, b = rows[first], rows[second]
            rows[first] = builder.shuffle_vector(a, b, ir.Constant(IVEC, keep))
            rows[second] = builder.shuffle_vector(a, b, ir.Constant(IVEC, swap))
        step *= 2
    return rows
