"""Programs: alone, inside one another, in batches; what fails or is cancelled leaves nothing
running."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fake_engine import FakeEngine, Source

import asgl
from asgl.errors import ConfigError, ContextLengthError, OpCancelledError, StreamClosedError
from asgl.language import PromptStream, Session
from asgl.sampling import SamplingParams


@asgl.function
async def tips(s: PromptStream, topic: str, n: int = 1) -> str:
    """Tips on a topic."""
    s += topic * n
    return await s.gen("tip")


@asgl.function
async def page(s: PromptStream, topic: str) -> int:
    s += "#"
    tip = await tips(s, topic)
    s.gen("rest")
    return len(tip)


# --- one program


async def test_on_a_runtime_it_is_a_fresh_stream_that_is_finished() -> None:
    engine = FakeEngine(["one", "two"])
    s = await page(Source(engine), "x")
    assert (s.text, s.returned, s["rest"], s.name) == ("#xonetwo", 3, "two", "page")
    assert isinstance(s, PromptStream)
    assert await s.gen() == "ok"  # one may go on
    engine.check()


async def test_on_a_stream_it_is_a_part_of_it() -> None:
    engine = FakeEngine(["one"])
    s = Session(engine).prompt("> ")
    assert await tips(s, topic="x", n=2) == "one"
    assert (s.text, s["tip"]) == ("> xxone", "one")


async def test_it_is_still_the_function_that_it_was() -> None:
    assert (tips.__name__, tips.__doc__) == ("tips", "Tips on a topic.")
    s = Session(FakeEngine(["one"])).prompt()
    assert await tips.fn(s, "x") == "one"


async def test_bad_programs_and_bad_places() -> None:
    with pytest.raises(ConfigError, match="async def"):
        asgl.function(lambda s: s)  # type: ignore[arg-type]

    async def nothing() -> None: ...

    with pytest.raises(ConfigError, match="no parameters"):
        asgl.function(nothing)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="Runtime or on a stream"):
        await tips("rt", "x")  # type: ignore[call-overload]
    with pytest.raises(TypeError):
        await tips(Source(FakeEngine()), nonsense=1)  # type: ignore[call-overload]


async def test_a_program_that_fails_leaves_nothing_running() -> None:
    engine, seen = FakeEngine([None]), list[PromptStream]()

    @asgl.function
    async def failing(s: PromptStream) -> None:
        seen.append(s)
        s += "a"
        s.gen()
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await failing(Source(engine))
    with pytest.raises(StreamClosedError, match="failed or was cancelled"):
        seen[0].gen()
    assert len(engine.cancelled) == 1
    engine.check()


async def test_an_op_that_nobody_awaited_and_that_failed_fails_the_program() -> None:
    source = Source(FakeEngine([RuntimeError("broken")]))

    @asgl.function
    async def careless(s: PromptStream) -> str:
        s += "a"
        s.gen()
        return "done"

    with pytest.raises(RuntimeError, match="broken"):
        await careless(source)
    assert source.session.unseen_failures() == []


async def test_cancelling_a_program_cancels_its_ops() -> None:
    engine = FakeEngine([None])
    task = asyncio.ensure_future(page(Source(engine), "x"))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(engine.cancelled) == 1
    engine.check()


# --- batches


async def test_a_batch_gives_its_streams_in_order() -> None:
    engine = FakeEngine(lambda prompt: prompt.upper() * (4 - len(prompt)))
    source = Source(engine)
    items: list[Any] = [{"topic": "a", "n": 2}, ("b",), "c", ("d", 3)]
    outcomes = await tips.batch(source, items)
    assert [s.returned for s in outcomes] == ["AAAA", "BBB", "CCC", "DDD"]
    assert [s.name for s in outcomes] == ["tips[0]", "tips[1]", "tips[2]", "tips[3]"]
    assert source.shown == [(4, "tips", 4)]
    await tips.batch(source, items, progress=False)
    assert len(source.shown) == 1
    assert await tips.batch(source, []) == []
    engine.check()


async def test_items_of_a_batch_have_seeds_of_their_own_and_the_same_ones_again() -> None:
    seeds = []
    for _ in range(2):
        engine = FakeEngine(defaults=SamplingParams(seed=1))
        await tips.batch(Source(engine), ["x"] * 3)
        seeds.append(engine.seeds)
    assert len(set(seeds[0])) == 3
    assert seeds[0] == seeds[1]


@pytest.mark.parametrize(
    ("items", "options", "match"),
    [
        (["x", {"nonsense": 1}], {}, "item 1 does not fit tips"),
        ([("x", 1, 2)], {}, "item 0"),
        ([{}], {}, "item 0"),
        (["x"], {"concurrency": 0}, "concurrency"),
        (["x"], {"concurrency": True}, "concurrency"),
        (["x"], {"on_error": "ignore"}, "on_error"),
        ("health", {}, "items must be a list"),
        ({"topic": "x"}, {}, "items must be a list"),
        (None, {}, "items must be a list"),
    ],
)
async def test_bad_batches_run_nothing(items: Any, options: dict[str, Any], match: str) -> None:
    engine = FakeEngine()
    with pytest.raises(ConfigError, match=match):
        await tips.batch(Source(engine), items, **options)
    assert engine.requests == []


@pytest.mark.parametrize("concurrency", [1, 3, 100])
async def test_at_most_so_many_programs_run_at_a_time(concurrency: int) -> None:
    running, most = 0, 0

    @asgl.function
    async def counted(s: PromptStream, n: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        s += str(n)
        await s.gen()
        running -= 1

    engine = FakeEngine()
    await counted.batch(Source(engine), range(7), concurrency=concurrency)
    assert most == min(concurrency, 7)
    assert len(engine.requests) == 7


async def test_the_first_failure_cancels_the_rest() -> None:
    engine = FakeEngine(lambda prompt: RuntimeError("broken") if prompt == "b" else None)
    source = Source(engine)
    with pytest.raises(RuntimeError, match="broken") as caught:
        await tips.batch(source, ["a", "b", "c", "d"], concurrency=3)
    assert caught.value.__notes__ == ["in item 1 of tips"]
    assert len(engine.cancelled) == 2
    assert len(engine.requests) == 3
    assert source.session.unseen_failures() == []
    engine.check()


async def test_failures_as_outcomes() -> None:
    engine = FakeEngine(
        lambda prompt: RuntimeError("broken") if prompt == "b" else "ok", context_length=5
    )
    outcomes = await tips.batch(Source(engine), ["a", "b", "c c c", "d"], on_error="return")
    assert [type(outcome).__name__ for outcome in outcomes] == [
        "ProgramStream",
        "RuntimeError",
        "ContextLengthError",
        "ProgramStream",
    ]
    assert isinstance(outcomes[2], ContextLengthError)
    assert outcomes[2].__notes__ == ["in item 2 of tips"]
    engine.check()


async def test_cancelling_a_batch_leaves_nothing_running() -> None:
    engine = FakeEngine(lambda _: None)
    task = asyncio.ensure_future(
        tips.batch(Source(engine), ["a", "b", "c"], concurrency=2, on_error="return")
    )
    for _ in range(10):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(engine.cancelled) == len(engine.requests) == 2
    assert asyncio.all_tasks() == {asyncio.current_task()}
    engine.check()


async def test_a_program_that_ends_as_if_it_was_cancelled() -> None:
    @asgl.function
    async def odd(s: PromptStream, n: int) -> int:
        if n == 1:
            raise asyncio.CancelledError
        return n

    outcomes = await odd.batch(Source(FakeEngine()), [0, 1, 2], concurrency=1, on_error="return")
    assert isinstance(outcomes[1], OpCancelledError)
    assert [outcome.returned for outcome in outcomes if not isinstance(outcome, Exception)] == [
        0,
        2,
    ]


def test_exit_and_interrupts_pass_bare_and_leave_nothing_running() -> None:
    engines: list[FakeEngine] = []

    @asgl.function
    async def program(s: PromptStream, n: int) -> None:
        s += "a"
        handle = s.gen()
        if n == 1:
            raise SystemExit(3)
        await handle

    async def main() -> None:
        engines.append(FakeEngine(lambda _: None))
        await program.batch(Source(engines[0]), [0, 1, 2])

    with pytest.raises(SystemExit) as caught:
        asyncio.run(main())
    assert caught.value.code == 3
    engines[0].check()


# --- as they are completed


async def test_outcomes_come_as_they_end() -> None:
    engine = FakeEngine(
        lambda prompt: (
            "abcdefgh" if prompt == "a" else RuntimeError("broken") if prompt == "b" else "ab"
        )
    )
    seen: list[tuple[int, Any]] = []
    async with tips.as_completed(Source(engine), ["a", "b", "c"]) as results:
        async for index, outcome in results:
            seen.append((index, outcome if isinstance(outcome, Exception) else outcome.returned))
    assert [index for index, _ in seen] == [1, 2, 0]
    assert isinstance(seen[0][1], RuntimeError)
    assert [value for _, value in seen[1:]] == ["ab", "abcdefgh"]
    engine.check()


async def test_leaving_cancels_what_is_left() -> None:
    engine = FakeEngine(lambda prompt: "ab" if prompt == "a" else None)
    async with tips.as_completed(Source(engine), ["a", "b", "c"]) as results:
        async for index, _ in results:
            assert index == 0
            break
    assert len(engine.cancelled) == 2
    engine.check()


async def test_an_error_of_the_body_passes_as_it_is() -> None:
    engine = FakeEngine(lambda _: None)
    with pytest.raises(KeyError, match="mine"):
        async with tips.as_completed(Source(engine), ["a", "b"]):
            await asyncio.sleep(0)
            raise KeyError("mine")
    engine.check()


async def test_a_timeout_around_it() -> None:
    engine = FakeEngine(lambda _: None)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01), tips.as_completed(Source(engine), ["a", "b"]) as results:
            async for _ in results:
                raise AssertionError("nothing ends")
    assert len(engine.cancelled) == 2
    engine.check()
