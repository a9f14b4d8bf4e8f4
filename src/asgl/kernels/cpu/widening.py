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
from asgl.kernels.cpu.llvm import F32, FVEC, I32, I64, IVEC, const
from asgl.kernels.cpu.simd import i64, kernel, operation, void
from asgl.kernels.cpu.streaming import paired

QUERIES = 12
"""Up to so many queries, packing does not pay."""
_KEYS = (0, 4, 2, 6, 1, 5, 3, 7)
"""The keys of a block of scores, in the order in which their sums are paired: first those that end
four lanes apart."""
_WIDE = 8
_WORDS, _FLOATS = ir.VectorType(I32, _WIDE), ir.VectorType(F32, _WIDE)
_EVEN_ODD = [*range(0, 16, 2), *range(1, 16, 2)]
_ZIPPED = [place for i in range(_WIDE) for place in (i, _WIDE + i)]


def _step(builder: Any, base: Any, index: Any, size: int) -> Any:
    return builder.add(base, builder.mul(index, ir.Constant(I64, size)))


def _row(builder: Any, base: Any, step: Any, row: int) -> Any:
    return builder.add(base, builder.mul(step, ir.Constant(I64, row)))


def _address(builder: Any, addresses: Any, index: Any, offset: Any) -> Any:
    return builder.add(llvm.load(builder, _step(builder, addresses, index, 8), I64, 8), offset)


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


def _score(rows: int, at_once: int) -> Any:
    """Scores of 8 keys, `at_once` in a turn, for queries of `rows` rows in even-odd order; `chunks`
    of 16 elements are a head."""

    def emit(
        builder: Any,
        addresses: Any,
        offset: Any,
        queries: Any,
        ldq: Any,
        chunks: Any,
        out: Any,
        ldo: Any,
    ) -> None:
        waiting: list[list[Any]] = [[] for _ in range(rows)]
        for first in range(0, _WIDE, at_once):
            slots = [
                [cgutils.alloca_once(builder, _FLOATS) for _ in range(at_once)] for _ in range(rows)
            ]
            for slot in (slot for own in slots for slot in own):
                builder.store(const(0.0, _FLOATS), slot)
            keys = [
                _address(builder, addresses, ir.Constant(I64, key), offset)
                for key in _KEYS[first : first + at_once]
            ]
            with cgutils.for_range(builder, chunks) as loop:
                for half in range(2):
                    own = []
                    for row in range(rows):
                        at = _step(builder, _row(builder, queries, ldq, row), loop.index, 64)
                        own.append(
                            llvm.load(
                                builder, builder.add(at, ir.Constant(I64, 32 * half)), _FLOATS, 4
                            )
                        )
                    for i, key in enumerate(keys):
                        widened = _widened(builder, _step(builder, key, loop.index, 32), half)
                        for row in range(rows):
                            _multiply_add(builder, own[row], widened, slots[row][i])
            for row in range(
                rows
            ):  # sums are added up as soon as their partners are there, which keeps few of them
                for i, slot in enumerate(slots[row]):
                    summed, done, step = builder.load(slot, typ=_FLOATS), first + i + 1, _WIDE // 2
                    while done % 2 == 0:
                        summed = paired(builder, waiting[row].pop(), summed, step)
                        done, step = done // 2, step // 2
                    waiting[row].append(summed)
        for row in range(rows):
            llvm.store(builder, _row(builder, out, ldo, row), waiting[row].pop(), 4)

    emit.__name__ = f"score_{rows}"
    return operation(void, i64, i64, i64, i64, i64, i64, i64)(emit)


def _mix(rows: int, chunks: int) -> Any:
    """results += weights . values, for 16 * chunks of the outputs of `rows` queries."""

    def emit(
        builder: Any,
        addresses: Any,
        offset: Any,
        tokens: Any,
        weights: Any,
        ldw: Any,
        results: Any,
        ldr: Any,
    ) -> None:
        parts = [(row, chunk) for row in range(rows) for chunk in range(chunks)]
        slots = {part: [cgutils.alloca_once(builder, _FLOATS) for _ in range(2)] for part in parts}
        places = {
            part: builder.add(_row(builder, results, ldr, part[0]), ir.Constant(I64, 64 * part[1]))
            for part in parts
        }
        for part in parts:
            held = llvm.load(builder, places[part], FVEC, 4)
            for half in range(2):
                builder.store(
                    _shuffled(builder, held, held, _EVEN_ODD[half * _WIDE : (half + 1) * _WIDE]),
                    slots[part][half],
                )
        with cgutils.for_range(builder, tokens) as loop:
            at = _address(builder, addresses, loop.index, offset)
            own = []
            for row in range(rows):
                place = _step(builder, _row(builder, weights, ldw, row), loop.index, 4)
                own.append(llvm.splat(builder, llvm.load(builder, place, F32, 4), _WIDE))
            for chunk in range(chunks):
                for half in range(2):
                    value = _widened(builder, builder.add(at, ir.Constant(I64, 32 * chunk)), half)
                    for row in range(rows):
                        _multiply_add(builder, own[row], value, slots[row, chunk][half])
        for part in parts:
            even, odd = (builder.load(slot, typ=_FLOATS) for slot in slots[part])
            llvm.store(builder, places[part], _shuffled(builder, even, odd, _ZIPPED), 4)

    emit.__name__ = f"mix_{rows}"
    return operation(void, i64, i64, i64, i64, i64, i64, i64)(emit)


@operation(void, i64)
def _split_chunk(builder: Any, address: Any) -> None:
    """16 float32, in place, to even-odd order."""
    held = llvm.load(builder, address, FVEC, 4)
    llvm.store(
        builder, address, builder.shuffle_vector(held, held, ir.Constant(IVEC, _EVEN_ODD)), 4
    )


# As measured: of more sums at once LLVM keeps some in memory, and fewer wait for the multiply-add
# before.
_score_1, _score_2, _score_3 = _score(1, 4), _score(2, 2), _score(3, 2)
_mix_1, _mix_2, _mix_3 = _mix(1, 2), _mix(2, 2), _mix(3, 1)


@kernel
def _at_once(left: int) -> int:
    """Queries of the next block, of so many: three, but four as two and two."""
    return 2 if left == 4 else min(left, 3)


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
    chunks, ldq, row = head_dim // 16, head_dim * 4, 0
    while row < rows:
        block, own, out = _at_once(rows - row), q + row * ldq, scores + row * lds
        for first in range(0, count, _WIDE):
            at, to = addresses + first * 8, out + first * 4
            if block == 3:
                _score_3(at, offset, own, ldq, chunks, to, lds)
            elif block == 2:
                _score_2(at, offset, own, ldq, chunks, to, lds)
            else:
                _score_1(at, offset, own, ldq, chunks, to, lds)
        row += block


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
    ldr, row = head_dim * 4, 0
    while row < rows:
        block, own = _at_once(rows - row), weights + row * ldw
        for d in range(0, head_dim, 32):
            at, to = offset + d * 2, results + row * ldr + d * 4
            if block == 3:
                _mix_3(addresses, at, steps, own, ldw, to, ldr)
                _mix_3(addresses, at + 32, steps, own, ldw, to + 64, ldr)
            elif block == 2:
                _mix_2(addresses, at, steps, own, ldw, to, ldr)
            else:
                _mix_1(addresses, at, steps, own, ldw, to, ldr)
        row += block
