"""A small vocabulary of vectors for Numba: 16 lanes of float32 (`f32x16`) or of 32-bit words (`i32x16`).

Numba compiles scalar code and hopes that LLVM finds vectors in it; accumulators then live in memory. Here a vector is a Numba
type whose operations are LLVM vector instructions, so that it stays in a register. On processors with narrower vectors LLVM
splits each operation. Memory is named by its address in bytes (an int64): no array is boxed, typed or checked on the way in,
which is most of the cost of calling a small kernel. Nothing here checks bounds: callers validate before they launch.

bfloat16 is the upper half of a float32; a word holds a pair of them, the first in the low half. `dot` multiplies pairs where
the processor can (`TARGET.bf16_dot`); elsewhere a word is one float32 and `dot` is a multiply-add, so that a kernel written in
words serves both: see `PER_WORD`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from asgl.kernels.cpu.target import TARGET

kernel = njit(nogil=True, error_model="numpy")
"""Decorates every function that kernels call: compiled with its callers, never called from Python."""

LANES = 16
PER_WORD = 2 if TARGET.bf16_dot else 1
"""Elements of a dot product in one 32-bit word: two bfloat16, or one float32."""
ELEMENT = 4 // PER_WORD
"""Bytes of such an element: what activations and queries are stored in."""

F32, I8, I16, I32, I64 = ir.FloatType(), ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64)
F64 = ir.DoubleType()
FVEC, IVEC, HVEC = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES), ir.VectorType(I16, LANES)
BVEC = ir.VectorType(I8, LANES)


class _Vector(types.Type):
    pass


class _FloatVector(_Vector):
    def __init__(self) -> None:
        super().__init__("f32x16")


class _WordVector(_Vector):
    def __init__(self) -> None:
        super().__init__("i32x16")


@register_model(_FloatVector)
class _FloatVectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, FVEC)


@register_model(_WordVector)
class _WordVectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, IVEC)


f32x16, i32x16 = _FloatVector(), _WordVector()
f32, f64, i32, i64, void = types.float32, types.float64, types.int32, types.int64, types.void

# Numba derives the arity of an intrinsic from the signature of its definition.
_ARITY: dict[int, Callable[[Any], Any]] = {
    0: lambda sig: lambda typingctx: sig,
    1: lambda sig: lambda typingctx, a: sig,
    2: lambda sig: lambda typingctx, a, b: sig,
    3: lambda sig: lambda typingctx, a, b, c: sig,
    4: lambda sig: lambda typingctx, a, b, c, d: sig,
    5: lambda sig: lambda typingctx, a, b, c, d, e: sig,
    6: lambda sig: lambda typingctx, a, b, c, d, e, f: sig,
    7: lambda sig: lambda typingctx, a, b, c, d, e, f, g: sig,
    8: lambda sig: lambda typingctx, a, b, c, d, e, f, g, h: sig,
    9: lambda sig: lambda typingctx, a, b, c, d, e, f, g, h, i: sig,
}


def operation(result: Any, *parameters: Any) -> Callable[[Callable[..., Any]], Any]:
    """Makes a Numba intrinsic of a function that emits LLVM instructions: emit(builder, *values) -> value."""

    def decorate(emit: Callable[..., Any]) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            value = emit(builder, *args)
            return context.get_dummy_value() if result is void else value

        definition = _ARITY[len(parameters)]((result(*parameters), codegen))
        definition.__name__ = definition.__qualname__ = emit.__name__
        definition.__doc__ = emit.__doc__
        return intrinsic(definition)

    return decorate


# --- instructions, as kernels that emit LLVM themselves use them (see dots.py) ---


def const(value: float, kind: Any = IVEC) -> Any:
    """A vector with `value` in every lane."""
    return ir.Constant(kind, [value] * kind.count)


def call(builder: Any, name: str, result: Any, *values: Any) -> Any:
    """Calls an LLVM intrinsic by name."""
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, [v.type for v in values]), name)
    return builder.call(function, values)


def pointer(builder: Any, address: Any, kind: Any) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def emit_load(builder: Any, address: Any, kind: Any, align: int) -> Any:
    return builder.load(pointer(builder, address, kind), align=align, typ=kind)


def emit_store(builder: Any, address: Any, value: Any, align: int) -> None:
    builder.store(value, pointer(builder, address, value.type), align=align)


def emit_prefetch(builder: Any, address: Any) -> None:
    """Asks for the line at an address, which need not be one of ours."""
    byte = I8.as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32])
    prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    builder.call(prefetch, [builder.inttoptr(address, byte), *(ir.Constant(I32, value) for value in (0, 3, 1))])


def emit_splat(builder: Any, scalar: Any, lanes: int = LANES) -> Any:
    kind = ir.VectorType(scalar.type, lanes)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), const(0, ir.VectorType(I32, lanes)))


def emit_fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    # fmuladd, not fma: without an FMA unit the latter is a call into the C library for every lane
    return call(builder, "llvm.fmuladd.v16f32", FVEC, a, b, c)


def emit_dot(builder: Any, accumulator: Any, a: Any, b: Any) -> Any:
    """accumulator + a . b for each lane's word (two products of bfloat16, or one of float32)."""
    if TARGET.bf16_dot:
        return call(builder, "llvm.x86.avx512bf16.dpbf16ps.512", FVEC, accumulator, a, b)
    return emit_fma(builder, builder.bitcast(a, FVEC), builder.bitcast(b, FVEC), accumulator)


def emit_half_to_f32(builder: Any, halves: Any) -> Any:
    """16 float16 (as i16) to float32: exactly, but for infinities where there are no F16C instructions."""
    if TARGET.half_conversion:
        return builder.fpext(builder.bitcast(halves, ir.VectorType(ir.HalfType(), LANES)), FVEC)
    wide = builder.zext(halves, IVEC)
    magnitude = builder.shl(builder.and_(wide, const(0x7FFF)), const(13))
    scaled = builder.fmul(builder.bitcast(magnitude, FVEC), const(2.0**112, FVEC))
    sign = builder.shl(builder.and_(wide, const(0x8000)), const(16))
    return builder.bitcast(builder.or_(builder.bitcast(scaled, IVEC), sign), FVEC)


def emit_round_bf16(builder: Any, value: Any) -> Any:
    """Words whose upper halves are the lanes rounded to bfloat16, to nearest even; the lower halves are rubbish."""
    bits = builder.bitcast(value, IVEC)
    odd = builder.and_(builder.lshr(bits, const(16)), const(1))
    return builder.add(bits, builder.add(odd, const(0x7FFF)))


# --- memory ---


@operation(f32, i64)
def get_f32(builder: Any, address: Any) -> Any:
    """The float32 at an address."""
    return emit_load(builder, address, F32, 4)


@operation(i64, i64)
def get_i32(builder: Any, address: Any) -> Any:
    """The int32 at an address, widened."""
    return builder.sext(emit_load(builder, address, I32, 4), I64)


@operation(i64, i64)
def get_i64(builder: Any, address: Any) -> Any:
    """The int64 at an address."""
    return emit_load(builder, address, I64, 8)


@operation(f64, i64)
def get_f64(builder: Any, address: Any) -> Any:
    """The float64 at an address."""
    return emit_load(builder, address, F64, 8)


@operation(types.CPointer(types.int64), i64)
def int64_at(builder: Any, address: Any) -> Any:
    """An address as a pointer, for `numba.carray`."""
    return pointer(builder, address, I64)


@operation(void, i64, f32)
def set_f32(builder: Any, address: Any, value: Any) -> None:
    """Stores a float32."""
    emit_store(builder, address, value, 4)


@operation(void, i64, i32)
def set_i32(builder: Any, address: Any, value: Any) -> None:
    """Stores an int32."""
    emit_store(builder, address, value, 4)


@operation(void, i64, i64)
def set_i64(builder: Any, address: Any, value: Any) -> None:
    """Stores an int64."""
    emit_store(builder, address, value, 8)


@operation(f32x16, i64)
def load(builder: Any, address: Any) -> Any:
    """16 float32."""
    return emit_load(builder, address, FVEC, 4)


@operation(void, i64, f32x16)
def store(builder: Any, address: Any, value: Any) -> None:
    """Stores 16 float32."""
    emit_store(builder, address, value, 4)


@operation(i32x16, i64)
def load_words(builder: Any, address: Any) -> Any:
    """16 words."""
    return emit_load(builder, address, IVEC, 4)


@operation(void, i64, i32x16)
def store_words(builder: Any, address: Any, value: Any) -> None:
    """Stores 16 words."""
    emit_store(builder, address, value, 4)


@operation(f32x16, i64)
def load_bf16(builder: Any, address: Any) -> Any:
    """16 bfloat16, widened to float32."""
    wide = builder.zext(emit_load(builder, address, HVEC, 2), IVEC)
    return builder.bitcast(builder.shl(wide, const(16)), FVEC)


@operation(f32x16, i64)
def load_half(builder: Any, address: Any) -> Any:
    """16 float16, widened to float32."""
    return emit_half_to_f32(builder, emit_load(builder, address, HVEC, 2))


@operation(f32x16, i64)
def load_bytes(builder: Any, address: Any) -> Any:
    """16 unsigned bytes, converted to float32."""
    return builder.uitofp(emit_load(builder, address, BVEC, 1), FVEC)


def emit_store_bf16(builder: Any, address: Any, value: Any) -> None:
    if TARGET.bf16_dot:
        halves = call(builder, "llvm.x86.avx512bf16.cvtneps2bf16.512", HVEC, value)
    else:
        halves = builder.trunc(builder.lshr(emit_round_bf16(builder, value), const(16)), HVEC)
    emit_store(builder, address, halves, 2)


@operation(void, i64, f32x16)
def store_bf16(builder: Any, address: Any, value: Any) -> None:
    """Stores 16 bfloat16, rounded to nearest even."""
    emit_store_bf16(builder, address, value)


@operation(void, i64, f32x16)
def store_elements(builder: Any, address: Any, value: Any) -> None:
    """Stores 16 elements for `dot`: bfloat16 where words are pairs, else float32."""
    if TARGET.bf16_dot:
        emit_store_bf16(builder, address, value)
    else:
        emit_store(builder, address, value, 4)


@operation(f32x16, i64)
def load_elements(builder: Any, address: Any) -> Any:
    """16 elements as `store_elements` left them, as float32."""
    if TARGET.bf16_dot:
        return builder.bitcast(builder.shl(builder.zext(emit_load(builder, address, HVEC, 2), IVEC), const(16)), FVEC)
    return emit_load(builder, address, FVEC, 4)


# --- arithmetic ---


@operation(f32x16, f32)
def splat(builder: Any, scalar: Any) -> Any:
    """The scalar in every lane."""
    return emit_splat(builder, scalar)


@operation(f32x16)
def zero(builder: Any) -> Any:
    """0 in every lane."""
    return const(0.0, FVEC)


@operation(f32x16, f32x16, f32x16, f32x16)
def fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c"""
    return emit_fma(builder, a, b, c)


@operation(f32x16, f32x16, f32x16)
def add(builder: Any, a: Any, b: Any) -> Any:
    """a + b"""
    return builder.fadd(a, b)


@operation(f32x16, f32x16, f32x16)
def sub(builder: Any, a: Any, b: Any) -> Any:
    """a - b"""
    return builder.fsub(a, b)


@operation(f32x16, f32x16, f32x16)
def mul(builder: Any, a: Any, b: Any) -> Any:
    """a * b"""
    return builder.fmul(a, b)


@operation(f32x16, f32x16, f32x16)
def div(builder: Any, a: Any, b: Any) -> Any:
    """a / b"""
    return builder.fdiv(a, b)


def emit_max(builder: Any, a: Any, b: Any) -> Any:
    # compare and select is one instruction everywhere; llvm.maxnum also has to treat NaN
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


@operation(f32x16, f32x16, f32x16)
def maximum(builder: Any, a: Any, b: Any) -> Any:
    """The greater lanes; b's where either is NaN."""
    return emit_max(builder, a, b)


@operation(f32x16, f32x16, i64, f32)
def keep_first(builder: Any, value: Any, count: Any, filler: Any) -> Any:
    """The first `count` lanes (all, if it is 16 or more; none, if it is 0 or less), and `filler` in the others."""
    lanes = ir.Constant(IVEC, list(range(LANES)))
    high, low = ir.Constant(I64, LANES), ir.Constant(I64, 0)
    count = builder.select(builder.icmp_signed("<", count, high), count, high)
    count = builder.select(builder.icmp_signed(">", count, low), count, low)
    mask = builder.icmp_signed("<", lanes, emit_splat(builder, builder.trunc(count, I32)))
    return builder.select(mask, value, emit_splat(builder, filler))


def emit_reduce(builder: Any, value: Any, combine: Callable[..., Any]) -> Any:
    width = LANES
    while width > 1:
        width //= 2
        halves = (ir.Constant(ir.VectorType(I32, width), list(range(start, start + width))) for start in (0, width))
        low, high = (builder.shuffle_vector(value, value, half) for half in halves)
        value = combine(builder, low, high)
    return builder.extract_element(value, ir.Constant(I32, 0))


@operation(f32, f32x16)
def total(builder: Any, value: Any) -> Any:
    """The sum of the lanes, always in the same order."""
    return emit_reduce(builder, value, lambda b, low, high: b.fadd(low, high))


@operation(f32, f32x16)
def greatest(builder: Any, value: Any) -> Any:
    """The greatest lane."""
    return emit_reduce(builder, value, emit_max)


# exp(x) = 2^n exp(r), r = x - n ln 2 in [-ln 2 / 2, ln 2 / 2], by the polynomial of Cephes' expf: 2 ulp.
_LOG2E, _LN2_HIGH, _LN2_LOW = 1.44269504088896341, 0.693359375, -2.12194440e-4
_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)
_EXP_MAX, _EXP_MIN = 88.0, -87.3


def emit_exp(builder: Any, x: Any) -> Any:
    tiny = builder.fcmp_ordered("<", x, const(_EXP_MIN, FVEC))
    x = builder.select(builder.fcmp_ordered(">", x, const(_EXP_MAX, FVEC)), const(_EXP_MAX, FVEC), x)
    x = builder.select(tiny, const(_EXP_MIN, FVEC), x)
    # adding 1.5 * 2^23 rounds to the nearest integer, which then stands in the low bits
    shifted = emit_fma(builder, x, const(_LOG2E, FVEC), const(12582912.0, FVEC))
    n = builder.fsub(shifted, const(12582912.0, FVEC))
    r = emit_fma(builder, n, const(-_LN2_HIGH, FVEC), x)
    r = emit_fma(builder, n, const(-_LN2_LOW, FVEC), r)
    polynomial = const(_EXP[0], FVEC)
    for coefficient in _EXP[1:]:
        polynomial = emit_fma(builder, polynomial, r, const(coefficient, FVEC))
    value = emit_fma(builder, polynomial, builder.fmul(r, r), builder.fadd(r, const(1.0, FVEC)))
    exponent = builder.shl(builder.bitcast(shifted, IVEC), const(23))
    value = builder.bitcast(builder.add(builder.bitcast(value, IVEC), exponent), FVEC)
    return builder.select(tiny, const(0.0, FVEC), value)


@operation(f32x16, f32x16)
def exp(builder: Any, x: Any) -> Any:
    """e^x to about 2 ulp: 0 below -87.3 (-inf too), e^88 above 88."""
    return emit_exp(builder, x)


@operation(f32, f32)
def exp_scalar(builder: Any, x: Any) -> Any:
    """`exp` of one number, bit for bit what a lane would give."""
    return builder.extract_element(emit_exp(builder, emit_splat(builder, x)), ir.Constant(I32, 0))


# --- words ---


def emit_pair(builder: Any, low: Any, high: Any) -> Any:
    """Words with bfloat16 of `low` in their lower halves and of `high` in their upper halves, by AVX512-BF16."""
    both = call(builder, "llvm.x86.avx512bf16.cvtne2ps2bf16.512", ir.VectorType(I16, 2 * LANES), high, low)
    order = [index for lane in range(LANES) for index in (lane, LANES + lane)]
    zipped = builder.shuffle_vector(both, both, ir.Constant(ir.VectorType(I32, 2 * LANES), order))
    return builder.bitcast(zipped, IVEC)


def emit_transpose(builder: Any, rows: list[Any]) -> list[Any]:
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


# --- threads ---


@operation(types.boolean, i64, i64, i64)
def compare_and_swap(builder: Any, address: Any, old: Any, new: Any) -> Any:
    """Puts `new` at an address if `old` is there, atomically; returns whether it did."""
    pair = builder.cmpxchg(pointer(builder, address, I64), old, new, "acq_rel", "acquire")
    return builder.extract_value(pair, 1)


@operation(void, i64, i64)
def set_shared(builder: Any, address: Any, value: Any) -> None:
    """Stores an int64 that other threads read: they then see what was written before it."""
    builder.store_atomic(value, pointer(builder, address, I64), "release", 8)


@operation(i64, i64)
def get_shared(builder: Any, address: Any) -> Any:
    """The int64 at an address that other threads write: what they wrote before it is seen too."""
    return builder.load_atomic(pointer(builder, address, I64), "acquire", 8, typ=I64)


@operation(void)
def pause(builder: Any) -> None:
    """Tells the core that this loop waits."""
    if "x86" in builder.module.triple or not builder.module.triple:
        call(builder, "llvm.x86.sse2.pause", ir.VoidType())
