"""Budgets: tokens and seconds, nested, over forks, on prompts; nothing is overshot and nothing is
left running."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest
from fake_engine import FakeEngine

import asgl
from asgl.errors import BudgetError, ConfigError, OpCancelledError
from asgl.language import PromptStream, Session
from asgl.language.budget import _open
from asgl.sampling import SamplingParams


class Clock:
    """Moves the clock of the running loop by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        real, self.ahead = loop.time, 0.0
        monkeypatch.setattr(loop, "time", lambda: real() + self.ahead)


def start(engine: FakeEngine, text: str = "a", **options) -> PromptStream:
    return Session(engine).prompt(text, **options)


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"tokens": -1},
        {"tokens": True},
        {"tokens": 1.5},
        {"seconds": -1},
        {"seconds": float("nan")},
        {"seconds": "1"},
        {"seconds": float("inf")},
        {"seconds": False},
    ],
)
def test_bad_limits(limits) -> None:
    with pytest.raises(ConfigError, match="budget"):
        asgl.budget(**limits)


async def test_within_the_budget_nothing_changes() -> None:
    engine = FakeEngine(["abcdef", "gh"])
    s = start(engine)
    with asgl.budget(tokens=10, seconds=60) as spending:
        assert await s.gen() == "abcdef"
        assert await s.gen() == "gh"
    assert (spending.spent, spending.tokens_left) == (
        4 + 2,
        4,
    )  # pairs of letters are tokens, and so is each end
    engine.check()


async def test_a_generation_is_cut_to_what_is_left_and_fails_if_that_was_too_little() -> None:
    engine = FakeEngine(["abcdefgh", "ij"])
    s = start(engine)
    with asgl.budget(tokens=3) as spending:
        with pytest.raises(BudgetError, match="3 tokens") as caught:
            await s.gen("x", min_tokens=5)
        assert (caught.value.spent, caught.value.limit) == (3, 3)
        assert (
            engine.requests[0][2]["params"].max_tokens,
            engine.requests[0][2]["params"].min_tokens,
        ) == (3, 3)
        with pytest.raises(BudgetError):  # nothing is left to ask the engine with
            await s.gen("y")
    assert len(engine.requests) == 1
    assert spending.spent == 3
    assert (s.text, dict(s.variables)) == ("a", {})
    assert await s.gen() == "ij"
    engine.check()


async def test_a_limit_that_is_just_enough() -> None:
    engine = FakeEngine(["abcdef"] * 3)
    s = start(engine)
    with asgl.budget(tokens=7):
        assert await s.gen(max_tokens=3) == "abcdef"  # its own limit, not the budget's
        assert await s.gen() == "abcdef"  # three tokens and the end
    engine.check()


async def test_what_generates_no_tokens_costs_none() -> None:
    s = start(FakeEngine())
    with asgl.budget(tokens=0):
        await s.extend("b")
        assert await s.select("x", ["c", "d"]) in ("c", "d")
        with pytest.raises(BudgetError):
            await s.gen()


async def test_the_budget_is_shared_by_forks_and_never_overshot() -> None:
    engine = FakeEngine(lambda _: "abcdefghijklmnop", manual=True)
    s = start(engine)
    with asgl.budget(tokens=10) as spending, pytest.raises(ExceptionGroup) as caught:
        async with s.fork(4) as branches:
            for branch in branches:
                branch.gen("x")
            for _ in range(3):
                await asyncio.sleep(0)
                engine.step()
    assert all(isinstance(error, BudgetError) for error in caught.value.exceptions)
    assert spending.spent == 10
    assert len(engine.cancelled) == 4
    assert engine.steps == 3
    assert s.text == "a"
    engine.check()


async def test_the_op_that_ends_with_the_last_token_stands() -> None:
    engine = FakeEngine(lambda prompt: "abcdefgh" if prompt == "b" else "cd", manual=True)
    session = Session(engine)
    long, short = session.prompt("b"), session.prompt("c")
    with asgl.budget(tokens=4):
        first, second = long.gen(), short.gen()
    engine.step()
    engine.step()  # the fourth token is the end of the short one
    assert await second == "cd"
    with pytest.raises(BudgetError):
        await first
    assert len(engine.cancelled) == 1
    engine.check()


async def test_nested_budgets_each_bind() -> None:
    engine = FakeEngine(lambda _: "abcdefgh")
    s = start(engine)
    with asgl.budget(tokens=5) as outer:
        with asgl.budget(tokens=2) as inner, pytest.raises(BudgetError) as caught:
            await s.gen()
        assert caught.value.limit == 2
        with asgl.budget(tokens=100), pytest.raises(BudgetError) as caught:
            await s.gen()
        assert caught.value.limit == 5
    assert (outer.spent, inner.spent) == (5, 2)
    assert await s.gen() == "abcdefgh"
    assert _open.get() == ()
    engine.check()


async def test_what_is_submitted_inside_is_bound_also_after_the_block() -> None:
    engine = FakeEngine(["abcdefgh", "abcdefgh"])
    s = start(engine)
    with asgl.budget(tokens=2):
        bound = s.gen()
    with pytest.raises(BudgetError):
        await bound
    assert await s.gen() == "abcdefgh"


async def test_tasks_started_inside_are_bound_and_others_are_not() -> None:
    engine = FakeEngine(lambda _: "abcdefgh")
    session = Session(engine)

    async def program(s: PromptStream) -> str:
        return await s.gen()

    free = asyncio.ensure_future(program(session.prompt("a")))
    with asgl.budget(tokens=2):
        bound = asyncio.ensure_future(program(session.prompt("b")))
    assert await free == "abcdefgh"
    with pytest.raises(BudgetError):
        await bound


async def test_the_budget_of_a_prompt_binds_its_forks_wherever_they_are_used() -> None:
    engine = FakeEngine(lambda _: "abcdefgh")
    spending = asgl.budget(tokens=7)
    s = start(engine, budget=spending)
    assert await s.copy().gen() == "abcdefgh"
    with pytest.raises(ExceptionGroup) as caught:
        async with s.fork(1) as (branch,):
            branch.gen()
    assert caught.group_contains(BudgetError)
    assert spending.spent == 7
    with pytest.raises(ConfigError, match="budget"):
        start(engine, budget=7)


async def test_a_budget_may_be_opened_again() -> None:
    engine = FakeEngine(lambda _: "ab")
    s, spending = start(engine), asgl.budget(tokens=4)
    for _ in range(2):
        with spending:
            await s.gen()
    assert spending.tokens_left == 0
    assert "4 of 4 tokens" in repr(spending)


@pytest.mark.parametrize("op", ["gen", "select", "extend", "handle", "thread"])
async def test_when_the_time_is_over_all_that_runs_ends(
    op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    engine = FakeEngine([None, None], manual=True)
    if op == "thread":
        engine.thread_gate = asyncio.Event()
    session = Session(engine)
    s, other = session.prompt("a"), session.prompt("b")
    with asgl.budget(seconds=10):
        handle = {
            "gen": lambda: s.gen("x"),
            "select": lambda: s.select("x", ["a", "b"]),
            "extend": lambda: s.extend("c"),
            "handle": lambda: s.submit(other.gen()),
            "thread": lambda: s.extend("long " * 10_000),
        }[op]()
        behind = s.gen("y")
    waiting = asyncio.gather(handle, behind, return_exceptions=True)
    await asyncio.sleep(0)
    assert not handle.done()
    clock.ahead = 11.0
    error, consequence = await waiting
    assert isinstance(error, BudgetError)
    assert error.limit == 10
    assert error.spent >= 11
    assert isinstance(consequence, OpCancelledError)
    assert consequence.__cause__ is error
    assert s.text == "a"
    if op == "handle":
        with pytest.raises(BudgetError):  # it was submitted inside, too
            await other.sync()
    elif op != "thread":
        assert len(engine.cancelled) == 1
    assert not engine.active


async def test_no_op_starts_after_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    engine = FakeEngine()
    s = start(engine)
    with asgl.budget(seconds=1):
        assert await s.gen() == "ok"
        clock.ahead = 2.0
        with pytest.raises(BudgetError, match="1 seconds"):
            await s.gen()
        s += "text costs nothing"
    assert len(engine.requests) == 1
    assert await s.gen() == "ok"


async def test_the_time_of_a_prompt_begins_with_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    s = start(FakeEngine(), budget=asgl.budget(seconds=5))
    clock.ahead = 6.0
    with pytest.raises(BudgetError):
        await s.gen()


def test_a_block_outside_of_the_loop_begins_with_its_first_op() -> None:
    async def program() -> str:
        return await start(FakeEngine()).gen()

    with asgl.budget(seconds=60):
        assert asyncio.run(program()) == "ok"


async def test_no_timer_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    timers: list[asyncio.TimerHandle] = []
    call_at = loop.call_at

    def recorded(*args: Any, **options: Any) -> asyncio.TimerHandle:
        timers.append(call_at(*args, **options))
        return timers[-1]

    monkeypatch.setattr(loop, "call_at", recorded)
    s = start(FakeEngine())
    with asgl.budget(seconds=1000):
        await s.gen()
        running = s.gen()
        assert [timer.cancelled() for timer in timers] == [True, False]
        running.cancel()
    assert all(timer.cancelled() for timer in timers)


async def test_sample_and_map_under_a_budget() -> None:
    engine = FakeEngine(lambda _: "abcdefgh", defaults=SamplingParams(max_tokens=4))
    s = start(engine)
    with asgl.budget(tokens=6), pytest.raises(BudgetError):
        await s.sample("x", n=3)
    assert "x" not in s

    def generate(branch: PromptStream, _: int) -> Awaitable[str]:
        return branch.gen()

    with asgl.budget(tokens=6), pytest.raises(ExceptionGroup):
        await s.map(generate, [1, 2, 3])
    assert s.text == "a"
    engine.check()
