"""The queue: failures, cancellation, closing and garbage, at every place where an op can be."""

from __future__ import annotations

import asyncio
import gc
import weakref
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from fake_engine import FakeEngine

from asgl.errors import (
    ConfigError,
    ContextLengthError,
    EngineCrashedError,
    OpCancelledError,
    StreamClosedError,
)
from asgl.language import PromptStream, Session
from asgl.trace import Event, OpEvent, StreamEvent


async def turns(n: int = 5) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


def hanging() -> tuple[FakeEngine, PromptStream]:
    """An engine that never answers, and a stream on it."""
    engine = FakeEngine(lambda _: None)
    return engine, Session(engine).prompt("a")


# --- failures


async def test_a_failed_op_leaves_everything_as_it_was() -> None:
    engine = FakeEngine(["one", RuntimeError("broken")])
    s = Session(engine).prompt("a")
    await s.gen("x")
    s += "b"
    failing = s.gen("x")
    s += "dropped"
    s["y"] = 1
    behind = s.gen("z")
    with pytest.raises(RuntimeError, match="broken"):
        await failing
    with pytest.raises(
        OpCancelledError, match="queued behind a gen of stream 0 that failed: broken"
    ) as caught:
        await behind
    assert (caught.value.stream, type(caught.value.__cause__)) == (s, RuntimeError)
    assert (s.text, dict(s.variables), failing.text) == ("aoneb", {"x": "one"}, "")
    assert "y" not in s
    assert await s.gen("z") == "ok"
    assert engine.texts[-1] == "aoneb"
    engine.check()


async def test_an_agent_can_catch_a_context_length_error_and_shorten() -> None:
    engine = FakeEngine(["one"], context_length=10)
    s = Session(engine).prompt("a b c")
    mark = s.mark()
    s += " d e f g h i"
    with pytest.raises(ContextLengthError) as caught:
        await s.gen()
    assert caught.value.limit == 10
    s.rewind(mark)
    assert await s.gen() == "one"


async def test_a_failure_must_be_seen_before_the_stream_goes_on() -> None:
    engine = FakeEngine(lambda prompt: RuntimeError("broken") if prompt == "a" else "ok")
    s = Session(engine).prompt("a")
    s.gen()
    await turns()
    with pytest.raises(StreamClosedError, match="nobody had seen it") as caught:
        s += "x"
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert caught.value.stream is s
    s += "b"
    assert await s.gen() == "ok"
    assert s.text == "abok"


@pytest.mark.parametrize("see", ["await", "iterate", "sync", "get", "pieces", "behind"])
async def test_ways_to_see_a_failure(see: str) -> None:
    s = Session(FakeEngine(["one", RuntimeError("broken")])).prompt("a")
    await s.gen()
    handle, behind = s.gen("x"), s.gen()

    async def iterate(handle: Any) -> None:
        async for _ in handle:
            pass

    ways: dict[str, Any] = {
        "await": lambda: handle,
        "iterate": lambda: iterate(handle),
        "sync": s.sync,
        "get": lambda: s.get("x"),
        "pieces": lambda: iterate(s.pieces()),
        "behind": lambda: behind,
    }
    with pytest.raises((RuntimeError, OpCancelledError)):
        await ways[see]()
    assert await s.gen() == "ok"
    assert s.text == "aoneok"


async def test_an_engine_error_closes_the_stream_for_good() -> None:
    s = Session(FakeEngine([EngineCrashedError("the step raised")])).prompt("a")
    with pytest.raises(EngineCrashedError):
        await s.gen()
    for _ in range(2):
        with pytest.raises(StreamClosedError, match="the engine failed") as caught:
            s.gen()
        assert isinstance(caught.value.__cause__, EngineCrashedError)
    assert s.text == "a"


async def test_an_engine_that_raises_is_a_failed_op() -> None:
    engine = FakeEngine()

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a bug")

    engine.generate = broken  # type: ignore[method-assign]
    s = Session(engine).prompt("a")
    with pytest.raises(RuntimeError, match="a bug"):
        await s.gen()
    assert await s.select(None, ["b"]) == "b"


# --- cancellation


async def test_cancelling_the_last_task_that_awaits_cancels_the_op() -> None:
    engine, s = hanging()
    handle = s.gen()
    behind = s.gen()
    first, second = asyncio.ensure_future(handle), asyncio.ensure_future(handle)
    await turns()
    first.cancel()
    await turns()
    assert not handle.done()
    assert first.cancelled()
    second.cancel()
    await turns()
    assert second.cancelled()
    assert handle.done()
    assert len(engine.cancelled) == 1
    with pytest.raises(OpCancelledError):
        await handle
    with pytest.raises(OpCancelledError):
        await behind
    assert s.text == "a"
    engine.check()


async def test_timeouts_cancel() -> None:
    engine, s = hanging()
    with pytest.raises(TimeoutError):
        with anyio.fail_after(0):
            await s.gen()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(s.gen(), 0.001)
    engine.check()
    assert len(engine.cancelled) == 2


async def test_cancelling_the_last_who_iterates_cancels_the_op() -> None:
    engine = FakeEngine(["abcdef"], manual=True)
    s = Session(engine).prompt("a")
    handle = s.gen()

    async def read() -> None:
        async for _ in handle:
            pass

    task = asyncio.create_task(read())
    await turns()
    engine.step()
    await turns()
    task.cancel()
    await turns()
    assert task.cancelled()
    assert handle.done()
    engine.check()


async def test_an_iterator_between_two_pieces_keeps_the_op() -> None:
    engine = FakeEngine(["abcdef"], manual=True)
    s = Session(engine).prompt("a")
    handle = s.gen()
    pieces = aiter(handle)
    engine.step()
    assert await anext(pieces) == "ab"
    waiting = asyncio.ensure_future(handle)
    await turns()
    waiting.cancel()
    await turns()
    assert not handle.done()
    handle.cancel()
    with pytest.raises(OpCancelledError):
        await anext(pieces)


async def test_others_who_wait_see_op_cancelled() -> None:
    _, s = hanging()
    handle = s.gen("x")
    waiting = asyncio.ensure_future(
        asyncio.gather(handle, s.get("x"), s.sync(), return_exceptions=True)
    )
    await turns()
    assert handle.cancel()
    assert not handle.cancel()
    assert [type(error) for error in await waiting] == [OpCancelledError] * 3
    assert "x" not in s


@pytest.mark.parametrize("way", ["sync", "get", "pieces"])
async def test_cancelling_those_who_only_wait_cancels_nothing(way: str) -> None:
    engine = FakeEngine(["one"], manual=True)
    s = Session(engine).prompt("a")
    handle = s.gen("x")

    async def wait() -> None:
        if way == "sync":
            await s.sync()
        elif way == "get":
            await s.get("x")
        else:
            async for _ in s.pieces():
                pass

    task = asyncio.create_task(wait())
    await turns()
    task.cancel()
    await turns()
    assert task.cancelled()
    for _ in range(3):
        engine.step()
    assert await handle == "one"
    engine.check()


async def test_cancelling_a_queued_op_leaves_the_ones_before_it() -> None:
    engine = FakeEngine(["one", "two"])
    s = Session(engine).prompt("a")
    first, second, third = s.gen("x"), s.gen("y"), s.gen("z")
    second.cancel()
    with pytest.raises(OpCancelledError, match="queued behind a gen"):
        await third
    assert await first == "one"
    assert s.text == "aone"
    assert await s.gen() == "two"
    assert len(engine.requests) == 2
    engine.check()


async def test_an_op_that_settled_first_stands() -> None:
    engine = FakeEngine(["one"], manual=True)
    s = Session(engine).prompt("a")
    handle = s.gen("x")
    task = asyncio.ensure_future(handle)
    await turns()
    for _ in range(3):
        engine.step()
    task.cancel()  # in the very turn in which the op ended
    await turns()
    assert task.cancelled()
    assert (s["x"], s.text) == ("one", "aone")
    assert engine.cancelled == []


@pytest.mark.parametrize("step", range(5))
async def test_a_cancel_at_every_step_leaves_the_books_balanced(step: int) -> None:
    engine = FakeEngine(["ab", "cd"], manual=True)
    s = Session(engine).prompt("x")

    async def program() -> None:
        await s.gen("a")
        s.extend(" then ")
        await s.gen("b")

    task = asyncio.create_task(program())
    for _ in range(step):
        await turns()
        engine.step()
    await turns()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await s.aclose()
    engine.check()
    assert s.text in ("x", "xab", "xab then ", "xab then cd")
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_cancelled_while_waiting_for_another_stream() -> None:
    engine = FakeEngine(lambda _: None)
    session = Session(engine)
    s, t = session.prompt("s"), session.prompt("t")
    source = s.gen()
    t += source
    handle = t.gen()
    handle.cancel()
    assert t.text == "t"
    await t.aclose()
    assert not source.done()
    await s.aclose()
    engine.check()


# --- garbage


async def test_an_op_whose_stream_and_handles_are_garbage_runs_to_its_end() -> None:
    engine = FakeEngine(["one"], manual=True)
    session = Session(engine)
    session.prompt("a").gen()
    gc.collect()
    for _ in range(3):
        engine.step()
    assert engine.cancelled == []
    engine.check()


async def test_one_that_still_runs_ends_when_the_session_does() -> None:
    engine = FakeEngine(lambda _: None)
    session = Session(engine)
    session.prompt("a").gen()
    gc.collect()
    await session.aclose()
    assert len(engine.cancelled) == 1
    engine.check()


async def test_an_awaited_op_stays_though_only_the_task_knows_it() -> None:
    engine = FakeEngine(["one"], manual=True)
    session = Session(engine)
    got: list[str] = []

    async def program() -> None:
        got.append(await session.prompt("a").gen())

    task = weakref.ref(asyncio.ensure_future(program()))
    await turns()
    gc.collect()
    for _ in range(3):
        engine.step()
    await turns()
    assert got == ["one"]
    assert task() is None
    engine.check()


async def test_a_chain_of_streams_that_only_a_task_knows_stays() -> None:
    engine = FakeEngine(["one", "two"], manual=True)
    session = Session(engine)
    got: list[str] = []

    async def program() -> None:
        t = session.prompt("t")
        t += session.prompt("s").gen()
        got.append(await t.gen())

    waiting = [asyncio.ensure_future(program())]
    await turns()
    waiting.clear()
    gc.collect()
    for _ in range(6):
        engine.step()
        await turns()
    assert got == ["two"]
    assert engine.texts == ["s", "tone"]


# --- other rules


async def test_a_second_loop_is_refused() -> None:
    session = Session(FakeEngine())
    s = session.prompt("a")

    def elsewhere() -> list[BaseException | None]:
        async def use() -> list[BaseException | None]:
            errors: list[BaseException | None] = []
            for call in (s.gen, session.prompt, lambda: s.append("x")):
                try:
                    call()
                except ConfigError as error:
                    errors.append(error)
            return errors

        return asyncio.run(use())

    errors = await asyncio.to_thread(elsewhere)
    assert len(errors) == 3
    assert "belong to the event loop" in str(errors[0])


async def test_events() -> None:
    events: list[Event] = []

    class Recorder:
        def event(self, event: Event, /) -> None:
            events.append(event)

    engine = FakeEngine(["one", RuntimeError("broken")], tracers=[Recorder()])
    s = Session(engine).prompt("a", name="p")
    s.gen("x")
    failing = s.gen("y")
    s.gen("z")
    with pytest.raises(RuntimeError):
        await failing
    copied = s.copy()
    s.join([copied])
    await s.aclose()
    ops = [
        (event.kind, event.number, event.op, event.name, event.text)
        for event in events
        if isinstance(event, OpEvent)
    ]
    assert ops == [
        ("submitted", 0, "gen", "x", ""),
        ("started", 0, "gen", "x", ""),
        ("requested", 0, "gen", "x", ""),
        ("submitted", 1, "gen", "y", ""),
        ("submitted", 2, "gen", "z", ""),
        ("finished", 0, "gen", "x", "one"),
        ("started", 1, "gen", "y", ""),
        ("requested", 1, "gen", "y", ""),
        ("failed", 1, "gen", "y", ""),
        ("cancelled", 2, "gen", "z", ""),
        ("submitted", 3, "snapshot", None, ""),
        ("started", 3, "snapshot", None, ""),
        ("finished", 3, "snapshot", None, ""),
    ]
    streams = [
        (event.kind, event.stream_id, event.parent_id, event.name)
        for event in events
        if isinstance(event, StreamEvent)
    ]
    assert streams == [
        ("opened", 0, None, "p"),
        ("forked", 1, 0, "p"),
        ("joined", 1, 0, "p"),
        ("closed", 0, None, "p"),
    ]


async def test_leaving_the_runtime_closes_idle_streams() -> None:
    events: list[StreamEvent] = []
    tracer = SimpleNamespace(
        event=lambda event: events.append(event) if isinstance(event, StreamEvent) else None
    )
    session = Session(FakeEngine(manual=True, tracers=[tracer]))
    idle, busy, closed = (session.prompt("x", name=name) for name in ("idle", "busy", "closed"))
    busy.gen()
    await closed.aclose()
    async with idle.fork(1) as (branch,):
        branch += "y"
    del events[:]
    for _ in range(2):
        await session.aclose()
    assert [(event.kind, event.stream_id, event.name) for event in events] == [
        ("closed", 0, "idle"),
        ("closed", 1, "busy"),
        ("closed", 3, "idle"),
    ]
    for stream in (idle, busy, branch):
        with pytest.raises(StreamClosedError, match="the Runtime was left"):
            stream += "more"
