"""The tile of each kernel, by element size, head size and target. What would not fit shared memory
is never launched.

A tile's shared memory is bounded by a formula that errs to the high side; candidates are in order
of preference, and the first whose bound is within the target's shared memory is taken. The compile
lane checks the formula against what compilers allocate.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from asgl.errors import ConfigError
from asgl.kernels.triton.target import Target


@dataclass(frozen=True, slots=True)
class AttentionTile:
    """block_m rows of queries (tokens times the query heads of a KV head) against block_n positions
    at a time."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int

    def shared_memory(self, head_dim: int, itemsize: int) -> int:
        """A bound in bytes: queries, `num_stages` blocks of keys and of values with their slots,
        and the weights of a block (in float32, for targets whose products read both operands from
        shared memory)."""
        queries = self.block_m * head_dim * itemsize
        block = self.block_n * (2 * head_dim * itemsize + 4)
        weights = self.block_m * self.block_n * 4
        return queries + self.num_stages * block + weights + _SLACK


_SLACK = 2048
"""Barriers, and scratch of reductions."""

_EXTEND = (
    AttentionTile(128, 128, 8, 3),
    AttentionTile(128, 128, 8, 2),
    AttentionTile(128, 64, 8, 3),
    AttentionTile(128, 64, 8, 2),
    AttentionTile(64, 64, 8, 3),
    AttentionTile(64, 64, 8, 2),
    AttentionTile(64, 64, 4, 2),
    AttentionTile(64, 32, 8, 2),
    AttentionTile(64, 32, 4, 2),
    AttentionTile(32, 32, 4, 2),
    AttentionTile(32, 32, 4, 1),
    AttentionTile(16, 16, 4, 1),
)
_DECODE = (
    AttentionTile(16, 128, 4, 3),
    AttentionTile(16, 64, 4, 3),
    AttentionTile(16, 64, 4, 2),
    AttentionTile(16, 32, 4, 2),
    AttentionTile(16, 16, 4, 1),
)
_SPAN = (
    AttentionTile(64, 64, 4, 3),
    AttentionTile(64, 64, 4, 2),
    AttentionTile(64, 64, 8, 2),
    AttentionTile(64, 32, 8, 2),
    AttentionTile(32, 32, 4, 2),
    AttentionTile(32, 32, 4, 1),
    AttentionTile(16, 16, 4, 1),
)
_REGISTERS = 104
"""Of a thread, for queries, scores and results. The rest of the 255 goes to addresses: seen to
spill from 112 on."""


def _fits(tile: AttentionTile, head_dim: int, dtype: torch.dtype, target: Target) -> bool:
    """Whether shared memory and registers hold the tile. Wide products read queries from shared
    memory."""
    wide = target.wide_products and dtype.itemsize == 2 and tile.block_m >= 64
    queries = 0 if wide else tile.block_m * head_dim * dtype.itemsize // 4
    held = queries + tile.block_m * (tile.block_n + head_dim)
    threads = tile.num_warps * target.warp_size
    return (
        tile.shared_memory(head_dim, dtype.itemsize) <= target.shared_memory
        and held <= _REGISTERS * threads
    )


def _first(
    candidates: tuple[AttentionTile, ...],
    least_m: int,
    head_dim: int,
    dtype: torch.dtype,
    target: Target,
) -> AttentionTile:
    for tile in candidates:
        if tile.block_m >= least_m and _fits(tile, head_dim, dtype, target):
            return tile
    raise ConfigError(
        f"no tile of the attention kernels fits {target.arch}: heads of {head_dim} in {dtype}, "
        f"{least_m} query heads for each KV head; use kernels='reference'"
    )


def padded(head_dim: int) -> int:
    """The block that holds a head: a power of two, 16 at least (what a product needs)."""
    return max(16, _power(head_dim))


def extend_tile(head_dim: int, group: int, dtype: torch.dtype, target: Target) -> AttentionTile:
    """For rows of several new tokens. `group` query heads share a KV head, and their rows are in
    one tile."""
    candidates = _EXTEND
    if dtype == torch.float32:
        # products of float32 do not use tensor cores: large tiles only spill
        candidates = tuple(tile for tile in _EXTEND if tile.block_m * tile.block_n <= 64 * 32)
    return _first(candidates, group, padded(head_dim), dtype, target)


def decode_tile(head_dim: int, group: int, dtype: torch.dtype, target: Target) -> AttentionTile:
    """For rows of one new token: as many rows of queries as a KV head has query heads, 16 at least
    (what a product needs)."""
    least = max(16, _power(group))
    candidates = tuple(
        AttentionTile(least, tile.block_n, tile.num_warps, tile.num_stages) for tile in _DECODE
    )
    if dtype == torch.float32:
        candidates = candidates[2:]
    return _first(candidates, least, padded(head_dim), dtype, target)


def span_tile(head_dim: int, group: int, dtype: torch.dtype, target: Target) -> AttentionTile:
    """For a span of positions that several decode rows share: their queries are one tile."""
    candidates = _SPAN
    if dtype == torch.float32:
        candidates = tuple(tile for tile in _SPAN if tile.block_m * tile.block_n <= 64 * 32)
    return _first(candidates, group, padded(head_dim), dtype, target)


def decode_splits(rows: int, kv_heads: int, longest: int, block_n: int, target: Target) -> int:
    """Into how many pieces each row's context is cut, so that two programs can run on every
    multiprocessor (flash-decoding), but no piece is shorter than two blocks. A power of two, 64 at
    most."""
    wanted = 2 * target.multiprocessors // max(1, rows * kv_heads)
    useful = longest // (2 * block_n)
    return 1 << (max(1, min(wanted, useful, 64)).bit_length() - 1)


@dataclass(frozen=True, slots=True)
class ProductTile:
    """block_m x block_n outputs, block_k of the sum at a time."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int

    def shared_memory(self, itemsize: int) -> int:
        return self.num_stages * (self.block_m + self.block_n) * self.block_k * itemsize + _SLACK


def head_tile(rows: int, dtype: torch.dtype, target: Target) -> ProductTile:
    """For logits: few rows, a long weight that is read once."""
    block_m = min(64, max(16, _power(rows)))
    if target.vendor == "interpreter":
        return ProductTile(block_m, 256, 128, 4, 1)
    for stages in (4, 3, 2, 1):
        tile = ProductTile(block_m, 64, 128 // dtype.itemsize, 4, stages)
        if tile.shared_memory(dtype.itemsize) <= target.shared_memory:
            return tile
    raise ConfigError(f"no tile of the head fits {target.arch}; use kernels='reference'")


_ACCESS = 16
"""Bytes of the widest access to memory. Where a kernel only moves data, a thread has one such
access, or few."""


def _power(number: int) -> int:
    """The least power of two that is not less."""
    return 1 << (number - 1).bit_length()


def row_tile(width: int, target: Target) -> tuple[int, int]:
    """(block, warps) for kernels that hold a whole row: 16 values a thread, float32 and shorter
    ones side by side."""
    block = max(32, _power(width))
    return block, min(16, max(1, block // (16 * target.warp_size)))


def flat_tile(width: int, dtype: torch.dtype, target: Target) -> tuple[int, int]:
    """(block, warps) for kernels that go over a row in pieces: one access a thread, four warps at
    most."""
    if target.vendor == "interpreter":
        return min(_power(width), 4096), 1
    each = _ACCESS // dtype.itemsize
    block = min(_power(width), 4 * target.warp_size * each)
    return block, max(1, block // (target.warp_size * each))


def rope_tile(
    heads: int, head_dim: int, dtype: torch.dtype, target: Target
) -> tuple[int, int, int]:
    """(heads, half of a head, warps): one access a thread to either half. `heads` are those of
    queries, keys and values."""
    block_h, block_d = min(16, _power(heads)), _power(head_dim // 2)
    accesses = block_h * block_d * dtype.itemsize // _ACCESS
    return block_h, block_d, min(8, max(1, accesses // target.warp_size))


def merge_tile(head_dim: int, target: Target) -> tuple[int, int]:
    """(partial results that are added up in one go, warps): 16 float32 values a thread."""
    return 16, max(1, padded(head_dim) // target.warp_size)


def vocabulary_tile(target: Target) -> tuple[int, int]:
    """(logits that the sampling kernel looks at in one go, warps): it holds eight sums for each,
    four logits a thread."""
    return (8192, 1) if target.vendor == "interpreter" else (16 * target.warp_size, 4)
