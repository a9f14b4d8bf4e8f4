"""What happens at the wrong moment, or in the wrong place."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable

import pytest
from fake_engine import FakeEngine

import asgl
from asgl.errors import CapacityError, ConfigError, OpCancelledError, StreamClosedError
from asgl.language import PromptStream, Session
from asgl.testing import ScriptedRuntime


@pytest.mark.parametrize(
    ("ending", "closes"),
    [(lambda s, handle: handle.cancel(), False), (lambda s, handle: s.aclose().send(None), True)],
    ids=["cancel", "close"],
)
@pytest.mark.parametrize("valid", [True, False])
async def test_a_validator_may_end_its_own_op(
    ending: Callable[..., object], closes: bool, valid: bool
) -> None:
    engine = FakeEngine(["ab", "cd", "ef"])
    s = Session(engine).prompt("x")

    def validate(_: str) -> bool:
        ending(s, handle)
        return valid

    handle = s.gen("y", validate=validate, retries=1)
    behind = s.gen("z")
    for one in (handle, behind):
        with pytest.raises(OpCancelledError):
            await one
    assert (s.text, dict(s.variables)) == ("x", {})
    engine.check()
    if closes:
        with pytest.raises(StreamClosedError):
            s.gen()
    else:
        assert await s.gen("w") == "cd"


async def test_a_validator_may_submit_to_its_own_stream() -> None:
    engine = FakeEngine(["ab", "cd"])
    s = Session(engine).prompt("x")
    assert await s.gen(validate=lambda _: s.gen("later").done() or True) == "ab"
    assert await s.get("later") == "cd"


async def test_a_failure_whose_waiter_was_cancelled_is_still_to_be_seen() -> None:
    engine = FakeEngine([CapacityError("large", needed=2, capacity=1)])
    session = Session(engine)
    s = session.prompt("x")
    handle = s.gen()
    await asyncio.sleep(0)
    assert handle.done()

    async def awaited() -> object:
        return await handle

    for wait in (awaited, s.sync, handle.__aiter__().__anext__, s.pieces().__anext__):
        task = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises((asyncio.CancelledError, StopAsyncIteration)):
            await task
    (failure,) = session.unseen_failures()
    assert isinstance(failure, CapacityError)


async def test_the_failure_of_a_task_that_is_not_delivered_either() -> None:
    async def fails(_: PromptStream) -> None:
        raise KeyError("broken")

    s = Session(FakeEngine()).prompt("x")
    with pytest.raises(ExceptionGroup) as caught:
        async with s.fork(1) as (branch,):
            running = branch.start_soon(fails)
            await asyncio.sleep(0)
            await asyncio.sleep(0)

            async def wait() -> None:
                await running

            task = asyncio.ensure_future(wait())
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
    assert caught.group_contains(KeyError)


async def test_when_one_sample_fails_the_others_are_cancelled_at_once() -> None:
    engine = FakeEngine([None, CapacityError("large", needed=2, capacity=1), None], manual=True)
    session = Session(engine)
    s = session.prompt("x")
    task = asyncio.ensure_future(s.sample("y", n=3))
    await asyncio.sleep(0)
    engine.step()
    for _ in range(5):
        await asyncio.sleep(0)
    assert isinstance(task.exception(), CapacityError)
    assert len(engine.cancelled) == 2
    assert session.unseen_failures() == []
    engine.check()
    assert "y" not in s


async def test_another_event_loop_may_neither_wait_nor_cancel() -> None:
    engine = FakeEngine([None, "ab"])
    s = Session(engine).prompt("x")
    handle = s.gen("y")

    async def elsewhere() -> None:
        async def pieces() -> None:
            async for _ in handle:
                pass

        async def awaited() -> object:
            return await handle

        for use in (awaited, s.sync, lambda: s.get("y"), pieces):
            with pytest.raises(ConfigError, match="belong to the event loop"):
                await use()
        for use in (handle.cancel, handle.stop, lambda: s.append("z"), lambda: s.mark()):
            with pytest.raises(ConfigError, match="belong to the event loop"):
                use()

    await asyncio.to_thread(lambda: asyncio.run(elsewhere()))
    assert not handle.done()
    handle.cancel()
    engine.check()


async def test_a_budget_may_be_left_in_another_context() -> None:
    """As async fixtures do, whose two halves run in contexts of their own."""
    budget = asgl.budget(tokens=3)
    contextvars.copy_context().run(budget.__enter__)
    budget.__exit__(None, None, None)
    with budget:
        assert budget.tokens_left == 3


async def test_results_of_a_batch_that_was_not_entered_or_was_left_are_refused() -> None:
    @asgl.function
    async def same(s: PromptStream, item: int) -> int:
        return item

    async with ScriptedRuntime({}) as rt:
        results = same.as_completed(rt, [1, 2])
        with pytest.raises(ConfigError, match="async with"):
            await anext(results)
        async with results:
            await anext(results)
        with pytest.raises(ConfigError, match="async with"):
            await anext(results)


@pytest.mark.parametrize("on_error", ["model", "program"])
async def test_a_tool_that_raises_a_cancelled_error_of_its_own(on_error: str) -> None:
    @asgl.tool
    async def gives_up() -> None:
        """Raises what nobody asked for."""
        raise asyncio.CancelledError

    async with ScriptedRuntime({None: {"name": "gives_up", "arguments": {}}}) as rt:
        s = rt.prompt("x")
        if on_error == "program":
            with pytest.raises(asgl.ToolError):
                await s.call_tools([gives_up], on_error="program")
        else:
            (call,) = await s.call_tools([gives_up])
            assert isinstance(call.error, OpCancelledError)
