"""Every primitive meets every way out. What did not happen leaves no trace: in the text, in the
variables, in the engine.

The table is generated: a row for each primitive, a column for each event, and for every cell the
exception that whoever awaits the primitive must get, with its cause.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
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


class Grammars:
    """Takes every grammar, and compiles nothing."""

    def known(self, source: object) -> object:
        return source


class Saved:
    """Files that are nowhere."""

    def __init__(self) -> None:
        self.written: list[Any] = []

    async def save_prompt(self, path: Path, state: Any, tokens: Any, namespace: str | None) -> None:
        self.written.append(state["text"])


class World:
    """A stream that has a past, and another one that the primitive may take from."""

    def __init__(self, primitive: Primitive | None = None) -> None:
        self.answer = primitive.answer if primitive is not None else "abcdef"
        self.engine = FakeEngine(lambda _: self.answer, template=FakeTemplate(), manual=True)
        self.engine.grammars, self.engine.saved = Grammars(), Saved()  # type: ignore[attr-defined]
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
            self.engine.settle(ticket, error=error)


class Primitive(NamedTuple):
    start: Callable[[World], Awaitable[Any]]
    """Submits it, at once; awaiting gives its value."""
    bad: Callable[[World], Any] | None
    """The same with a bad argument; None if there is none that it could have."""
    uses: tuple[str, ...]
    """The methods of a stream that it stands for."""
    block: bool = False
    """Whether its failures arrive as an ExceptionGroup."""
    appends: bool = True
    """Whether what fails is an op of this very stream, if it does not relay."""
    generates: bool = True
    relays: bool = False
    """Whether what fails is an op of another stream, so that its failure arrives as the cause of an
    OpCancelledError."""
    behind: bool = False
    """Whether it waits behind an op that fails, with the same consequence."""
    owned: bool = True
    """Whether who awaits it owns what runs: to cancel who only waits for it leaves it running."""
    answer: str = "abcdef"
    """What the model says."""


async def fork(world: World) -> list[str]:
    async with world.s.fork(2) as branches:
        for branch in branches:
            branch.gen("x")
    return branches.gather("x")


async def generate(branch: PromptStream, _: int) -> str:
    return await branch.gen("x")


async def tasks(world: World) -> list[str]:
    async with world.s.fork(2) as branches:
        running = [branch.start_soon(generate, 0) for branch in branches]
        return [await task for task in running]


async def bad_map(world: World) -> None:
    await world.s.map(generate, [1, 2], on_error="ignore")  # type: ignore[arg-type]


async def bad_sample(world: World) -> None:
    await world.s.sample("x", n=0)


async def join(world: World) -> None:
    world.other = world.s.copy()
    world.other.gen("x")
    world.s.join([world.other])
    await world.s.sync()


async def rewind(world: World) -> None:
    here = world.s.mark()
    handle = world.s.gen("x")
    world.s.rewind(here)
    await handle
    await world.s.sync()


async def role_block(world: World) -> None:
    with world.s.role("assistant"):
        await world.s.gen("x")


async def pieces(world: World) -> str:
    world.s.gen("x")
    return "".join([piece async for piece in world.s.pieces()])


async def get(world: World) -> str:
    world.s.gen("x")
    return await world.s.get("x")


async def sync(world: World) -> None:
    world.s.gen("x")
    await world.s.sync()


async def save(world: World) -> None:
    world.s.gen("x")
    await world.s.save("nowhere")


@asgl.tool
async def double(number: int) -> int:
    """Doubles it."""
    return 2 * number


@asgl.function
async def program(s: PromptStream) -> str:
    return await s.gen("x")


PRIMITIVES = {
    "gen": Primitive(
        lambda w: w.s.gen("x"), lambda w: w.s.gen("x", max_tokens=-1), ("gen", "submit")
    ),
    "select": Primitive(
        lambda w: w.s.select("x", ["a", "b"]),
        lambda w: w.s.select("x", []),
        ("select",),
        generates=False,
    ),
    "extend": Primitive(
        lambda w: w.s.extend("more"), lambda w: w.s.extend(3), ("extend",), generates=False
    ),  # type: ignore
    "message": Primitive(
        lambda w: w.s.assistant("well, " + asgl.gen("x")),
        lambda w: w.s.assistant(asgl.user("x")),
        ("system", "user", "assistant"),
    ),
    "role": Primitive(role_block, lambda w: w.s.role(""), ("role",)),
    "fork": Primitive(fork, lambda w: w.s.fork(0), ("fork", "copy"), block=True, appends=False),
    "tasks": Primitive(tasks, None, ("start_soon",), block=True, appends=False),
    "map": Primitive(
        lambda w: w.s.map(generate, [1, 2]), bad_map, ("map",), block=True, appends=False
    ),
    "sample": Primitive(lambda w: w.s.sample("x", n=2), bad_sample, ("sample",), appends=False),
    "append": Primitive(
        lambda w: w.s.submit(w.other.gen("y")),
        lambda w: w.s.append(3),
        ("append",),  # type: ignore[arg-type]
        generates=False,
        relays=True,
    ),
    "join": Primitive(
        join, lambda w: w.s.join([w.other]), ("join", "copy"), relays=True, owned=False
    ),
    "rewind": Primitive(rewind, lambda w: w.s.rewind("here"), ("mark", "rewind")),  # type: ignore[arg-type]
    "prefetch": Primitive(lambda w: w.s.prefetch(), None, ("prefetch",), generates=False),
    "next_token": Primitive(
        lambda w: w.s.next_token(top=3),
        lambda w: w.s.next_token(top=0),
        ("next_token",),
        appends=False,
        generates=False,
    ),
    "score": Primitive(
        lambda w: w.s.score("more", top=1),
        lambda w: w.s.score(3),  # type: ignore[arg-type]
        ("score",),
        appends=False,
        generates=False,
    ),
    "scored text": Primitive(
        lambda w: w.s.extend("more", logprobs=2),
        lambda w: w.s.extend("more", logprobs=-1),
        ("extend",),
        generates=False,
    ),
    "beam": Primitive(
        lambda w: w.s.beam(2, max_tokens=3),
        lambda w: w.s.beam(2, width=1),
        ("beam",),
        appends=False,
        generates=False,
    ),
    "save": Primitive(save, None, ("save",), behind=True, owned=False),
    "pieces": Primitive(pieces, None, ("pieces",), owned=False),
    "get": Primitive(get, None, ("get",), owned=False),
    "sync": Primitive(sync, None, ("sync",), owned=False),
    "call_tools": Primitive(
        lambda w: w.s.call_tools([double]),
        lambda w: w.s.call_tools([]),
        ("call_tools", "agent"),
        answer='{"name": "double", "arguments": {"number": 4}}',
    ),
    "program": Primitive(lambda w: program(w.s), lambda w: program(3), ()),  # type: ignore[call-overload]
}
READING = {"text", "token_ids", "variables", "name", "cache_salt", "error", "messages", "info"}


def rows(condition: Callable[[Primitive], bool] = lambda _: True) -> Any:
    """A row of the table for each primitive that has the column."""
    names = [name for name, one in PRIMITIVES.items() if condition(one)]
    return pytest.mark.parametrize("primitive", [PRIMITIVES[name] for name in names], ids=names)


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
    for _ in range(30):
        await asyncio.sleep(0)


def begun(world: World, primitive: Primitive) -> asyncio.Future[Any]:
    return asyncio.ensure_future(awaited(primitive, world))


async def awaited(primitive: Primitive, world: World) -> Any:
    return await primitive.start(world)


async def finished(primitive: Primitive) -> tuple[Any, ...]:
    """The state of a stream on which it has ended well."""
    world = World(primitive)
    task = begun(world, primitive)
    while not task.done():
        await turns()
        world.run_engine()
    await task
    return world.state()


def delivered(error: BaseException | None, primitive: Primitive) -> list[BaseException]:
    """What the program got: of a block each of the errors in its group; of what depends on another
    op, what that op got."""
    assert error is not None
    if primitive.block:
        assert isinstance(error, BaseExceptionGroup)
        return list(error.exceptions)
    if (primitive.relays or primitive.behind) and isinstance(error, OpCancelledError):
        assert error.__cause__ is not None
        return [error.__cause__]
    return [error]


async def goes_on(world: World, before: tuple[Any, ...]) -> None:
    """All is as it was, every failure was seen, the engine's books balance, and the stream
    works."""
    world.run_engine()  # what others had asked for
    await turns()
    assert world.state() == before
    assert world.session.unseen_failures() == []
    world.engine.check()
    handle = world.s.assistant(asgl.gen("after"))
    world.run_engine()
    assert await handle == world.answer
    world.engine.check()


# --- the columns


@rows(lambda one: one.bad is not None)
async def test_a_bad_argument(primitive: Primitive) -> None:
    world = World(primitive)
    before = world.state()
    assert primitive.bad is not None
    with pytest.raises(ConfigError):
        await primitive.bad(world)
    assert world.engine.requests == []
    await goes_on(world, before)


@rows()
async def test_a_request_that_fails(primitive: Primitive) -> None:
    world = World(primitive)
    before = world.state()
    task = begun(world, primitive)
    await turns()
    world.fail(CapacityError("too large", needed=9, capacity=8))
    await turns()
    if primitive.relays:  # the failure is the other stream's; it reaches this one as a cause
        assert isinstance(error := task.exception(), OpCancelledError)
        assert error.stream is world.other
    for error in delivered(task.exception(), primitive):
        assert isinstance(error, CapacityError)
        assert error.needed == 9
    await goes_on(world, before)


@rows()
async def test_an_engine_that_crashes(primitive: Primitive) -> None:
    world = World(primitive)
    before = world.state()
    task = begun(world, primitive)
    await turns()
    crash = EngineCrashedError("the engine has stopped")
    crash.__cause__ = RuntimeError("device lost")
    world.fail(crash)
    await turns()
    for error in delivered(task.exception(), primitive):
        assert error is crash
        assert isinstance(error.__cause__, RuntimeError)
    assert world.state() == before
    assert world.session.unseen_failures() == []
    world.engine.check()
    if primitive.appends:
        with pytest.raises(StreamClosedError) as caught:
            (world.other if primitive.relays else world.s).gen()
        assert caught.value.__cause__ is crash


@rows(lambda one: one.owned)
async def test_cancel_while_queued(primitive: Primitive) -> None:
    world = World(primitive)
    blocker = world.s.gen("first")
    task = begun(world, primitive)
    await turns()
    requests = len(world.engine.requests)
    task.cancel()
    await turns()
    assert task.cancelled()
    world.run_engine()
    assert await blocker == world.answer
    assert len(world.engine.requests) == requests, "what was queued never reached the engine"
    assert world.s.text == f"past{world.answer}"
    assert dict(world.s.variables) == {"old": 1, "first": world.answer}
    await goes_on(world, world.state())


@rows(lambda one: one.owned)
async def test_cancel_while_running(primitive: Primitive) -> None:
    world = World(primitive)
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
    if primitive.relays:
        assert running == set(world.engine.active), (
            "the other stream's op is not this one's to cancel"
        )
    else:
        assert set(world.engine.cancelled) == running
    await goes_on(world, before)


@rows(lambda one: not one.owned)
@pytest.mark.parametrize("steps", [0, 1])
async def test_to_stop_waiting_changes_nothing(primitive: Primitive, steps: int) -> None:
    """Who waits for what others own, and is cancelled, leaves it running."""
    world = World(primitive)
    task = begun(world, primitive)
    await turns()
    for _ in range(steps):
        world.engine.step()
    task.cancel()
    await turns()
    assert task.cancelled()
    assert world.engine.cancelled == []
    world.run_engine()
    await turns()
    await goes_on(world, await finished(primitive))


@rows()
async def test_cancel_while_finishing(primitive: Primitive) -> None:
    """What has settled stands, though the one who awaits it is cancelled before it hears of it."""
    expected = await finished(primitive)
    if primitive is PRIMITIVES["sample"]:
        expected[1].pop("x")  # the list is set by the one who was cancelled
    world = World(primitive)
    before = world.state()
    task = begun(world, primitive)
    await turns()
    world.run_engine()
    if primitive.relays:
        await asyncio.sleep(0)  # one stream hears of another's end from the event loop
    task.cancel()
    await turns()
    assert task.cancelled()
    assert world.engine.cancelled == []
    if primitive is PRIMITIVES["call_tools"]:
        expected = before  # the call was made, but not answered: it is all or nothing
    await goes_on(world, expected)


@rows()
async def test_a_runtime_that_is_left(primitive: Primitive) -> None:
    world = World(primitive)
    before = world.state()
    task = begun(world, primitive)
    await turns()
    await world.session.aclose()
    await turns()
    error = task.exception()
    if primitive is PRIMITIVES["fork"]:
        assert isinstance(
            error, asgl.VariableError
        )  # nobody awaited the branches' ops, but what they would have said is missing
    elif primitive is PRIMITIVES["pieces"]:
        assert task.result() == "past"  # there is nothing more to come
    else:
        for one in [error] if not primitive.block else delivered(error, primitive):
            assert isinstance(one, OpCancelledError)
            assert "closed" in str(one)
    assert world.state() == before
    assert world.session.unseen_failures() == []
    world.engine.check()
    with pytest.raises(StreamClosedError, match="Runtime was left"):
        world.s.gen()


@rows(lambda one: one.appends)
async def test_close(primitive: Primitive) -> None:
    world = World(primitive)
    before = world.state()
    task = begun(world, primitive)
    await turns()
    await world.s.aclose()
    await turns()
    if primitive is PRIMITIVES["pieces"]:
        assert task.result() == "past"
    else:
        assert isinstance(task.exception(), OpCancelledError)
    world.run_engine()
    assert world.state() == before
    world.engine.check()
    with pytest.raises(StreamClosedError, match="aclose"):
        world.s.gen()


@rows(lambda one: one.generates)
async def test_a_budget_of_tokens(primitive: Primitive) -> None:
    world = World(primitive)
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


@rows()
async def test_a_budget_of_seconds(primitive: Primitive, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    world = World(primitive)
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
@rows()
async def test_a_timeout(
    primitive: Primitive, timeout: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    world = World(primitive)
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
    assert bool(world.engine.active) == (primitive.relays or not primitive.owned)
    world.run_engine()
    await turns()
    await goes_on(world, before if primitive.owned else await finished(primitive))


# --- the rows


def test_the_table_has_a_row_for_each_thing_that_a_stream_can_do() -> None:
    public = {name for name in dir(PromptStream) if not name.startswith("_")}
    assert {name for one in PRIMITIVES.values() for name in one.uses} | READING | {
        "aclose"
    } == public


@pytest.mark.parametrize("event", ["close", "crash", "fail", "cancel"])
async def test_a_call_of_tools_that_was_begun_leaves_no_header(event: str) -> None:
    """In a stream of messages the header of the assistant is written before the call."""
    world = World(PRIMITIVES["call_tools"])
    world.s.user("go")
    await world.s.sync()
    before = world.state()
    task = asyncio.ensure_future(world.s.call_tools([double]))
    await turns()
    assert world.engine.active
    assert world.s.text != before[0]
    if event == "close":
        await world.s.aclose()
    elif event == "cancel":
        task.cancel()
    else:
        world.fail(
            EngineCrashedError("lost")
            if event == "crash"
            else CapacityError("large", needed=2, capacity=1)
        )
    await turns()
    assert task.done()
    assert task.cancelled() or isinstance(task.exception(), AsglError)
    assert world.state() == before


# --- failures that nobody awaits


@pytest.mark.parametrize("name", ["gen", "select", "extend", "message", "append"])
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
