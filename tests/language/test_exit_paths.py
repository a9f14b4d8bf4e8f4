"""Every primitive meets every way out. What did not happen leaves no trace: in the text, in the variables, in the engine.

The table is generated: a row for each primitive, a column for each event, and for every cell the exception that whoever awaits
the primitive must get, with its cause.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import anyio
import pytest
from fake_engine import FakeEngine, FakeTemplate

import asgl
from asgl.errors import (
    AsglError,
    BudgetError,
    CapacityError,
    ConfigError,
    EngineCrashedError,
    OpCancelledError,
    StreamClosedError,
)
from asgl.language import Handle, PromptStream, Session

pytestmark = pytest.mark.usefixtures("nothing_left")


class World:
    """A stream that has a past, and another one that the primitive may take from."""

    def __init__(self) -> None:
        self.engine = FakeEngine(lambda _: "abcdef", template=FakeTemplate(), manual=True)
        self.session = Session(self.engine)
        self.other = self.session.prompt("other")
        self.s = self.session.prompt("past")
        self.s["old"] = 1

    def state(self) -> tuple[Any, ...]:
        s = self.s
        return s.text, dict(s.variables), s.messages(), s.token_ids

    def run_engine(self) -> None:
        while self.engine.active:
            self.engine.step()

    def fail(self, error: Exception) -> None:
        for ticket in list(self.engine.active):
            self.engine._settle(ticket, error=error)


class Primitive(NamedTuple):
    start: Callable[[World], Awaitable[Any]]
    """Submits it, at once; awaiting gives its value."""
    bad: Callable[[World], Any]
    """The same with a bad argument."""
    block: bool = False
    """Whether its failures arrive as an ExceptionGroup."""
    appends: bool = True
    generates: bool = True


async def fork(world: World) -> list[str]:
    async with world.s.fork(2) as branches:
        for branch in branches:
            branch.gen("x")
    return branches.gather("x")


async def generate(branch: PromptStream, _: int) -> str:
    return await branch.gen("x")


async def bad_map(world: World) -> None:
    await world.s.map(generate, [1, 2], on_error="ignore")  # type: ignore[arg-type]


async def bad_sample(world: World) -> None:
    await world.s.sample("x", n=0)


PRIMITIVES = {
    "gen": Primitive(lambda w: w.s.gen("x"), lambda w: w.s.gen("x", max_tokens=-1)),
    "select": Primitive(lambda w: w.s.select("x", ["a", "b"]), lambda w: w.s.select("x", []), generates=False),
    "extend": Primitive(lambda w: w.s.extend("more"), lambda w: w.s.extend(3), generates=False),  # type: ignore[arg-type]
    "role": Primitive(lambda w: w.s.assistant("well, " + asgl.gen("x")), lambda w: w.s.assistant(asgl.user("x"))),
    "fork": Primitive(fork, lambda w: w.s.fork(0), block=True, appends=False),
    "map": Primitive(lambda w: w.s.map(generate, [1, 2]), bad_map, block=True, appends=False),
    "sample": Primitive(lambda w: w.s.sample("x", n=2), bad_sample, appends=False),
    "append": Primitive(lambda w: w.s.submit(w.other.gen("y")), lambda w: w.s.append(3), generates=False),  # type: ignore
}
each_primitive = pytest.mark.parametrize("primitive", PRIMITIVES.values(), ids=PRIMITIVES)


@pytest.fixture
async def nothing_left():
    """No task is left when a test is over."""
    yield
    assert asyncio.all_tasks() == {asyncio.current_task()}


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        real, self.ahead = loop.time, 0.0
        monkeypatch.setattr(loop, "time", lambda: real() + self.ahead)


async def turns() -> None:
    """Lets all tasks go as far as they can."""
    for _ in range(20):
        await asyncio.sleep(0)


def begun(world: World, primitive: Primitive) -> asyncio.Future[Any]:
    return asyncio.ensure_future(awaited(primitive.start(world)))


async def awaited(primitive: Awaitable[Any]) -> Any:
    return await primitive


def delivered(error: BaseException, primitive: Primitive) -> list[BaseException]:
    """What the program got: of a block each of the errors in its group."""
    if not primitive.block:
        return [error]
    assert isinstance(error, BaseExceptionGroup)
    return list(error.exceptions)


async def goes_on(world: World, before: tuple[Any, ...]) -> None:
    """All is as it was, every failure was seen, the engine's books balance, and the stream works."""
    world.run_engine()  # what others had asked for
    await turns()
    assert world.state() == before
    assert world.session.unseen_failures() == []
    world.engine.check()
    handle = world.s.gen("after")
    world.run_engine()
    assert await handle == "abcdef"
    world.engine.check()


# --- the columns


@each_primitive
async def test_a_bad_argument(primitive: Primitive) -> None:
    world = World()
    before = world.state()
    with pytest.raises(ConfigError):
        await primitive.bad(world)
    assert world.engine.requests == []
    await goes_on(world, before)


@each_primitive
async def test_a_request_that_fails(primitive: Primitive) -> None:
    world = World()
    before = world.state()
    task = begun(world, primitive)
    await turns()
    world.fail(CapacityError("too large", needed=9, capacity=8))
    await turns()
    for error in delivered(task.exception(), primitive):
        if primitive is PRIMITIVES["append"]:  # the failure is the other stream's; it reaches this one as a cause
            assert isinstance(error, OpCancelledError)
            assert error.stream is world.other
            error = error.__cause__
        assert isinstance(error, CapacityError)
        assert error.needed == 9
    await goes_on(world, before)


@each_primitive
async def test_an_engine_that_crashes(primitive: Primitive) -> None:
    world = World()
    before = world.state()
    task = begun(world, primitive)
    await turns()
    crash = EngineCrashedError("the engine has stopped")
    crash.__cause__ = RuntimeError("device lost")
    world.fail(crash)
    await turns()
    for error in delivered(task.exception(), primitive):
        cause = error.__cause__ if primitive is PRIMITIVES["append"] else error
        assert cause is crash
        assert isinstance(cause.__cause__, RuntimeError)
    assert world.state() == before
    assert world.session.unseen_failures() == []
    world.engine.check()
    closed = world.other if primitive is PRIMITIVES["append"] else world.s
    if primitive.appends:
        with pytest.raises(StreamClosedError) as caught:
            closed.gen()
        assert caught.value.__cause__ is crash


@each_primitive
async def test_cancel_while_queued(primitive: Primitive) -> None:
    world = World()
    blocker = world.s.gen("first")
    task = begun(world, primitive)
    await turns()
    requests = len(world.engine.requests)
    task.cancel()
    await turns()
    assert task.cancelled()
    world.run_engine()
    assert await blocker == "abcdef"
    assert len(world.engine.requests) == requests, "what was queued never reached the engine"
    assert world.s.text == "pastabcdef"
    assert dict(world.s.variables) == {"old": 1, "first": "abcdef"}
    await goes_on(world, world.state())


@each_primitive
async def test_cancel_while_running(primitive: Primitive) -> None:
    world = World()
    before = world.state()
    task = begun(world, primitive)
    await turns()
    if primitive.generates:
        world.engine.step()
        await turns()
    running = set(world.engine.active)
    assert running
    task.cancel()
    await turns()
    assert task.cancelled()
    if primitive is PRIMITIVES["append"]:
        assert running == set(world.engine.active), "the other stream's op is not this one's to cancel"
    else:
        assert set(world.engine.cancelled) == running
    await goes_on(world, before)


@each_primitive
async def test_cancel_while_finishing(primitive: Primitive) -> None:
    """What has settled stands, though the one who awaits it is cancelled before it hears of it."""
    finished = World()
    task = begun(finished, primitive)
    await turns()
    finished.run_engine()
    await task
    expected = finished.state()
    if primitive is PRIMITIVES["sample"]:
        expected[1].pop("x")  # the list is set by the one who was cancelled
    world = World()
    task = begun(world, primitive)
    await turns()
    world.run_engine()
    if primitive is PRIMITIVES["append"]:
        await asyncio.sleep(0)  # one stream hears of another's end from the event loop
    task.cancel()
    await turns()
    assert task.cancelled()
    assert world.engine.cancelled == []
    await goes_on(world, expected)


@each_primitive
async def test_a_runtime_that_is_left(primitive: Primitive) -> None:
    world = World()
    before = world.state()
    task = begun(world, primitive)
    await turns()
    await world.session.aclose()
    await turns()
    error = task.exception()
    if primitive is PRIMITIVES["fork"]:
        assert isinstance(error, asgl.VariableError)  # nobody awaited the branches' ops, but what they would have said is missing
    else:
        for one in delivered(error, primitive):
            assert isinstance(one, OpCancelledError)
            assert "closed" in str(one)
    assert world.state() == before
    assert world.session.unseen_failures() == []
    world.engine.check()
    with pytest.raises(StreamClosedError, match="Runtime was left"):
        world.s.gen()


@pytest.mark.parametrize("primitive", [one for one in PRIMITIVES.values() if one.appends],
                         ids=[name for name, one in PRIMITIVES.items() if one.appends])
async def test_close(primitive: Primitive) -> None:
    world = World()
    before = world.state()
    task = begun(world, primitive)
    await turns()
    await world.s.aclose()
    await turns()
    assert isinstance(task.exception(), OpCancelledError)
    world.run_engine()
    assert world.state() == before
    world.engine.check()
    with pytest.raises(StreamClosedError, match="aclose"):
        world.s.gen()


@pytest.mark.parametrize("primitive", [one for one in PRIMITIVES.values() if one.generates],
                         ids=[name for name, one in PRIMITIVES.items() if one.generates])
async def test_a_budget_of_tokens(primitive: Primitive) -> None:
    world = World()
    before = world.state()
    with asgl.budget(tokens=2) as spending:
        task = begun(world, primitive)
    await turns()
    world.run_engine()
    await turns()
    for error in delivered(task.exception(), primitive):
        assert isinstance(error, BudgetError)
        assert (error.spent, error.limit) == (2, 2)
    assert spending.spent == 2
    await goes_on(world, before)


@each_primitive
async def test_a_budget_of_seconds(primitive: Primitive, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    world = World()
    before = world.state()
    with asgl.budget(seconds=10):
        task = begun(world, primitive)
        await turns()
    assert not task.done()
    clock.ahead = 11.0
    await turns()
    for error in delivered(task.exception(), primitive):
        assert isinstance(error, BudgetError)
        assert error.limit == 10
    if primitive is PRIMITIVES["append"]:
        with pytest.raises(BudgetError):
            await world.other.sync()
    assert world.engine.active == {}
    await goes_on(world, before)


@pytest.mark.parametrize("timeout", [asyncio.timeout, anyio.fail_after])
@each_primitive
async def test_a_timeout(primitive: Primitive, timeout: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    world = World()
    before = world.state()

    async def program() -> None:
        if timeout is asyncio.timeout:
            async with timeout(10):
                await primitive.start(world)
        else:
            with timeout(10):
                await primitive.start(world)

    task = asyncio.ensure_future(program())
    await turns()
    assert world.engine.active
    clock.ahead = 11.0
    await turns()
    assert isinstance(task.exception(), TimeoutError)
    if primitive is not PRIMITIVES["append"]:
        assert world.engine.active == {}
    await goes_on(world, before)


# --- failures that nobody awaits


@pytest.mark.parametrize("name", ["gen", "select", "extend", "role", "append"])
async def test_a_failure_that_nobody_awaits_is_met_by_the_next_call(name: str) -> None:
    world = World()
    handle = PRIMITIVES[name].start(world)
    assert isinstance(handle, Handle)
    before = world.state()
    world.fail(failure := CapacityError("too large", needed=9, capacity=8))
    await turns()
    with pytest.raises(StreamClosedError) as caught:
        world.s.gen()
    causes = [caught.value.__cause__]
    while causes[-1] is not None:
        causes.append(causes[-1].__cause__)
    assert failure in causes
    assert isinstance(caught.value, AsglError)
    await goes_on(world, before)
