"""What goes wrong in engines of this kind, by name. What is not in this file:

slots leaked or freed twice, counts, locks
    SchedulerMachine (scheduling/test_scheduler.py)
    scheduling/test_radix_cache.py
  with duplicates
    test_duplicates_are_freed_once_and_all_go_on_with_the_cached_slots
  with a wrong guess of what comes next
    scheduling/test_plan_ahead.py
a stale match
    test_a_prefix_that_is_evicted_while_its_request_waits_is_not_believed_in
a prefix evicted between admission and lock
    test_locking_its_prefix_takes_room_from_the_request_itself
starvation
    test_under_lpm_a_loner_starves_and_under_aged_lpm_its_wait_is_bounded
a storm of retractions
    test_no_request_is_retracted_twice
    test_the_lowest_priority_gives_way_first
a cancelled leader
    test_a_follower_takes_over_when_its_leader_is_cancelled
cancelled at step k, while queued, in flight
    engine/test_engine.py; with two steps in flight: engine/test_pipeline.py
a device error in a step, closing while busy
    engine/test_engine.py
    engine/test_pipeline.py
    test_runtime.py
a callback or a tracer that raises
    engine/test_engine.py
a consumer that stops iterating, a dropped op
    language/test_handle.py
    language/test_exit_paths.py
a second asyncio.run, another loop, a fork
    test_runtime.py
Ctrl-C while a step runs
    test_an_interrupt_while_a_step_runs_closes_everything
a grammar that compiles for seconds
    language/test_constrained.py
a megabyte to tokenize
    test_a_megabyte_of_text_does_not_block_the_loop
all of it at random
    test_soak.py
"""

from __future__ import annotations

import asyncio
import threading

import pytest
from engine_harness import (
    Gate,
    Letters,
    LetterTokenizer,
    Waiter,
    follow,
    generate,
    opened,
    settled,
    token_ids,
)
from fake_runner import FakeRunner, expected_output

from asgl.engine.device import DeviceThread
from asgl.engine.engine import Engine
from asgl.errors import CapacityError, ContextLengthError, EngineClosedError
from asgl.plan import StepPlan
from asgl.scheduling.scheduler import Scheduler

pytestmark = pytest.mark.usefixtures("steps_in_flight")


async def test_cancel_in_the_middle_of_a_prefill_keeps_its_whole_chunks():
    gate = Gate()
    async with opened(before_step=gate, max_batch_tokens=16) as engine:
        ticket = generate(engine, [number % 40 for number in range(60)], max_tokens=3)
        for _ in range(2):
            await gate.step_begins()
            gate.let_go.release()
        await gate.step_begins()  # the third chunk is in flight
        engine.cancel(ticket)
        gate.leave_open()
        await settled(generate(engine, [1], max_tokens=3))  # the step has returned
        again = generate(engine, [number % 40 for number in range(60)], max_tokens=3)
        await settled(again)
        assert again.cached_tokens == 48
        assert token_ids(again) == expected_output([number % 40 for number in range(60)], 3)


async def test_cancel_between_chunks():
    chunks = asyncio.Event()
    loop = asyncio.get_running_loop()

    def before_step(plan: StepPlan) -> None:
        if plan.number == 1:
            loop.call_soon_threadsafe(chunks.set)

    async with opened(before_step=before_step, max_batch_tokens=16) as engine:
        ticket = generate(engine, list(range(40)), max_tokens=30)
        await chunks.wait()
        engine.cancel(ticket)
        await settled(generate(engine, [1], max_tokens=2))


async def test_cancel_in_the_step_that_would_finish_it_and_twice():
    gate = Gate()
    async with opened(before_step=gate) as engine:
        ticket = generate(engine, [1, 2, 3], max_tokens=1)
        await gate.step_begins()
        engine.cancel(ticket)
        engine.cancel(ticket)
        gate.leave_open()
        later = generate(engine, [4], max_tokens=1)
        await settled(later)
        assert ticket.tokens == []
        assert ticket.asked.times == 0


async def test_a_request_that_was_told_its_last_token_can_no_longer_be_cancelled():
    async with opened() as engine:
        ticket = generate(engine, [1, 2, 3], max_tokens=2)
        await settled(ticket)
        engine.cancel(ticket)
        assert ticket.finish_reason == "length"
        assert engine.statistics().cancelled == 0


@pytest.mark.parametrize("length", [99, 100, 101])
async def test_prompts_about_as_long_as_the_context(length):
    async with opened(context_length=100) as engine:
        ticket = generate(engine, [1] * length, max_tokens=5)
        await settled(ticket)
        if length == 99:
            assert (len(ticket.tokens), ticket.finish_reason) == (1, "length")
        else:
            assert type(ticket.error) is ContextLengthError
            assert (ticket.error.tokens, ticket.error.limit) == (length, 100)


@pytest.mark.parametrize("length", [60, 61])
async def test_prompts_about_as_long_as_the_cache(length):
    async with opened(capacity=60, context_length=1000) as engine:
        ticket = generate(engine, [number % 50 for number in range(length)], max_tokens=1)
        await settled(ticket)
        assert (ticket.error is None) == (length == 60)
        assert length == 60 or type(ticket.error) is CapacityError


async def test_a_stop_that_stands_in_the_prompt_does_not_stop():
    async with opened() as engine:
        prompt = [1, 2, 3]
        text = "".join(Letters().push(token) for token in prompt)
        output = "".join(Letters().push(token) for token in expected_output(prompt, 10))
        assert text[-1] + output[0] not in output
        ticket = generate(engine, prompt, max_tokens=10, stop=[text[-1] + output[0]])
        await settled(ticket)
        assert (ticket.finish_reason, ticket.text) == ("length", output)


def test_the_loop_is_closed_while_a_step_runs():
    """Nobody closes the engine: its thread must not wait for ever, nor trouble the next loop."""
    gate = Gate()

    async def abandon() -> None:
        engine = Engine(
            FakeRunner(100, gate),
            Scheduler(capacity=100),
            DeviceThread(),
            tokenizer=LetterTokenizer(),
            context_length=100,
        )
        engine.start()
        generate(engine, [1], max_tokens=5)
        await gate.step_begins()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(abandon())
    loop.set_exception_handler(lambda *_: None)  # that the engine's task is destroyed is meant
    loop.close()
    gate.leave_open()
    for thread in threading.enumerate():
        if thread.name == "asgl-device":
            thread.join(timeout=20)
            assert not thread.is_alive()

    async def next_life() -> None:
        async with opened() as engine:
            await settled(generate(engine, [1], max_tokens=2))

    asyncio.run(next_life())


async def test_work_given_to_a_closed_device_thread():
    device = DeviceThread()
    assert await device.run(lambda: threading.current_thread().name) == "asgl-device"
    await device.close()
    await device.close()
    with pytest.raises(EngineClosedError):
        await device.run(int)


async def test_a_caller_of_the_device_thread_who_is_cancelled_waits_for_the_work():
    device, begun, go_on, ended = (
        DeviceThread(),
        threading.Event(),
        threading.Event(),
        threading.Event(),
    )

    def work() -> None:
        begun.set()
        assert go_on.wait(20)
        ended.set()

    task = asyncio.ensure_future(device.run(work))
    await asyncio.to_thread(begun.wait, 20)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()
    await device.close()


async def test_waiters_are_in_no_hurry_to_use_a_slot_of_a_step_in_flight():
    """A cancelled request's slots are taken again only after the step that writes them has
    returned."""
    gate = Gate()
    async with opened(before_step=gate, capacity=20, max_batch_tokens=16) as engine:
        first = generate(engine, list(range(15)), max_tokens=2)
        await gate.step_begins()
        engine.cancel(first)
        second = generate(engine, list(range(20, 36)), max_tokens=3)
        assert engine.statistics().free == 5
        gate.leave_open()
        await settled(second)
        assert token_ids(second) == expected_output(list(range(20, 36)), 3)


async def test_a_crowd_that_comes_and_goes():
    async with opened(capacity=200, max_running=8) as engine:
        waiters = [Waiter() for _ in range(300)]
        tickets = [
            generate(engine, [number % 7, number % 5, 3], waiter, max_tokens=1 + number % 9)
            for number, waiter in enumerate(waiters)
        ]
        for ticket in tickets[::3]:
            engine.cancel(ticket)
        left = [ticket for number, ticket in enumerate(tickets) if number % 3]
        await settled(*left)
        assert all(ticket.error is None for ticket in left)


async def test_ten_thousand_idle_prefixes_do_not_starve_one_request():
    """What streams have computed and do not use is evicted when somebody needs the room."""
    async with opened(capacity=2000, context_length=3000, max_batch_tokens=512) as engine:
        prefetches = [
            follow(
                engine.extend([number % 50, number // 50 % 50, number // 2500, 1], asked=Waiter())
            )
            for number in range(10_000)
        ]
        await settled(*prefetches)
        assert engine.statistics().evictable > 1900
        ticket = generate(engine, [number % 50 for number in range(1500)], max_tokens=400)
        await settled(ticket)
        assert token_ids(ticket) == expected_output([number % 50 for number in range(1500)], 400)
