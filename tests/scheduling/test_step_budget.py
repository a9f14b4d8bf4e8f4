"""The length of a step, bounded in time."""

from __future__ import annotations

import pytest
from scheduler_harness import Harness, tokens

from asgl.scheduling.step_budget import StepBudget


def test_a_step_has_as_many_tokens_as_its_time_allows():
    budget = StepBudget(512, 0.1)
    assert budget.tokens(4) == 512
    budget.learn(100, 4, 0.1)
    assert budget.tokens(4) == 100
    assert budget.tokens(0) == 512
    budget.learn(100, 4, 0.3)
    assert budget.tokens(4) == 50


def test_it_always_goes_on_and_never_passes_the_most():
    budget = StepBudget(512, 0.1)
    budget.learn(100, 0, 100.0)
    assert budget.tokens(8) == 40
    budget = StepBudget(512, 0.1)
    budget.learn(100, 0, 1e-6)
    assert budget.tokens(8) == 512


@pytest.mark.parametrize("most", [1, 8, 20])
def test_a_slow_device_does_not_raise_the_most(most):
    budget = StepBudget(most, 0.1)
    budget.learn(100, 0, 100.0)
    assert budget.tokens(1) == most
    harness = Harness(2000, max_batch_tokens=most, step_seconds=1e-6)
    harness.submit(tokens(100), max_tokens=60)
    for _ in range(200):
        harness.step()
    harness.submit(tokens(100, 1), max_tokens=1)
    harness.run()
    assert max(plan.tokens for plan in harness.runner.steps) == most
    harness.verify_ended()


def test_steps_of_decodes_say_nothing():
    budget = StepBudget(512, 0.1)
    budget.learn(80, 80, 10.0)
    assert budget.tokens(8) == 512


def test_a_budget_that_shrank_to_the_least_is_learnt_from():
    budget = StepBudget(512, 0.1)
    budget.learn(100, 8, 100.0)
    assert budget.tokens(8) == 40
    for _ in range(20):
        budget.learn(40, 8, 0.02)
    assert budget.tokens(8) == pytest.approx(200, rel=0.02)


def test_without_a_bound():
    budget = StepBudget(512, None)
    budget.learn(100, 0, 100.0)
    assert budget.tokens(8) == 512


@pytest.mark.parametrize(("seconds", "longest"), [(None, 256), (0.05, 100)])
def test_decodes_beside_a_long_prompt(seconds, longest):
    """The fake device takes a millisecond a token."""
    harness = Harness(2000, max_batch_tokens=256, step_seconds=seconds)
    harness.submit(tokens(100), max_tokens=60)
    harness.step()
    harness.submit(tokens(1000, 1), max_tokens=1)
    harness.run()
    mixed = [
        plan.tokens
        for plan in harness.runner.steps
        if plan.decode_rows and plan.rows > plan.decode_rows
    ]
    assert max(mixed) == longest if seconds is None else max(mixed) <= longest
    harness.verify_ended()
