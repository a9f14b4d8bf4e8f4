"""Micro-kernels: small blocks of a matrix product whose sums stay in registers, emitted as unrolled
LLVM instructions. For dense weights and for attention; packed weights are multiplied in integers,
see products.py.

All multiply words (see `PER_WORD`): A holds rows of words; B is a *tile*: for each step (one word
of k) 32 outputs, as two vectors. A block of R rows keeps 2 R sums in registers; per step it loads
two vectors of B and R words of A. Every sum is taken over k in order, whatever R is: a row's result
does not depend on its neighbours.
"""

from __future__ import annotations

from typing import Any

from numba.core import cgutils

from asgl.kernels.cpu import llvm
from asgl.kernels.cpu.llvm import FVEC, I32, IVEC, const
from asgl.kernels.cpu.simd import i64, operation, rows_operation, void
from asgl.kernels.cpu.target import TARGET
from asgl.kernels.cpu.tiles import TILE_STEP

ROWS = {32: (1, 2, 3, 4, 4, 6, 6, 8), 8: (1, 2), 4: (1,)}[TARGET.vector_registers]
"""Rows of the next block, by how many are left: two sums a row, two vectors of B and one of A must
fit the registers."""


class _Sums:
    """R x 2 sums in allocas that LLVM turns into registers."""

    def __init__(self, builder: Any, rows: int) -> None:
        self.builder, self.rows = builder, rows
        self.slots = [[cgutils.alloca_once(builder, FVEC) for _ in range(2)] for _ in range(rows)]

    def clear(self) -> None:
        for row in self.slots:
            for slot in row:
                self.builder.store(const(0.0, FVEC), slot)

    def _place(self, c: Any, ldc: Any, row: int, half: int) -> Any:
        return llvm.offset(self.builder, llvm.step(self.builder, c, ldc, row), 64 * half)

    def read(self, c: Any, ldc: Any) -> None:
        for row in range(self.rows):
            for half in range(2):
                place = self._place(c, ldc, row, half)
                self.builder.store(llvm.load(self.builder, place, FVEC, 4), self.slots[row][half])

    def write(self, c: Any, ldc: Any) -> None:
        for row in range(self.rows):
            for half in range(2):
                value = self.builder.load(self.slots[row][half], typ=FVEC)
                llvm.store(self.builder, self._place(c, ldc, row, half), value, 4)

    def dot(self, row: int, half: int, a: Any, b: Any) -> None:
        slot = self.slots[row][half]
        self.builder.store(llvm.dot(self.builder, self.builder.load(slot, typ=FVEC), a, b), slot)


def _word(builder: Any, address: Any) -> Any:
    return llvm.splat(builder, llvm.load(builder, address, I32, 4))


def _product(name: str, *, accumulate: bool) -> Any:
    """c = a . b, or c += a . b, for any number of rows and one tile: (rows, a, lda, c, ldc, b,
    steps). c is float32 [rows, 32]; lda and ldc are bytes from row to row."""

    def emit(
        builder: Any, rows: int, a: Any, lda: Any, c: Any, ldc: Any, b: Any, steps: Any
    ) -> None:
        sums = _Sums(builder, rows)
        if accumulate:
            sums.read(c, ldc)
        else:
            sums.clear()
        starts = [llvm.step(builder, a, lda, row) for row in range(rows)]
        with cgutils.for_range(builder, steps) as loop:
            at_b = llvm.step(builder, b, TILE_STEP, loop.index)
            halves = [
                llvm.load(builder, llvm.offset(builder, at_b, 64 * half), IVEC, 4)
                for half in range(2)
            ]
            for row in range(rows):
                word = _word(builder, llvm.step(builder, starts[row], 4, loop.index))
                for half in range(2):
                    sums.dot(row, half, word, halves[half])
        sums.write(c, ldc)

    emit.__name__ = name
    return rows_operation(ROWS, moving=2, fixed=2)(emit)


@operation(void, i64, i64, i64)
def widen_pairs(builder: Any, b: Any, pairs: Any, out: Any) -> None:
    """A tile of bfloat16 pairs to one of float32 words, which has twice the steps."""
    with cgutils.for_range(builder, pairs) as loop:
        source = llvm.step(builder, b, TILE_STEP, loop.index)
        target = llvm.step(builder, out, 2 * TILE_STEP, loop.index)
        for half in range(2):
            words = llvm.load(builder, llvm.offset(builder, source, 64 * half), IVEC, 4)
            low, high = builder.shl(words, const(16)), builder.and_(words, const(-65536))
            llvm.store(builder, llvm.offset(builder, target, 64 * half), low, 4)
            llvm.store(builder, llvm.offset(builder, target, TILE_STEP + 64 * half), high, 4)


dot_rows = _product("dot_rows", accumulate=False)
add_dot_rows = _product("add_dot_rows", accumulate=True)
