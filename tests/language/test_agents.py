"""Models that call or answer, and the loop around that; tools that are plain functions, methods and
partials."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
from fake_engine import FakeEngine, FakeTemplate
from tool_templates import LLAMA, WRAPPED

import asgl
from asgl.errors import BudgetError, ConfigError, OutputError, ToolError
from asgl.language import Session
from asgl.testing import ScriptedRuntime, ScriptError
from asgl.types import GrammarSource
from tiny import tiny_directory


@asgl.tool
async def add(a: int, b: int) -> int:
    """Adds."""
    return a + b


@asgl.tool
async def fails(why: str) -> None:
    """Fails."""
    raise LookupError(why)


def call(name: str, **arguments: Any) -> str:
    return json.dumps({"name": name, "arguments": arguments})


ADD = call("add", a=1, b=2)
USER = {"role": "user", "content": "1 + 2?"}


def scripted(*answers: str) -> ScriptedRuntime:
    return ScriptedRuntime({None: list(answers)})


# --- a call, or an answer


async def test_an_answer_is_a_message_and_no_call() -> None:
    async with scripted("It is 3, I think.") as rt:
        s = rt.prompt([USER])
        calls = await s.call_tools([add], choice="auto")
        assert (list(calls), calls.text) == ([], "It is 3, I think.")
        assert s.messages() == [USER, {"role": "assistant", "content": "It is 3, I think."}]
        assert s.text.endswith("<|im_start|>assistant\nIt is 3, I think.<|im_end|>\n")
        assert rt.prompt(s.messages()).text == s.text


async def test_a_call_is_run_as_any() -> None:
    async with scripted(ADD) as rt:
        s = rt.prompt([USER])
        (made,) = calls = await s.call_tools([add, fails], choice="auto")
        assert (made.result, calls.text) == (3, "")
        t = rt.prompt([USER])
        t += asgl.messages(s.messages()[1:])
        assert (t.text, t.messages()) == (s.text, s.messages())


async def test_several_calls_or_an_answer() -> None:
    async with scripted(f"[{ADD}, {ADD}]", "None is needed.") as rt:
        s = rt.prompt([USER])
        assert [one.result for one in await s.call_tools([add], choice="auto", parallel=True)] == [
            3,
            3,
        ]
        calls = await s.call_tools([add], choice="auto", parallel=True)
        assert (list(calls), calls.text) == ([], "None is needed.")


@pytest.mark.parametrize("wrong", ["{I am no call}", call("other"), call("add", a=1), "  {"])
async def test_what_begins_as_a_call_must_be_one(wrong: str) -> None:
    with pytest.raises(ScriptError, match="nothing that the grammar"):
        async with scripted(wrong) as rt:
            await rt.prompt([USER]).call_tools([add], choice="auto")


async def test_no_call_is_asked_for() -> None:
    async with scripted("{I am no call}") as rt:
        s = rt.prompt([USER])
        assert (await s.call_tools([add], choice="none")).text == "{I am no call}"
        assert s.messages()[-1] == {"role": "assistant", "content": "{I am no call}"}


async def test_one_tool_is_asked_for() -> None:
    async with scripted(call("fails", why="x")) as rt:
        (made,) = await rt.prompt([USER]).call_tools([add, fails], choice=fails)
        assert isinstance(made.error, LookupError)
    with pytest.raises(ScriptError, match="cannot come"):
        async with scripted(ADD) as rt:
            await rt.prompt([USER]).call_tools([add, fails], choice=fails)


async def test_in_text_without_messages() -> None:
    async with scripted(ADD, "So it is 3.") as rt:
        s = rt.prompt("Sum: ")
        await s.call_tools([add], choice="auto")
        calls = await s.call_tools([add], choice="auto")
        assert calls.text == "So it is 3."
        assert s.text == f'Sum: {ADD}\n{{"name": "add", "result": 3}}\nSo it is 3.'


async def test_text_is_shown_as_it_comes_and_calls_are_not() -> None:
    shown: list[str] = []
    async with scripted(" \n One two three", ADD) as rt:
        s = rt.prompt([USER])
        await s.call_tools([add], choice="auto", on_text=shown.append)
        assert "".join(shown) == " \n One two three"
        assert len(shown) == 3
        await s.call_tools([add], choice="auto", on_text=shown.append)
        assert len(shown) == 3


async def test_bad_choices() -> None:
    s = Session(FakeEngine(template=FakeTemplate())).prompt()
    for options, match in (
        ({"choice": "maybe"}, "choice must be"),
        ({"choice": fails}, "none of the tools: add"),
        ({"choice": "auto", "keep_stop": True}, "keep_stop"),
        ({"on_text": 3}, "on_text"),
    ):
        with pytest.raises(ConfigError, match=match):
            await s.call_tools([add], **options)  # type: ignore[arg-type]  # pyright: ignore
    with pytest.raises(ConfigError, match="max_turns"):
        s.agent([add], max_turns=0)
    with pytest.raises(ConfigError, match="tools must be"):
        s.agent([])


# --- with the model's own template, whose marker tells


def saying(s: asgl.PromptStream, *said: str) -> Callable[[], int]:
    """Lets the engine say these texts, one a generation that is free."""
    engine: Any = s._queue.context.engine
    generate, left = engine.generate, list(said)

    def instead(prompt: Any, params: Any, **options: Any) -> Any:
        if options.get("grammar") is None and left:
            text = engine.tokenizer.decode(engine.tokenizer.encode(left.pop(0)))
            source = GrammarSource("choices", json.dumps([text]))
            options["grammar"] = engine.grammars.compile(source)
        return generate(prompt, params, **options)

    engine.generate = instead
    return lambda: len(left)


@asgl.tool
async def turn(way: Literal["left", "right"]) -> str:
    """Turns."""
    return f"turned {way}"


async def test_a_marker_begins_a_call_also_after_text(tmp_path: Path) -> None:
    directory = tiny_directory(tmp_path / "model", chat_template=WRAPPED)
    async with asgl.Runtime(directory, kernels="reference", kv_cache_tokens=2048) as rt:
        s = rt.prompt()
        s.system("x", tools=[turn])
        s.user("Go.")
        await s.sync()
        before = s.text
        left = saying(s, "I look.\n<tool_call>")
        (made,) = calls = await s.call_tools([turn], choice="auto", max_tokens=60)
        assert left() == 0
        assert calls.text == "I look.\n"
        said = json.dumps({"name": "turn", "arguments": made.arguments})
        assert s.text == (
            f"{before}<|im_start|>assistant\nI look.\n<tool_call>\n{said}\n</tool_call><|im_end|>\n"
            f"<|im_start|>user\n<tool_response>\n{made.result}\n</tool_response><|im_end|>\n"
        )
        assert s.messages()[-2]["content"] == "I look.\n"
        left = saying(s, "It is left.")
        assert (await s.call_tools([turn], choice="auto")).text == "It is left."
        assert s.text.endswith("<|im_start|>assistant\nIt is left.<|im_end|>\n")


async def test_a_template_without_a_marker_goes_by_how_it_begins(tmp_path: Path) -> None:
    directory = tiny_directory(tmp_path / "model", chat_template=LLAMA)
    async with asgl.Runtime(directory, kernels="reference", kv_cache_tokens=2048) as rt:
        for seed in range(4):
            s = rt.prompt([USER], sampling=asgl.SamplingParams(seed=seed, max_tokens=200))
            calls = await s.call_tools([turn], choice="auto")
            assert bool(calls) != bool(calls.text)
            assert s.messages()[-1]["role"] == ("tool" if calls else "assistant")


# --- agents


async def test_an_agent_calls_until_it_answers() -> None:
    async with scripted(ADD, ADD, "3 it is.") as rt:
        s = rt.prompt([USER])
        turns = [turn async for turn in s.agent([add])]
        assert [(turn.index, len(turn.calls), turn.text, turn.end) for turn in turns] == [
            (0, 1, "", None),
            (1, 1, "", None),
            (2, 0, "3 it is.", "answer"),
        ]
        assert turns[0].calls[0].result == 3
        assert s.messages()[-1] == {"role": "assistant", "content": "3 it is."}


async def test_an_agent_ends_after_so_many_turns() -> None:
    async with scripted(ADD, ADD) as rt:
        turns = [turn async for turn in rt.prompt([USER]).agent([add], max_turns=2)]
        assert [turn.end for turn in turns] == [None, "max_turns"]


async def test_one_may_leave_an_agent_and_speak_between_its_turns() -> None:
    async with scripted(ADD, ADD) as rt:
        s = rt.prompt([USER])
        async for turn in s.agent([add]):
            if turn.index == 1:
                break
            s.user("Again.")
        assert [message["role"] for message in s.messages()] == [
            *("user", "assistant", "tool") * 2,
        ]


async def test_a_turn_that_fails_leaves_the_one_before() -> None:
    async with scripted(ADD, call("fails", why="no")) as rt:
        s = rt.prompt([USER])
        texts: list[str] = []
        with pytest.raises(ToolError, match="no"):
            async for _ in s.agent([add, fails], on_error="program"):
                texts.append(s.text)
        await s.sync()
        assert [s.text] == texts


async def test_a_budget_bounds_the_turns() -> None:
    async with ScriptedRuntime({None: ADD}) as rt:
        s = rt.prompt([USER])
        count = 0
        with pytest.raises(BudgetError), asgl.budget(tokens=20):
            async for _ in s.agent([add], max_turns=100):
                count += 1
        assert 0 < count < 20
        assert len(s.messages()) == 1 + 2 * count


async def test_a_call_that_is_cut_short_is_an_error_and_an_answer_is_not() -> None:
    async with scripted(ADD, "It is three.") as rt:
        s = rt.prompt([USER])
        with pytest.raises(OutputError, match="cut"):
            await s.call_tools([add], choice="auto", max_tokens=2)
        calls = await s.call_tools([add], choice="auto", max_tokens=2)
        assert calls.text == "It is"


# --- functions of any kind


async def test_a_plain_function_runs_in_a_thread() -> None:
    threads: list[threading.Thread] = []

    @asgl.tool
    def where(place: str) -> str:
        """Says where."""
        threads.append(threading.current_thread())
        return place.upper()

    async with scripted(call("where", place="x")) as rt:
        (made,) = await rt.prompt([USER]).call_tools([where])
    assert made.result == "X"
    assert threads[0] is not threading.main_thread()
    assert where("y") == "Y"


async def test_a_plain_function_that_takes_too_long() -> None:
    release = threading.Event()

    @asgl.tool
    def hangs() -> None:
        """Hangs."""
        release.wait(10)

    async with scripted(call("hangs")) as rt:
        (made,) = await rt.prompt([USER]).call_tools([hangs], timeout=0.01)
        assert isinstance(made.error, TimeoutError)
        release.set()


class Shop:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    @asgl.tool
    async def price(self, item: Literal["tea", "milk"]) -> int:
        """The price of an item.

        Args:
            item: Which.
        """
        return self.factor * len(item)

    @asgl.tool(name="stock")
    def count(self, item: str = "tea") -> str:
        """How many."""
        return f"{self.factor} {item}"

    @staticmethod
    @asgl.tool
    def open_now(day: str) -> bool:
        """Whether it is open."""
        return day != "Sunday"


async def test_tools_are_methods() -> None:
    one, two = Shop(1), Shop(2)
    assert one.price == one.price
    assert one.price != two.price
    assert {one.price, one.price, two.price} == {one.price, two.price}
    assert one.price.schema["parameters"]["properties"] == {
        "item": {"enum": ["tea", "milk"], "type": "string", "description": "Which."}
    }
    said = [call("price", item="milk"), call("stock"), call("open_now", day="Monday")]
    async with scripted(f"[{', '.join(said)}]") as rt:
        made = await rt.prompt([USER]).call_tools(
            [two.price, two.count, Shop.open_now], parallel=True
        )
    assert [one.result for one in made] == [8, "2 tea", True]
    assert made[0].tool == two.price
    assert await one.price("tea") == 3
    assert one.count() == "1 tea"


async def test_a_method_that_is_bound_already_is_a_tool_too() -> None:
    class Plain:
        def twice(self, text: str) -> str:
            return text * 2

    tool = asgl.tool(Plain().twice)
    assert list(tool.schema["parameters"]["properties"]) == ["text"]
    assert await tool.run({"text": "a"}) == "aa"
    fixed = asgl.tool(partial(Plain().twice, text="b"), name="fixed", description="Fixed.")
    assert fixed.schema["parameters"]["properties"] == {}
    assert await fixed.run({}) == "bb"


async def test_a_tool_that_is_an_attribute_of_a_class_is_no_method() -> None:
    class Holder:
        tool = add

    assert Holder().tool is add
    assert await asyncio.wait_for(Holder().tool(1, 2), 1) == 3


def test_what_is_no_function_is_no_tool() -> None:
    for wrong in (3, Shop, Shop(1)):
        with pytest.raises(ConfigError, match="must be a function"):
            asgl.tool(wrong)  # type: ignore  # pyright: ignore
