"""Packs quantized weights into tiles (see dots.py, pairs.py): compiled, since it is a third of what
opening a model takes."""

from __future__ import annotations

from typing import Any

from asgl.kernels.cpu.dots import GROUP, GROUP_BYTES_4, GROUP_BYTES_8, OUTPUTS, SCALES
from asgl.kernels.cpu.linear import PAIRS
from asgl.kernels.cpu.llvm import LANES
from asgl.kernels.cpu.simd import kernel

SIGNATURE = "void(uint8[:,::1], int16[:,::1], int16[:,::1], int64, uint32[::1], int16[::1])"


@kernel
def _nibbles(quants: Any, row: int, k: int) -> int:
    """8 weights of a row from k on, as a word: nibble i of half h is k + 2 i + h."""
    word = 0
    for i in range(4):
        word |= (int(quants[row, k + 2 * i]) << (4 * i)) | (
            int(quants[row, k + 2 * i + 1]) << (16 + 4 * i)
        )
    return word


@kernel
def _signed(quants: Any, row: int, k: int) -> int:
    """4 weights of a row from k on, as a word of signed bytes; for integer products those at even
    places first."""
    first, second, third, fourth = 0, 1, 2, 3
    if PAIRS:
        second, third = 2, 1
    word = int(quants[row, k + first]) | (int(quants[row, k + second]) << 8)
    word |= (int(quants[row, k + third]) << 16) | (int(quants[row, k + fourth]) << 24)
    return word ^ 0x80808080


@kernel
def fill_tiles(quants: Any, scale: Any, offset: Any, bits: int, words: Any, halves: Any) -> None:
    """Writes the tiles of quants [n, k] of 4 or 8 bits.

    scale and offset [n, k / 32] are float16, as bits; words and halves are the same memory, zeros,
    of whole tiles.
    """
    n, groups = quants.shape[0], quants.shape[1] // GROUP
    size, vectors = (GROUP_BYTES_4, 4) if bits == 4 else (GROUP_BYTES_8, 8)
    for tile in range((n + OUTPUTS - 1) // OUTPUTS):
        for group in range(groups):
            base = (tile * groups + group) * size
            for output in range(min(OUTPUTS, n - tile * OUTPUTS)):
                row, half, lane = tile * OUTPUTS + output, output // LANES, output % LANES
                for j in range(vectors):
                    k = group * GROUP + j * (GROUP // vectors)
                    word = _nibbles(quants, row, k) if bits == 4 else _signed(quants, row, k)
                    words[base // 4 + (half * vectors + j) * LANES + lane] = word
                ends = (base + size - SCALES) // 2 + output
                halves[ends], halves[ends + OUTPUTS] = scale[row, group], offset[row, group]
