"""What gates do to values, of vectors: see `kernels.api.Activation`."""

from __future__ import annotations

from typing import Any, get_args

from asgl.kernels.api import Activation
from asgl.kernels.cpu.simd import (
    add,
    div,
    exp,
    fma,
    kernel,
    maximum,
    minimum,
    mul,
    splat,
    sub,
)

SILU, GELU_TANH, CLAMPED = range(3)
CODES: dict[str, int] = {name: code for code, name in enumerate(get_args(Activation))}
"""As compiled code knows them."""


@kernel
def _sigmoid_times(x: Any, factor: float) -> Any:
    """x * sigmoid(factor * x)."""
    return div(x, add(splat(1.0), exp(mul(x, splat(-factor)))))


@kernel
def tanh(x: Any) -> Any:
    """To about 1e-7 of 1."""
    return sub(splat(1.0), div(splat(2.0), add(exp(add(x, x)), splat(1.0))))


@kernel
def gated(gate: Any, up: Any, activation: int) -> Any:
    """The gate's activation, times up."""
    if activation == SILU:
        return mul(_sigmoid_times(gate, 1.0), up)
    if activation == GELU_TANH:
        # gelu(x) = x * sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3))
        cubic = fma(mul(gate, gate), splat(0.044715), splat(1.0))
        inner = mul(mul(gate, cubic), splat(-1.5957691216))
        return mul(div(gate, add(splat(1.0), exp(inner))), up)
    bounded = minimum(gate, splat(7.0))
    value = maximum(splat(-7.0), minimum(up, splat(7.0)))
    return mul(_sigmoid_times(bounded, 1.702), add(value, splat(1.0)))
