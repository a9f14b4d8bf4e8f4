"""Runs of programs as handles: awaited, cancelled, read as they come, with options; and what is
known of variables afterwards."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fake_engine import FakeEngine, FakeTemplate, Source

import asgl
from asgl.errors import (
    BudgetError,
    ConfigError,
    ContextLengthError,
    OpCancelledError,
    StreamClosedError,
    VariableError,
)
from asgl.language import PromptStream
from asgl.sampling import SamplingParams


async def turns(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@asgl.function
async def story(s: PromptStream, topic: str = "a") -> str:
    """A story in two parts."""
    s += topic
    first = await s.gen("first")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    s += "-"
    return first + await s.gen("second")


@asgl.function
async def tale(s: PromptStream, topic: str = "a") -> str:
    s += topic
    return await s.gen("first") + await s.gen("second")


def source(*answers: Any, **options: Any) -> Source:
    return Source(FakeEngine(list(answers), **options))


# --- the end of a run


async def test_a_run_gives_the_finished_stream() -> None:
    rt = source("one", "two")
    run = story.start(rt, "x")
    assert not run.done()
    s = await run
    assert (s.text, s.returned, s.name) == ("xone-two", "onetwo", "story")
    assert run.done()
    assert await run is s
    assert run["first"] == "one"
    assert run.text == s.text
    rt.engine.check()


async def test_it_runs_without_being_awaited() -> None:
    rt = source("one", "two")
    run = story.start(rt)
    await turns(60)
    assert run.done()
    assert run.text == "aone-two"


async def test_arguments_that_do_not_fit_are_told_at_the_call() -> None:
    rt = source()
    with pytest.raises(ConfigError, match="do not fit story"):
        story.start(rt, topci="x")  # type: ignore[call-overload]  # pyright: ignore
    with pytest.raises(ConfigError, match="a Runtime"):
        story.start("rt")  # type: ignore[call-overload]  # pyright: ignore
    assert rt.session.context.tasks == set()


async def test_its_failure_is_raised_to_who_awaits() -> None:
    rt = source(RuntimeError("broken"))
    run = story.start(rt)
    with pytest.raises(RuntimeError, match="broken"):
        await run
    with pytest.raises(RuntimeError, match="broken"):
        await run
    assert rt.session.unseen_failures() == []


async def test_a_failure_that_nobody_awaits_is_kept_for_the_end() -> None:
    rt = source(RuntimeError("broken"))
    story.start(rt)
    await turns()
    (failure,) = rt.session.unseen_failures()
    assert str(failure) == "broken"


async def test_cancelling_it_cancels_its_ops_in_the_engine() -> None:
    rt = source(None)
    run = story.start(rt)
    await turns(4)
    assert len(rt.engine.active) == 1
    assert run.cancel()
    with pytest.raises(OpCancelledError, match="was cancelled"):
        await run
    assert not run.cancel()
    assert len(rt.engine.cancelled) == 1
    assert rt.session.unseen_failures() == []
    assert rt.session.context.tasks == set()
    rt.engine.check()


async def test_a_run_that_is_cancelled_before_it_begins() -> None:
    rt = source()
    run = story.start(rt)
    run.cancel()
    with pytest.raises(OpCancelledError):
        await run
    assert [piece async for piece in story.start(rt)] != []
    assert rt.engine.requests != []


@pytest.mark.parametrize("how", ["await", "iterate"])
async def test_cancelling_the_last_task_that_waits_cancels_it(how: str) -> None:
    rt = source(None)
    run = story.start(rt)

    async def wait() -> None:
        if how == "await":
            await run
        else:
            async for _ in run:
                pass

    first, second = asyncio.ensure_future(wait()), asyncio.ensure_future(wait())
    await turns()
    first.cancel()
    await turns()
    assert not run.done()
    second.cancel()
    await turns()
    assert run.done()
    assert len(rt.engine.cancelled) == 1


async def test_to_break_out_of_an_iteration_stops_nothing() -> None:
    rt = source("one", "two")
    run = story.start(rt)
    async for _ in run:
        break
    assert (await run).returned == "onetwo"


async def test_closing_the_session_cancels_its_runs() -> None:
    rt = source(None)
    cleaned: list[str] = []

    @asgl.function
    async def careful(s: PromptStream) -> None:
        s += "a"
        try:
            await s.gen()
        finally:
            await asyncio.sleep(0)
            cleaned.append("cleaned")
            with pytest.raises(StreamClosedError):
                s.gen()

    run = careful.start(rt)
    await turns()
    await rt.session.aclose()
    assert cleaned == ["cleaned"]
    assert run.done()
    with pytest.raises(OpCancelledError):
        await run
    rt.engine.check()


async def test_a_budget_that_is_open_binds_it() -> None:
    rt = source("abcdefgh", "x")
    with asgl.budget(tokens=2):
        run = story.start(rt)
    with pytest.raises(BudgetError):
        await run


# --- as it comes


async def test_all_its_text_comes_to_the_end_of_the_program() -> None:
    rt = source("abcd", "efgh")
    pieces = [piece async for piece in story.start(rt, "x")]
    assert "".join(pieces) == "xabcd-efgh"
    assert len(pieces) > 2


async def test_the_error_comes_after_the_text() -> None:
    rt = source("abcd", RuntimeError("broken"))
    pieces: list[str] = []
    with pytest.raises(RuntimeError, match="broken"):
        async for piece in story.start(rt, "x"):
            pieces.append(piece)
    assert "".join(pieces) == "xabcd-"


async def test_a_failure_that_the_program_handles_is_none_of_the_readers() -> None:
    @asgl.function
    async def patient(s: PromptStream) -> str:
        s += "ab"
        try:
            await s.gen("x")
        except RuntimeError:
            await asyncio.sleep(0)
            return await s.gen("x")
        return "never"

    rt = source(RuntimeError("broken"), "ok")
    assert "".join([piece async for piece in patient.start(rt)]) == "abok"


async def test_one_variable_before_it_exists() -> None:
    rt = source("abcd", "efgh")
    run = story.start(rt)
    assert "".join([piece async for piece in run.stream("second")]) == "efgh"
    assert "".join([piece async for piece in run.stream("first")]) == "abcd"
    assert await run.get("second") == "efgh"


async def test_a_variable_comes_piece_by_piece_and_without_its_message() -> None:
    @asgl.function
    async def chat(s: PromptStream) -> None:
        await s.user("hello")
        await asyncio.sleep(0)
        await s.assistant("I say " + asgl.gen("reply") + " and " + asgl.gen("more"))

    rt = Source(FakeEngine(["abcdefgh", "xyz"], template=FakeTemplate()))
    run = chat.start(rt)
    reply, more = [], []
    async for piece in run.stream("reply"):
        reply.append(piece)
    async for piece in run.stream("more"):
        more.append(piece)
    assert ("".join(reply), "".join(more)) == ("abcdefgh", "xyz")
    assert len(reply) > 2
    await run
    assert run.info("reply").text == "abcdefgh"
    assert run.messages()[-1]["content"] == "I say abcdefgh and xyz"


async def test_a_select_and_what_was_set_come_whole() -> None:
    @asgl.function
    async def program(s: PromptStream) -> None:
        s += "a"
        await s.select("pick", ["yes", "no"])
        s["own"] = "mine"
        s["number"] = 3

    run = program.start(source())
    pick = [piece async for piece in run.stream("pick")]
    assert pick in (["yes"], ["no"])
    assert [piece async for piece in run.stream("own")] == ["mine"]
    with pytest.raises(VariableError, match="no text: 3"):
        [piece async for piece in run.stream("number")]
    assert await run.get("number") == 3


async def test_a_variable_that_never_comes() -> None:
    run = story.start(source("one", "two"))
    with pytest.raises(VariableError, match="no variable 'third'"):
        [piece async for piece in run.stream("third")]
    with pytest.raises(VariableError, match="no variable 'third'"):
        await run.get("third")


async def test_a_variable_that_never_comes_because_the_program_failed() -> None:
    run = story.start(source(RuntimeError("broken")))
    with pytest.raises(RuntimeError, match="broken"):
        [piece async for piece in run.stream("second")]
    with pytest.raises(RuntimeError, match="broken"):
        await run.get("second")


async def test_pieces_of_a_stream_do_not_end_while_a_program_owns_it() -> None:
    rt = source("one", "two")
    s = rt.prompt()
    task = asyncio.ensure_future(story(s, "x"))
    await asyncio.sleep(0)
    assert "".join([piece async for piece in s.pieces()]) == "xone-two"
    assert await task == "onetwo"


async def test_a_program_reads_its_own_pieces_to_the_end_of_what_it_submitted() -> None:
    @asgl.function
    async def reader(s: PromptStream) -> str:
        s += "a"
        s.gen()
        return "".join([piece async for piece in s.pieces()])

    assert (await reader(source("one"))).returned == "aone"
    assert (await reader.start(source("one"))).returned == "aone"


async def test_a_variable_that_is_used_again_while_another_task_asks_for_it() -> None:
    s = source("one", "two").prompt("a")
    await s.gen("x")
    asked = asyncio.ensure_future(s.get("x"))
    await asyncio.sleep(0)
    s.gen("x")
    assert await asked == "one"
    assert await s.get("x") == "two"


# --- options


@asgl.function
async def named(s: PromptStream, name: str) -> str:
    s += name
    return await s.gen("x")


async def test_the_options_of_a_run() -> None:
    rt = source()
    s = await story(rt, "x", sampling=SamplingParams(max_tokens=1), priority=3, cache_salt="mine")
    details = rt.engine.requests[0][2]
    assert (details["params"].max_tokens, details["priority"]) == (1, 3)
    assert details["namespace"] == s.cache_salt == "mine"
    assert s.name == "story"
    assert (await story(rt, name="tale")).name == "tale"
    run = story.start(rt, "x", name="other", deadline=5.0)
    assert (await run).name == "other"
    with pytest.raises(BudgetError):
        await story(source("abcdefgh"), budget=asgl.budget(tokens=1))
    with pytest.raises(ConfigError, match="priority"):
        await story(rt, priority="high")  # type: ignore[call-overload]  # pyright: ignore


async def test_a_parameter_of_the_program_comes_first() -> None:
    rt = source()
    s = await named(rt, name="x")
    assert (s.name, rt.engine.texts) == ("named", ["x"])


async def test_options_are_for_runs_on_a_runtime() -> None:
    rt = source()
    with pytest.raises(ConfigError, match="priority= is for a run of story on a Runtime"):
        await story(rt.prompt(), priority=3)  # type: ignore[call-overload]  # pyright: ignore


async def test_the_options_of_a_batch() -> None:
    rt = source()
    budget = asgl.budget(tokens=1000)
    outcomes = await story.batch(rt, ["x", "y"], name="tale", priority=2, budget=budget)
    assert [s.name for s in outcomes] == ["tale[0]", "tale[1]"]
    assert {details["priority"] for _, _, details in rt.engine.requests} == {2}
    assert budget.spent == len("ok") * 2 + 4  # each answer is a token, and its end
    async with story.as_completed(rt, ["x"], name="late") as results:
        async for _, outcome in results:
            assert not isinstance(outcome, Exception)
            assert outcome.name == "late[0]"
    with pytest.raises(TypeError, match="prioritty"):
        await story.batch(rt, ["x"], prioritty=2)  # type: ignore  # pyright: ignore


async def test_the_options_of_a_graph() -> None:
    rt = source()
    graph = tale.graph(topic=asgl.arg)
    s = await graph(rt, topic="x", priority=4, name="compiled")
    assert s.name == "compiled"
    assert {details["priority"] for _, _, details in rt.engine.requests} == {4}
    assert (await graph.start(rt, topic="y")).returned == "okok"


# --- methods


class Teller:
    def __init__(self, style: str) -> None:
        self.style = style

    @asgl.function
    async def tell(self, s: PromptStream, topic: str) -> str:
        """Tells."""
        s += f"{self.style} {topic}"
        return await s.gen("x")

    @asgl.function()
    @staticmethod
    async def plain(s: PromptStream, topic: str) -> str:
        s += topic
        return await s.gen("x")

    @asgl.function  # type: ignore[arg-type]
    @classmethod
    async def of_all(cls, s: PromptStream) -> str:
        s += cls.__name__
        return await s.gen("x")


async def test_programs_are_methods() -> None:
    rt = source()
    calm, wild = Teller("calm"), Teller("wild")
    assert (await calm.tell(rt, "x")).text == "calm xok"
    assert await wild.tell(rt.prompt("-"), "x") == "ok"
    assert [s.text for s in await wild.tell.batch(rt, ["a", "b"])] == ["wild aok", "wild bok"]
    assert (await calm.tell.start(rt, topic="y")).text == "calm yok"
    assert (await calm.tell.graph(topic=asgl.arg)(rt, "z")).text == "calm zok"
    assert calm.tell.__doc__ == "Tells."
    assert (await Teller.plain(rt, "p")).text == "pok"
    assert (await calm.plain(rt, "p")).text == "pok"
    both: Any = Teller.of_all
    assert (await both(rt)).text == "Tellerok"


# --- what is known of a variable


async def test_info_of_a_generation_is_kept() -> None:
    rt = source("ab cd", "x")
    s = rt.prompt("in ")
    handle = s.gen("reply", stop=" ", logprobs=2)
    await handle
    await s.gen("other")
    info = s.info("reply")
    assert info.text == "ab"
    assert list(info.token_ids) == handle.token_ids
    assert (info.finish_reason, info.matched_stop) == ("stop", " ")
    assert (info.prompt_tokens, info.cached_tokens) == (2, 0)
    assert info.elapsed == handle.elapsed
    assert info.time_to_first_token == handle.time_to_first_token
    assert info.logprobs == handle.logprobs
    assert s.info("other").logprobs is None
    assert s.info("other").finish_reason == "eos"


async def test_info_of_each_variable_of_a_message() -> None:
    s = Source(FakeEngine(["one", "two"], template=FakeTemplate())).prompt()
    await s.assistant(asgl.gen("a") + " " + asgl.select("b", ["x"]) + asgl.gen("c", logprobs=1))
    assert [s.info(name).text for name in "abc"] == ["one", "x", "two"]
    assert (s.info("b").index, len(s.info("b").scores), s.info("b").finish_reason) == (0, 1, None)
    assert s.info("a").logprobs is None
    assert s.info("c").logprobs is not None
    assert s.info("c").prompt_tokens > s.info("a").prompt_tokens


async def test_info_goes_with_the_variable() -> None:
    s = source("one", "two", "three").prompt("a")
    await s.gen("x")
    mark = s.mark()
    async with s.fork(1) as (branch,):
        assert branch.info("x").text == "one" if "x" in branch else True
        await branch.gen("y")
        assert branch.info("x").text == "one"
    await s.gen("x")
    assert s.info("x").text == "three"
    s.rewind(mark)
    await s.sync()
    assert s.info("x").text == "one"
    with pytest.raises(VariableError):
        s.info("y")


async def test_there_is_no_info_of_what_was_set_or_is_not_there() -> None:
    rt = source("one", None)
    s = rt.prompt("a")
    with pytest.raises(VariableError, match="no variable 'x'"):
        s.info("x")
    await s.gen("x")
    s["x"] = "mine"
    await s.sync()
    with pytest.raises(VariableError, match="set, not generated"):
        s.info("x")
    s.gen("y")
    with pytest.raises(VariableError, match="not finished"):
        s.info("y")
    await s.aclose()


async def test_a_program_that_asks_too_much_says_so_through_its_run() -> None:
    rt = source(context_length=2)
    run = story.start(rt, "long text")
    with pytest.raises(ContextLengthError):
        await run.get("first")
    with pytest.raises(ContextLengthError):
        await run
