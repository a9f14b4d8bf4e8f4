"""An engine on a fake runner, for tests: opened, driven and closed with its books checked."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager

from fake_runner import FakeRunner
from scheduler_harness import CheckedScheduler

from asgl.engine.device import DeviceThread
from asgl.engine.engine import Engine
from asgl.engine.ticket import Ticket
from asgl.plan import StepPlan
from asgl.sampling import LIBRARY_DEFAULTS, SamplingParams
from asgl.trace import Tracers


class Letters:
    """A detokenizer: token t is the letter with that number."""

    def push(self, token_id: int) -> str:
        return chr(ord("a") + token_id % 26)

    pending = False

    def flush(self) -> str:
        return ""


class LetterTokenizer:
    vocabulary = 50

    def detokenizer(self, begun: bytes = b"") -> Letters:
        return Letters()

    def cut_bytes(self, ids) -> bytes:
        return b""


class Sentence:
    """A compiled grammar, and its matcher: these tokens must come, then any."""

    error = None
    accepting = True
    complete = False
    free = False

    def __init__(self, *tokens: int) -> None:
        self._left = list(tokens)

    def matcher(self, ends, min_tokens=0) -> Sentence:
        return self

    def ends(self, token_id: int, /) -> bool:
        return False

    def forced(self) -> list[int]:
        return list(self._left)

    def mask(self, banned, /) -> None:
        return None

    def push(self, token_id: int, /) -> None:
        if self._left:
            assert self._left.pop(0) == token_id


class Waiter:
    """Hears of a ticket's progress and end, and can be awaited."""

    def __init__(self) -> None:
        self.settled = asyncio.Event()
        self.times = 0
        self.progress: list[int] = []
        self.then = None

    def on_progress(self, ticket: Ticket) -> None:
        self.progress.append(len(ticket.tokens))
        if self.then is not None:
            self.then(ticket)

    def on_settled(self) -> None:
        self.times += 1
        self.settled.set()


class Gate:
    """Holds the device thread in each step until it is let go, so that a test can act while a step
    is in flight."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.let_go = threading.Semaphore(0)
        self.open = False

    def __call__(self, plan: StepPlan) -> None:
        if not self.open:
            self.entered.release()
            assert self.let_go.acquire(timeout=20)

    async def step_begins(self) -> None:
        assert await asyncio.to_thread(self.entered.acquire, timeout=20)

    def leave_open(self) -> None:
        self.open = True
        self.let_go.release()


class InFlight:
    """How many steps the engines of a test have in flight."""

    steps = 1


@asynccontextmanager
async def opened(
    capacity=500, before_step=None, context_length=200, tracers=(), before_collect=None, **options
):
    device = DeviceThread()
    runner = FakeRunner(capacity, before_step, InFlight.steps, before_collect)
    scheduler = CheckedScheduler(capacity=capacity, steps_in_flight=InFlight.steps, **options)
    engine = Engine(
        runner,
        scheduler,
        device,
        tokenizer=LetterTokenizer(),
        context_length=context_length,
        tracers=Tracers(tracers),
    )
    engine.start()
    try:
        yield engine
    finally:
        await engine.close()
        await device.close()
        engine.scheduler.check()
        assert engine.scheduler.kv_cache.available == capacity
        assert not engine.scheduler.running
        assert not engine.scheduler.waiting
        assert runner.closed
        assert not runner.in_flight
        assert not [thread for thread in threading.enumerate() if thread.name == "asgl-device"]


def params(**fields) -> SamplingParams:
    return SamplingParams(**fields).over(LIBRARY_DEFAULTS)


def generate(
    engine: Engine, prompt, waiter: Waiter | None = None, grammar=None, **fields
) -> Ticket:
    return follow(
        engine.generate(prompt, params(**fields), seed=0, grammar=grammar, asked=waiter or Waiter())
    )


def follow(ticket: Ticket) -> Ticket:
    """Lets the Waiter that asked for the ticket hear of it."""
    waiter = ticket.asked
    if ticket.settled:
        waiter.on_settled()
    else:
        ticket.on_progress = lambda: waiter.on_progress(ticket)
        ticket.add_callback(waiter.on_settled)
    return ticket


async def settled(*tickets: Ticket) -> None:
    async with asyncio.timeout(60):
        for ticket in tickets:
            await ticket.asked.settled.wait()


def engine_task() -> asyncio.Task[None]:
    """The task in which the one engine of the running loop serves."""
    (task,) = [task for task in asyncio.all_tasks() if task.get_name() == "asgl-engine"]
    return task


def token_ids(ticket: Ticket) -> list[int]:
    return [token.token_id for token in ticket.tokens]
