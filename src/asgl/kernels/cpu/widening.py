"""What streaming.py does, for processors without products of bfloat16: keys and values become
float32 on the way.

A word of memory holds two bfloat16, and each is a float32 once the other is out of the way: the
first by a shift, the second by a mask. So 16 elements are two vectors of 8: those at even places,
and those at odd places. Queries are put into the same order beforehand, and mixtures back into
theirs afterwards. What is loaded serves all queries of a block: three query heads share a key.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from asgl.kernels.cpu import llvm
from asgl.kernels.cpu.llvm import F32, FVEC, I32, IVEC, const
from asgl.kernels.cpu.simd import i64, kernel, operation, rows_operation, void
from asgl.kernels.cpu.streaming import paired, token

QUERIES = 12
"""Up to so many queries, packing does not pay."""
_KEYS = (0, 4, 2, 6, 1, 5, 3, 7)
"""The keys of a block of scores, in the order in which their sums are paired: first those that end
four lanes apart."""
_AT_ONCE = (1, 2, 3, 2, 3)
"""Queries of the next block, by how many are left: three, but four as two and two."""
_WIDE = 8
_WORDS, _FLOATS = ir.VectorType(I32, _WIDE), ir.VectorType(F32, _WIDE)
_EVEN_ODD = [*range(0, 16, 2), *range(1, 16, 2)]
_ZIPPED = [place for i in range(_WIDE) for place in (i, _WIDE + i)]


def _widened(builder: Any, address: Any, half: int) -> Any:
    """Of 16 bfloat16 those at even places (`half` 0), or at odd places."""
    words = llvm.load(builder, address, _WORDS, 2)
    moved = (
        builder.and_(words, const(-65536, _WORDS))
        if half
        else builder.shl(words, const(16, _WORDS))
    )
    return builder.bitcast(moved, _FLOATS)


def _shuffled(builder: Any, a: Any, b: Any, order: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(order)), order))


def _multiply_add(builder: Any, a: Any, b: Any, slot: Any) -> None:
    held = builder.load(slot, typ=_FLOATS)
    builder.store(llvm.call(builder, "llvm.fmuladd.v8f32", _FLOATS, a, b, held), slot)


@rows_operation(_AT_ONCE, moving=2, fixed=3)
def _score(
    builder: Any, rows: int, queries: Any, ldq: Any, out: Any, ldo: Any,
    addresses: Any, offset: Any, chunks: Any,
) -> None:  # fmt: skip
    """Scores of 8 keys for any number of queries in even-odd order; `chunks` of 16 elements are a
    head: (queries, their address, ldq, scores, lds, addresses, offset, chunks)."""
    # As measured: of more sums at once LLVM keeps some in memory, and fewer wait for the
    # multiply-add before.
    at_once = 4 if rows == 1 else 2
    waiting: list[list[Any]] = [[] for _ in range(rows)]
    for first in range(0, _WIDE, at_once):
        slots = [
            [cgutils.alloca_once(builder, _FLOATS) for _ in range(at_once)] for _ in range(rows)
        ]
        for slot in (slot for own in slots for slot in own):
            builder.store(const(0.0, _FLOATS), slot)
        keys = [token(builder, addresses, key, offset) for key in _KEYS[first : first + at_once]]
        with cgutils.for_range(builder, chunks) as loop:
            for half in range(2):
                own = []
                for row in range(rows):
                    at = llvm.step(builder, llvm.step(builder, queries, ldq, row), 64, loop.index)
                    own.append(llvm.load(builder, llvm.offset(builder, at, 32 * half), _FLOATS, 4))
                for i, key in enumerate(keys):
                    widened = _widened(builder, llvm.step(builder, key, 32, loop.index), half)
                    for row in range(rows):
                        _multiply_add(builder, own[row], widened, slots[row][i])
        # sums are added up as soon as their partners are there, which keeps few of them
        for row in range(rows):
            for i, slot in enumerate(slots[row]):
                summed, done, step = builder.load(slot, typ=_FLOATS), first + i + 1, _WIDE // 2
                while done % 2 == 0:
                    summed = paired(builder, waiting[row].pop(), summed, step)
                    done, step = done // 2, step // 2
                waiting[row].append(summed)
    for row in range(rows):
        llvm.store(builder, llvm.step(builder, out, ldo, row), waiting[row].pop(), 4)


@rows_operation(_AT_ONCE, moving=2, fixed=3)
def _mix(
    builder: Any, rows: int, weights: Any, ldw: Any, results: Any, ldr: Any,
    addresses: Any, offset: Any, tokens: Any,
) -> None:  # fmt: skip
    """results += weights . values, for 32 of the outputs of any number of queries: (queries,
    weights, ldw, results, ldr, addresses, offset, tokens)."""
    at_once = 1 if rows == 3 else 2  # chunks of 16 outputs whose sums fit the registers
    for begin in range(0, 2, at_once):
        parts = [(row, chunk) for row in range(rows) for chunk in range(begin, begin + at_once)]
        slots = {part: [cgutils.alloca_once(builder, _FLOATS) for _ in range(2)] for part in parts}
        places = {
            (row, chunk): llvm.offset(builder, llvm.step(builder, results, ldr, row), 64 * chunk)
            for row, chunk in parts
        }
        for part in parts:
            held = llvm.load(builder, places[part], FVEC, 4)
            for half, slot in enumerate(slots[part]):
                order = _EVEN_ODD[half * _WIDE : (half + 1) * _WIDE]
                builder.store(_shuffled(builder, held, held, order), slot)
        with cgutils.for_range(builder, tokens) as loop:
            at = token(builder, addresses, loop.index, offset)
            own = []
            for row in range(rows):
                place = llvm.step(builder, llvm.step(builder, weights, ldw, row), 4, loop.index)
                own.append(llvm.splat(builder, llvm.load(builder, place, F32, 4), _WIDE))
            for chunk in range(begin, begin + at_once):
                for half in range(2):
                    value = _widened(builder, llvm.offset(builder, at, 32 * chunk), half)
                    for row in range(rows):
                        _multiply_add(builder, own[row], value, slots[row, chunk][half])
        for part in parts:
            even, odd = (builder.load(slot, typ=_FLOATS) for slot in slots[part])
            llvm.store(builder, places[part], _shuffled(builder, even, odd, _ZIPPED), 4)


@operation(void, i64)
def _split_chunk(builder: Any, address: Any) -> None:
    """16 float32, in place, to even-odd order."""
    held = llvm.load(builder, address, FVEC, 4)
    llvm.store(
        builder, address, builder.shuffle_vector(held, held, ir.Constant(IVEC, _EVEN_ODD)), 4
    )


@kernel
def prepare_queries(queries: int, elements: int) -> None:
    """Puts the elements of queries, in place, into the order that `score_rows` wants."""
    for i in range(0, elements, 16):
        _split_chunk(queries + i * 4)


@kernel
def score_rows(
    addresses: int, offset: int, count: int, q: int, rows: int, head_dim: int, scores: int, lds: int
) -> None:
    """scores [rows, count] of prepared queries [rows, head_dim] float32; `count` of up to 64 keys
    is rounded up to 8."""
    for first in range(0, count, _WIDE):
        _score(
            rows, q, head_dim * 4, scores + first * 4, lds,
            addresses + first * 8, offset, head_dim // 16,
        )  # fmt: skip


@kernel
def mix_rows(
    addresses: int,
    offset: int,
    steps: int,
    weights: int,
    ldw: int,
    rows: int,
    head_dim: int,
    results: int,
) -> None:
    """results [rows, head_dim] float32 += weights (float32, of `steps` tokens) . values."""
    for d in range(0, head_dim, 32):
        _mix(rows, weights, ldw, results + d * 4, head_dim * 4, addresses, offset + d * 2, steps)
