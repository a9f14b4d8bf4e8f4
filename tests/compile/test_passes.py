"""What all runs have in common, and code movement: what moves, and what must not."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import nullcontext
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import asgl
from asgl.compile import passes
from asgl.language import PromptStream

Fn = Callable[[PromptStream, str], Coroutine[Any, Any, Any]]


def graph_of(fn: Fn) -> asgl.Graph[Any]:
    return asgl.function(fn).graph(asgl.arg)


def said(graph: asgl.Graph[Any]) -> list[str]:
    """What the nodes of the graph say, without their numbers."""
    return [line[4:].strip() for line in str(graph).splitlines()[1:]]


# --- the prefix


async def constant_then_open(s: PromptStream, t: str) -> None:
    s += "a "
    s.system("b ")
    with s.role("user"):
        s += f"c {t} d"
    s.gen()


async def message_with_an_argument(s: PromptStream, t: str) -> None:
    await s.extend("a ")
    s["x"] = t
    s.mark()
    s += asgl.user(f"b {t}") + asgl.user("c")


async def all_constant(s: PromptStream, t: str) -> None:
    s += "a "
    s.gen()
    s += "b"


async def argument_first(s: PromptStream, t: str) -> None:
    s += t
    s += "a"


@pytest.mark.parametrize(
    ("fn", "prefix", "ops"),
    [
        (constant_then_open, "a b c ", 3),
        (message_with_an_argument, "a b ", 3),
        (all_constant, "a ", 1),
        (argument_first, "", 0),
    ],
)
def test_the_prefix(fn: Fn, prefix: str, ops: int) -> None:
    graph = graph_of(fn)
    assert graph.prefix == prefix
    assert len(passes.prefix(graph.nodes, graph.symbols)) == ops


# --- code movement


async def cue(s: PromptStream, t: str) -> None:
    s += t
    s += "a"
    s += f"b {t}"
    s += "c"
    s += "Answer:"
    s.gen()
    s += t
    s += "d"


def test_constants_go_first_and_the_cue_and_later_texts_stay() -> None:
    assert said(graph_of(cue).reordered()) == [
        "s0  text    'a'",
        "s0  text    'c'",
        "s0  text    {t}",
        "s0  text    'b ' {t}",
        "s0  text    'Answer:'",
        "s0  gen     -",
        "s0  text    {t}",
        "s0  text    'd'",
    ]


async def message(s: PromptStream, t: str) -> None:
    s += "before "
    with s.role("user"):
        s += t
        s += "a"
    with s.role("user"):
        s += t
        s += "b"


def test_in_a_message_all_may_move_but_not_out_of_it_nor_in_a_later_one() -> None:
    assert said(graph_of(message).reordered()) == [
        "s0  text    'before '",
        "s0  text    'a'",
        "s0  text    {t}",
        "s0  end     of the user message",
        "s0  text    {t}",
        "s0  text    'b'",
        "s0  end     of the user message",
    ]


async def whole_messages(s: PromptStream, t: str) -> None:
    s.user(t)
    s.system("a")


async def after_a_mark(s: PromptStream, t: str) -> None:
    s += t
    s.mark()
    s += "a"


async def after_a_gen(s: PromptStream, t: str) -> None:
    s += "x"
    value = await s.gen()
    s += f"{value}"
    s += "a"
    s += "cue"
    s.gen()


async def only_a_cue(s: PromptStream, t: str) -> None:
    s += t
    s += "Answer:"
    await s.select("x", ["a", "b"])


async def before_a_fork(s: PromptStream, t: str) -> None:
    s += t
    s += "cue"
    s.copy()


async def referred_to(s: PromptStream, t: str) -> None:
    other = s.copy()
    s += t
    handle = s.submit("a")
    s += "b"
    other += handle


async def into_a_message(s: PromptStream, t: str) -> None:
    s += t
    with s.role("user"):
        s += "a"


@pytest.mark.parametrize(
    "fn",
    [
        whole_messages,
        after_a_mark,
        after_a_gen,
        only_a_cue,
        before_a_fork,
        referred_to,
        into_a_message,
    ],
)
def test_what_does_not_move(fn: Fn) -> None:
    graph = graph_of(fn)
    assert said(graph.reordered()) == said(graph)


async def before_a_message(s: PromptStream, t: str) -> None:
    s += t
    s += "a"
    s.user("b")


def test_before_a_message_there_is_no_cue() -> None:
    assert said(graph_of(before_a_message).reordered())[:2] == [
        "s0  text    'a'",
        "s0  text    {t}",
    ]


async def forks(s: PromptStream, t: str) -> None:
    s += "a"
    async with s.fork(2) as branches:
        for branch in branches:
            branch += t
            branch += "b"
            branch += "cue"
            branch.gen()
    s += t
    async with s.fork(1) as branches:
        branches[0].append(t)
        branches[0].append("c")


def test_branches_move_as_long_as_what_they_begin_from_is_shared() -> None:
    assert [line for line in said(graph_of(forks).reordered()) if not line.startswith("s0")] == [
        "s1  text    'b'",
        "s1  text    {t}",
        "s1  text    'cue'",
        "s1  gen     -",
        "s2  text    'b'",
        "s2  text    {t}",
        "s2  text    'cue'",
        "s2  gen     -",
        "s3  text    {t}",
        "s3  text    'c'",
    ]


KINDS = ["constant", "open", "mixed", "gen", "quote", "mark", "message", "role", "fork", "other"]


@given(st.lists(st.sampled_from(KINDS), max_size=12))
def test_any_graph_keeps_its_texts_and_only_gains(plan: list[str]) -> None:
    async def program(s: PromptStream, t: str) -> None:
        values: list[str] = []
        for place, kind in enumerate(plan):
            if kind in ("constant", "role"):
                with s.role("user") if kind == "role" else nullcontext():
                    s += f"<{place}>"
            elif kind in ("open", "mixed"):
                s += t if kind == "open" else f"{place} {t}"
            elif kind == "gen":
                values.append(await s.gen())
            elif kind == "quote" and values:
                s += values[-1]
            elif kind == "mark":
                s.mark()
            elif kind == "message":
                s.user(f"{place}")
            elif kind == "fork":
                async with s.fork(1) as (branch,):
                    branch += t
                    branch += f"<{place}>"
            elif kind == "other":
                s += s.copy().gen()

    graph = graph_of(program)
    moved = graph.reordered()
    assert sorted(map(id, moved.nodes)) == sorted(map(id, graph.nodes))
    assert len(moved.prefix) >= len(graph.prefix)
    assert [node for node in moved.nodes if node.uses] == [
        node for node in graph.nodes if node.uses
    ]
    assert moved.reordered().nodes == moved.nodes
