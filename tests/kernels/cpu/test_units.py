"""Units of attention: together they are exactly what each token sees, whatever is shared."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from asgl.kernels.cpu import units
from asgl.kernels.cpu.units import COUNT, FIXED, INDEX, LENGTH, PARTIAL, POSITION, TOKENS

plan_units = njit(units.SIGNATURE)(units.plan_units)

Row = tuple[int, int]  # context, new tokens
Span = tuple[int, int, tuple[int, ...]]


def plan(
    rows: list[Row],
    spans: list[Span],
    group: int = 3,
    threads: int = 2,
    deterministic: bool = False,
    window: int = 0,
):
    qo = np.cumsum([0] + [new for _, new in rows]).astype(np.int32)
    kv = np.cumsum([0] + [context for context, _ in rows]).astype(np.int32)
    bounds = np.array([span[:2] for span in spans], np.int64).reshape(-1, 2)
    pointers = np.cumsum([0] + [len(span[2]) for span in spans]).astype(np.int64)
    of = np.array([row for span in spans for row in span[2]], np.int64)
    return qo, kv, plan_units(qo, kv, bounds, pointers, of, group, window, threads, deterministic)


@st.composite
def trees(draw: st.DrawFn) -> tuple[list[Row], list[Span]]:
    """Rows below a root that all share, some of them below a second span."""
    root = draw(st.integers(0, 700))
    branch = draw(st.integers(0, 300))
    count = draw(st.integers(1, 9))
    below = draw(st.sets(st.integers(0, count - 1)))
    rows = []
    for row in range(count):
        new = draw(st.integers(1, 80))
        own = new + draw(st.integers(0, 400))
        rows.append((root + (branch if row in below else 0) + own, new))
    spans: list[Span] = []
    if root and count > 1:
        spans.append((0, root, tuple(range(count))))
    if branch and len(below) > 1:
        spans.append((root, root + branch, tuple(sorted(below))))
    return rows, spans


@settings(max_examples=150)
@given(
    tree=trees(),
    group=st.sampled_from([1, 3, 8]),
    threads=st.integers(1, 9),
    deterministic=st.booleans(),
    window=st.sampled_from([0, 0, 1, 20, 64, 333]),
)
def test_each_token_meets_each_position_it_sees_once(
    tree, group: int, threads: int, deterministic: bool, window: int
) -> None:
    rows, spans = tree
    qo, kv, (made, tokens, limits, merged, parts, order, partials) = plan(
        rows, spans, group, threads, deterministic, window
    )
    row_of = np.repeat(np.arange(len(rows)), np.diff(qo))
    below = {(start, row): set(of) for start, _, of in spans for row in of}
    seen = [np.zeros(kv[row + 1] - kv[row], np.int64) for row in row_of]
    units_of: list[list[int]] = [[] for _ in row_of]
    for i, unit in enumerate(made):
        assert unit[COUNT] * group <= max(group, units.QUERIES)
        for token in tokens[unit[TOKENS] : unit[TOKENS] + unit[COUNT]]:
            seen[token][unit[POSITION] : unit[POSITION] + unit[LENGTH]] += 1
            units_of[token].append(i)
            # the slots are those of the token's row, or of a row that shares the span
            at = unit[INDEX] - kv[row_of[token]]
            assert at == unit[POSITION] or any(
                row_of[token] in others and unit[INDEX] - kv[other] == unit[POSITION]
                for others in below.values()
                for other in others
            )
        if deterministic:
            # from where a window begins, or from a fixed place to the next
            assert unit[POSITION] % (units.BLOCK if window else FIXED) == 0
            assert unit[POSITION] % FIXED + unit[LENGTH] <= FIXED
    for token, row in enumerate(row_of):
        context, new = rows[row]
        assert limits[token] == context - new + token - qo[row] + 1
        first = max(0, limits[token] - window) if window else 0
        assert (seen[token][first : limits[token]] == 1).all()
        assert (seen[token] <= 1).all()

    rows_of_partials = np.zeros(partials, np.int64)
    for token, own in enumerate(units_of):
        if len(own) > 1:
            assert token in merged
        if token in merged:
            own.sort(key=lambda i: made[i][POSITION])
            expected = [
                made[i][PARTIAL] + list(tokens[made[i][TOKENS] :][: made[i][COUNT]]).index(token)
                for i in own
            ]
            assert list(order[parts[token] : parts[token + 1]]) == expected
            rows_of_partials[expected] += 1
        else:
            assert made[own[0]][PARTIAL] == -1
    assert (rows_of_partials == 1).all()


@pytest.mark.parametrize(
    "rows", [[(4000, 1)], [(300, 1)] * 64, [(1500, 512)]], ids=["long", "many", "prompt"]
)
def test_no_unit_is_a_large_part_of_the_work(rows: list[Row]) -> None:
    _, _, (made, *_) = plan(rows, [])
    cost = made[:, LENGTH] * (units.PACKING + made[:, COUNT] * 3)
    assert cost.max() <= cost.sum() / 8


def test_a_prefix_under_many_rows_is_read_once() -> None:
    _, _, (made, *_) = plan([(1032, 1)] * 32, [(0, 1000, tuple(range(32)))])
    shared = made[made[:, POSITION] < 1000]
    assert shared[:, LENGTH].sum() == 1000
    assert (shared[:, COUNT] == 32).all()


def test_fixed_units_do_not_depend_on_other_rows() -> None:
    alone = plan([(900, 1)], [], deterministic=True)[2][0]
    among = plan([(900, 1), (900, 1), (40, 3)], [(0, 700, (0, 1))], deterministic=True)[2]
    own = [
        (unit[POSITION], unit[LENGTH])
        for unit in among[0]
        if 0 in among[1][unit[TOKENS] : unit[TOKENS] + unit[COUNT]]
    ]
    assert sorted(own) == [(unit[POSITION], unit[LENGTH]) for unit in alone]


@pytest.mark.parametrize(("rows", "most"), [([(9000, 1)] * 3, 3 * 576), ([(9000, 2000)], 60_000)])
def test_what_no_token_sees_through_its_window_costs_nothing(rows: list[Row], most: int) -> None:
    _, _, (made, *_) = plan(rows, [], window=512)
    assert made[:, LENGTH].sum() <= most
