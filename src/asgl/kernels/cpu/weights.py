"""Weights as the kernels stream them: tiles of 32 outputs (see dots.py), made once when a model is
loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from asgl.errors import ConfigError
from asgl.kernels.cpu import packing
from asgl.kernels.cpu.dots import GROUP, GROUP_BYTES, OUTPUTS
from asgl.kernels.cpu.llvm import LANES
from asgl.kernels.memory import Arena
from asgl.kernels.quantized import QuantizedTensor


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

    `fill_tiles` may be a compiled one. 4 and 8 bits need groups of a multiple of 32, and scales and
    offsets that float16 holds, as model files do; else they become bfloat16. ConfigError if k is no
    multiple of 32.
    """
    outputs, k = weight.shape
    check_width(k)
    if isinstance(weight, QuantizedTensor):
        ends = _ends(weight) if weight.bits in (4, 8) and weight.codebook is None else None
        if ends is not None:
            memory = _quantized_tiles(weight, ends, arena, fill_tiles)
            return Packed(memory, memory.data_ptr(), weight.bits, outputs, k)
        weight = weight.dequantize(torch.float32)
    tiles = _dense_tiles(weight)
    memory = arena.take(tiles.numel()).copy_(tiles.reshape(-1))
    return Packed(memory, memory.data_ptr(), 16, outputs, k)


def check_width(k: int) -> None:
    """ConfigError if matrices of k inputs cannot be packed."""
    if k % GROUP:
        raise ConfigError(
            f"the CPU kernels cannot multiply a matrix of {k} inputs, which must be a multiple of "
            f"{GROUP}; use kernels='reference'"
        )


def _padded(matrix: Tensor) -> Tensor:
    """With rows of zeros up to a multiple of 32."""
    missing = -matrix.shape[0] % OUTPUTS
    return torch.cat([matrix, matrix.new_zeros(missing, *matrix.shape[1:])]) if missing else matrix


def _dense_tiles(weight: Tensor) -> Tensor:
    rows = _padded(weight.to(torch.bfloat16))
    pairs = rows.view(-1, 2, LANES, rows.shape[1] // 2, 2)  # tile, half, lane, step, element
    return pairs.permute(0, 3, 1, 2, 4).contiguous().view(torch.uint8)


def _ends(weight: QuantizedTensor) -> tuple[Tensor, Tensor] | None:
    """float16 [n, k / 32]: scales, and offsets for bytes that become signed. None if the groups are
    no multiple of 32, or float16 cannot hold these."""
    if weight.group % GROUP:
        return None
    offset = weight.origin + 128 * weight.scale if weight.bits == 8 else weight.origin
    repeats = weight.group // GROUP
    ends = (
        weight.scale.repeat_interleave(repeats, dim=1).half(),
        offset.repeat_interleave(repeats, dim=1).half(),
    )
    return ends if all(bool(end.isfinite().all()) for end in ends) else None


def _quantized_tiles(
    weight: QuantizedTensor,
    ends: tuple[Tensor, Tensor],
    arena: Arena,
    fill_tiles: Callable[..., None],
) -> Tensor:
    outputs, k = weight.shape
    memory = arena.take(-(-outputs // OUTPUTS) * (k // GROUP) * GROUP_BYTES[weight.bits])
    bits_of_ends = [end.contiguous().view(torch.int16).numpy() for end in ends]
    words, halves = memory.numpy().view(np.uint32), memory.numpy().view(np.int16)
    fill_tiles(weight.quants.contiguous().numpy(), *bits_of_ends, weight.bits, words, halves)
    return memory


def table(weight: Tensor | QuantizedTensor) -> Table:
    """A copy of the rows in the format they have."""
    d = weight.shape[1]
    if isinstance(weight, QuantizedTensor) and weight.codebook is not None:
        weight = weight.dequantize(torch.float32)
    if isinstance(weight, QuantizedTensor):
        return Table(weight.quants.clone(), weight.scale.clone(), weight.origin, 8, weight.group, d)
    kind = torch.bfloat16 if weight.dtype == torch.bfloat16 else torch.float32
    return Table(
        torch.empty(weight.shape, dtype=kind).copy_(weight), None, None, 8 * kind.itemsize, d, d
    )
