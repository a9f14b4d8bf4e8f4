"""What a type checker must refuse: every line with a comment is an error to both, and a comment
without an error is one too."""

from __future__ import annotations

import asgl


@asgl.function
async def tips(s: asgl.PromptStream, topic: str, n: int = 3) -> int:
    return n


@asgl.tool
async def weather(city: str) -> str:
    return city


async def program(rt: asgl.Runtime, s: asgl.PromptStream) -> None:
    s.gen("x", max_token=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    s.gen("x", max_tokens="3")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    s.select("x")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    s.select("x", ["a"], method="best")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    number: int = await s.gen("x")  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    print(number)
    await tips(rt, topci="x")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    await tips(s, 3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await tips("rt", "x")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await tips.batch(rt, [], on_error="ignore")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    tips.graph(topci=asgl.arg)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    tips.graph()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    tips.graph("x", n="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await tips.graph("x")("rt")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await s.call_tools([tips])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    await s.call_tools([weather], on_error="ignore")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await s.call_tools([weather], max_token=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await weather(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await s.sample("x")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    names: list[str] = await s.sample("x", n=2, dtype=int)  # pyright: ignore[reportAssignmentType]
    print(names)
    s.fork("3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    s.fork(3, on_error="raise")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    asgl.budget(2000)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    asgl.function(lambda s: s)  # type: ignore[arg-type, return-value]  # pyright: ignore[reportCallIssue, reportArgumentType]
    s += 3  # type: ignore[arg-type]  # pyright: ignore[reportOperatorIssue, reportUnknownVariableType]
    tips.start(s, "x")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    tips.start(rt, 3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await tips(s, "x", priority=3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await tips(rt, "x", priority="3")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await tips.batch(rt, [], prioritty=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
