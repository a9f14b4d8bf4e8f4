"""A scheduler and the runner that knows what every slot must hold, driven step by step."""

from __future__ import annotations

import random

from fake_runner import POISON, VOCABULARY, FakeRunner, expected_output, expected_scores

from asgl.errors import NumericalError, RequestError
from asgl.plan import StepPlan, StepResult
from asgl.scheduling.request import Request
from asgl.scheduling.scheduler import Scheduler
from asgl.scheduling.sequence import SequenceState


def tokens(count: int, seed: int = 0) -> list[int]:
    generator = random.Random(seed)
    return [generator.randrange(VOCABULARY) for _ in range(count)]


OFTEN, SELDOM = 400, 16


class CheckedScheduler(Scheduler):
    """Checks its books after each plan and each commit; in a long run, after each 16th, for a check
    costs as much as the cache has slots."""

    calls = 0

    def plan(self) -> StepPlan | None:
        plan = super().plan()
        self.check_now_and_then()
        return plan

    def commit(self, result: StepResult) -> None:
        super().commit(result)
        self.check_now_and_then()

    def check_now_and_then(self) -> None:
        self.calls += 1
        if self.calls <= OFTEN or self.calls % SELDOM == 0:
            self.check()


class Harness:
    """A scheduler and its runner; collects what each request generated, and checks the books after
    every call."""

    def __init__(self, capacity: int, *, steps_in_flight: int = 1, **options) -> None:
        self.scheduler = CheckedScheduler(
            capacity=capacity, steps_in_flight=steps_in_flight, **options
        )
        self.runner = FakeRunner(capacity, steps_in_flight=steps_in_flight)
        self.outputs: dict[int, list[int]] = {}
        self.ended: dict[int, str | None] = {}
        self.failed: dict[int, RequestError] = {}
        self.requests: dict[int, SequenceState] = {}

    @property
    def in_flight(self) -> int:
        return len(self.runner.in_flight)

    @property
    def full(self) -> bool:
        return self.in_flight == self.runner.steps_in_flight

    def submit(self, prompt, **options) -> SequenceState:
        request = Request(len(self.requests), prompt, **options)
        sequence = self.requests[request.id] = self.scheduler.submit(request)
        self.outputs[request.id] = []
        return sequence

    def begin(self) -> bool:
        """Plans a step and launches it; whether there was one."""
        plan = self.scheduler.plan()
        self.take()
        if plan is not None:
            self.runner.launch(plan)
        return plan is not None

    def finish(self) -> None:
        """Commits the oldest step in flight."""
        self.scheduler.commit(self.runner.collect())
        self.take()

    def abandon(self) -> None:
        """What is in flight has failed, and what it wrote is not to be relied on."""
        self.runner.lose()
        self.scheduler.abandon()

    def step(self) -> bool:
        """Plans as far ahead as can be, then commits a step; whether there was one."""
        while not self.full and self.begin():
            pass
        if self.in_flight:
            self.finish()
            return True
        return False

    def take(self) -> None:
        for update in self.scheduler.take_updates():
            assert update.sequence.id not in self.ended, "a request ended twice"
            if update.token is not None:
                self.outputs[update.sequence.id].append(update.token.token_id)
            if update.error is not None:
                self.failed[update.sequence.id] = update.error
            if update.ended:
                self.ended[update.sequence.id] = update.reason

    def run(self, limit: int = 10_000) -> None:
        for _ in range(limit):
            if not self.step():
                return
        raise AssertionError("the scheduler does not come to an end")

    def verify_ended(self) -> None:
        for number in self.ended:
            sequence, request = self.requests[number], self.requests[number].request
            poisoned = POISON in request.prompt
            assert (type(self.failed.get(number)) is NumericalError) == poisoned
            if poisoned:
                continue
            if request.max_tokens:
                wanted = expected_output(request.prompt, request.max_tokens)
                if isinstance(request.output, StopAt) and request.output.token in wanted:
                    wanted = wanted[: wanted.index(request.output.token) + 1]
                assert self.outputs[number] == wanted
            if sequence.tree is not None:
                expected = [expected_scores(request.prompt, option) for option in request.options]
                assert sequence.tree.results() == expected

    def verify_idle(self) -> None:
        scheduler = self.scheduler
        scheduler.check()
        assert not scheduler.running
        assert not scheduler.waiting
        assert (
            scheduler.kv_cache.pool.free + scheduler.kv_cache.cache.evictable == scheduler.capacity
        )
        assert scheduler.kv_cache.cache.pinned == 0


class StopAt:
    """An output that ends at a token."""

    def __init__(self, token: int) -> None:
        self.token = token

    def push(self, token_id: int, /) -> str | None:
        return "stop" if token_id == self.token else None
