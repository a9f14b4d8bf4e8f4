"""The examples run, and say what they are about."""

from __future__ import annotations

import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import asgl
from asgl.testing import ScriptedRuntime

EXAMPLES = Path(__file__).parents[1] / "examples"


def example(name: str) -> Mapping[str, Any]:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="example")


async def test_the_agent_calls_tools_hears_of_errors_and_answers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    agent = example("agent")["agent"]
    calls = [
        '{"name": "altitude", "arguments": {"city": "Oslo"}}',
        '{"name": "weather", "arguments": {"city": "Oslo"}}',
    ]
    async with ScriptedRuntime(
        {
            None: [calls[0], "I have to look up more.", calls[1], "Now I know enough to answer."],
            "answer": "It is sunny.",
        }
    ) as rt:
        s = rt.prompt()
        assert await agent(s, "How high is Oslo?") == "It is sunny."
    assert capsys.readouterr().out == (
        "    altitude('Oslo') -> KeyError('Oslo')\n"
        "    weather('Oslo') -> {'city': 'Oslo', 'day': 'today', 'weather': 'sunny'}\n"
    )
    contents = [message["content"] for message in s.messages()]
    assert contents[3] == '{"error": "KeyError: \'Oslo\'"}'
    assert contents[-1] == "It is sunny."
    assert not any("know enough" in content for content in contents)


@pytest.mark.model
async def test_the_agent_runs_on_the_small_model(capsys: pytest.CaptureFixture[str]) -> None:
    await example("agent")["main"]()
    assert "->" in capsys.readouterr().out


async def test_the_compiled_program_puts_the_guide_first(
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = example("compiled")
    graph = names["triage"].graph(mail=asgl.arg)
    async with ScriptedRuntime(
        {"team": lambda prompt: " Product" if "bulb does" in prompt else " Billing"}
    ) as rt:
        await names["sort"](rt, graph.reordered(), "With the guide first")
        assert (
            rt.asked[0].prompt
            == f"{names['GUIDE']}Mail: {names['MAILS'][0]}\n\nThe mail goes to the team"
        )
    assert "    Product   Which bulb does" in capsys.readouterr().out


@pytest.mark.model
async def test_the_compiled_program_runs_on_the_small_model(
    capsys: pytest.CaptureFixture[str],
) -> None:
    await example("compiled")["main"]()
    assert "With the guide first" in capsys.readouterr().out
