"""A user's program, checked by mypy --strict and by basedpyright: each `assert_type` is what an
editor would show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from enum import Enum
from typing import Annotated, Any, Literal, TypedDict, assert_type

from pydantic import BaseModel, TypeAdapter

import asgl
from asgl.testing import ScriptedRuntime


class Person(BaseModel):
    name: str
    age: int


class Color(Enum):
    RED = "red"


class Movie(TypedDict):
    title: str


@dataclass
class Place:
    name: str


async def ops(s: asgl.PromptStream) -> None:
    s += "text"
    s += asgl.user("Hi") + asgl.assistant(asgl.gen("reply"))
    assert_type(s, asgl.PromptStream)

    handle = s.gen("x", max_tokens=8, stop=["\n"], temperature=0.5)
    assert_type(handle, asgl.Handle[str])
    assert_type(await handle, str)
    assert_type(handle.text, str)
    assert_type(handle.token_ids, list[int])
    assert_type(handle.logprobs, list[asgl.TokenLogprob] | None)
    async for piece in handle:
        assert_type(piece, str)
    async for piece in s.pieces():
        assert_type(piece, str)

    verdict = s.select("verdict", ["yes", "no"])
    assert_type(verdict, asgl.SelectHandle)
    assert_type(await verdict, str)
    assert_type(verdict.index, int)
    assert_type(verdict.scores, list[float])
    assert_type(verdict.token_logprobs, list[list[float]])
    assert_type(await s.select(None, ("a", "b"), method="sum", token_healing=True), str)
    assert_type(
        verdict.finish_reason, Literal["stop", "eos", "length", "grammar", "stopped"] | None
    )
    t = s.copy()
    t += "He said: " + handle
    t.append(asgl.extend("more") + asgl.select("x", ["a"]) + asgl.gen("y"))
    assert_type(s.extend("more"), asgl.Handle[None])
    assert_type(s.user("hi"), asgl.Handle[str])
    assert_type(s["x"], Any)
    assert_type(await s.get("x"), Any)
    assert_type(s.variables, Mapping[str, Any])
    assert_type(s.messages(), list[asgl.Message])
    assert_type(s.submit(asgl.gen("x")), asgl.Handle[str])
    assert_type(s.submit(asgl.select("x", ["a"])), asgl.SelectHandle)
    mark = s.mark()
    assert_type(mark, asgl.Mark)
    s.rewind(mark)
    with s.role("assistant") as inside:
        assert_type(inside, asgl.PromptStream)


async def values(s: asgl.PromptStream) -> None:
    assert_type(await s.gen("n", dtype=int), int)
    assert_type(await s.gen("n", dtype=float), float)
    assert_type(await s.gen("n", dtype=bool), bool)
    assert_type(await s.gen("t", dtype=str), str)
    assert_type(await s.gen("who", dtype=Person), Person)
    assert_type(await s.gen("who", dtype=list[Person]), list[Person])
    assert_type(await s.gen("who", dtype=Literal["a", "b"]), Any)
    assert_type(await s.gen("day", dtype=date), date)
    assert_type(await s.sample("x", n=2, dtype=Color), list[Color])
    async for part in s.gen("who", dtype=Person).partials():
        assert_type(part, Any)
    assert_type(await s.gen("who", json_schema=Person), Person)
    assert_type(s.gen("who", json_schema=Person, max_tokens=64), asgl.Handle[Person])
    assert_type(await s.gen("people", json_schema=list[Person]), list[Person])
    assert_type(await s.gen("ages", json_schema=dict[str, int]), dict[str, int])
    assert_type(await s.gen("who", json_schema=TypeAdapter(Person)), Person)
    assert_type(await s.gen("movie", json_schema=Movie), Movie)
    assert_type(await s.gen("place", json_schema=Place), Place)
    assert_type(await s.gen("color", json_schema=Color), Color)
    assert_type(await s.gen("day", json_schema=date), date)
    assert_type(s.submit(asgl.gen("people", json_schema=list[Person])), asgl.Handle[list[Person]])
    either: TypeAdapter[int | str] = TypeAdapter(int | str)
    assert_type(await s.gen("either", json_schema=either), int | str)
    assert_type(await s.gen("any", json_schema=Annotated[int, "a comment"]), Any)
    assert_type(await s.sample("days", n=2, json_schema=list[date]), list[list[date]])
    assert_type(await s.gen("raw", json_schema={"type": "object"}), str)
    assert_type(await s.gen("r", regex="[a-z]+"), str)
    assert_type(await s.gen("c", choices=["a", "b"]), str)
    assert_type(s.submit(asgl.gen("n", dtype=int)), asgl.Handle[int])
    assert_type(await s.gen("v", validate=int, retries=2), str)
    assert_type(await s.sample("x", n=3), list[str])
    assert_type(await s.sample("x", n=3, dtype=int), list[int])
    assert_type(await s.sample("x", n=3, json_schema=Person), list[Person])


@asgl.tool
async def weather(
    city: Literal["Lyon", "Oslo"], days: Annotated[int, "for how many"] = 1
) -> dict[str, str]:
    return {"city": city, "days": str(days)}


@asgl.tool(name="look_up", description="Looks it up.")
async def search(query: str) -> str:
    return query


@asgl.tool
def plain(query: str) -> int:
    return len(query)


class Shop:
    @asgl.tool
    async def price(self, item: str) -> float:
        return len(item) / 2


async def tools(s: asgl.PromptStream) -> None:
    s.system("Be brief.", tools=[weather, search])
    s += asgl.system("Be brief.", tools=[weather])
    calls = await s.call_tools(
        [weather, search],
        on_error="program",
        timeout=5,
        parallel=True,
        max_tokens=60,
        temperature=0,
    )
    assert_type(calls, asgl.ToolCalls)
    assert_type([one.result for one in calls], list[Any])
    assert_type((await s.call_tools([weather], choice="auto")).text, str)
    await s.call_tools([weather, search], choice=search)
    await s.call_tools([weather, search, plain])
    both: list[asgl.AnyTool] = [weather, search, plain]
    await s.call_tools(both)
    assert_type(plain("x"), int)
    async for turn in s.agent(both, max_turns=3, on_text=print, max_tokens=60):
        assert_type(turn, asgl.Turn)
        assert_type(turn.calls, tuple[asgl.ToolCall, ...])
        assert_type(turn.end, Literal["answer", "max_turns"] | None)
    shop = Shop()
    assert_type(await shop.price("tea"), float)
    await s.call_tools([shop.price, weather])
    (call,) = await s.call_tools([weather])
    assert_type(call.arguments, Mapping[str, Any])
    assert_type(call.error, Exception | None)
    assert_type(call.tool.name, str)
    assert_type(await weather("Lyon", days=2), dict[str, str])
    assert_type(await search("x"), str)
    assert_type(await asgl.tool(search.function, name="again")("x"), str)


async def length(s: asgl.PromptStream, topic: str) -> int:
    return len(await s.gen()) + len(topic)


async def forks(s: asgl.PromptStream) -> None:
    async with s.fork(3) as branches:
        assert_type(branches, asgl.Branches)
        branches += "text" + asgl.gen("x")
        assert_type(branches, asgl.Branches)
        assert_type(branches.gather("x"), list[Any])
        assert_type(branches.gather("x", "y"), list[dict[str, Any]])
        assert_type(branches[0], asgl.PromptStream)
        task = branches[0].start_soon(length, "topic")
        assert_type(task, asgl.TaskHandle[int])
        assert_type(await task, int)
        for branch in branches:
            assert_type(branch, asgl.PromptStream)
    assert_type(branches.gather("x"), list[Any])
    assert_type(branches[1:], list[asgl.PromptStream])
    assert_type(len(branches), int)
    async with s.fork(2, on_error="keep") as (first, second):
        first += "a"
        second += "b"
        assert_type(first.error, BaseException | None)
        said = await first.gen()
    assert_type(said, str)  # a fork block swallows no exception, so what was set inside is set
    s.join([first, second])
    assert_type(await s.map(length, ["a", "b"]), list[int])
    assert_type(await s.map(length, ["a", "b"], on_error="keep"), list[int | BaseException])
    assert_type(s.copy(), asgl.PromptStream)


@asgl.function
async def tips(s: asgl.PromptStream, topic: str, n: int = 3) -> list[str]:
    """Tips on a topic."""
    s += f"{n} tips on {topic}:"
    return (await s.gen("tips")).splitlines()


@asgl.function
async def length_of(s: asgl.PromptStream) -> int:
    return len(await tips(s, "length"))


async def programs(rt: asgl.Runtime, s: asgl.PromptStream) -> None:
    finished = await tips(rt, topic="health")
    assert_type(finished, asgl.ProgramStream[list[str]])
    assert_type(finished.returned, list[str])
    finished += "one may go on"
    assert_type(await tips(s, "health", n=2), list[str])
    assert_type(await finished.gen("x"), str)
    assert_type(
        [stream.returned[0] for stream in await tips.batch(rt, ["a"], concurrency=2)], list[str]
    )
    assert_type(await length_of(s), int)
    assert_type((await length_of(rt)).returned, int)

    streams = await tips.batch(rt, ["a", ("b", 2), {"topic": "c"}])
    assert_type(streams, list[asgl.ProgramStream[list[str]]])
    outcomes = await tips.batch(rt, ["a"], on_error="return", progress=False)
    assert_type(outcomes, list[asgl.ProgramStream[list[str]] | Exception])
    async with tips.as_completed(rt, ["a"]) as results:
        async for index, outcome in results:
            assert_type(index, int)
            assert_type(outcome, asgl.ProgramStream[list[str]] | Exception)


async def graphs(rt: asgl.Runtime, s: asgl.PromptStream) -> None:
    graph = tips.graph(topic=asgl.arg, n=3)
    assert_type(graph, asgl.Graph[list[str]])
    assert_type(tips.graph(asgl.arg), asgl.Graph[list[str]])
    assert_type(graph.prefix, str)
    assert_type(graph.reordered(), asgl.Graph[list[str]])
    finished = await graph(rt, topic="health")
    assert_type(finished, asgl.ProgramStream[list[str]])
    assert_type(await graph(s, "health"), list[str])
    assert_type(await graph.batch(rt, ["a"]), list[asgl.ProgramStream[list[str]]])
    async with graph.as_completed(rt, ["a"]) as results:
        async for index, outcome in results:
            assert_type(index, int)
            assert_type(outcome, asgl.ProgramStream[list[str]] | Exception)


async def main() -> None:
    async with asgl.Runtime("smollm2-135m", sampling=asgl.SamplingParams(seed=1)) as rt:
        assert_type(rt, asgl.Runtime)
        assert_type(rt.statistics(), asgl.EngineStatistics)
        assert_type(rt.model, asgl.ModelInfo)
        with asgl.budget(tokens=2000, seconds=30) as spending:
            assert_type(spending, asgl.Budget)
            async with rt.prompt("text", budget=asgl.budget(tokens=100)) as s:
                await ops(s)
        await programs(rt, rt.prompt())
        await graphs(rt, rt.prompt())
        assert_type(await rt.flush_cache(), int)
        await rt.pin(s, seconds=2.5)
        await s.save("path", kv=True)
        assert_type(rt.load("path", kv=False, budget=asgl.budget(seconds=1)), asgl.PromptStream)
        assert_type(await rt.load_cache("path") + await rt.save_cache("path"), int)
        assert_type(rt.tokenizer.encode("text"), list[int])
        assert_type(rt.tokenizer.decode([1, 2]), str)
    try:
        await ops(s)
    except asgl.BudgetError as error:
        assert_type(error.spent, float)
    except asgl.VariableError as error:
        assert_type(error.name, str)


async def check() -> None:
    async with ScriptedRuntime({"x": ["a", "b"], None: "c", "f": lambda prompt: prompt}) as rt:
        assert_type(rt, ScriptedRuntime)
        await programs(rt, rt.prompt())


class Teller:
    @asgl.function
    async def tell(self, s: asgl.PromptStream, topic: str, n: int = 3) -> float:
        return n * 0.5 + len(topic)

    @asgl.function()
    async def again(self, s: asgl.PromptStream) -> str:
        return await s.gen()


@asgl.function()
async def short(s: asgl.PromptStream, topic: str) -> int:
    return len(topic)


async def runs(rt: asgl.Runtime, s: asgl.PromptStream) -> None:
    run = short.start(rt, "x")
    assert_type(run, asgl.Run[int])
    assert_type(await run, asgl.ProgramStream[int])
    assert_type((await run).returned, int)
    async for piece in run:
        assert_type(piece, str)
    async for piece in run.stream("reply"):
        assert_type(piece, str)
    info = run.info("reply")
    assert_type(info, asgl.OpInfo)
    assert_type(info.logprobs, list[asgl.TokenLogprob] | None)
    assert_type(s.info("x").scores, tuple[float, ...])
    greedy = asgl.SamplingParams(temperature=0)
    assert_type(await short(rt, "x", sampling=greedy, name="a"), asgl.ProgramStream[int])
    assert_type(await short(rt, topic="x", priority=1), asgl.ProgramStream[int])
    assert_type(short.start(rt, "x", budget=asgl.budget(tokens=3)), asgl.Run[int])
    assert_type(
        await short.batch(rt, ["x"], sampling=greedy, budget=None), list[asgl.ProgramStream[int]]
    )
    teller = Teller()
    assert_type(await teller.tell(rt, "x", n=2), asgl.ProgramStream[float])
    assert_type(await teller.tell(s, "x"), float)
    assert_type(teller.tell.start(rt, "x"), asgl.Run[float])
    assert_type(await teller.again(s), str)


async def message_lists(rt: asgl.Runtime) -> None:
    s = rt.prompt([{"role": "user", "content": "hi"}])
    history = s.messages()
    s = rt.prompt(history, name="again")
    s += asgl.messages(history, tools=[weather])
    for message in history:
        for call in message.get("tool_calls", []):
            assert_type(call["function"]["arguments"], str)
