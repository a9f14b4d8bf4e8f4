"""Scores and mixtures of a few queries straight from the cache, where packing tiles would cost more
than it saves, in products of bfloat16. widening.py is the same for processors that have none.

Keys and values are given by the addresses (int64) of their tokens, to which `offset` is added;
tokens past the end of a block must point at zeros.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from asgl.kernels.cpu import llvm
from asgl.kernels.cpu.llvm import ELEMENT, FVEC, I16, I32, I64, IVEC, LANES, PER_WORD, const
from asgl.kernels.cpu.simd import get_shared, i64, kernel, operation, rows_operation, void

QUERIES = 8
"""Up to so many queries, packing does not pay."""
_AT_ONCE = (1, 2, 3, 4)
"""Queries whose results are mixed at once, by how many are left."""


def token(builder: Any, addresses: Any, index: Any, offset: Any) -> Any:
    """Where the keys or values of a token begin, `offset` bytes on. `index` may be an int."""
    at = llvm.load(builder, llvm.step(builder, addresses, 8, index), I64, 8)
    return builder.add(at, offset)


def paired(builder: Any, a: Any, b: Any, step: int) -> Any:
    """The sums of lanes `step` apart of two vectors, in turns of `step` lanes: of a, of b, of a,
    ..."""
    lanes = range(a.type.count)
    stay = [lane if not lane & step else len(lanes) + lane for lane in lanes]
    move = [lane + step if not lane & step else len(lanes) + lane - step for lane in lanes]
    places = ir.VectorType(I32, len(lanes))
    return builder.fadd(
        *(builder.shuffle_vector(a, b, ir.Constant(places, order)) for order in (stay, move))
    )


def _add_up(builder: Any, vectors: list[Any]) -> Any:
    """A vector of the sums of 16 vectors, by halving and pairing them four times."""
    step = LANES // 2
    while step:
        vectors = [
            paired(builder, a, b, step) for a, b in zip(vectors[:step], vectors[step:], strict=True)
        ]
        step //= 2
    return vectors[0]


@operation(void, i64, i64, i64, i64, i64)
def _score(builder: Any, addresses: Any, offset: Any, query: Any, chunks: Any, out: Any) -> None:
    """The products of a query (elements) with 16 keys; `chunks` vectors of words are a head."""
    slots = [cgutils.alloca_once(builder, FVEC) for _ in range(LANES)]
    for slot in slots:
        builder.store(const(0.0, FVEC), slot)
    with cgutils.for_range(builder, chunks) as loop:
        own = llvm.load(builder, llvm.step(builder, query, 64, loop.index), IVEC, 4)
        at = llvm.step(builder, offset, 2 * LANES * PER_WORD, loop.index)
        for i, slot in enumerate(slots):
            key = llvm.load(builder, token(builder, addresses, i, at), IVEC, 2)
            builder.store(llvm.dot(builder, builder.load(slot, typ=FVEC), key, own), slot)
    llvm.store(builder, out, _add_up(builder, [builder.load(slot, typ=FVEC) for slot in slots]), 4)


def _value_words(builder: Any, addresses: Any, step: Any, offset: Any, vectors: int) -> list[Any]:
    """Words of a step (a pair of tokens) for 16 * vectors outputs."""
    first = builder.mul(step, ir.Constant(I64, 2))
    tokens = [
        token(builder, addresses, index, offset)
        for index in (first, builder.add(first, ir.Constant(I64, 1)))
    ]
    words: list[Any] = []
    for chunk in range(vectors // 2):
        rows = [llvm.offset(builder, at, 64 * chunk) for at in tokens]
        words += [builder.bitcast(zipped, IVEC) for zipped in zipped_rows(builder, *rows)]
    return words


def zipped_rows(builder: Any, first: Any, second: Any) -> list[Any]:
    """32 bfloat16 at each of two addresses as two vectors of pairs, one of the first and one of the
    second."""
    wide = ir.VectorType(I16, 2 * LANES)
    rows = [llvm.load(builder, address, wide, 2) for address in (first, second)]
    orders = [
        [place for i in range(half * LANES, (half + 1) * LANES) for place in (i, 2 * LANES + i)]
        for half in range(2)
    ]
    places = ir.VectorType(I32, 2 * LANES)
    return [builder.shuffle_vector(*rows, ir.Constant(places, order)) for order in orders]


def _mix(vectors: int) -> Any:
    """results += weights . values, for 16 * vectors of the outputs of any number of queries:
    (queries, weights, ldw, results, ldr, addresses, offset, steps)."""

    def emit(
        builder: Any, rows: int, weights: Any, ldw: Any, results: Any, ldr: Any,
        addresses: Any, offset: Any, steps: Any,
    ) -> None:  # fmt: skip
        places = [
            llvm.offset(builder, llvm.step(builder, results, ldr, row), 64 * i)
            for row in range(rows)
            for i in range(vectors)
        ]
        slots = [cgutils.alloca_once(builder, FVEC) for _ in places]
        for place, slot in zip(places, slots, strict=True):
            builder.store(llvm.load(builder, place, FVEC, 4), slot)
        with cgutils.for_range(builder, steps) as loop:
            words = _value_words(builder, addresses, loop.index, offset, vectors)
            for row in range(rows):
                at = llvm.step(builder, llvm.step(builder, weights, ldw, row), 4, loop.index)
                weight = llvm.splat(builder, llvm.load(builder, at, I32, 4))
                own = slots[row * vectors : (row + 1) * vectors]
                for slot, word in zip(own, words, strict=True):
                    held = builder.load(slot, typ=FVEC)
                    builder.store(llvm.dot(builder, held, weight, word), slot)
        for place, slot in zip(places, slots, strict=True):
            llvm.store(builder, place, builder.load(slot, typ=FVEC), 4)

    emit.__name__ = f"mix_{vectors}"
    return rows_operation(_AT_ONCE, moving=2, fixed=3)(emit)


_mix_2, _mix_4 = _mix(2), _mix(4)


@kernel
def touch(first: int, second: int, rows: int, row_bytes: int) -> None:
    """Reads a word of each line of the rows at these addresses, of both in turn, in the order of
    memory.

    The work that follows goes through the rows head by head. Memory read in that order comes at a
    third of the rate: lines that follow each other are fetched ahead by the processor itself, and
    two places at once faster than one. (Prefetch instructions do not help: while some 24 lines are
    on their way, others that are asked for are dropped.)
    """
    for i in range(rows):
        for addresses in (first, second):
            row = get_shared(addresses + i * 8)
            for line in range(0, row_bytes, 64):
                get_shared(row + line)  # a plain load, but one that is not optimized away


@kernel
def prepare_queries(queries: int, elements: int) -> None:
    """Queries are right as they are."""


@kernel
def score_rows(
    addresses: int, offset: int, count: int, q: int, rows: int, head_dim: int, scores: int, lds: int
) -> None:
    """scores [rows, count] of queries [rows, head_dim] elements; `count` of up to 64 keys is
    rounded up to 16."""
    chunks = head_dim // (LANES * PER_WORD)
    for first in range(0, count, LANES):
        for row in range(rows):
            at = q + row * head_dim * ELEMENT
            _score(addresses + first * 8, offset, at, chunks, scores + row * lds + first * 4)


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
    """results [rows, head_dim] float32 += weights (elements, `steps` words of them) . values."""
    ldr, d = head_dim * 4, 0
    while d < head_dim:
        at, out = offset + d * 2, results + d * 4
        if head_dim - d >= 64:
            _mix_4(rows, weights, ldw, out, ldr, addresses, at, steps)
            d += 64
        else:
            _mix_2(rows, weights, ldw, out, ldr, addresses, at, steps)
            d += 32
