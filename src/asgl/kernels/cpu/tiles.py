"""How weights lie in memory: tiles of 32 outputs, streamed in the order of k, in one layout for all
formats, from which each takes its parts.

A group of 32 k of a tile holds, one after the other ([2][16] are its outputs: halves, lanes):

    8 bits    [2][8][16] words of four bytes, of neighbouring k
    else      [2][4][16] words of eight nibbles: the low four bits of byte i are those of k + i, the
              high four bits those of k + 4 + i
    5 bits    and [2][16] words of fifth bits: bit 8 i + s is that of k = 4 s + i
    6 bits    and [2][2][16] words of two bits more: bits 8 i + 2 s of word h are those of
              k = 16 h + 4 s + i
    scales    [32 / group][2][16] float16, or bfloat16 if they are `wide`
    offsets   the same again, for formats that have them

So a shift and a mask give four bytes of neighbouring k, for 16 outputs at a time. A value is scale
* (byte - zero) + offset, or, with `levels`, scale * (levels[nibble] - zero) + offset.

Dense weights are bfloat16: for each two k [2][16] words of two.
"""

from __future__ import annotations

from typing import NamedTuple

OUTPUTS = 32
"""Outputs of a tile."""
GROUP = 32
"""Weights along k that lie together, and inputs that share a scale."""
STEPS = GROUP // 4
"""Words of four neighbouring weights of a group."""


class Tiling(NamedTuple):
    """How the weights of a matrix are written, but for the numbers.

    bits: 4, 5, 6 or 8; 16 for dense ones, of which the rest says nothing. group: weights that share
    a scale, 32 or 16. zero: the byte that stands for 0 before the offset. offsets: whether a group
    has one. levels: the 16 bytes that nibbles stand for, or none. wide: scales and offsets are
    bfloat16.
    """

    bits: int
    group: int = GROUP
    zero: int = 0
    offsets: bool = False
    levels: tuple[int, ...] = ()
    wide: bool = False

    @property
    def parts(self) -> int:
        """Scales of an output in 32 k."""
        return GROUP // self.group

    @property
    def ends(self) -> int:
        """Where scales begin, in bytes."""
        return OUTPUTS * GROUP * self.bits // 8

    @property
    def group_bytes(self) -> int:
        """Bytes of 32 k of a tile."""
        if self.bits == 16:
            return self.ends
        return self.ends + 2 * OUTPUTS * self.parts * (2 if self.offsets else 1)

    @property
    def name(self) -> str:
        """Letters that name it, to keep its compiled kernels by."""
        if self.bits == 16:
            return "dense"
        levels = "_" + bytes(self.levels).hex() if self.levels else ""
        marks = ("o" if self.offsets else "") + ("w" if self.wide else "")
        return f"q{self.bits}g{self.group}z{self.zero}{marks}{levels}"


TILE_STEP = 4 * OUTPUTS
"""Bytes of a step of a tile of words."""

DENSE = Tiling(16)
