"""A small vocabulary of vectors for Numba: 16 lanes of float32 (`f32x16`) or of 32-bit words
(`i32x16`).

Numba compiles scalar code and hopes that LLVM finds vectors in it; accumulators then live in
memory. Here a vector is a Numba type whose operations are LLVM vector instructions (those of
`llvm`), so that it stays in a register. On processors with narrower vectors LLVM splits each
operation. Memory is named by its address in bytes (an int64): no array is boxed, typed or checked
on the way in, which is most of the cost of calling a small kernel. Nothing here checks bounds:
callers validate before they launch.

bfloat16 is the upper half of a float32; a word holds a pair of them, the first in the low half.
`dot` multiplies pairs where the processor can (`TARGET.bf16_dot`); elsewhere a word is one float32
and `dot` is a multiply-add, so that a kernel written in words serves both: see `PER_WORD`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from inspect import Parameter, Signature
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, models, register_model

from asgl.kernels.cpu import llvm
from asgl.kernels.cpu.llvm import F32, FVEC, I16, I32, I64, IVEC, LANES, const
from asgl.kernels.cpu.target import TARGET

kernel = njit(nogil=True, error_model="numpy")
"""Decorates every function that kernels call: compiled with its callers, never called from
Python."""


class _Vector(types.Type):
    def __init__(self, name: str, kind: Any) -> None:
        super().__init__(name)
        self.kind = kind


@register_model(_Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: Any) -> None:
        super().__init__(manager, fe_type, fe_type.kind)


f32x16, i32x16 = _Vector("f32x16", FVEC), _Vector("i32x16", IVEC)
f32, i64, void = types.float32, types.int64, types.void


def operation(result: Any, *parameters: Any) -> Callable[[Callable[..., Any]], Any]:
    """Makes a Numba intrinsic of a function that emits LLVM instructions: emit(builder, *values) ->
    value."""

    def decorate(emit: Callable[..., Any]) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            value = emit(builder, *args)
            return context.get_dummy_value() if result is void else value

        def definition(typingctx: Any, *arguments: Any) -> Any:
            return result(*parameters), codegen

        # Numba derives the number of arguments from the signature of the definition
        names = ["typingctx", *(f"argument_{i}" for i in range(len(parameters)))]
        definition.__signature__ = Signature(  # pyright: ignore[reportFunctionMemberAccess]
            [Parameter(name, Parameter.POSITIONAL_ONLY) for name in names]
        )
        definition.__name__ = definition.__qualname__ = emit.__name__
        definition.__doc__ = emit.__doc__
        return intrinsic(definition)

    return decorate


def rows_operation(
    sizes: Sequence[int], *, moving: int, fixed: int
) -> Callable[[Callable[..., None]], Any]:
    """Makes an operation over any number of rows of a function that emits one over a given number:
    emit(builder, number of rows, *values).

    The operation takes the number of rows, `moving` pairs of an address and the distance from row
    to row, and `fixed` values that are the same for all rows: all int64. It goes over the rows in
    blocks, see `llvm.in_blocks` for their `sizes`.
    """

    def decorate(emit: Callable[..., None]) -> Any:
        def over_rows(builder: Any, rows: Any, *values: Any) -> None:
            addresses, steps = values[: 2 * moving : 2], values[1 : 2 * moving : 2]

            def block(first: Any, size: int) -> None:
                pairs = [
                    value
                    for address, step in zip(addresses, steps, strict=True)
                    for value in (llvm.step(builder, address, step, first), step)
                ]
                emit(builder, size, *pairs, *values[2 * moving :])

            llvm.in_blocks(builder, rows, sizes, block)

        over_rows.__name__ = emit.__name__
        return operation(void, *[i64] * (1 + 2 * moving + fixed))(over_rows)

    return decorate


# --- memory ---


@operation(f32, i64)
def get_f32(builder: Any, address: Any) -> Any:
    """The float32 at an address."""
    return llvm.load(builder, address, F32, 4)


@operation(i64, i64)
def get_i32(builder: Any, address: Any) -> Any:
    """The int32 at an address, widened."""
    return builder.sext(llvm.load(builder, address, I32, 4), I64)


@operation(i64, i64)
def get_i64(builder: Any, address: Any) -> Any:
    """The int64 at an address."""
    return llvm.load(builder, address, I64, 8)


@operation(i64, i64)
def get_word(builder: Any, address: Any) -> Any:
    """The word of 32 bits at an address, unsigned."""
    return builder.zext(llvm.load(builder, address, I32, 1), I64)


@operation(void, i64, i64)
def set_word(builder: Any, address: Any, value: Any) -> None:
    """Stores the low 32 bits."""
    llvm.store(builder, address, builder.trunc(value, I32), 4)


@operation(i64, i64)
def get_half(builder: Any, address: Any) -> Any:
    """The 16 bits at an address, unsigned."""
    return builder.zext(llvm.load(builder, address, I16, 2), I64)


@operation(void, i64, i64)
def set_half(builder: Any, address: Any, value: Any) -> None:
    """Stores the low 16 bits."""
    llvm.store(builder, address, builder.trunc(value, I16), 2)


@operation(f32, i64)
def f16_to_f32(builder: Any, bits: Any) -> Any:
    """The float16 that these bits are."""
    lanes = llvm.half_to_f32(builder, llvm.splat(builder, builder.trunc(bits, I16)))
    return builder.extract_element(lanes, ir.Constant(I32, 0))


@operation(f32, i64)
def bf16_to_f32(builder: Any, bits: Any) -> Any:
    """The bfloat16 that these bits are."""
    return builder.bitcast(builder.shl(builder.trunc(bits, I32), ir.Constant(I32, 16)), F32)


@operation(types.CPointer(types.int64), i64)
def int64_at(builder: Any, address: Any) -> Any:
    """An address as a pointer, for `numba.carray`."""
    return llvm.pointer(builder, address, I64)


@operation(void, i64, f32)
def set_f32(builder: Any, address: Any, value: Any) -> None:
    """Stores a float32."""
    llvm.store(builder, address, value, 4)


@operation(void, i64, i64)
def set_i64(builder: Any, address: Any, value: Any) -> None:
    """Stores an int64."""
    llvm.store(builder, address, value, 8)


@operation(f32x16, i64)
def load(builder: Any, address: Any) -> Any:
    """16 float32."""
    return llvm.load(builder, address, FVEC, 4)


@operation(void, i64, f32x16)
def store(builder: Any, address: Any, value: Any) -> None:
    """Stores 16 float32."""
    llvm.store(builder, address, value, 4)


@operation(i32x16, i64)
def load_words(builder: Any, address: Any) -> Any:
    """16 words."""
    return llvm.load(builder, address, IVEC, 4)


@operation(void, i64, i32x16)
def store_words(builder: Any, address: Any, value: Any) -> None:
    """Stores 16 words."""
    llvm.store(builder, address, value, 4)


@operation(f32x16, i64)
def load_bf16(builder: Any, address: Any) -> Any:
    """16 bfloat16, widened to float32."""
    return builder.bitcast(llvm.load_bf16(builder, address), FVEC)


@operation(void, i64, f32x16)
def store_bf16(builder: Any, address: Any, value: Any) -> None:
    """Stores 16 bfloat16, rounded to nearest even."""
    llvm.store_bf16(builder, address, value)


@operation(void, i64, f32x16)
def store_elements(builder: Any, address: Any, value: Any) -> None:
    """Stores 16 elements for `dot`: bfloat16 where words are pairs, else float32."""
    if TARGET.bf16_dot:
        llvm.store_bf16(builder, address, value)
    else:
        llvm.store(builder, address, value, 4)


# --- arithmetic ---


@operation(f32x16, f32)
def splat(builder: Any, scalar: Any) -> Any:
    """The scalar in every lane."""
    return llvm.splat(builder, scalar)


@operation(f32x16)
def zero(builder: Any) -> Any:
    """0 in every lane."""
    return const(0.0, FVEC)


@operation(f32x16, f32x16, f32x16, f32x16)
def fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c"""
    return llvm.fma(builder, a, b, c)


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


@operation(f32x16, f32x16, f32x16)
def maximum(builder: Any, a: Any, b: Any) -> Any:
    """The greater lanes; b's where either is NaN."""
    return llvm.maximum(builder, a, b)


@operation(f32x16, f32x16, f32x16)
def minimum(builder: Any, a: Any, b: Any) -> Any:
    """The lesser lanes; a's where either is NaN."""
    return builder.select(builder.fcmp_ordered(">", a, b), b, a)


@operation(f32x16, f32x16, i64, f32)
def keep_first(builder: Any, value: Any, count: Any, filler: Any) -> Any:
    """The first `count` lanes (all, if it is 16 or more; none, if it is 0 or less), and `filler` in
    the others."""
    lanes = ir.Constant(IVEC, list(range(LANES)))
    high, low = ir.Constant(I64, LANES), ir.Constant(I64, 0)
    count = builder.select(builder.icmp_signed("<", count, high), count, high)
    count = builder.select(builder.icmp_signed(">", count, low), count, low)
    mask = builder.icmp_signed("<", lanes, llvm.splat(builder, builder.trunc(count, I32)))
    return builder.select(mask, value, llvm.splat(builder, filler))


@operation(f32x16, f32x16, i64, f32)
def drop_first(builder: Any, value: Any, count: Any, filler: Any) -> Any:
    """`filler` in the first `count` lanes (all, if it is 16 or more; none, if it is 0 or less), and
    the others as they are."""
    lanes = ir.Constant(IVEC, list(range(LANES)))
    high, low = ir.Constant(I64, LANES), ir.Constant(I64, 0)
    count = builder.select(builder.icmp_signed("<", count, high), count, high)
    count = builder.select(builder.icmp_signed(">", count, low), count, low)
    mask = builder.icmp_signed(">=", lanes, llvm.splat(builder, builder.trunc(count, I32)))
    return builder.select(mask, value, llvm.splat(builder, filler))


@operation(f32, f32x16)
def total(builder: Any, value: Any) -> Any:
    """The sum of the lanes, always in the same order."""
    return llvm.reduce(builder, value, lambda b, low, high: b.fadd(low, high))


@operation(f32, f32x16)
def greatest(builder: Any, value: Any) -> Any:
    """The greatest lane."""
    return llvm.reduce(builder, value, llvm.maximum)


@operation(f32x16, f32x16)
def exp(builder: Any, x: Any) -> Any:
    """e^x to about 2 ulp: 0 below -87.3 (-inf too), e^88 above 88."""
    return llvm.exp(builder, x)


@operation(f32, f32)
def exp_scalar(builder: Any, x: Any) -> Any:
    """`exp` of one number, bit for bit what a lane would give."""
    return builder.extract_element(llvm.exp(builder, llvm.splat(builder, x)), ir.Constant(I32, 0))


@operation(types.boolean, f32x16, f32x16)
def any_less(builder: Any, a: Any, b: Any) -> Any:
    """Whether a < b in some lane; NaN is not less."""
    lanes = builder.bitcast(builder.fcmp_ordered("<", a, b), ir.IntType(LANES))
    return builder.icmp_unsigned("!=", lanes, ir.Constant(lanes.type, 0))


@operation(i32x16, i64)
def words_from(builder: Any, first: Any) -> Any:
    """The words first, first + 1, ..., first + 15."""
    lanes = ir.Constant(IVEC, list(range(LANES)))
    return builder.add(llvm.splat(builder, builder.trunc(first, I32)), lanes)


@operation(f32x16, i32x16, i64)
def uniform(builder: Any, tokens: Any, key: Any) -> Any:
    """The random number of each token under a key: u of `asgl.kernels.noise`."""
    low = builder.trunc(key, I32)
    high = builder.trunc(builder.lshr(key, ir.Constant(I64, 32)), I32)
    return llvm.uniform(builder, tokens, llvm.splat(builder, low), llvm.splat(builder, high))


@operation(f32, i64, i64)
def uniform_scalar(builder: Any, token: Any, key: Any) -> Any:
    """`uniform` of one token, bit for bit what a lane would give."""
    low = builder.trunc(key, I32)
    high = builder.trunc(builder.lshr(key, ir.Constant(I64, 32)), I32)
    words = (llvm.splat(builder, word) for word in (builder.trunc(token, I32), low, high))
    return builder.extract_element(llvm.uniform(builder, *words), ir.Constant(I32, 0))


# --- threads ---


@operation(types.boolean, i64, i64, i64)
def compare_and_swap(builder: Any, address: Any, old: Any, new: Any) -> Any:
    """Puts `new` at an address if `old` is there, atomically; returns whether it did."""
    pair = builder.cmpxchg(llvm.pointer(builder, address, I64), old, new, "acq_rel", "acquire")
    return builder.extract_value(pair, 1)


@operation(void, i64, i64)
def set_shared(builder: Any, address: Any, value: Any) -> None:
    """Stores an int64 that other threads read: they then see what was written before it."""
    builder.store_atomic(value, llvm.pointer(builder, address, I64), "release", 8)


@operation(i64, i64)
def get_shared(builder: Any, address: Any) -> Any:
    """The int64 at an address that other threads write: what they wrote before it is seen too."""
    return builder.load_atomic(llvm.pointer(builder, address, I64), "acquire", 8, typ=I64)


@operation(void)
def pause(builder: Any) -> None:
    """Tells the core that this loop waits."""
    if "x86" in builder.module.triple or not builder.module.triple:
        llvm.call(builder, "llvm.x86.sse2.pause", ir.VoidType())
