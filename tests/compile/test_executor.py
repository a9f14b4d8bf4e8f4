"""A graph does what its program does: the same requests to the engine, and the same text, tokens,
variables and value."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import weakref
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from fake_engine import FakeEngine, FakeTemplate, Source
from hypothesis import given, settings
from hypothesis import strategies as st

import asgl
from asgl.errors import (
    ConfigError,
    ContextLengthError,
    ModelError,
    OpCancelledError,
    StreamClosedError,
)
from asgl.language import PromptStream
from asgl.sampling import SamplingParams
from asgl.trace import StreamEvent

# --- random programs against their graphs

TEXTS = st.sampled_from(["a", "bc ", "\n", "é😀", "{topic}", "<|end|>", ""])
CONTENT = (
    "topic",
    "formatted",
    "padded",
    "number",
    "quote",
    "gen",
    "unawaited",
    "typed",
    "limited",
    "select",
    "extend",
    "sample",
    "copy",
    "later",
    "text",
)
"""What stands inside of messages where there are any."""
LEAVES = st.one_of(
    st.tuples(st.just("text"), TEXTS),
    st.tuples(
        st.sampled_from([*CONTENT[:-1], "message", "mark", "rewind", "set"]),
        st.none(),
    ),
)
PROGRAMS = st.recursive(
    st.lists(LEAVES, max_size=6),
    lambda inner: st.lists(
        st.one_of(
            LEAVES,
            st.tuples(st.just("role"), inner),
            st.tuples(
                st.sampled_from(["fork", "join", "tasks", "map"]),
                st.lists(inner, min_size=1, max_size=3),
            ),
            st.tuples(st.just("call"), inner),
        ),
        max_size=6,
    ),
    max_leaves=20,
)


class Writer:
    """Carries out a plan on streams: a program whose control flow is all constant.

    chat: that has messages. What stands in no block of the plan is then in one of its own, since
    there is no text between messages.
    """

    def __init__(self, topic: str, n: int, chat: bool) -> None:
        self.topic, self.n, self.chat = topic, n, chat

    async def run(
        self, s: PromptStream, plan: Sequence[tuple[str, Any]], inside: bool = False
    ) -> list[Any]:
        self_marks: list[asgl.Mark] = []
        values: list[Any] = []
        for kind, inner in plan:
            if self.chat and not inside and kind in CONTENT:
                with s.role("user"):
                    await self.step(s, kind, inner, True, self_marks, values)
            elif self.chat or kind not in ("message", "role"):
                await self.step(s, kind, inner, inside, self_marks, values)
        return values

    async def step(
        self,
        s: PromptStream,
        kind: str,
        inner: Any,
        inside: bool,
        marks: list[asgl.Mark],
        values: list[Any],
    ) -> None:
        if kind == "text":
            s += inner
        elif kind == "topic":
            s += self.topic
        elif kind == "formatted":
            s += f"<{self.topic!r} " + self.topic + f"{self.n:03d}>"
        elif kind == "padded":
            s += "%s|%s" % (self.topic, self.n) + f"{self.topic:>6}"  # noqa: UP031
        elif kind == "number":
            s.gen("n", max_tokens=self.n)
        elif kind == "quote" and values:
            s += f"[{values[-1]}] " + ", ".join(f"{value}" for value in values)
        elif kind == "gen":
            values.append(await s.gen("x", max_tokens=6))
        elif kind == "unawaited":
            s.gen("y", stop="3")
        elif kind == "typed":
            number = await s.gen("t", dtype=int, logprobs=1)
            s += f"{number:>9,d}"
            values.append(number)
        elif kind == "limited":
            s += asgl.gen("z", stop=[f"{self.topic}!"], seed=3)
        elif kind == "select":
            values.append(await s.select("choice", ["a", f"b {self.topic}", self.topic + "c"]))
        elif kind == "message" and not inside:
            s += asgl.user(f"Hi {self.topic}") + asgl.assistant("So " + asgl.gen("reply"))
            values.append(await s.get("reply"))
        elif kind == "extend":
            await s.extend(f"more {self.topic}")
        elif kind == "mark" and not inside:
            marks.append(s.mark())
        elif kind == "rewind" and marks:
            s.rewind(marks[-1])
        elif kind == "set":
            s["kept"] = [self.topic, {"n": self.n}, *values]
            assert len(s["kept"]) == 2 + len(values)
        elif kind == "sample":
            values += await s.sample("samples", n=2, max_tokens=3)
        elif kind == "copy":
            copy = s.copy()
            copy += "copied "
            s += copy.gen("from copy")
        elif kind == "later":
            copy = s.copy()
            handle = copy.gen()
            await handle
            s += f"({handle.text})"
        elif kind == "role" and not inside:
            with s.role("user"):
                values += await self.run(s, inner, True)
        elif kind == "call":
            values += await called(s, self, inner, inside)
        elif kind in ("fork", "join", "tasks", "map"):
            await self.fork(s, kind, inner, inside, values)

    async def fork(
        self, s: PromptStream, kind: str, inner: Any, inside: bool, values: list[Any]
    ) -> None:
        if kind == "map":
            for found in await s.map(lambda branch, plan: self.run(branch, plan, inside), inner):
                values += found
            return
        async with s.fork(len(inner)) as branches:
            for branch, plan in zip(branches, inner, strict=True):
                if kind == "tasks":
                    branch.start_soon(self.run, plan, inside)
                else:
                    values += await self.run(branch, plan, inside)
                branch["plan"] = len(plan)
        values += branches.gather("plan")
        if kind == "join":
            s.join(branches)


@asgl.function
async def called(s: PromptStream, writer: Writer, plan: Any, inside: bool) -> list[Any]:
    return await writer.run(s, plan, inside)


@asgl.function
async def program(s: PromptStream, plan: Any, chat: bool, topic: str, n: int = 2) -> list[Any]:
    s += "> "
    return await Writer(topic, n, chat).run(s, plan)


def answer(prompt: str) -> str:
    return str(int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=3).digest(), "big"))


async def everything(run: Any, *args: Any) -> tuple[Any, ...]:
    """All that can be seen of a run: requests in any order, and the stream at its end."""
    engine = FakeEngine(
        answer, template=FakeTemplate(default_system="Be good."), defaults=SamplingParams(seed=5)
    )
    engine.grammars = SimpleNamespace(known=lambda source: source)  # type: ignore[attr-defined]
    s = await run(Source(engine), *args)
    engine.check()
    requests = sorted(repr((kind, prompt, details)) for kind, prompt, details in engine.requests)
    return requests, s.text, s.token_ids, dict(s.variables), s.messages(), s.returned, s.name


@settings(max_examples=120)
@given(
    plan=PROGRAMS,
    topics=st.lists(st.text(max_size=8).filter(lambda text: text != ""), min_size=1, max_size=2),
    n=st.integers(1, 4),
    chat=st.booleans(),
)
def test_random_programs(plan: Any, topics: list[str], n: int, chat: bool) -> None:
    graph = program.graph(plan, chat, topic=asgl.arg, n=asgl.arg)
    for topic in topics:
        assert asyncio.run(everything(graph, topic, n)) == asyncio.run(
            everything(program, plan, chat, topic, n)
        )


# --- running


@asgl.function
async def tips(s: PromptStream, topic: str, words: int = 3) -> list[str]:
    s += f"On {topic}: "
    first = await s.gen("first", max_tokens=words)
    async with s.fork(2) as branches:
        for branch in branches:
            branch += "more "
            branch.gen("tip")
    s += f"{first}, again: "
    s.gen("last")
    return [first, *branches.gather("tip")]


GRAPH = tips.graph(topic=asgl.arg)


async def test_on_a_stream_it_is_a_part_of_it() -> None:
    engine = FakeEngine(lambda prompt: "one", template=FakeTemplate())
    s = Source(engine).prompt("> ")
    with s.role("user"):
        assert await GRAPH(s, "x") == ["one"] * 3
    assert s.text == "> <|start|>user\nOn x: oneone, again: one<|end|>\n"
    assert await s.assistant(asgl.gen()) == "one"
    engine.check()


async def own_message(s: PromptStream) -> None:
    s.user("a")


async def own_block(s: PromptStream) -> None:
    with s.role("user"):
        s += "a"


async def own_block_in_a_branch(s: PromptStream) -> None:
    async with s.fork(1) as (branch,):
        with branch.role("user"):
            pass


@pytest.mark.parametrize("fn", [own_message, own_block, own_block_in_a_branch])
async def test_a_graph_with_messages_does_not_run_inside_of_one(fn: Any) -> None:
    graph = asgl.function(fn).graph()
    s = Source(FakeEngine(template=FakeTemplate())).prompt("> ")
    with s.role("system"):
        s += "b"
        with pytest.raises(ConfigError, match="inside a 'system' message: leave that block first"):
            await graph(s)
    assert s.text == "> <|start|>system\nb<|end|>\n"


async def test_names_of_variables_have_arguments_in_them() -> None:
    @asgl.function
    async def program(s: PromptStream, topic: str) -> str:
        tip = await s.gen()
        s[f"about {topic}"] = tip
        s[f"on {topic}"] = topic
        return await s.get(f"about {topic}")

    for run in (program, program.graph(asgl.arg)):
        s = await run(Source(FakeEngine(["one"])), "x")
        assert (dict(s.variables), s.returned) == ({"about x": "one", "on x": "x"}, "one")


async def test_a_variable_that_is_not_computed_is_not_there_yet() -> None:
    @asgl.function
    async def program(s: PromptStream) -> None:
        value = await s.gen()
        s["y"] = [value]

    engine = FakeEngine(["one"], manual=True)
    s = Source(engine).prompt("> ")
    task = asyncio.ensure_future(program.graph()(s))
    await asyncio.sleep(0)
    got = asyncio.ensure_future(s.get("y"))
    await asyncio.sleep(0)
    assert "y" not in s
    with pytest.raises(asgl.VariableError, match="is not finished: await"):
        s["y"]
    while engine.active:
        engine.step()
    await task
    assert (await got, s["y"]) == (["one"], ["one"])


async def test_a_run_leaves_nothing_behind() -> None:
    source = Source(FakeEngine(lambda _: "one", template=FakeTemplate()))

    @asgl.function
    async def program(s: PromptStream, topic: str) -> list[str]:
        s += asgl.user(f"On {topic}") + asgl.assistant(asgl.gen(f"on {topic}"))
        first = await s.get(f"on {topic}")
        s["first"] = [first]
        with s.role("user"):
            return [first, *await tips(s, f"{first}")]

    graph = program.graph(asgl.arg)
    s = await graph(source, "x")
    assert s.returned == ["one"] * 4
    known = weakref.ref(s)
    del s
    gc.collect()
    assert known() is None


async def test_arguments_are_given_by_position_or_by_name_and_have_their_defaults() -> None:
    graph = tips.graph(asgl.arg, words=asgl.arg)
    engine = FakeEngine(lambda _: "abcdefghij")
    for run in (
        graph(Source(engine), "x"),
        graph(Source(engine), topic="x"),
        graph(Source(engine), "x", 3),
    ):
        assert (await run).returned == ["abcdef", "abcdefghij", "abcdefghij"]
    assert (await graph(Source(engine), "x", words=1)).returned[0] == "ab"


@pytest.mark.parametrize(
    ("args", "options", "match"),
    [
        ((), {}, "missing a required argument: 'topic'"),
        (("x",), {"nonsense": 1}, "nonsense"),
        (("x", "y", "z"), {}, "too many"),
        (
            (),
            {"topic": "x", "words": "many"},
            "max_tokens must be an integer of 0 or more, not 'many'",
        ),
    ],
)
async def test_bad_arguments_submit_nothing(
    args: tuple[Any, ...], options: dict[str, Any], match: str
) -> None:
    engine = FakeEngine()
    s = Source(engine).prompt("> ")
    with pytest.raises(ConfigError, match=match):
        await tips.graph(asgl.arg, asgl.arg)(s, *args, **options)
    assert (engine.requests, s.text) == ([], "> ")


async def test_an_argument_that_is_appended_must_be_text() -> None:
    @asgl.function
    async def says(s: PromptStream, first: str, second: str) -> None:
        s += first
        s += second

    engine = FakeEngine()
    s = Source(engine).prompt()
    with pytest.raises(
        ConfigError, match="the argument 'second' is appended as text, so it must be a str, not 3"
    ):
        await says.graph(asgl.arg, asgl.arg)(s, "x", 3)
    assert s.text == ""


@pytest.mark.parametrize(
    "value", ["", "é😀 “quotes”", "\x1e{topic}\x1f\\", "<|end|>", "x" * 100_000]
)
async def test_values_are_data_whatever_they_say(value: str) -> None:
    runs = [
        await run(
            Source(FakeEngine(lambda prompt: str(len(prompt)), template=FakeTemplate())), value
        )
        for run in (GRAPH, tips)
    ]
    assert len({(s.text, tuple(s.token_ids), tuple(s.returned)) for s in runs}) == 1


async def test_a_value_that_is_a_marker_is_data() -> None:
    marker = GRAPH.nodes[0].spec.text.removeprefix("On ").removesuffix(": ")  # type: ignore[union-attr]
    s = await GRAPH(Source(FakeEngine(lambda _: marker)), marker)
    assert s.text.startswith(f"On {marker}: ")
    assert s.text.endswith(marker)
    assert s.returned[1:] == [marker, marker]


async def test_all_ops_are_submitted_before_the_first_has_run() -> None:
    engine = FakeEngine(manual=True)
    s = Source(engine).prompt()
    task = asyncio.ensure_future(GRAPH(s, "x"))
    await asyncio.sleep(0)
    assert "4 submitted" in repr(s)  # a gen, a snapshot for the branches, a text, a gen
    assert len(engine.requests) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    engine.check()


async def test_an_empty_graph() -> None:
    @asgl.function
    async def nothing(s: PromptStream) -> int:
        return 3

    s = await nothing.graph()(Source(FakeEngine()))
    assert (s.text, s.returned) == ("", 3)


async def test_generated_text_in_messages_is_trimmed_as_in_the_program() -> None:
    @asgl.function
    async def program(s: PromptStream, topic: str) -> str:
        s += asgl.user(f" {topic} ") + asgl.assistant(asgl.gen("x"))
        value = await s.get("x")
        s.user(f" {value} ")
        s += asgl.user(f" {value} " + asgl.gen("y", stop=[f"{topic}!"]) + f" {value} ")
        with s.role("user"):
            await s.extend(f" {value} and {topic}")
        return value

    seen: list[Any] = []
    for run in (program, program.graph(asgl.arg)):
        engine = FakeEngine(lambda _: " said ", template=FakeTemplate(trims=True))
        s = await run(Source(engine), " x ")
        seen.append((engine.texts, s.text, s.token_ids, s.messages(), s.returned))
    assert seen[0] == seen[1]
    assert seen[0][3][2] == {"role": "user", "content": "said"}


async def test_branches_that_are_joined_are_told_of() -> None:
    @asgl.function
    async def joins(s: PromptStream) -> None:
        s += "a"
        copy = s.copy()
        copy += "b"
        s.join([copy])

    seen: list[Any] = []
    for run in (joins, joins.graph()):
        events: list[Any] = []
        await run(Source(FakeEngine(tracers=[SimpleNamespace(event=events.append)])))
        seen.append(
            [
                (event.kind, event.stream_id, event.parent_id)
                for event in events
                if isinstance(event, StreamEvent)
            ]
        )
    assert seen[0] == seen[1]
    assert ("joined", 1, 0) in seen[0]


# --- failures


async def test_a_failure_on_the_stream_is_raised_as_it_is_and_ends_the_rest() -> None:
    engine = FakeEngine([RuntimeError("broken"), None, None])
    source = Source(engine)
    s = source.prompt("> ")
    with pytest.raises(RuntimeError, match="broken"):
        await GRAPH(s, "x")
    assert len(engine.requests) == 1
    assert source.session.unseen_failures() == []
    assert s.text == "> On x: "
    s += "go on"
    await s.sync()
    engine.check()


async def test_a_failure_in_a_branch_stops_all_and_says_where_it_was() -> None:
    broken = iter([RuntimeError("broken"), None])
    engine = FakeEngine(
        lambda prompt: (
            next(broken) if prompt.endswith("more ") else None if "again" in prompt else "one"
        )
    )
    source = Source(engine)
    with pytest.raises(ExceptionGroup, match="1 failure") as caught:
        await GRAPH(source, "x")
    (error,) = caught.value.exceptions
    assert isinstance(error, RuntimeError)
    assert error.__notes__[0] == "in branch 0 of the stream 'tips'"
    assert len(engine.cancelled) == 2
    assert source.session.unseen_failures() == []
    engine.check()


async def test_a_failure_that_others_waited_for_is_told_once() -> None:
    @asgl.function
    async def waits(s: PromptStream) -> None:
        copy = s.copy()
        copy += "copied "
        s += copy.gen("x")
        s.gen("y")

    engine = FakeEngine([RuntimeError("broken")])
    source = Source(engine)
    with pytest.raises(ExceptionGroup) as caught:
        await waits.graph()(source)
    assert [repr(error) for error in caught.value.exceptions] == ["RuntimeError('broken')"]
    assert source.session.unseen_failures() == []
    engine.check()


async def test_a_message_that_an_op_fails_in_at_once_is_ended() -> None:
    @asgl.function
    async def program(s: PromptStream) -> None:
        with s.role("user"):
            s += "long"
            await s.gen()

    seen: list[Any] = []
    for run in (program, program.graph()):
        s = Source(FakeEngine(context_length=5, template=FakeTemplate())).prompt("> ")
        with pytest.raises(ContextLengthError):
            await run(s)
        s.user("on")
        seen.append((s.text, s.messages()))
    assert seen[0] == seen[1]
    assert seen[0][0].endswith("long<|end|>\n<|start|>user\non<|end|>\n")


async def test_a_value_that_cannot_be_formatted_fails_its_text() -> None:
    @asgl.function
    async def formats(s: PromptStream) -> None:
        s += "a"
        value = await s.gen("x")
        s += f"{value:d}"

    with pytest.raises(ValueError, match="format code 'd'"):
        await formats.graph()(Source(FakeEngine()))


@pytest.mark.parametrize("turns", range(0, 30, 3))
async def test_cancelled_at_any_time_nothing_is_left(turns: int) -> None:
    engine = FakeEngine(lambda prompt: "abcdefghijkl" * 3)
    task = asyncio.ensure_future(GRAPH.batch(Source(engine), ["x", "y"]))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    engine.check()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_closing_the_stream_ends_the_run() -> None:
    engine = FakeEngine([None])
    s = Source(engine).prompt()
    task = asyncio.ensure_future(GRAPH(s, "x"))
    await asyncio.sleep(0)
    await s.aclose()
    with pytest.raises(OpCancelledError):
        await task
    with pytest.raises(StreamClosedError):
        await GRAPH(s, "x")
    engine.check()


async def test_a_budget_around_the_run_binds_its_ops() -> None:
    engine = FakeEngine(lambda _: "abcdefgh")
    with asgl.budget(tokens=5) as spending, pytest.raises(ExceptionGroup) as caught:
        await GRAPH(Source(engine), "x")
    assert caught.group_contains(asgl.BudgetError)
    assert spending.spent == 5
    engine.check()


# --- batches


async def test_a_batch_computes_the_prefix_before_its_first_run() -> None:
    engine = FakeEngine(lambda prompt: prompt[3])
    source = Source(engine)
    outcomes = await GRAPH.batch(source, ["a", {"topic": "b"}, ("c",)], concurrency=2)
    assert [(s.name, s.returned[0]) for s in outcomes] == [
        ("tips[0]", "a"),
        ("tips[1]", "b"),
        ("tips[2]", "c"),
    ]
    assert [kind for kind, _, _ in engine.requests][:2] == ["extend", "generate"]
    assert engine.texts[:3] == ["On ", "On a: ", "On b: "]
    assert source.shown == [(3, "tips", 3)]
    assert [outcome.text for outcome in await tips.batch(source, ["a", "b"])] == [
        outcome.text for outcome in outcomes[:2]
    ]
    engine.check()


async def test_one_run_needs_no_prefix() -> None:
    engine = FakeEngine()
    await GRAPH.batch(Source(engine), ["a"])
    assert [kind for kind, _, _ in engine.requests].count("extend") == 0


async def test_items_that_do_not_fit_run_nothing() -> None:
    engine = FakeEngine()
    with pytest.raises(ConfigError, match="item 1 does not fit tips"):
        await GRAPH.batch(Source(engine), ["a", {"nonsense": 1}])
    assert engine.requests == []


async def test_a_prefix_that_is_too_long_is_told_by_the_runs() -> None:
    engine = FakeEngine(context_length=3)
    source = Source(engine)
    outcomes = await GRAPH.batch(source, ["a", "b"], on_error="return")
    assert [type(outcome) for outcome in outcomes] == [ContextLengthError] * 2
    assert source.session.unseen_failures() == []
    engine.check()


async def test_a_prefix_that_fails_at_once_is_told_by_the_runs() -> None:
    @asgl.function
    async def program(s: PromptStream, topic: str) -> None:
        s.system("a")
        s.user("b")
        s += topic

    source = Source(FakeEngine())
    outcomes = await program.graph(asgl.arg).batch(source, ["x", "y"], on_error="return")
    assert [type(outcome) for outcome in outcomes] == [ModelError] * 2
    assert source.session.unseen_failures() == []


async def test_the_prefix_of_messages_is_what_their_runs_begin_with() -> None:
    @asgl.function
    async def chat(s: PromptStream, question: str) -> None:
        s.system("Be good.")
        with s.role("user"):
            s += "Well: "
        s += asgl.user(f"The question: {question}") + asgl.assistant(asgl.gen("answer"))

    engine = FakeEngine(template=FakeTemplate())
    await chat.graph(question=asgl.arg).batch(Source(engine), ["x", "y"])
    prefix, *runs = engine.prompts
    assert engine.texts[0].endswith("<|start|>user\nThe question: ")
    assert all(run[: len(prefix)] == prefix for run in runs)
    engine.check()


async def test_on_a_branch_a_failure_goes_to_who_awaits_the_graph_and_not_to_the_block() -> None:
    engine = FakeEngine([RuntimeError("broken"), "one", "two"])
    s = Source(engine).prompt("> ")
    async with s.fork(2) as (first, second):
        with pytest.raises(RuntimeError, match="broken"):
            await GRAPH(first, "x")
        assert await second.gen() == "one"
        first += "on"
        assert await first.gen() == "two"
    engine.check()
