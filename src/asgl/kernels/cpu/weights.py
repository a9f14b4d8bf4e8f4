"""Weights as the kernels stream them (see tiles.py), made once when a model is loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from asgl.errors import ConfigError
from asgl.kernels.cpu.formats import DENSE_CODE, Formats
from asgl.kernels.cpu.llvm import LANES
from asgl.kernels.cpu.target import TARGET
from asgl.kernels.cpu.tiles import DENSE, GROUP, OUTPUTS, Tiling
from asgl.kernels.memory import Arena
from asgl.kernels.quantized import QuantizedTensor


@dataclass(frozen=True, slots=True)
class Packed:
    """A matrix [outputs, k] in tiles. `memory` uint8, flat; `address` is where it begins; `code` is
    that of its format."""

    memory: Tensor
    address: int
    code: int
    tiling: Tiling
    outputs: int
    k: int

    @property
    def bits(self) -> int:
        """Of a weight; 16 of dense ones."""
        return self.tiling.bits


@dataclass(frozen=True, slots=True)
class Table:
    """Rows to look up, of d numbers: in tiles of the format `code`, or float32."""

    memory: Tensor
    tiled: bool
    code: int
    d: int


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What goes into the tiles of a matrix: bytes [n, k], and scales and offsets [n, k / group] as
    16 bits."""

    tiling: Tiling
    quants: Tensor
    scale: Tensor
    offset: Tensor | None


def pack(
    weight: Tensor | QuantizedTensor, arena: Arena, known: Formats, fill: Callable[..., None]
) -> Packed:
    """Tiles of the weights, in memory of the arena, in the format they have; dense ones as
    bfloat16.

    `fill` is the entry that writes tiles. Groups must be a multiple of 16, levels signed bytes, and
    scales and offsets what 16 bits hold, as those of model files are; else weights become bfloat16.
    ConfigError if k is no multiple of 32.
    """
    outputs, k = weight.shape
    check_width(k)
    if isinstance(weight, QuantizedTensor):
        prepared = _prepared(weight)
        if prepared is not None:
            tiling = prepared.tiling
            memory = arena.take(-(-outputs // OUTPUTS) * (k // GROUP) * tiling.group_bytes)
            code = known.code(tiling)
            fill(
                quants=prepared.quants.data_ptr(),
                n=outputs,
                k=k,
                scale=prepared.scale.data_ptr(),
                offset=prepared.offset.data_ptr() if prepared.offset is not None else 0,
                code=code,
                formats=known.address,
                out=memory.data_ptr(),
            )
            return Packed(memory, memory.data_ptr(), code, tiling, outputs, k)
        weight = weight.dequantize(torch.float32)
    tiles = _dense_tiles(weight)
    memory = arena.take(tiles.numel()).copy_(tiles.reshape(-1))
    return Packed(memory, memory.data_ptr(), DENSE_CODE, DENSE, outputs, k)


def check_width(k: int) -> None:
    """ConfigError if matrices of k inputs cannot be packed."""
    if k % GROUP:
        raise ConfigError(
            f"the CPU kernels cannot multiply a matrix of {k} inputs, which must be a multiple of "
            f"{GROUP}; use kernels='reference'"
        )


def _dense_tiles(weight: Tensor) -> Tensor:
    rows = weight.to(torch.bfloat16)
    missing = -rows.shape[0] % OUTPUTS
    if missing:
        rows = torch.cat([rows, rows.new_zeros(missing, rows.shape[1])])
    pairs = rows.view(-1, 2, LANES, rows.shape[1] // 2, 2)  # tile, half, lane, step, element
    return pairs.permute(0, 3, 1, 2, 4).contiguous().view(torch.uint8)


def _prepared(weight: QuantizedTensor) -> _Prepared | None:
    """None if tiles cannot hold these weights."""
    group = GROUP if weight.group % GROUP == 0 else 16
    if weight.group % group:
        return None
    quants, bits, zero, levels = weight.quants, weight.bits, weight.zero, ()
    if weight.codebook is not None:
        if not all(-128 <= level < 128 for level in weight.codebook):
            return None
        levels, zero = tuple(level + 128 for level in weight.codebook), 128
        if len(levels) > 16 or not TARGET.shuffle_words:
            quants = torch.tensor(levels, dtype=torch.uint8)[quants.int()]
            bits, levels = 8, ()
        else:
            levels += (128,) * (16 - len(levels))
    ends = _ends(weight.scale, weight.offset, weight.group // group)
    if ends is None:
        return None
    scale, offset = ends
    tiling = Tiling(
        max(bits, 4) if bits != 7 else 8,
        group,
        zero,
        offset is not None,
        levels,
        scale.dtype == torch.bfloat16,
    )
    return _Prepared(tiling, quants.contiguous(), scale, offset)


def _ends(
    scale: Tensor, offset: Tensor | None, repeats: int
) -> tuple[Tensor, Tensor | None] | None:
    """Scales and offsets in 16 bits, each `repeats` times along k. As bfloat16 where that holds
    them exactly and float16 does not (powers of two); None where neither has the range."""
    dtype = torch.float16
    halves = scale.half()
    fits = bool(halves.isfinite().all()) and (
        offset is None or bool(offset.half().isfinite().all())
    )
    close = fits and bool(((halves.float() - scale).abs() <= scale.abs() * 2.0**-11).all())
    if not close:
        exact = [end.bfloat16().float().equal(end) for end in (scale, offset) if end is not None]
        if all(exact):
            dtype = torch.bfloat16
        elif not fits:
            return None
    found = [
        None if end is None else end.to(dtype).repeat_interleave(repeats, dim=1).contiguous()
        for end in (scale, offset)
    ]
    assert found[0] is not None
    return found[0], found[1]


def table(weight: Tensor | QuantizedTensor, pack: Callable[[Any], Packed]) -> Table:
    """The rows in the format they have: as the tiles that `pack` makes, unless they are float32."""
    d = weight.shape[1]
    if isinstance(weight, Tensor) and weight.dtype != torch.bfloat16:
        return Table(weight.float().clone(), False, DENSE_CODE, d)
    packed = pack(weight)
    return Table(packed.memory, True, packed.code, d)
