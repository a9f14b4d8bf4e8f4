"""What programs and the engine tell of themselves."""

from __future__ import annotations

import pytest
from engine_harness import Sentence, generate, opened, settled

import asgl
from asgl.errors import BudgetError, OutputError, ToolError
from asgl.testing import ScriptedRuntime
from asgl.trace import (
    BudgetEvent,
    EvictionEvent,
    OpEvent,
    ProgramEvent,
    RequestEvent,
    RuntimeEvent,
    StepEvent,
    TextEvent,
    TokenEvent,
    ToolEvent,
    ValidationEvent,
    WaitEvent,
)


class Heard:
    """A tracer that keeps what it hears."""

    def __init__(self) -> None:
        self.events = []

    def event(self, event) -> None:
        self.events.append(event)

    def of(self, kind, *names):
        """The events of a kind, each as the values of some fields."""
        return [
            tuple(getattr(event, name) for name in names)
            for event in self.events
            if isinstance(event, kind)
        ]


async def test_a_runtime_tells_when_it_opens_and_closes():
    heard = Heard()
    async with ScriptedRuntime({}, tracers=[heard]):
        (event,) = heard.events
        assert event.model == "scripted"
        assert event.started_at > 1e9
    assert heard.of(RuntimeEvent, "kind") == [("opened",), ("closed",)]
    assert heard.events[-1].kind == "closed"
    assert len({event.run for event in heard.events}) == 1


async def test_programs_and_their_streams():
    @asgl.function
    async def tell(s, x):
        if x == "bad":
            raise ValueError("no")
        await s.gen("x", max_tokens=2)

    heard = Heard()
    async with ScriptedRuntime({"x": ["a", "b"]}, tracers=[heard]) as rt:
        await tell(rt, "c")
        await tell.batch(rt, ["d", "bad"], on_error="return", progress=False)
    programs = heard.of(ProgramEvent, "kind", "program", "item", "reason")
    assert programs == [
        ("started", "tell", None, ""),
        ("finished", "tell", None, ""),
        ("started", "tell", 0, ""),
        ("started", "tell", 1, ""),
        ("failed", "tell", 1, "ValueError('no')"),
        ("finished", "tell", 0, ""),
    ]


async def test_what_streams_say_token_by_token():
    heard = Heard()
    async with ScriptedRuntime({"x": " one two. three"}, tracers=[heard]) as rt:
        s = rt.prompt("Say: ")
        await s.gen("x", stop=".")
        mark = s.mark()
        s += " more"
        await s.extend("")
        s.rewind(mark)
        await s.sync()
    texts = heard.of(TextEvent, "source", "position", "tokens", "text", "pieces")
    assert texts[0][:2] == ("prompt", 0)
    assert "".join(texts[0][4]) == "Say: "
    start = texts[0][2]
    assert [text[0] for text in texts] == ["prompt", "generated", "prompt", "rewound"]
    assert texts[1][1] == start
    assert texts[1][3] == " one two"
    assert texts[3][1:3] == (texts[2][1], 0)
    tokens = heard.of(TokenEvent, "text", "source")
    assert "".join(text for text, _ in tokens).startswith(" one two")
    assert {source for _, source in tokens} == {"sampled"}
    (request,) = {event.request_id for event in heard.events if isinstance(event, TokenEvent)}
    requested = [number for kind, number in heard.of(OpEvent, "kind", "request_id")]
    assert request in requested


async def test_an_op_that_fails_takes_its_text_back():
    heard = Heard()
    async with ScriptedRuntime({"x": [ValueError("no")]}, tracers=[heard]) as rt:
        s = rt.prompt("Say: ")
        with pytest.raises(ValueError, match="no"):
            await s.gen("x")
    assert heard.of(TextEvent, "source", "position", "tokens")[-1] == ("undone", 0, 0)


async def test_waits_for_other_streams():
    heard = Heard()
    async with ScriptedRuntime({"x": " one two"}, tracers=[heard]) as rt:
        s, t = rt.prompt("a"), rt.prompt("b")
        t += s.gen("x")
        async with s.fork(1) as (branch,):
            branch += "."
            await branch.extend("")
        await t.sync()
    assert heard.of(WaitEvent, "kind", "stream_id", "op", "for_stream", "for_op") == [
        ("waits", 1, "text of", 0, "gen 'x'"),
        ("waits", 2, "start", 0, "snapshot"),
        ("goes on", 1, "text of", 0, "gen 'x'"),
        ("goes on", 2, "start", 0, "snapshot"),
    ]


async def test_retries_and_a_text_that_is_refused():
    heard = Heard()
    async with ScriptedRuntime({"x": ["bad", "worse", "bad"]}, tracers=[heard]) as rt:
        s = rt.prompt("a")
        with pytest.raises(OutputError):
            await s.gen("x", validate=lambda text: f"{text} is wrong", retries=1)
        with pytest.raises(OutputError):
            await s.gen("x", validate=lambda text: text == "ok")
    said = heard.of(ValidationEvent, "kind", "number", "attempt", "text", "reason")
    assert said[0] == ("retried", 0, 0, "bad", "bad is wrong")
    assert said[1] == ("refused", 0, 1, "worse", "worse is wrong")
    assert said[2][:4] == ("refused", 1, 0, "bad")


async def test_budgets():
    heard = Heard()
    async with ScriptedRuntime({"x": " a b", "y": " c d e f"}, tracers=[heard]) as rt:
        with asgl.budget(tokens=5, seconds=100):
            s = rt.prompt("a")
            await s.gen("x")
            with pytest.raises(BudgetError):
                await s.gen("y")
    spent = heard.of(BudgetEvent, "number", "spent", "tokens", "seconds")
    assert [(number, tokens, seconds) for number, _, tokens, seconds in spent] == [
        (0, 5, 100),
        (1, 5, 100),
    ]
    assert 0 < spent[0][1] < spent[1][1] <= 5


@asgl.tool
async def add(a: int, b: int) -> int:
    """Adds.

    Args:
        a: One.
        b: Another.
    """
    return a + b


@asgl.tool
async def refuse(why: str) -> int:
    """Refuses.

    Args:
        why: Why.
    """
    raise ValueError(why)


async def test_tools():
    heard = Heard()
    calls = ['{"name": "add", "arguments": {"a": 1, "b": 2}}']
    calls += ['{"name": "refuse", "arguments": {"why": "no"}}'] * 2
    async with ScriptedRuntime({None: calls}, tracers=[heard]) as rt:
        s = rt.prompt("a")
        await s.call_tools([add, refuse], max_tokens=100)
        await s.call_tools([add, refuse], max_tokens=100)
        with pytest.raises(ToolError):
            await s.call_tools([add, refuse], max_tokens=100, on_error="program")
    told = heard.of(ToolEvent, "kind", "op", "call", "tool", "arguments", "result", "error")
    assert told[:2] == [
        ("started", 0, 0, "add", {"a": 1, "b": 2}, "", ""),
        ("finished", 0, 0, "add", {"a": 1, "b": 2}, "3", ""),
    ]
    assert told[3] == ("failed", 1, 0, "refuse", {"why": "no"}, "", "ValueError('no')")
    assert [one[0] for one in told[4:]] == ["started", "failed"]


# --- the engine -----------------------------------------------------------------------------------


async def test_a_step_names_its_requests_with_their_tokens():
    heard = Heard()
    async with opened(tracers=[heard], max_batch_tokens=8) as engine:
        first = generate(engine, range(10), max_tokens=2)
        second = generate(engine, [40, 41, 42], max_tokens=1)
        await settled(first, second)
    steps = [event for event in heard.events if isinstance(event, StepEvent)]
    for step in steps:
        assert sum(tokens for _, tokens in step.rows) == step.tokens
    computed = {first.request_id: 0, second.request_id: 0}
    for step in steps:
        for request, tokens in step.rows:
            computed[request] += tokens
    assert computed == {first.request_id: 11, second.request_id: 3}
    assert len(steps) > 1


async def test_tokens_say_who_chose_them():
    heard = Heard()
    async with opened(tracers=[heard]) as engine:
        ticket = generate(engine, [1, 2], grammar=Sentence(5, 6), max_tokens=4)
        await settled(ticket)
    tokens = heard.of(TokenEvent, "request_id", "token_id", "text", "source")
    assert tokens[:2] == [(1, 5, "f", "forced"), (1, 6, "g", "forced")]
    assert [source for *_, source in tokens[2:]] == ["constrained", "constrained"]
    assert "".join(text for _, _, text, _ in tokens) == ticket.text


async def test_retraction_and_eviction_tell_their_cause():
    heard = Heard()
    async with opened(capacity=40, tracers=[heard]) as engine:
        await settled(generate(engine, range(30), max_tokens=4))
        tickets = [
            generate(engine, [number, 40, 41, 42], max_tokens=18, ignore_eos=True)
            for number in range(3)
        ]
        await settled(*tickets)
        engine.flush_cache()
    evicted = heard.of(EvictionEvent, "cause", "step", "tokens")
    assert sum(tokens for *_, tokens in evicted) == engine.statistics().evicted_tokens
    assert all((step is None) == (cause != "room") for cause, step, _ in evicted)
    assert evicted[-1][0] == "flush"
    retracted = [
        reason for kind, reason in heard.of(RequestEvent, "kind", "reason") if kind == "retracted"
    ]
    assert len(retracted) == engine.statistics().retractions > 0
    assert "running requests need a slot for their next token" in retracted[0]


async def test_requests_say_what_they_are_for():
    heard = Heard()
    async with ScriptedRuntime({"x": "a", "y": "b"}, tracers=[heard]) as rt:
        s = rt.prompt("a")
        await s.gen("x")
        await s.select("y", ["b", "c"])
        await s.extend("d")
    assert [
        work for kind, work in heard.of(RequestEvent, "kind", "work") if kind == "finished"
    ] == ["generate", "score", "extend"]
