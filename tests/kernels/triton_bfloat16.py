"""bfloat16 in Triton's interpreter, as GPUs compute it. For tests only.

The interpreter (3.9) keeps bfloat16 as its bits in uint16, and then computes with these integers;
its casts to bfloat16 cut instead of rounding to the nearest even. Here every operation that takes
bfloat16 computes on float32 copies, and casts round. tests/kernels/triton/test_bfloat16.py has a
canary that fails once Triton does this itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpreterBuilder, ReduceOps, ScanOps, TensorHandle


def to_float32(bits: np.ndarray) -> np.ndarray:
    """The numbers of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_bits(numbers: np.ndarray) -> np.ndarray:
    """The bits of the nearest bfloat16 numbers, of two as near the even one; NaN stays NaN."""
    numbers = np.ascontiguousarray(numbers, dtype=np.float32)
    word = numbers.view(np.uint32)
    rounded = ((word + 0x7FFF + ((word >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(numbers), np.uint16(0x7FC0), rounded)


def _is_bfloat16(handle: Any) -> bool:
    return isinstance(handle, TensorHandle) and handle.dtype == tl.bfloat16


def _widened(handle: Any) -> Any:
    return TensorHandle(to_float32(handle.data), tl.float32) if _is_bfloat16(handle) else handle


def _narrowed(handle: Any) -> Any:
    return TensorHandle(to_bits(handle.data), tl.bfloat16)


def _on_float32(method: Callable[..., Any]) -> Callable[..., Any]:
    """Arithmetic whose result has the type of its arguments."""

    def operation(self: InterpreterBuilder, *handles: Any) -> Any:
        if not any(_is_bfloat16(handle) for handle in handles):
            return method(self, *handles)
        result = method(self, *(_widened(handle) for handle in handles))
        return _narrowed(result) if result.data.dtype.kind == "f" else result

    return operation


def _cast(method: Callable[..., Any]) -> Callable[..., Any]:
    def cast(self: InterpreterBuilder, source: TensorHandle, kind: Any, *rest: Any) -> TensorHandle:
        if not _is_bfloat16(source) and kind.scalar != tl.bfloat16:
            return method(self, source, kind, *rest)
        numbers = _widened(source).data
        if kind.scalar == tl.bfloat16:
            return TensorHandle(to_bits(numbers), tl.bfloat16)
        return TensorHandle(numbers.astype(interpreter._get_np_dtype(kind)), kind.scalar)

    return cast


def _dot(method: Callable[..., Any]) -> Callable[..., Any]:
    def dot(self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, *rest: Any) -> TensorHandle:
        return method(self, _widened(a), _widened(b), *rest)

    return dot


def _reduce(method: Callable[..., Any]) -> Callable[..., Any]:
    def apply(self: Any, inputs: Any) -> Any:
        tensors = inputs if isinstance(inputs, tuple) else (inputs,)
        if any(tensor.dtype.scalar == tl.bfloat16 for tensor in tensors):
            raise NotImplementedError(
                "reduce in float32: the interpreter would reduce the bits of bfloat16"
            )
        return method(self, inputs)

    return apply


_ARITHMETIC = (
    "create_fadd",
    "create_fsub",
    "create_fmul",
    "create_fdiv",
    "create_precise_divf",
    "create_approx_divf",
    "create_fneg",
    "create_fma",
    "create_exp",
    "create_exp2",
    "create_log",
    "create_log2",
    "create_sqrt",
    "create_rsqrt",
    "create_minnumf",
    "create_maxnumf",
    "create_minimumf",
    "create_maximumf",
    "create_fcmpOLT",
    "create_fcmpOGT",
    "create_fcmpOLE",
    "create_fcmpOGE",
    "create_fcmpOEQ",
    "create_fcmpUNE",
)
_CASTS = (
    "create_fp_ext",
    "create_fp_trunc",
    "create_fp_to_fp",
    "create_fp_to_si",
    "create_fp_to_ui",
    "create_si_to_fp",
    "create_ui_to_fp",
)


def repair() -> None:
    """Patches the interpreter of this process, once."""
    if getattr(InterpreterBuilder, "_asgl_bfloat16", False):
        return
    for name in _ARITHMETIC:
        setattr(InterpreterBuilder, name, _on_float32(getattr(InterpreterBuilder, name)))
    for name in _CASTS:
        setattr(InterpreterBuilder, name, _cast(getattr(InterpreterBuilder, name)))
    InterpreterBuilder.create_dot = _dot(InterpreterBuilder.create_dot)
    for kind in (ReduceOps, ScanOps):
        kind.apply = _reduce(kind.apply)
    InterpreterBuilder._asgl_bfloat16 = True
