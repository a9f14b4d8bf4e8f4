"""Sampling: a token for each row of logits, the winner of a race in which each one's time depends
on its own weight and random number alone (see `asgl.kernels.noise`).

A weight is exp((logit - greatest) / temperature). Tokens are ranked for top-k and top-p only: those
near the greatest at first, and all of them if those did not decide. Ranking is a counting sort by
the leading 12 bits of a weight, and the bucket in which a filter cuts is sorted for good. Equal
tokens keep the order of their ids.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray  # pyright: ignore[reportPrivateImportUsage]
from numpy.typing import NDArray

from asgl.kernels.cpu import team
from asgl.kernels.cpu.llvm import LANES
from asgl.kernels.cpu.simd import (
    add,
    any_less,
    div,
    exp,
    exp_scalar,
    fma,
    get_f32,
    get_i32,
    get_i64,
    greatest,
    int64_at,
    kernel,
    load,
    load_words,
    maximum,
    mul,
    set_f32,
    set_i64,
    splat,
    store,
    sub,
    total,
    uniform,
    uniform_scalar,
    words_from,
    zero,
)

Ints = NDArray[Any]

BUCKETS = 2048
"""Weights are at most 1, whose leading bits, sign included, are 2032."""
_SHIFT = 19
_NEAR = 2.0**-10
"""Tokens of at least this share of the greatest weight are ranked first."""
_RUN = 16
"""Tokens that are sorted by insertion."""


def rank_words(n: int) -> int:
    """int64 that a thread needs to rank n tokens."""
    return 2 * n + BUCKETS


@kernel
def _greatest(row: int, n: int) -> Any:
    """The greatest logit; NaN if one is NaN or +inf."""
    best = np.float32(-np.inf)
    mark = np.float32(0)
    if n >= LANES:
        # NaN in a lane that had such a logit, else 0: `maximum` forgets a NaN
        lanes, marks, none = load(row), zero(), zero()
        for i in range(0, n - LANES + 1, LANES):
            logits = load(row + i * 4)
            lanes = maximum(lanes, logits)
            marks = fma(maximum(splat(np.float32(-1e30)), logits), none, marks)
        best, mark = greatest(lanes), total(marks)
    for i in range(n // LANES * LANES, n):
        logit = get_f32(row + i * 4)
        best = max(best, logit)
        if not logit < np.inf:
            mark = np.float32(np.nan)
    return best + mark


@kernel
def _first(row: int, n: int, value: float) -> int:
    for i in range(n):
        if get_f32(row + i * 4) == value:
            return i
    return 0


@kernel
def _weigh(row: int, n: int, top: float, temperature: float) -> float:
    """Turns logits into weights in place; returns their sum."""
    high, heat = splat(top), splat(temperature)
    summed = 0.0
    for start in range(0, n // LANES * LANES, 64 * LANES):
        lanes = zero()  # summed in pieces, so that the sum of many small weights stays exact enough
        for i in range(start, min(start + 64 * LANES, n // LANES * LANES), LANES):
            weight = exp(div(sub(load(row + i * 4), high), heat))
            store(row + i * 4, weight)
            lanes = add(lanes, weight)
        summed += total(lanes)
    for i in range(n // LANES * LANES, n):
        weight = exp_scalar((get_f32(row + i * 4) - top) / temperature)
        set_f32(row + i * 4, weight)
        summed += weight
    return summed


@kernel
def _rank(row: int, n: int, least: float, near: Ints, tokens: Ints, ends: Ints) -> int:
    """Lists the tokens of weights of at least `least` (above 0) by bucket, the greatest first;
    returns their number.

    Bucket b, counted from the greatest weights, is tokens[ends[b - 1]:ends[b]]. `near` is room for
    a list of tokens.
    """
    ends[:] = 0
    count = 0
    for i in range(n):
        weight = get_f32(row + i * 4)
        if weight >= least and weight > 0:
            near[count] = i
            count += 1
            ends[BUCKETS - 1 - (np.float32(weight).view(np.int32) >> _SHIFT)] += 1
    at = 0
    for b in range(BUCKETS):
        size = ends[b]
        ends[b] = at
        at += size
    for i in range(count):
        b = BUCKETS - 1 - (np.float32(get_f32(row + near[i] * 4)).view(np.int32) >> _SHIFT)
        tokens[ends[b]] = near[i]
        ends[b] += 1
    return count


@kernel
def _merge(row: int, source: Ints, first: int, middle: int, last: int, target: Ints) -> None:
    """Merges the sorted halves first:middle and middle:last."""
    left, right = first, middle
    for i in range(first, last):
        if right == last or (
            left < middle and get_f32(row + source[left] * 4) >= get_f32(row + source[right] * 4)
        ):
            target[i] = source[left]
            left += 1
        else:
            target[i] = source[right]
            right += 1


@kernel
def _sort(row: int, tokens: Ints, first: int, last: int, spare: Ints) -> None:
    """Sorts tokens[first:last] by falling weight; equal ones stay as they are. Runs are sorted by
    insertion, then merged."""
    for start in range(first, last, _RUN):
        for i in range(start + 1, min(start + _RUN, last)):
            token = tokens[i]
            weight = get_f32(row + token * 4)
            j = i
            while j > start and get_f32(row + tokens[j - 1] * 4) < weight:
                tokens[j] = tokens[j - 1]
                j -= 1
            tokens[j] = token
    width = _RUN
    while width < last - first:
        for start in range(first, last, 2 * width):
            _merge(
                row, tokens, start, min(start + width, last), min(start + 2 * width, last), spare
            )
        for i in range(first, last):
            tokens[i] = spare[i]
        width *= 2


@kernel
def _prefix(
    row: int, tokens: Ints, ends: Ints, most: int, limit: float, spare: Ints
) -> tuple[int, float]:
    """(how many, their mass) of the likeliest tokens: at most `most`, and while the mass before is
    below `limit`.

    Sorts only the bucket in which that ends.
    """
    kept, mass, first = 0, 0.0, 0
    for b in range(BUCKETS):
        last = ends[b]
        if last == first:
            continue
        whole = mass
        for i in range(first, last):
            whole += get_f32(row + tokens[i] * 4)
        if last <= most and whole < limit:
            kept, mass, first = last, whole, last
            continue
        _sort(row, tokens, first, last, spare)
        for i in range(first, last):
            if kept >= most or mass >= limit:
                break
            mass += get_f32(row + tokens[i] * 4)
            kept += 1
        break
    return kept, mass


@kernel
def _enter(
    row: int, column: int, least: float, ids: int, key: int, winner: int, best: float
) -> tuple[int, float]:
    """(winner, its time) after a column of weights took part, if its weight is at least `least`."""
    weight = get_f32(row + column * 4)
    if weight > 0 and weight >= least:
        u = uniform_scalar(get_i32(ids + column * 4) if ids != 0 else column, key)
        # a time is no less than u / weight: most are out without a logarithm
        if u < best * weight:
            time = -np.log1p(-np.float64(u)) / weight
            if time < best:
                return column, time
    return winner, best


@kernel
def _race(
    row: int, n: int, top: float, temperature: float, least: float, ids: int, key: int
) -> int:
    """The column of logits that wins, of those with a weight of at least `least`. Overwrites the
    row."""
    high, heat = splat(top), splat(temperature)
    winner, best = 0, np.inf
    whole = n // LANES * LANES
    for start in range(0, whole, LANES):
        weights = exp(div(sub(load(row + start * 4), high), heat))
        tokens = load_words(ids + start * 4) if ids != 0 else words_from(start)
        if any_less(uniform(tokens, key), mul(weights, splat(np.float32(best)))):
            store(row + start * 4, weights)
            for i in range(start, start + LANES):
                winner, best = _enter(row, i, least, ids, key, winner, best)
    for i in range(whole, n):
        set_f32(row + i * 4, exp_scalar((get_f32(row + i * 4) - top) / temperature))
        winner, best = _enter(row, i, least, ids, key, winner, best)
    return winner


@kernel
def _keep(
    row: int, n: int, summed: float, most: int, top_p: float, min_p: float,
    tokens: Ints, spare: Ints, ends: Ints,
) -> int:  # fmt: skip
    """Puts those that top-k (`most`, or n) and top-p keep first in `tokens`, of a row of weights
    whose sum is `summed`; returns their number. Tokens below `min_p` may be missing."""
    for attempt in range(2):
        complete = attempt == 1
        count = _rank(row, n, 0.0 if complete else _NEAR, spare, tokens, ends)
        within = summed
        if most < n:
            if count < most and not complete:
                continue
            within = _prefix(row, tokens, ends, most, np.inf, spare)[1]
        limit = top_p * within if top_p < 1 else np.inf
        kept = _prefix(row, tokens, ends, most, limit, spare)[0]
        if complete or kept < count or kept == most or min_p >= _NEAR:
            return kept
    return 0  # unreachable: the second attempt is complete


@kernel
def _draw(
    row: int, n: int, top: float, temperature: float, top_k: int, top_p: float, min_p: float,
    ids: int, key: int, tokens: Ints, spare: Ints, ends: Ints,
) -> int:  # fmt: skip
    """A column of a row of logits. Overwrites the row."""
    most = n if top_k <= 0 else min(top_k, n)
    if most == n and top_p >= 1:
        return _race(row, n, top, temperature, min_p, ids, key)
    summed = _weigh(row, n, top, temperature)
    kept = _keep(row, n, summed, most, top_p, min_p, tokens, spare, ends)
    winner, best = tokens[0], np.inf
    for i in range(kept):
        winner, best = _enter(row, tokens[i], min_p, ids, key, winner, best)
    return winner


@kernel
def sample_phase(a: Any, thread: int, number: int) -> None:
    """One thread's part of sampling the rows of logits [m, n], which become weights. `a` is the
    record of the entry `sample`; `a.ranks` has `rank_words(n)` int64 for each thread. A row that is
    no distribution gives -1."""
    n = a.n
    room = carray(int64_at(a.ranks + thread * (2 * n + BUCKETS) * 8), 2 * n + BUCKETS)
    tokens, spare, ends = room[:n], room[n : 2 * n], room[2 * n :]
    for row in team.pieces(a.job, 0, number, 1, a.m):
        at = a.logits + row * n * 4
        top, temperature = _greatest(at, n), get_f32(a.temperature + row * 4)
        if not top > -np.inf:
            token = -1
        elif a.greedy != 0 or temperature == 0:
            token = _first(at, n, top)
        else:
            token = _draw(
                at, n, top, temperature,
                get_i32(a.top_k + row * 4), get_f32(a.top_p + row * 4), get_f32(a.min_p + row * 4),
                a.ids, get_i64(a.keys + row * 8), tokens, spare, ends,
            )  # fmt: skip
        set_i64(a.out + row * 8, token)


EDIT_SIGNATURE = "void(int64, int64, int64[::1], int64[::1], float32[::1], boolean)"


@kernel
def edit(
    logits: int, n: int, rows: Ints, tokens: Ints, values: NDArray[np.float32], repetition: bool
) -> None:
    """Adds values to single logits of [m, n]; with `repetition`, divides positive ones by them,
    multiplies the others."""
    for i in range(rows.shape[0]):
        at = logits + (rows[i] * n + tokens[i]) * 4
        old = get_f32(at)
        if repetition:
            set_f32(at, old / values[i] if old > 0 else old * values[i])
        else:
            set_f32(at, old + values[i])


@kernel
def log_softmax_phase(a: Any, number: int) -> None:
    """a.out [m, n] = log(softmax(a.logits))."""
    n, whole = a.n, a.n // LANES * LANES
    for row in team.pieces(a.job, 0, number, 1, a.m):
        source, target = a.logits + row * n * 4, a.out + row * n * 4
        top = _greatest(source, n)
        high, summed = splat(top), 0.0
        for start in range(0, whole, 64 * LANES):
            lanes = zero()
            for i in range(start, min(start + 64 * LANES, whole), LANES):
                lanes = add(lanes, exp(sub(load(source + i * 4), high)))
            summed += total(lanes)
        for i in range(whole, n):
            summed += exp_scalar(get_f32(source + i * 4) - top)
        shift = np.float32(np.log(summed))
        low = splat(shift)
        for i in range(0, whole, LANES):
            store(target + i * 4, sub(sub(load(source + i * 4), high), low))
        for i in range(whole, n):
            set_f32(target + i * 4, get_f32(source + i * 4) - top - shift)
