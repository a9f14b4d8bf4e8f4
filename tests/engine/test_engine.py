"""The engine's loop with a runner that knows what every slot must hold: tickets, cancellation,
crashes, close."""

from __future__ import annotations

import asyncio

import pytest
from engine_harness import (
    Gate,
    Letters,
    Sentence,
    Waiter,
    engine_task,
    follow,
    generate,
    opened,
    settled,
    token_ids,
)
from fake_runner import expected_output, expected_scores

from asgl.engine.ticket import Ticket
from asgl.errors import (
    CapacityError,
    ConfigError,
    ContextLengthError,
    EngineClosedError,
    EngineCrashedError,
    EngineError,
    RequestError,
)
from asgl.plan import StepPlan
from asgl.sampling import SamplingParams
from asgl.trace import RequestEvent, StepEvent

pytestmark = pytest.mark.usefixtures("steps_in_flight")


async def test_a_generation_is_told_token_by_token_and_settled_once():
    async with opened() as engine:
        ticket = generate(engine, [1, 2, 3], max_tokens=5)
        await settled(ticket)
        assert token_ids(ticket) == expected_output([1, 2, 3], 5)
        assert ticket.asked.progress == [1, 2, 3, 4]
        assert (ticket.finish_reason, ticket.error, ticket.asked.times) == ("length", None, 1)
        assert len(ticket.text) == 5
        assert ticket.submitted_at <= ticket.first_token_at <= ticket.finished_at


async def test_a_stop_string_ends_the_generation():
    expected = "".join(Letters().push(token) for token in expected_output([1, 2, 3], 30))
    async with opened() as engine:
        ticket = generate(engine, [1, 2, 3], max_tokens=30, stop=[expected[7:9]])
        await settled(ticket)
        assert ticket.finish_reason == "stop"
        assert ticket.matched_stop == expected[7:9]
        assert ticket.text == expected[: expected.index(expected[7:9])]


async def test_scores_and_prefetch():
    async with opened() as engine:
        prompt, options = [1, 2, 3], [[4, 5], [4], [6, 7, 8]]
        prefetch = follow(engine.extend(prompt, asked=Waiter()))
        await settled(prefetch)
        assert prefetch.error is None
        score = follow(engine.score(prompt, options, asked=Waiter()))
        await settled(score)
        assert score.option_logprobs == [expected_scores(prompt, option) for option in options]
        assert score.cached_tokens == 2


async def test_bad_requests_settle_before_submit_returns():
    async with opened(capacity=60, context_length=100) as engine:
        cases = [
            (generate(engine, [1] * 100, max_tokens=1), ContextLengthError),
            (generate(engine, [1] * 50, max_tokens=20), CapacityError),
            (generate(engine, [], max_tokens=1), RequestError),
            (follow(engine.extend([1] * 101, asked=Waiter())), ContextLengthError),
            (follow(engine.score([1] * 99, [[1, 2]], asked=Waiter())), ContextLengthError),
        ]
        for ticket, kind in cases:
            assert ticket.settled
            assert type(ticket.error) is kind
            assert ticket.error.request_id == ticket.request_id
            assert ticket.asked.times == 1
        with pytest.raises(ConfigError, match="no token 50"):
            engine.check_sampling(SamplingParams(logit_bias={50: 1.0}))
        engine.check_sampling(SamplingParams(logit_bias={49: 1.0}, stop_token_ids=[3]))


async def test_max_tokens_is_cut_to_the_context_and_may_be_zero():
    async with opened(context_length=10) as engine:
        ticket = generate(engine, [1] * 7, max_tokens=50)
        nothing = generate(engine, [1], max_tokens=0)
        assert nothing.settled
        await settled(ticket)
        assert (len(ticket.tokens), ticket.finish_reason) == (3, "length")
        assert (nothing.tokens, nothing.finish_reason) == ([], "length")


async def test_cancel_while_queued_running_and_in_flight():
    gate = Gate()
    async with opened(before_step=gate, max_running=1) as engine:
        running = generate(engine, [1, 2, 3], max_tokens=50)
        queued = generate(engine, [4, 5], max_tokens=5)
        await gate.step_begins()
        engine.cancel(queued)
        engine.cancel(running)
        engine.cancel(running)
        assert running.settled
        assert queued.settled
        gate.leave_open()
        await settled(generate(engine, [6], max_tokens=3))  # the step has returned
        later = generate(engine, [1, 2, 3], max_tokens=2)
        await settled(later)
        assert token_ids(later) == expected_output([1, 2, 3], 2)
        assert later.cached_tokens == 2
        assert running.asked.times == queued.asked.times == 0
        assert engine.statistics().cancelled == 2


async def test_stop_keeps_what_was_generated():
    async with opened() as engine:
        waiter = Waiter()
        waiter.then = lambda ticket: engine.stop(ticket) if len(ticket.tokens) == 3 else None
        ticket = generate(engine, [1, 2, 3], waiter, max_tokens=50)
        await settled(ticket)
        assert ticket.finish_reason == "stopped"
        assert token_ids(ticket) == expected_output([1, 2, 3], 3)
        assert len(ticket.text) == 3
        engine.stop(ticket)
        assert waiter.times == 1


def text_of(ticket: Ticket) -> str:
    """What its tokens say."""
    return "".join(Letters().push(token) for token in token_ids(ticket))


async def test_one_stopped_before_its_first_news_has_the_tokens_of_its_text():
    async with opened() as engine:
        waiter = Waiter()
        ticket = generate(engine, [1, 2, 3], waiter, grammar=Sentence(5, 6, 7), max_tokens=50)
        engine.stop(ticket)
        assert (ticket.finish_reason, waiter.times) == ("stopped", 1)
        assert token_ids(ticket) == [5, 6, 7]
        assert ticket.text == text_of(ticket)


async def test_one_that_its_unheard_news_has_ended_is_not_stopped():
    async with opened() as engine:
        ticket = generate(engine, [1, 2, 3], grammar=Sentence(5, 6, 7), max_tokens=2)
        engine.stop(ticket)
        assert (ticket.finish_reason, ticket.asked.times) == ("length", 1)
        assert token_ids(ticket) == [5, 6]


async def test_one_stopped_by_a_callback_has_the_tokens_of_its_text():
    """Its news of this step is behind that of the callback's request."""
    async with opened() as engine:
        waiter = Waiter()
        waiter.then = lambda ticket: engine.stop(other) if len(ticket.tokens) == 2 else None
        ticket = generate(engine, [1, 2, 3], waiter, max_tokens=5)
        other = generate(engine, [1, 2, 3, 4], max_tokens=50)
        await settled(ticket, other)
        assert other.finish_reason == "stopped"
        assert token_ids(other) == expected_output([1, 2, 3, 4], len(other.tokens))
        assert other.text == text_of(other)
        assert token_ids(ticket) == expected_output([1, 2, 3], 5)


async def test_a_callback_may_cancel_another_request_and_submit_new_ones():
    async with opened() as engine:
        more: list[Ticket] = []
        other = generate(engine, [9, 9], max_tokens=100)
        waiter = Waiter()

        def act(ticket: Ticket) -> None:
            engine.cancel(other)
            if not more:
                more.append(generate(engine, [5, 6], max_tokens=2))

        waiter.then = act
        ticket = generate(engine, [1, 2, 3], waiter, max_tokens=4)
        await settled(ticket, *more)
        await settled(*more)
        assert other.settled
        assert token_ids(more[0]) == expected_output([5, 6], 2)


async def test_a_callback_that_raises_is_reported_and_the_others_go_on():
    reports = []
    asyncio.get_running_loop().set_exception_handler(
        lambda loop, context: reports.append(context["exception"])
    )
    async with opened() as engine:
        waiter = Waiter()
        waiter.then = lambda ticket: 1 / 0
        ticket, other = (
            generate(engine, [1], waiter, max_tokens=3),
            generate(engine, [2], max_tokens=3),
        )
        await settled(ticket, other)
        assert token_ids(other) == expected_output([2], 3)
        assert [type(report) for report in reports] == [ZeroDivisionError] * 2


@pytest.mark.parametrize("step", range(6))
async def test_a_step_that_raises_reaches_every_waiter_with_its_cause(step):
    def fail(plan: StepPlan) -> None:
        if plan.number == step:
            raise RuntimeError("device lost")

    async with opened(before_step=fail, max_running=2, max_batch_tokens=4) as engine:
        tickets = [generate(engine, [number, 1, 2, 3, 4], max_tokens=20) for number in range(4)]
        await settled(*tickets)
        for ticket in tickets:
            assert type(ticket.error) is EngineCrashedError
            assert "device lost" in str(ticket.error)
            assert type(ticket.error.__cause__) is RuntimeError
            assert ticket.asked.times == 1
        late = generate(engine, [1], max_tokens=1)
        assert type(late.error) is EngineCrashedError


@pytest.mark.parametrize("step", range(12))
async def test_cancelling_all_at_step_k_leaves_the_books_balanced(step):
    tickets: list[Ticket] = []
    loop, cancelled = asyncio.get_running_loop(), asyncio.Event()

    async def cancel_all() -> None:
        for ticket in tickets:
            engine.cancel(ticket)
        cancelled.set()

    def before_step(plan: StepPlan) -> None:
        if (
            plan.number == step
        ):  # on the device thread: the step is in flight while the loop cancels
            asyncio.run_coroutine_threadsafe(cancel_all(), loop).result(timeout=20)

    async with opened(before_step=before_step, capacity=64, max_batch_tokens=8) as engine:
        tickets += [
            generate(engine, [1, 2, 3, 4, 5, 6, 7, number], max_tokens=4) for number in range(3)
        ]
        tickets.append(follow(engine.score([1, 2, 3, 4, 9], [[1, 2], [1, 3, 4]], asked=Waiter())))
        ends = [asyncio.ensure_future(cancelled.wait()), asyncio.ensure_future(settled(*tickets))]
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()
        assert all(ticket.settled for ticket in tickets)
        last = generate(engine, [1, 2, 3], max_tokens=3)
        await settled(last)
        assert token_ids(last) == expected_output([1, 2, 3], 3)


async def test_fifty_requests_in_a_cache_of_sixty_four_slots():
    async with opened(capacity=64) as engine:
        tickets = [
            generate(engine, [number, 2, 3, 4], max_tokens=20 + number % 10) for number in range(50)
        ]
        await settled(*tickets)
        for number, ticket in enumerate(tickets):
            assert token_ids(ticket) == expected_output([number, 2, 3, 4], 20 + number % 10)


async def test_close_while_busy_settles_everything():
    gate = Gate()
    async with opened(before_step=gate, max_running=2) as engine:
        tickets = [generate(engine, [number], max_tokens=100) for number in range(5)]
        await gate.step_begins()
        closing = asyncio.ensure_future(engine.close())
        await asyncio.sleep(0)
        assert all(type(ticket.error) is EngineClosedError for ticket in tickets)
        gate.leave_open()
        await closing
        await engine.close()
        assert type(generate(engine, [1], max_tokens=1).error) is EngineClosedError


async def test_a_callback_that_cancels_another_request_while_all_are_closed():
    reports = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: reports.append(context))
    gate = Gate()
    async with opened(before_step=gate) as engine:

        class Leader(Waiter):
            def on_settled(self) -> None:
                super().on_settled()
                engine.cancel(follower)

        leader, follower = (
            generate(engine, [1], Leader(), max_tokens=100),
            generate(engine, [2], max_tokens=100),
        )
        await gate.step_begins()
        closing = asyncio.ensure_future(engine.close())
        await settled(leader)
        gate.leave_open()
        await closing
        assert type(leader.error) is EngineClosedError
        assert follower.settled
        assert (follower.error, follower.asked.times) == (None, 0)
        assert reports == []


async def test_a_failure_beside_that_of_a_step_settles_all_the_same(monkeypatch):
    def fail(plan: StepPlan) -> None:
        raise RuntimeError("device lost")

    def abandon() -> None:
        scheduler_abandon()
        raise ValueError("the books do not balance")

    async with opened(before_step=fail) as engine:
        scheduler_abandon = engine.scheduler.abandon
        monkeypatch.setattr(engine.scheduler, "abandon", abandon)
        ticket = generate(engine, [1], max_tokens=3)
        with pytest.raises(ValueError, match="the books do not balance"):
            await engine_task()
        assert "device lost" in str(ticket.error)
        assert ticket.asked.times == 1


async def test_use_from_another_loop_raises():
    async with opened() as engine:

        async def elsewhere() -> None:
            generate(engine, [1], max_tokens=1)

        with pytest.raises(EngineError, match="event loop in which it was opened"):
            await asyncio.to_thread(asyncio.run, elsewhere())


async def test_the_loop_goes_on_while_a_step_runs():
    gate = Gate()
    async with opened(before_step=gate) as engine:
        ticket = generate(engine, [1], max_tokens=1)
        await gate.step_begins()
        turns = 0
        while turns < 100:
            await asyncio.sleep(0)
            turns += 1
        gate.leave_open()
        await settled(ticket)


async def test_tracers_hear_of_requests_and_steps_and_one_that_raises_is_removed():
    class Recorder:
        def __init__(self) -> None:
            self.events = []

        def event(self, event) -> None:
            self.events.append(event)

    class Broken:
        def event(self, event) -> None:
            raise ValueError("no")

    recorder = Recorder()
    with pytest.warns(RuntimeWarning, match="a tracer was removed because it raised"):
        async with opened(tracers=[recorder, Broken()]) as engine:
            await settled(generate(engine, [1, 2], max_tokens=2))
    kinds = [event.kind for event in recorder.events if isinstance(event, RequestEvent)]
    assert kinds == ["submitted", "admitted", "finished"]
    steps = [event for event in recorder.events if isinstance(event, StepEvent)]
    assert [(step.tokens, step.decode_rows) for step in steps] == [(2, 0), (1, 1)]


async def test_statistics_balance():
    async with opened(capacity=100) as engine:
        await settled(generate(engine, [1, 2, 3], max_tokens=4))
        await settled(generate(engine, [1, 2, 3], max_tokens=4))
        seen = engine.statistics()
        assert seen.free + seen.evictable + seen.pinned == seen.capacity == 100
        assert (seen.prompt_tokens, seen.cached_tokens, seen.generated_tokens) == (6, 2, 8)
        assert seen.hit_rate == pytest.approx(1 / 3)
        assert engine.flush_cache() == 6
        assert engine.statistics().free == 100


async def test_cancelling_the_engines_task_lets_the_step_return_first():
    gate = Gate()
    async with opened(before_step=gate) as engine:
        ticket = generate(engine, [1], max_tokens=5)
        await gate.step_begins()
        engine_task().cancel()
        await asyncio.sleep(0)
        assert not ticket.settled
        gate.leave_open()
        await settled(ticket)
        assert type(ticket.error) is EngineClosedError


async def test_a_pin_ends_after_its_time_and_with_the_engine():
    async with opened() as engine:
        await settled(follow(engine.extend([1, 2, 3], asked=Waiter())))
        engine.pin([1, 2, 3], seconds=0)
        assert engine.statistics().pinned == 3
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert engine.statistics().pinned == 0
        engine.pin([1, 2], seconds=1000)
        assert engine.statistics().pinned == 2
        await engine.close()
        assert engine.statistics().pinned == 0


async def test_an_ended_pin_lets_in_who_waited_for_its_room():
    async with opened(capacity=20) as engine:
        await settled(follow(engine.extend([1] * 15, asked=Waiter())))
        gate = asyncio.Event()
        running = Waiter()
        running.then = lambda ticket: gate.set()
        first = generate(engine, [2], running, max_tokens=3)
        await gate.wait()
        engine.pin([1] * 15, seconds=0)
        second = generate(engine, [3] * 10, max_tokens=2)
        await settled(first, second)
        assert token_ids(second) == expected_output([3] * 10, 2)
