"""Weights as the kernels stream them: tiles of 32 outputs (see dots.py), made once when a model is
loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from asgl.errors import ConfigError
from asgl.kernels.api import QuantizedTensor
from asgl.kernels.cpu import packing
from asgl.kernels.cpu.dots import GROUP, GROUP_BYTES, OUTPUTS
from asgl.kernels.cpu.llvm import LANES
from asgl.kernels.memory import Arena


@dataclass(frozen=True, slots=True)
class Packed:
    """A matrix [outputs, k] in tiles. `memory` uint8, flat; `address` is where it begins."""

    memory: Tensor
    address: int
    bits: int
    outputs: int
    k: int


@dataclass(frozen=True, slots=True)
class Table:
    """Rows to look up. `kind` 8: bytes with a scale and an offset for each `share`; 16: bfloat16;
    32: float32."""

    memory: Tensor
    scale: Tensor | None
    offset: Tensor | None
    kind: int
    share: int
    d: int


def pack(
    weight: Tensor | QuantizedTensor,
    arena: Arena,
    fill_tiles: Callable[..., None] = packing.fill_tiles,
) -> Packed:
    """Tiles of the weights, in memory of the arena, in the format they have; dense ones as
    bfloat16.

    `fill_tiles` may be a compiled one. 4 and 8 bits need groups of a multiple of 32, else they
    become bfloat16; scales and offsets are held in float16, as model files do. ConfigError if k is
    no multiple of 32.
    """
    outputs, k = weight.shape
    if k % GROUP:
        raise ConfigError(
            f"the CPU kernels cannot multiply a matrix of {outputs} x {k}: its width must be a "
            f"multiple of {GROUP}; use "
            "kernels='reference'"
        )
    if isinstance(weight, QuantizedTensor) and weight.group % GROUP:
        weight = weight.dequantize(torch.float32)
    if isinstance(weight, QuantizedTensor):
        memory, bits = _quantized_tiles(weight, arena, fill_tiles), weight.bits
    else:
        tiles, bits = _dense_tiles(weight), 16
        memory = arena.take(tiles.numel()).copy_(tiles.reshape(-1))
    return Packed(memory, memory.data_ptr(), bits, outputs, k)


def _padded(matrix: Tensor) -> Tensor:
    """With rows of zeros up to a multiple of 32."""
    missing = -matrix.shape[0] % OUTPUTS
    return torch.cat([matrix, matrix.new_zeros(missing, *matrix.shape[1:])]) if missing else matrix


def _dense_tiles(weight: Tensor) -> Tensor:
    rows = _padded(weight.to(torch.bfloat16))
    pairs = rows.view(-1, 2, LANES, rows.shape[1] // 2, 2)  # tile, half, lane, step, element
    return pairs.permute(0, 3, 1, 2, 4).contiguous().view(torch.uint8)


def _quantized_tiles(
    weight: QuantizedTensor, arena: Arena, fill_tiles: Callable[..., None]
) -> Tensor:
    outputs, k = weight.shape
    scale, offset = weight.scale, weight.offset
    if weight.bits == 8:  # bytes become signed
        offset = offset + 128 * scale
    repeats = weight.group // GROUP
    if repeats > 1:
        scale, offset = (
            scale.repeat_interleave(repeats, dim=1),
            offset.repeat_interleave(repeats, dim=1),
        )
    size = -(-outputs // OUTPUTS) * (k // GROUP) * GROUP_BYTES[weight.bits]
    memory = arena.take(size)
    ends = [part.half().contiguous().view(torch.int16).numpy() for part in (scale, offset)]
    words, halves = memory.numpy().view(np.uint32), memory.numpy().view(np.int16)
    fill_tiles(weight.quants.contiguous().numpy(), *ends, weight.bits, words, halves)
    return memory


def table(weight: Tensor | QuantizedTensor) -> Table:
    """A copy of the rows in the format they have."""
    d = weight.shape[1]
    if isinstance(weight, QuantizedTensor):
        return Table(
            weight.quants.clone(), weight.scale.clone(), weight.offset.clone(), 8, weight.group, d
        )
    kind = torch.bfloat16 if weight.dtype == torch.bfloat16 else torch.float32
    return Table(
        torch.empty(weight.shape, dtype=kind).copy_(weight), None, None, 8 * kind.itemsize, d, d
    )


def quantize(weight: Tensor, bits: int) -> QuantizedTensor:
    """Rounds a dense matrix to 4 or 8 bits in groups of 32 along k, from each group's least value
    to its greatest."""
    n, k = weight.shape
    grouped = weight.float().view(n, k // GROUP, GROUP)
    low, high = grouped.aminmax(dim=2)
    low = low.half().float()  # as it is stored
    scale = ((high - low) / (2**bits - 1)).clamp_min(2.0**-24).half().float()
    quants = (
        ((grouped - low.unsqueeze(2)) / scale.unsqueeze(2))
        .round_()
        .clamp_(0, 2**bits - 1)
        .to(torch.uint8)
    )
    return QuantizedTensor(quants.view(n, k), scale, low, 4 if bits == 4 else 8, GROUP)
