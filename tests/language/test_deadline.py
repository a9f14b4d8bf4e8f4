"""Deadlines of requests, and pins."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine

import asgl
from asgl.errors import BudgetError, ConfigError
from asgl.language import Session
from tiny import tiny_directory


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_directory(tmp_path_factory.mktemp("tiny"))


@asynccontextmanager
async def opened(model: Path, **options: Any) -> AsyncIterator[asgl.Runtime]:
    async with asgl.Runtime(
        model,
        kernels="reference",
        dtype="float32",
        sampling=asgl.SamplingParams(seed=1),
        **{"kv_cache_tokens": 1000, **options},
    ) as rt:
        yield rt


async def test_a_request_that_takes_too_long_is_cancelled_in_the_engine() -> None:
    engine = FakeEngine([None, "fine"])
    s = Session(engine).prompt("q", deadline=0.01)
    with pytest.raises(BudgetError, match=r"deadline of 0\.01 seconds") as caught:
        await s.gen("x")
    assert (caught.value.spent, caught.value.limit, caught.value.request_id) == (0.01, 0.01, 0)
    assert len(engine.cancelled) == 1
    assert (s.text, dict(s.variables)) == ("q", {})
    assert await s.gen("x") == "fine"
    engine.check()


async def test_forks_inherit_the_deadline_and_a_select_has_one() -> None:
    engine = FakeEngine(lambda prompt: None)
    s = Session(engine).prompt("q", deadline=0.01)
    with pytest.raises(ExceptionGroup) as caught:
        async with s.fork(2, on_error="cancel") as branches:
            branches[0].gen("x")
    assert isinstance(caught.value.exceptions[0], BudgetError)
    manual = FakeEngine(manual=True)
    with pytest.raises(BudgetError):
        await Session(manual).prompt("q", deadline=0.01).select("x", ["a", "b"])
    engine.check()
    manual.check()


async def test_what_was_queued_behind_is_cancelled_with_the_deadline_as_cause() -> None:
    s = Session(FakeEngine(lambda prompt: None)).prompt("q", deadline=0.01)
    first, second = s.gen("x"), s.gen("y")
    with pytest.raises(BudgetError):
        await first
    with pytest.raises(asgl.OpCancelledError) as caught:
        await second
    assert isinstance(caught.value.__cause__, BudgetError)


@pytest.mark.parametrize("deadline", [0, -1, True, "1", math.nan])
async def test_a_bad_deadline(deadline: Any) -> None:
    with pytest.raises(ConfigError, match="deadline"):
        Session(FakeEngine()).prompt("q", deadline=deadline)


async def test_a_pinned_prefix_is_computed_and_stays(model: Path) -> None:
    async with opened(model, kv_cache_tokens=200) as rt:
        s = rt.prompt("a pinned prefix of some length", cache_salt="salt")
        await rt.pin(s, seconds=60)
        length = len(s.token_ids)
        for number in range(6):  # more than the cache holds
            await rt.prompt(f"{number} other texts " * 6).extend("")
        assert rt.statistics().evicted_tokens > 0
        handle = rt.prompt("a pinned prefix of some length", cache_salt="salt").gen(max_tokens=1)
        await handle
        assert handle.cached_tokens == length - 1
        assert s.cache_salt == "salt"


async def test_a_pin_holds_all_of_a_prefix_that_somebody_else_wants_the_room_of(
    model: Path,
) -> None:
    """The prefix is cached when it is asked for, and evicted by the very plan that finds nothing of
    it left to compute."""
    async with opened(model, kv_cache_tokens=100) as rt:
        s = rt.prompt("a pinned prefix of some length, " * 3)
        length = len(s.token_ids)
        await s.extend("")
        pinning = asyncio.ensure_future(rt.pin(s, seconds=60))
        other = rt.prompt("x" * 90).gen(max_tokens=2)
        await asyncio.gather(pinning, other)
        assert rt.statistics().evicted_tokens > 0
        assert rt.statistics().pinned == length


async def test_bad_pins(model: Path) -> None:
    async with opened(model) as rt:
        s = rt.prompt("x")
        for seconds in (0, -1, math.inf, True):
            with pytest.raises(ConfigError, match="seconds"):
                await rt.pin(s, seconds=seconds)
        with pytest.raises(ConfigError, match="stream"):
            await rt.pin("x")  # type: ignore[arg-type]
