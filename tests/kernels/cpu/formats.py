"""Matrices in every format that model files have, and what their products may be off by."""

from __future__ import annotations

import torch
from torch import Tensor

from asgl.kernels.cpu.integers import arithmetic
from asgl.kernels.cpu.kernels import CpuKernels
from asgl.kernels.quantized import QuantFormat, QuantizedTensor

_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
_MXFP4 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)
FORMATS = {
    "Q4_0": QuantFormat(4, 32, 8, offsets=False),
    "Q4_1": QuantFormat(4, 32),
    "Q5_1": QuantFormat(5, 32),
    "Q6_K": QuantFormat(6, 16, 32, offsets=False),
    "Q8_0": QuantFormat(8, 32, 128, offsets=False),
    "Q2_K": QuantFormat(2, 16),
    "MXFP4": QuantFormat(4, 32, 0, _MXFP4, offsets=False),
}
"""As many as it takes to have each part of a format once."""
OTHERS = {
    "Q3_K": QuantFormat(3, 16, 4, offsets=False),
    "Q5_0": QuantFormat(5, 32, 16, offsets=False),
    "IQ4_NL": QuantFormat(4, 32, 0, _IQ4, offsets=False),
    "GPTQ, 128": QuantFormat(4, 128),
    "int8": QuantFormat(8, 32),
    "groups of 48": QuantFormat(4, 48),
}
SIZES = {
    "Q4_0": 4.5,
    "Q4_1": 5.0,
    "Q4_K": 5.0,
    "Q5_0": 5.5,
    "Q5_1": 6.0,
    "Q6_K": 7.0,
    "Q8_0": 8.5,
    "Q3_K": 5.0,
    "IQ4_NL": 4.5,
    "MXFP4": 4.5,
}
"""The most bits that a weight may take."""


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quantized(name: str, n: int, k: int, *, exact: bool = True) -> QuantizedTensor:
    """With scales that 16 bits hold exactly, unless not `exact`."""
    known = {**FORMATS, **OTHERS, "Q4_K": FORMATS["Q4_1"]}
    bits, group, zero, codebook, offsets = known[name]
    quants = torch.randint(0, 2**bits, (n, k), generator=generator(1), dtype=torch.uint8)
    scale = (torch.rand(n, k // group, generator=generator(2)) + 0.01) / 2**bits
    offset = -torch.rand(n, k // group, generator=generator(3)) if offsets else None
    if name == "MXFP4":
        scale = 2.0 ** torch.randint(-60, 8, scale.shape, generator=generator(4)).float()
    elif exact:
        scale = scale.half().float()
        offset = None if offset is None else offset.half().float()
    return QuantizedTensor(quants, scale, offset, bits, group, zero, codebook)


def inputs(rows: int, k: int) -> Tensor:
    """Rows whose groups of 32 are of very different sizes, and some of them zeros."""
    x = torch.randn(rows, k // 32, 32, generator=generator(5))
    sizes = 10.0 ** torch.randint(-3, 3, (rows, k // 32, 1), generator=generator(6))
    return (x * sizes * (torch.arange(k // 32)[None, :, None] % 5 != 4)).flatten(1)


def rounding(x: Tensor, weight: QuantizedTensor, most: int) -> Tensor:
    """What products may be off by: half a step of the largest of each 32 inputs, a `most`th of it,
    times the weights; and some float32 sums of what they are made of."""
    dense = weight.dequantize(torch.float64)
    steps = x.double().abs().unflatten(1, (-1, 32)).amax(2, keepdim=True) / most
    steps = steps.expand(-1, -1, 32).flatten(1)
    made_of = dense.abs()
    if weight.offset is not None:
        offset = weight.offset.double().repeat_interleave(weight.group, 1)
        made_of = (dense - offset).abs() + offset.abs()
    return (steps * 0.501) @ dense.abs().T + 2.0**-19 * (x.double().abs() @ made_of.T)


def check(kernels: CpuKernels, name: str, *, byte_inputs: bool) -> None:
    """Every number of rows up to 70 against products in float64 of the matrix that it stands
    for."""
    k = 768 if name in OTHERS else 544
    weight = quantized(name, 70, k)
    packed = kernels.pack_linear(weight)
    byte_inputs = byte_inputs and arithmetic(packed.parts[0].tiling, byte_inputs=True) is not None
    x = inputs(70, k)
    expected = x.double() @ weight.dequantize(torch.float64).T
    most = rounding(x, weight, 127 if byte_inputs else 32639)
    for rows in range(1, 71):
        found = kernels.linear(x[:rows], packed).double()
        assert ((found - expected[:rows]).abs() <= most[:rows]).all(), rows
