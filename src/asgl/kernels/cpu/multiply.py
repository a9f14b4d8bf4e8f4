"""Products of some rows with a tile, one compiled function for each format and precision of inputs:
only those that a model needs are compiled.

Phases call them by address (see formats.py): what a format costs to compile, it costs once, and not
in each entry that multiplies.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

from numba import cfunc

from asgl.kernels.cpu import dots
from asgl.kernels.cpu.cache import cached
from asgl.kernels.cpu.inputs import BYTE_BYTES, WHOLE_BYTES
from asgl.kernels.cpu.integers import arithmetic
from asgl.kernels.cpu.llvm import FVEC, LANES, PER_WORD, const, offset
from asgl.kernels.cpu.llvm import store as store_vector
from asgl.kernels.cpu.products import Packed, Unpacked, product, unpacking
from asgl.kernels.cpu.simd import i64, operation, void
from asgl.kernels.cpu.target import TARGET
from asgl.kernels.cpu.tiles import GROUP, OUTPUTS, STEPS, TILE_STEP, Tiling

ROWS = 64
"""The most rows of a call."""
PRODUCTS = ROWS * 4 * OUTPUTS
"""Bytes of their products."""
CHUNK = 16
"""Groups that are unpacked at a time."""
ROOM = max(CHUNK * (STEPS + 4) * 4 * OUTPUTS, 0 if PER_WORD == 2 else CHUNK * GROUP * TILE_STEP)
"""Bytes that a call needs for them."""

SIGNATURE = "void(int64, int64, int64, int64, int64, int64, int64)"
"""(rows, x, ldx, c, b, groups, room): c [rows, 32] float32 = inputs at `x`, `ldx` bytes from row to
row, times the tile at `b` of so many groups of 32 k. `room`: `ROOM` bytes to work in."""


@operation(void, i64)
def _clear_row(builder: Any, address: Any) -> None:
    for half in range(2):
        store_vector(builder, offset(builder, address, 4 * LANES * half), const(0.0, FVEC), 4)


# what the functions below call: each format has its own
few: Any = None
many: Any = None
unpack: Any = None
FEW = BLOCK = INPUT_BYTES = PACKED_BYTES = 0


def _as_it_goes(rows: int, x: int, ldx: int, c: int, b: int, groups: int, room: int) -> None:
    for row in range(rows):
        _clear_row(c + row * 4 * OUTPUTS)
    few(rows, x, ldx, c, 4 * OUTPUTS, b, groups)


def _by_rows(rows: int, x: int, ldx: int, c: int, b: int, groups: int, room: int) -> None:
    for row in range(rows):
        _clear_row(c + row * 4 * OUTPUTS)
    whole = rows - rows % BLOCK if rows > FEW else 0
    if whole:
        for first in range(0, groups, CHUNK):
            count = min(CHUNK, groups - first)
            unpack(b + first * PACKED_BYTES, count, room)
            many(whole, x + first * INPUT_BYTES, ldx, c, 4 * OUTPUTS, room, count)
    few(rows - whole, x + whole * ldx, ldx, c + whole * 4 * OUTPUTS, 4 * OUTPUTS, b, groups)


def _words(rows: int, x: int, ldx: int, c: int, b: int, groups: int, room: int) -> None:
    dots.dot_rows(rows, x, ldx, c, 4 * OUTPUTS, b, groups * (GROUP // 2))


def _widened(rows: int, x: int, ldx: int, c: int, b: int, groups: int, room: int) -> None:
    for row in range(rows):
        _clear_row(c + row * 4 * OUTPUTS)
    for first in range(0, groups, CHUNK):
        count = min(CHUNK, groups - first)
        dots.widen_pairs(b + first * (GROUP // 2) * TILE_STEP, count * (GROUP // 2), room)
        dots.add_dot_rows(rows, x + first * GROUP * 4, ldx, c, 4 * OUTPUTS, room, count * GROUP)


# Rows of blocks whose sums, the words that they meet and their own fit the registers: of the next
# one by how many are left, with weights unpacked as it goes; and of one with unpacked weights. By
# the width of a register, and the registers of a sum.
_BLOCKS = {
    (16, 2): ((1, 2, 2, 4), 4),
    (16, 1): ((1, 2, 2, 4), 6),
    (8, 2): ((1, 2, 3, 2, 3), 3),
    (8, 1): ((1, 2, 2, 4), 6),
}
_NARROW_BLOCKS = (1, 2, 3, 4)
"""Of the next one, without VNNI."""


Tell = Callable[[str], Callable[[], object]]
"""Makes of the name of what comes next what to call if it must be compiled."""


def _compiled(template: Any, name: str, tell: Tell | None, **own: Any) -> Any:
    """The template with these names in its globals, compiled, and kept under that name."""
    function = FunctionType(template.__code__, {**globals(), **own}, name)
    function.__qualname__ = name
    return cached(
        lambda cache: cfunc(SIGNATURE, cache=cache, error_model="numpy")(function),
        tell and tell(name),
    )


def compile_product(tiling: Tiling, *, byte_inputs: bool, tell: Tell | None = None) -> Any | None:
    """The function that multiplies tiles of this format with such inputs: an object with an
    `address`. None if inputs of 8 bits are of no use to it."""
    name = f"multiply_{tiling.name}_{8 if byte_inputs else 16}"
    if tiling.bits == 16:
        template = _words if PER_WORD == 2 else _widened
        return None if byte_inputs else _compiled(template, name, tell)
    how = arithmetic(tiling, byte_inputs=byte_inputs)
    if how is None:
        return None
    packed, unpacked = Packed(tiling), Unpacked(tiling)
    if not TARGET.dot_words:
        # the two instructions of a pair are hidden among the sixteen that four rows need of it
        own = {"few": product(f"{name}_rows", packed, how, _NARROW_BLOCKS)}
        return _compiled(_as_it_goes, name, tell, **own)
    sizes, block = _BLOCKS[how.width, how.registers]
    return _compiled(
        _by_rows,
        name,
        tell,
        few=product(f"{name}_few", packed, how, sizes),
        many=product(f"{name}_many", unpacked, how, (block,) * block),
        unpack=unpacking(tiling),
        FEW=2 * block,
        BLOCK=block,
        INPUT_BYTES=BYTE_BYTES if byte_inputs else WHOLE_BYTES,
        PACKED_BYTES=tiling.group_bytes,
    )
