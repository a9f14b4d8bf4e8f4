"""The plans are sound, whatever the capacity. That they are enough:
tests/kernels/triton_compile/test_warm_up.py."""

from __future__ import annotations

import pytest
import torch

from asgl.execution.batch import lower
from asgl.execution.warm_up import gpu_warm_up_plans, warm_up_plans


@pytest.mark.parametrize("capacity", [1, 2, 1000])
def test_each_device_does_all_kinds_of_work(capacity: int) -> None:
    plans = warm_up_plans(capacity)
    for plan in plans:
        lower(plan, capacity=capacity, vocabulary=211, context=8, device=torch.device("cpu"))
    assert {(plan.rows == plan.decode_rows, bool(plan.scores)) for plan in plans} >= {(True, False)}
    assert {plan.samples[0].spec.greedy for plan in plans} == {True, False}
    assert any(plan.scores for plan in plans)


@pytest.mark.parametrize(
    ("capacity", "count"), [(1, 2), (2, 2), (3, 4), (20, 5), (33, 6), (1000, 6)]
)
def test_plans_fit_the_capacity(capacity: int, count: int) -> None:
    plans = gpu_warm_up_plans(capacity, 211)
    assert len(plans) == count
    for plan in plans:
        lower(plan, capacity=capacity, vocabulary=211, context=8, device=torch.device("cpu"))
        assert plan.samples
    assert [bool(plan.continued) for plan in plans] == [False] * (count - 1) + [True]
