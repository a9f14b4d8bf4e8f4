"""A graph does what its program does: the same requests to the engine, and the same text, tokens, variables and value."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from fake_engine import FakeEngine, FakeTemplate, Source
from hypothesis import given, settings
from hypothesis import strategies as st

import asgl
from asgl.errors import ConfigError, ContextLengthError, OpCancelledError, StreamClosedError
from asgl.language import PromptStream
from asgl.sampling import SamplingParams

# --- random programs against their graphs

TEXTS = st.sampled_from(["a", "bc ", "\n", "é😀", "{topic}", "<|end|>", ""])
LEAVES = st.one_of(
    st.tuples(st.just("text"), TEXTS),
    st.tuples(st.sampled_from(["topic", "formatted", "padded", "number", "quote", "gen", "unawaited", "typed", "limited", "select",
                               "message", "extend", "mark", "rewind", "set", "sample", "copy", "later"]), st.none()),
)
PROGRAMS = st.recursive(
    st.lists(LEAVES, max_size=6),
    lambda inner: st.lists(st.one_of(
        LEAVES,
        st.tuples(st.just("role"), inner),
        st.tuples(st.sampled_from(["fork", "join", "tasks", "map"]), st.lists(inner, min_size=1, max_size=3)),
        st.tuples(st.just("call"), inner),
    ), max_size=6),
    max_leaves=20,
)


class Writer:
    """Carries out a plan on streams: a program whose control flow is all constant."""

    def __init__(self, topic: str, n: int) -> None:
        self.topic, self.n = topic, n

    async def run(self, s: PromptStream, plan: Sequence[tuple[str, Any]], inside: bool = False) -> list[Any]:
        self_marks: list[asgl.Mark] = []
        values: list[Any] = []
        for kind, inner in plan:
            await self.step(s, kind, inner, inside, self_marks, values)
        return values

    async def step(self, s: PromptStream, kind: str, inner: Any, inside: bool, marks: list[asgl.Mark], values: list[Any]) -> None:
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

    async def fork(self, s: PromptStream, kind: str, inner: Any, inside: bool, values: list[Any]) -> None:
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
async def program(s: PromptStream, plan: Any, topic: str, n: int = 2) -> list[Any]:
    return await Writer(topic, n).run(s, plan)


def answer(prompt: str) -> str:
    return str(int.from_bytes(hashlib.blake2b(prompt.encode(), digest_size=3).digest(), "big"))


async def everything(run: Any, *args: Any) -> tuple[Any, ...]:
    """All that can be seen of a run: requests in any order, and the stream at its end."""
    engine = FakeEngine(answer, template=FakeTemplate(default_system="Be good."), defaults=SamplingParams(seed=5))
    engine.grammars = SimpleNamespace(known=lambda source: source)  # type: ignore[attr-defined]
    s = await run(Source(engine), *args)
    engine.check()
    requests = sorted(repr((kind, prompt, details)) for kind, prompt, details in engine.requests)
    return requests, s.text, s.token_ids, dict(s.variables), s.messages(), s.returned, s.name


@settings(deadline=None, max_examples=20)
@given(plan=PROGRAMS, topics=st.lists(st.text(max_size=8).filter(lambda text: text != ""), min_size=1, max_size=2),
       n=st.integers(1, 4))
def test_random_programs(plan: Any, topics: list[str], n: int) -> None:
    graph = program.graph(plan, topic=asgl.arg, n=asgl.arg)
    for topic in topics:
        assert asyncio.run(everything(graph, topic, n)) == asyncio.run(everything(program, plan, topic, n))
