from __future__ import annotations

import dataclasses
from array import array
from typing import Any

import pytest
import torch
from steps import GREEDY, Row, step

from asgl.errors import InternalError
from asgl.execution.batch import lower
from asgl.plan import INT, ScoreRow, SharedSpan, StepPlan

PLAN = step(
    [
        Row([5], [19], before=[3, 4], sample=GREEDY),
        Row([6, 7, 8], [0, 2, 1], before=[3], score=[(1, (4, 2))]),
    ]
)


def lowered(plan: StepPlan) -> Any:
    return lower(plan, capacity=20, vocabulary=9, context=5, device=torch.device("cpu"))


def test_fields() -> None:
    batch = lowered(PLAN)
    assert batch.input_ids.tolist() == [5, 6, 7, 8]
    assert batch.positions.tolist() == [2, 1, 2, 3]
    assert batch.slots.tolist() == [19, 0, 2, 1]
    assert batch.qo_indptr.tolist() == [0, 1, 4]
    assert batch.kv_indptr.tolist() == [0, 3, 7]
    assert batch.kv_indices.tolist() == [3, 4, 19, 3, 0, 2, 1]
    assert (batch.rows, batch.decode_rows, batch.max_kv) == (2, 1, 4)
    assert {tensor.dtype for tensor in (batch.input_ids, batch.kv_indices, batch.qo_indptr)} == {
        torch.int32
    }


def test_the_batch_reads_the_memory_of_the_plan() -> None:
    assert lowered(PLAN).kv_indices.data_ptr() == PLAN.kv_indices.buffer_info()[0]


def ints(*values: int) -> array[int]:
    return array(INT, values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_ids": ints(5, 6, 9, 8)}, "token 9 is not in 0..8"),
        ({"input_ids": ints(5, 6, -1, 8)}, "token -1"),
        ({"input_ids": ints(5, 6, 7)}, "3 tokens, 4 positions"),
        ({"positions": ints(2, 1, 2, 5)}, "position 5 is not in 0..4"),
        (
            {"slots": ints(20, 0, 2, 1), "kv_indices": ints(3, 4, 20, 3, 0, 2, 1)},
            "slot 20 is not in 0..19",
        ),
        ({"kv_indices": ints(3, -4, 19, 3, 0, 2, 1)}, "slot of a context -4"),
        ({"kv_indices": ints(3, 4, 19, 3, 0, 1, 2)}, "does not end with the slots"),
        ({"slots": ints(19, 0, 2, 2), "kv_indices": ints(3, 4, 19, 3, 0, 2, 2)}, "one slot"),
        ({"qo_indptr": ints(0, 1, 3)}, "qo_indptr does not go from 0 to 4"),
        ({"qo_indptr": ints(0, 4)}, "1 rows of tokens, 2 of context"),
        ({"qo_indptr": ints(0, 4, 4)}, "fewer slots than new tokens"),
        ({"kv_indptr": ints(0, 5, 7)}, "fewer slots than new tokens"),
        ({"kv_indptr": ints(1, 3, 7)}, "kv_indptr does not go from 0 to 7"),
        ({"decode_rows": 2}, "first 2 rows"),
        ({"scores": (ScoreRow(4, (1,)),)}, "token 4 of 4"),
        ({"scores": (ScoreRow(0, (1, 9)),)}, "target is outside"),
        ({"shared": (SharedSpan(0, 4, (0, 1)),)}, "shared span 0:4"),
        ({"shared": (SharedSpan(0, 1, (0, 2)),)}, "shared span 0:1"),
        ({"shared": (SharedSpan(1, 1, (0, 1)),)}, "shared span 1:1"),
    ],
)
def test_unsound_plans(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InternalError, match=message):
        lowered(dataclasses.replace(PLAN, **changes))


def test_an_empty_plan_is_unsound() -> None:
    empty = array(INT)
    with pytest.raises(InternalError):
        lowered(StepPlan(1, 0, empty, empty, empty, ints(0), ints(0), empty))
