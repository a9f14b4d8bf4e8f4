"""Two steps in flight: what it gains on a device with a known step time, in virtual time, and that
it changes nothing else."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

import pytest
from engine_harness import (
    InFlight,
    LetterTokenizer,
    Waiter,
    engine_task,
    generate,
    opened,
    settled,
    token_ids,
)
from fake_runner import FakeRunner, expected_output

from asgl.engine.engine import Engine
from asgl.errors import EngineClosedError, EngineCrashedError
from asgl.plan import StepPlan, StepResult
from asgl.scheduling.scheduler import Scheduler


class VirtualTime:
    """The time of the event loop: it goes on where something is said to take time, and where the
    device is waited for."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class TimedRunner(FakeRunner):
    """A device that takes `step_time` for every step, one after the other, whatever the loop does
    meanwhile."""

    def __init__(
        self, capacity: int, steps_in_flight: int, time: VirtualTime, step_time: float
    ) -> None:
        super().__init__(capacity, steps_in_flight=steps_in_flight)
        self._time, self._step_time = time, step_time
        self._ends: deque[float] = deque()
        self._busy_until = 0.0
        self.idle = 0.0
        """How long the device had nothing to do between its first step and its last."""

    def launch(self, plan: StepPlan) -> None:
        super().launch(plan)
        if len(self.steps) > 1:
            self.idle += max(0.0, self._time.now - self._busy_until)
        self._busy_until = max(self._busy_until, self._time.now) + self._step_time
        self._ends.append(self._busy_until)

    def collect(self) -> StepResult:
        self._time.now = max(self._time.now, self._ends.popleft())
        return super().collect()


class SameThread:
    """A device thread that is none, so that all time is the virtual one."""

    async def run(self, function: Any, *args: Any) -> Any:
        await asyncio.sleep(0)
        return function(*args)


class SlowScheduler(Scheduler):
    """Planning takes time."""

    time: VirtualTime
    plan_time: float

    def plan(self) -> StepPlan | None:
        self.time.now += self.plan_time
        return super().plan()


class SlowWaiter(Waiter):
    """So does hearing of a token."""

    def __init__(self, time: VirtualTime, delivery_time: float) -> None:
        super().__init__()
        self._time, self._delivery_time = time, delivery_time

    def on_progress(self, ticket: Any) -> None:
        self._time.now += self._delivery_time


async def decode(
    steps_in_flight: int, *, step_time: float, plan_time: float, delivery_time: float
) -> tuple[float, float, list]:
    """Eight streams of 100 tokens: the virtual seconds a step, the device's idle time, and the
    tokens."""
    time = VirtualTime()
    runner = TimedRunner(2000, steps_in_flight, time, step_time)
    scheduler = SlowScheduler(capacity=2000, steps_in_flight=steps_in_flight)
    scheduler.time, scheduler.plan_time = time, plan_time
    engine = Engine(
        runner, scheduler, SameThread(), tokenizer=LetterTokenizer(), context_length=500, clock=time
    )
    engine.start()
    tickets = [
        generate(engine, [1, 2, number], SlowWaiter(time, delivery_time), max_tokens=100)
        for number in range(8)
    ]
    await settled(*tickets)
    seconds, steps = time.now, len(runner.steps)
    await engine.close()
    scheduler.check()
    return seconds / steps, runner.idle, [token_ids(ticket) for ticket in tickets]


@pytest.mark.parametrize(
    ("plan_time", "delivery_time"), [(0.002, 0.0005), (0.0, 0.0), (0.004, 0.0007)]
)
async def test_a_step_takes_what_the_device_takes(plan_time, delivery_time):
    """The loop needs 6, 0 or 9.6 ms a step for planning and delivery, the device 10 ms."""
    loop_time, device_time = plan_time + 8 * delivery_time, 0.01
    alone, idle_alone, tokens = await decode(
        1, step_time=device_time, plan_time=plan_time, delivery_time=delivery_time
    )
    ahead, idle_ahead, same = await decode(
        2, step_time=device_time, plan_time=plan_time, delivery_time=delivery_time
    )
    assert same == tokens == [expected_output([1, 2, number], 100) for number in range(8)]
    assert alone == pytest.approx(device_time + loop_time, rel=0.02)
    assert ahead == pytest.approx(device_time, rel=0.02)
    assert idle_ahead <= idle_alone / 50


async def test_a_loop_slower_than_the_device_sets_the_pace():
    ahead, _, _ = await decode(2, step_time=0.01, plan_time=0.02, delivery_time=0.0)
    assert ahead == pytest.approx(0.02, rel=0.05)


async def test_what_a_program_asks_next_is_in_the_next_step():
    """Though another request keeps the engine busy, which could plan before the program hears of
    its result."""
    async with opened() as engine:
        other = generate(engine, [1], max_tokens=30)
        for number in range(10):
            await settled(generate(engine, [2, number], max_tokens=1))
        assert [len(plan.samples) for plan in engine.runner.steps[:10]] == [2] * 10
        await settled(other)


@pytest.fixture
def two(monkeypatch):
    monkeypatch.setattr(InFlight, "steps", 2)


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("step", range(8))
async def test_a_step_that_fails_when_it_is_collected(step):
    """The step after it is in flight by then: it is waited for, and dropped."""
    collected = []

    def fail(plan: StepPlan) -> None:
        collected.append(plan.number)
        if plan.number == step:
            raise RuntimeError("device lost")

    async with opened(before_collect=fail, max_batch_tokens=8) as engine:
        tickets = [generate(engine, [number, 1, 2, 3, 4], max_tokens=20) for number in range(4)]
        await settled(*tickets)
        assert all(
            type(ticket.error) is EngineCrashedError and ticket.asked.times == 1
            for ticket in tickets
        )
        assert collected in (list(range(step + 1)), list(range(step + 2)))
        assert not engine.runner.in_flight


@pytest.mark.usefixtures("two")
async def test_close_while_two_are_in_flight():
    both = asyncio.Event()
    loop = asyncio.get_running_loop()

    def before_collect(plan: StepPlan) -> None:
        if plan.number == 3:
            assert len(engine.runner.in_flight) == 1  # and the one that is collected now
            asyncio.run_coroutine_threadsafe(begin_to_close(), loop).result(timeout=20)

    async def begin_to_close() -> None:
        closing.append(asyncio.ensure_future(engine.close()))
        await asyncio.sleep(0)
        both.set()

    closing: list[asyncio.Future[None]] = []
    async with opened(before_collect=before_collect) as engine:
        tickets = [generate(engine, [number], max_tokens=100) for number in range(3)]
        await both.wait()
        assert all(type(ticket.error) is EngineClosedError for ticket in tickets)
        await closing[0]
        assert not engine.runner.in_flight
        assert len(engine.runner.steps) == 5


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("step", range(10))
@pytest.mark.parametrize("act", ["cancel", "stop"])
async def test_leaving_while_two_are_in_flight(step, act):
    loop = asyncio.get_running_loop()

    async def leave() -> None:
        for ticket in tickets[::2]:
            getattr(engine, act)(ticket)
        engine.scheduler.check()

    def before_collect(plan: StepPlan) -> None:
        if plan.number == step:
            asyncio.run_coroutine_threadsafe(leave(), loop).result(timeout=20)

    async with opened(before_collect=before_collect, capacity=100, max_batch_tokens=16) as engine:
        tickets = [generate(engine, [1, 2, 3, 4, number], max_tokens=12) for number in range(6)]
        await settled(*tickets[1::2])
        for number in (1, 3, 5):
            assert token_ids(tickets[number]) == expected_output([1, 2, 3, 4, number], 12)
        again = generate(engine, [1, 2, 3, 4, 0], max_tokens=12)
        await settled(again)
        assert token_ids(again) == expected_output([1, 2, 3, 4, 0], 12)


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("step", range(4))
async def test_the_engine_s_task_is_cancelled_while_a_step_is_launched(step, times):
    """The step was launched all the same, and so was the one before: both are waited for before a
    slot is freed."""
    loop, cancelled = asyncio.get_running_loop(), asyncio.Event()

    async def cancel() -> None:
        for _ in range(times):
            engine_task().cancel()
            await asyncio.sleep(0)
        cancelled.set()

    def before_step(plan: StepPlan) -> None:
        if plan.number == step:
            asyncio.run_coroutine_threadsafe(cancel(), loop).result(timeout=20)

    async with opened(before_step=before_step) as engine:
        ticket = generate(engine, [1, 2, 3], max_tokens=20)
        await cancelled.wait()
        await settled(ticket)
        assert type(ticket.error) is EngineClosedError
        assert not engine.runner.in_flight
        engine.scheduler.check()
