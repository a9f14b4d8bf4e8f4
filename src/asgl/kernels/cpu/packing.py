"""Writes weights into tiles (see tiles.py), and reads single rows from them: the embedding of a
token. Compiled, for any format; packing runs on all threads."""

from __future__ import annotations

from typing import Any

import numpy as np

from asgl.kernels.cpu import formats, team
from asgl.kernels.cpu.llvm import LANES
from asgl.kernels.cpu.simd import (
    bf16_to_f32,
    f16_to_f32,
    get_half,
    get_i64,
    get_word,
    kernel,
    set_f32,
    set_half,
    set_word,
)
from asgl.kernels.cpu.tiles import GROUP, OUTPUTS, STEPS

_AT_ONCE = 8
"""Groups of a row that are written before the next row: some lines of it are read, and what is
written stays in the cache."""
_ONE, _TWO, _FOUR = 0x01010101, 0x03030303, 0x0F0F0F0F
"""The lowest bit, two bits, four bits of each byte of a word."""


@kernel
def _write_quants(source: int, bits: int, group: int, half: int, lane: int) -> None:
    """32 bytes of a row to their places in a group."""
    more_bits = 0
    more_low, more_high = 0, 0
    at = group + lane * 4
    for pair in range(STEPS // 2):
        first, second = get_word(source + 8 * pair), get_word(source + 8 * pair + 4)
        if bits == 8:
            set_word(at + (half * STEPS + 2 * pair) * 64, first)
            set_word(at + (half * STEPS + 2 * pair + 1) * 64, second)
            continue
        set_word(at + (half * 4 + pair) * 64, (first & _FOUR) | ((second & _FOUR) << 4))
        if bits == 5:
            more_bits |= ((first >> 4) & _ONE) << (2 * pair)
            more_bits |= ((second >> 4) & _ONE) << (2 * pair + 1)
        elif bits == 6:
            two = ((first >> 4) & _TWO) | (((second >> 4) & _TWO) << 2)
            if pair < 2:
                more_low |= two << (4 * pair)
            else:
                more_high |= two << (4 * (pair - 2))
    if bits == 5:
        set_word(at + (8 + half) * 64, more_bits)
    elif bits == 6:
        set_word(at + (8 + half * 2) * 64, more_low)
        set_word(at + (9 + half * 2) * 64, more_high)


@kernel
def _read_word(group: int, bits: int, half: int, lane: int, step: int) -> int:
    """The four bytes of a step of one output."""
    at = group + lane * 4
    if bits == 8:
        return get_word(at + (half * STEPS + step) * 64)
    word = (get_word(at + (half * 4 + step // 2) * 64) >> (4 * (step % 2))) & _FOUR
    if bits == 5:
        word |= ((get_word(at + (8 + half) * 64) >> step) & _ONE) << 4
    elif bits == 6:
        more = get_word(at + (8 + half * 2 + step // 4) * 64)
        word |= ((more >> (2 * (step % 4))) & _TWO) << 4
    return word


@kernel
def pack_phase(a: Any, number: int) -> None:
    """Writes the tiles of a.quants [n, k], bytes, into zeros at a.out.

    a.scale and a.offset (unless 0) [n, k / group] are float16 or bfloat16; a.code is the format's
    row of the table a.formats.
    """
    row = a.formats + a.code * formats.ROW
    bits, size = get_i64(row + formats.BITS), get_i64(row + formats.GROUP_BYTES)
    parts, ends = GROUP // get_i64(row + formats.PART), get_i64(row + formats.ENDS)
    groups = a.k // GROUP
    for tile in team.pieces(a.job, 0, number, 1, (a.n + OUTPUTS - 1) // OUTPUTS):
        for begin in range(0, groups, _AT_ONCE):
            for output in range(min(OUTPUTS, a.n - tile * OUTPUTS)):
                of, half, lane = tile * OUTPUTS + output, output // LANES, output % LANES
                for group in range(begin, min(begin + _AT_ONCE, groups)):
                    target = a.out + (tile * groups + group) * size
                    _write_quants(a.quants + of * a.k + group * GROUP, bits, target, half, lane)
                    for part in range(parts):
                        source = ((of * groups + group) * parts + part) * 2
                        place = target + ends + 2 * (part * OUTPUTS + output)
                        set_half(place, get_half(a.scale + source))
                        if a.offset != 0:
                            place += 2 * parts * OUTPUTS
                            set_half(place, get_half(a.offset + source))


@kernel
def read_row(tiles: int, row: int, of: int, k: int, out: int) -> None:
    """The k weights of the output `of`, as float32; `row` is the address of the format's row."""
    bits, size = get_i64(row + formats.BITS), get_i64(row + formats.GROUP_BYTES)
    parts, ends = GROUP // get_i64(row + formats.PART), get_i64(row + formats.ENDS)
    zero, offsets = get_i64(row + formats.ZERO), get_i64(row + formats.OFFSETS)
    wide, leveled = get_i64(row + formats.WIDE), get_i64(row + formats.LEVELED)
    groups, output = k // GROUP, of % OUTPUTS
    half, lane = output // LANES, output % LANES
    for group in range(groups):
        at = tiles + (of // OUTPUTS * groups + group) * size
        scale, offset = np.float32(0), np.float32(0)
        for step in range(STEPS):
            if step % (STEPS // parts) == 0:
                place = at + ends + 2 * (step * parts // STEPS * OUTPUTS + output)
                end = get_half(place)
                scale = bf16_to_f32(end) if wide else f16_to_f32(end)
                if offsets:
                    end = get_half(place + 2 * parts * OUTPUTS)
                    offset = bf16_to_f32(end) if wide else f16_to_f32(end)
            word = _read_word(at, bits, half, lane, step)
            for i in range(4):
                level = (word >> (8 * i)) & 255
                if leveled:
                    level = get_i64(row + formats.LEVELS + 8 * level)
                value = scale * np.float32(level - zero) + offset
                set_f32(out + (group * GROUP + step * 4 + i) * 4, value)


@kernel
def read_dense_row(tiles: int, of: int, k: int, out: int) -> None:
    """The k weights of the output `of` of dense tiles, as float32."""
    at = tiles + of // OUTPUTS * (k * OUTPUTS * 2) + of % OUTPUTS * 4
    for i in range(0, k, 2):
        word = get_word(at + i * OUTPUTS * 2)
        set_f32(out + i * 4, bf16_to_f32(word & 0xFFFF))
        set_f32(out + i * 4 + 4, bf16_to_f32(word >> 16))
