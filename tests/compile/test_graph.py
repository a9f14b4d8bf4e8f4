"""Graphs as their users see them: printed, and never changed."""

from __future__ import annotations

import dataclasses

import pytest
from fake_engine import FakeEngine, FakeTemplate, Source

import asgl
from asgl.language import PromptStream


@asgl.function
async def chat(s: PromptStream, question: str, n: int, tone: str = "kind") -> str:
    s.system(f"Be {tone}.")
    mark = s.mark()
    s += asgl.user(f"Q: {question!r} " + "x" * 120) + asgl.assistant(
        "So: " + asgl.gen("reply", max_tokens=9, stop=".")
    )
    s.rewind(mark)
    with s.role("user"):
        s += question
        s.select("sure", ["yes", f"no {question}"], method="sum")
    async with s.fork(2) as branches:
        for branch in branches:
            branch.gen(f"idea of {question}", max_tokens=n)
    s.join(branches)
    ideas = branches.gather(f"idea of {question}")
    s["ideas"] = ideas
    copy = s.copy()
    copy.extend("Copied")
    s += "Then: " + copy.gen(dtype=int)
    s += f"{ideas[0]:>9}, {await s.get('sure')}"
    return ideas[0]


LISTING = """\
graph of chat(question, n): 21 ops on 4 streams; all runs begin with 'Be kind.Q: '
   0  s0  message system: 'Be kind.'
   1  s0  mark
   2  s0  message user: 'Q: ' {question!r} ' LONG'
   3  s0  message assistant: 'So: ' <gen reply max_tokens=9 stop=['.']>
   4  s0  rewind  to 1
   5  s0  text    {question}
   6  s0  select  sure choices=['yes', 'no ' {question}] method='sum'
   7  s0  end     of the user message
   8  s0  fork    s1 s2
   9  s1  gen     idea of {question} max_tokens={n}
  10  s2  gen     idea of {question} max_tokens={n}
  11  s1  mark
  12  s2  mark
  13  s0  join    s1 s2
  14  s0  set     ideas = [{idea of {question} of 9}, {idea of {question} of 10}]
  15  s0  fork    s3
  16  s3  extend  'Copied'
  17  s3  gen     - regex=' ?-?(0|[1-9][0-9]{0,17})'
  18  s0  text    'Then: '
  19  s0  text    {what the model said of 17}
  20  s0  text    {idea of {question} of 9:>9} ', ' {sure of 6}"""


def test_it_is_printed() -> None:
    graph = chat.graph(asgl.arg, n=asgl.arg)
    assert str(graph).replace(f"{'x' * 45}...{'x' * 46}", "LONG") == LISTING
    assert repr(graph) == "<Graph of chat(question, n): 21 ops>"


def test_open_values_in_dicts_are_printed() -> None:
    @asgl.function
    async def program(s: PromptStream, t: str) -> None:
        s["x"] = {"about": "on " + t, "as it is": t}

    assert str(program.graph(asgl.arg)).endswith("set     x = {'about': 'on {t}', 'as it is': {t}}")


def test_it_never_changes() -> None:
    graph = chat.graph(asgl.arg, n=asgl.arg)
    with pytest.raises(dataclasses.FrozenInstanceError):
        graph.name = "other"  # type: ignore[misc]
    before = graph.nodes
    assert graph.reordered() is not graph
    assert graph.nodes is before


async def test_it_runs_any_number_of_times_on_any_runtime() -> None:
    @asgl.function
    async def greet(s: PromptStream, name: str) -> str:
        s.user(f"I am {name}.")
        with s.role("assistant"):
            return await s.gen("greeting")

    graph = greet.graph(name=asgl.arg)
    for name in ("Ann", "Bo"):
        engine = FakeEngine(
            lambda prompt: prompt.split("I am ")[1].split(".")[0], template=FakeTemplate()
        )
        runs = [await graph(Source(engine), name) for _ in range(2)]
        assert [(s.returned, s["greeting"], s.name) for s in runs] == [(name, name, "greet")] * 2
        assert runs[0].messages() == [
            {"role": "user", "content": f"I am {name}."},
            {"role": "assistant", "content": name},
        ]
        engine.check()
