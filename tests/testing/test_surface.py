"""A ScriptedRuntime can do all that a Runtime can: each public name is called, and the engine
behind takes the same arguments."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import asgl
from asgl.engine.engine import Engine
from asgl.engine.kv_files import SavedState
from asgl.language import backend
from asgl.models.tokenizer import Tokenizer
from asgl.telemetry import Metrics
from asgl.testing import ScriptedRuntime, ScriptError
from asgl.testing.engine import ScriptedEngine
from asgl.testing.saved import SavedAsJson
from asgl.testing.words import WordTokenizer


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def parameters(function: Callable[..., Any]) -> tuple[int, set[str]]:
    """How many arguments are given by place, and the names of the others."""
    found = inspect.signature(function).parameters.values()
    return sum(one.kind is not one.KEYWORD_ONLY for one in found), {
        one.name for one in found if one.kind is one.KEYWORD_ONLY
    }


@asgl.tool
async def double(number: int) -> int:
    """Doubles it."""
    return 2 * number


async def generate(branch: asgl.PromptStream, item: str) -> str:
    branch += item
    return await branch.gen("x")


async def fork(s: asgl.PromptStream) -> list[Any]:
    async with s.fork(2) as branches:
        for branch in branches:
            branch.gen("x")
        task = branches[0].start_soon(generate, " more")
    s.join(branches)
    await s.sync()
    return [*branches.gather("x"), await task]


async def role(s: asgl.PromptStream) -> list[asgl.Message]:
    with s.role("user"):
        s += "hi"
    await asyncio.wait({asyncio.ensure_future(s.system("first"))})
    await s.user("second")
    await s.assistant("third")
    return s.messages()


async def pieces(s: asgl.PromptStream) -> str:
    s.gen("x")
    return "".join([piece async for piece in s.pieces()])


async def back(s: asgl.PromptStream) -> str:
    mark = s.mark()
    await s.gen("x")
    s.rewind(mark)
    await s.sync()
    return s.text


async def later(s: asgl.PromptStream) -> Any:
    s["y"] = 3
    return await s.get("y"), s["y"], "y" in s, dict(s.variables)


async def turns_of(s: asgl.PromptStream) -> list[asgl.Turn]:
    return [turn async for turn in s.agent([double], max_turns=1)]


async def unscripted(asked: Awaitable[Any]) -> bool:
    with pytest.raises(ScriptError, match="no distribution"):
        await asked
    return True


async def told(s: asgl.PromptStream) -> asgl.OpInfo:
    await s.gen("x", logprobs=1)
    assert len(s.info("x").logprobs or ()) == len(s.info("x").token_ids) + 1  # the end token
    return s.info("x")


async def closed(s: asgl.PromptStream) -> bool:
    await s.aclose()
    with pytest.raises(asgl.StreamClosedError):
        s.gen("x")
    return True


async def saved(rt: ScriptedRuntime, path: Path) -> str:
    s = rt.prompt("a")
    await s.gen("x")
    for kv in (True, False):
        await s.save(path, kv=kv)
    again = rt.load(path, kv=True)
    await again.sync()
    return f"{again.text} {again.token_ids == s.token_ids} {await rt.load(path, kv=False).gen('x')}"


ON_RUNTIME: dict[str, Callable[[ScriptedRuntime, Path], Any]] = {
    "prompt": lambda rt, _: (
        rt.prompt(
            "a",
            sampling=asgl.SamplingParams(seed=1),
            cache_salt="b",
            priority=1,
            deadline=9.0,
            budget=asgl.budget(tokens=9),
            name="c",
        ).text
        == "a"
    ),
    "statistics": lambda rt, _: isinstance(rt.statistics(), asgl.EngineStatistics),
    "metrics": lambda rt, _: "asgl:num_requests_running" in rt.metrics(),
    "batch_progress": lambda rt, _: rt.batch_progress(2, "programs") is not None,
    "flush_cache": lambda rt, _: rt.flush_cache(),
    "load": saved,
    "save_cache": lambda rt, path: rt.save_cache(path),
    "load_cache": lambda rt, path: saved_cache(rt, path),
    "pin": lambda rt, _: rt.pin(rt.prompt("a"), seconds=2),
    "model": lambda rt, _: rt.model.context_length > 0,
    "tokenizer": lambda rt, _: (
        rt.tokenizer.decode(rt.tokenizer.encode(" a b")) == " a b"
        and bool(rt.tokenizer.special_tokens)
    ),
    "asked": lambda rt, _: rt.asked == [],
}
ON_STREAM: dict[str, Callable[[asgl.PromptStream, Path], Any]] = {
    "submit": lambda s, _: s.submit(asgl.gen("x")),
    "append": lambda s, _: s.append("b"),
    "extend": lambda s, _: s.extend("b"),
    "gen": lambda s, _: s.gen(
        "x", regex="one", logprobs=2, validate=len, retries=1, token_healing=True
    ),
    "select": lambda s, _: s.select("x", ["two", "one"], token_healing=True),
    "sample": lambda s, _: s.sample("x", n=2),
    "score": lambda s, _: s.score("b c"),
    "next_token": lambda s, _: unscripted(s.next_token(top=2)),
    "beam": lambda s, _: unscripted(s.beam(2)),
    "agent": lambda s, _: turns_of(s),
    "call_tools": lambda s, _: s.call_tools([double], parallel=False),
    "system": lambda s, _: role(s),
    "user": lambda s, _: role(s),
    "assistant": lambda s, _: role(s),
    "role": lambda s, _: role(s),
    "messages": lambda s, _: role(s),
    "get": lambda s, _: later(s),
    "variables": lambda s, _: later(s),
    "text": lambda s, _: s.text == "a",
    "token_ids": lambda s, _: len(s.token_ids) == 1,
    "name": lambda s, _: s.name is None,
    "cache_salt": lambda s, _: s.cache_salt is None,
    "error": lambda s, _: s.error is None,
    "pieces": lambda s, _: pieces(s),
    "info": lambda s, _: told(s),
    "sync": lambda s, _: s.sync(),
    "prefetch": lambda s, _: s.prefetch(),
    "mark": lambda s, _: back(s),
    "rewind": lambda s, _: back(s),
    "fork": lambda s, _: fork(s),
    "join": lambda s, _: fork(s),
    "start_soon": lambda s, _: fork(s),
    "copy": lambda s, _: s.copy().gen("x"),
    "map": lambda s, _: s.map(generate, ["b", "c"]),
    "save": lambda s, path: s.save(path),
    "aclose": lambda s, _: closed(s),
}


async def saved_cache(rt: ScriptedRuntime, path: Path) -> int:
    await rt.save_cache(path)
    return await rt.load_cache(path)


async def done(value: Any) -> Any:
    return await value if isinstance(value, Awaitable) else value


def test_the_tables_have_every_public_name() -> None:
    assert set(ON_RUNTIME) == public(ScriptedRuntime)
    assert set(ON_RUNTIME) - {"asked"} == public(asgl.Runtime)
    assert set(ON_STREAM) == public(asgl.PromptStream)


@pytest.mark.parametrize("name", ON_RUNTIME)
async def test_what_a_runtime_can_do(name: str, tmp_path: Path) -> None:
    script = {"x": ["one", "one"]} if name == "load" else {}
    async with ScriptedRuntime(script, tracers=[Metrics()]) as rt:
        assert await done(ON_RUNTIME[name](rt, tmp_path / "file")) in (
            True,
            None,
            0,
            "aone True one",
        )


@pytest.mark.parametrize("name", ON_STREAM)
async def test_what_a_stream_can_do(name: str, tmp_path: Path) -> None:
    script = {"x": lambda _: "one", None: {"name": "double", "arguments": {"number": 4}}}
    rt = ScriptedRuntime(script)
    async with rt:
        await done(ON_STREAM[name](rt.prompt("a"), tmp_path / "file"))
        await rt.prompt().gen("x")
        await rt.prompt().gen()


@pytest.mark.parametrize("name", sorted(public(asgl.Runtime)))
def test_the_same_arguments(name: str) -> None:
    theirs, ours = getattr(asgl.Runtime, name), getattr(ScriptedRuntime, name)
    assert isinstance(theirs, property) == isinstance(ours, property)
    assert isinstance(theirs, property) or inspect.signature(theirs) == inspect.signature(ours)


@pytest.mark.parametrize(
    ("protocol", "real", "scripted"),
    [
        (backend.Engine, Engine, ScriptedEngine),
        (backend.Saved, SavedState, SavedAsJson),
        (backend.Tokenizer, Tokenizer, WordTokenizer),
    ],
    ids=["engine", "saved", "tokenizer"],
)
def test_what_stands_behind_takes_the_same_arguments(
    protocol: type, real: type, scripted: type
) -> None:
    names = public(protocol) | (
        {"statistics", "flush_cache", "pin", "close"} if real is Engine else set()
    )
    names |= {"save_cache", "load_cache"} if real is SavedState else set()
    methods = [name for name in names if inspect.isfunction(getattr(scripted, name, None))]
    assert methods
    for name in methods:
        assert parameters(getattr(real, name)) == parameters(getattr(scripted, name)), name
        assert inspect.iscoroutinefunction(getattr(real, name)) == inspect.iscoroutinefunction(
            getattr(scripted, name)
        ), name
