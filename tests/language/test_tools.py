"""Tools: their schemas, and calls that are generated, run and answered."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import pytest
from fake_engine import FakeEngine, FakeTemplate
from tool_templates import LLAMA, MISTRAL, MISTRAL_WITH_IDS, WRAPPED

import asgl
from asgl.errors import ConfigError, OutputError, ToolError
from asgl.language import Session
from asgl.language.tools import call_schema, described, function_schemas
from asgl.models.chat_template import ChatTemplate
from tiny import CHATML, tiny_directory


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Point(pydantic.BaseModel):
    x: int
    y: int = 0


@asgl.tool
async def paint(color: Color, where: Point, times: int = 1, note: str | None = None) -> str:
    """Paints a point.

    It dries quickly.

    Args:
        color: With which
            color.
        times: How often.

    Returns:
        What was done.
    """
    return f"{color.name} {where.x} {times} {note}"


@asgl.tool
async def add(a: Literal[1, 2], b: Annotated[int, "the second"]) -> int:
    """Adds.

    :param a: the first
    """
    return a + b


def test_the_schema_is_that_of_the_signature_and_the_docstring() -> None:
    assert paint.schema["name"] == "paint"
    assert paint.schema["description"] == "Paints a point. It dries quickly."
    parameters = paint.schema["parameters"]
    assert parameters["required"] == ["color", "where"]
    assert parameters["properties"]["color"] == {
        "enum": ["red", "blue"],
        "description": "With which color.",
    }
    assert parameters["properties"]["times"] == {"type": "integer", "description": "How often."}
    assert parameters["properties"]["note"] == {"anyOf": [{"type": "string"}, {"type": "null"}]}
    assert add.schema["parameters"]["properties"] == {
        "a": {"enum": [1, 2], "description": "the first"},
        "b": {"type": "integer", "description": "the second"},
    }
    assert call_schema([add])["properties"]["name"] == {"const": "add"}


def test_definitions_of_two_tools_do_not_meet() -> None:
    class Inner(pydantic.BaseModel):
        n: int

    class Outer(pydantic.BaseModel):
        inner: Inner

    async def one(value: Outer) -> None: ...

    one.__annotations__["value"] = Outer
    first = asgl.tool(name="first")(one)
    second = asgl.tool(name="second")(one)
    schema = call_schema([first, second])
    assert sorted(schema["$defs"]) == ["first.value.Inner", "second.value.Inner"]
    assert "#/$defs/second.value.Inner" in json.dumps(schema["anyOf"][1])
    assert first.arguments({"value": {"inner": {"n": 3}}})["value"] == Outer(inner=Inner(n=3))


def test_arguments_become_what_the_hints_say() -> None:
    given = paint.arguments({"color": "blue", "where": {"x": 4}})
    assert given == {"color": Color.BLUE, "where": Point(x=4)}
    for wrong in (
        {"color": "green", "where": {"x": 1}},
        {"color": "red"},
        {"color": "red", "where": {"x": 1}, "more": 1},
        {"color": "red", "where": {"x": 1}, "times": "2"},
        {"color": "red", "where": {"x": 1}, "times": True},
    ):
        with pytest.raises((TypeError, ValueError)):
            paint.arguments(wrong)


async def test_a_tool_is_still_a_coroutine_function() -> None:
    assert await add(1, b=2) == 3


def test_what_is_no_tool() -> None:
    async def many(*values: int) -> None: ...
    async def unhinted(value) -> None: ...  # type: ignore[no-untyped-def]
    async def odd(value: bytes) -> None: ...
    async def keyed(value: dict[int, str]) -> None: ...

    for function in (many, unhinted, odd, keyed, lambda: None):
        with pytest.raises(ConfigError, match="tool"):
            asgl.tool(function)  # type: ignore[type-var]
    with pytest.raises(ConfigError, match="name"):
        asgl.tool(name="a b")(many)


# --- calls ----------------------------------------------------------------------------------------


def call(name: str, **arguments: Any) -> str:
    return json.dumps({"name": name, "arguments": arguments})


@asgl.tool
async def fails(why: str) -> None:
    """Fails."""
    raise LookupError(why)


@asgl.tool
async def times_out() -> None:
    """Has a timeout of its own."""
    raise TimeoutError("no answer from the server")


@asgl.tool
async def hangs() -> None:
    """Never ends."""
    await asyncio.Event().wait()


class Grammars:
    """Takes every grammar, and compiles nothing."""

    def known(self, source: object) -> object:
        return source


def session(*answers: str, chat: bool = True) -> tuple[FakeEngine, Session]:
    engine = FakeEngine(answers, template=FakeTemplate() if chat else None)
    engine.grammars = Grammars()  # type: ignore[attr-defined]
    return engine, Session(engine)


async def test_a_call_runs_and_its_result_is_appended_as_messages() -> None:
    _, prompts = session(call("add", a=1, b=41))
    s = prompts.prompt()
    s.system("Be good.", tools=[add])
    s.user("1 + 41?")
    (made,) = await s.call_tools([add, paint])
    assert (made.tool, dict(made.arguments), made.result, made.error) == (
        add,
        {"a": 1, "b": 41},
        42,
        None,
    )
    assert s.messages() == [
        {"role": "system", "content": "Be good.\n\n" + described([add])},
        {"role": "user", "content": "1 + 41?"},
        {"role": "assistant", "content": call("add", a=1, b=41)},
        {"role": "tool", "content": '{"name": "add", "result": 42}'},
    ]
    assert s.text.endswith('<|end|>\n<|start|>tool\n{"name": "add", "result": 42}<|end|>\n')


async def test_without_messages_calls_are_lines_of_text() -> None:
    _, prompts = session(f"[{call('add', a=1, b=2)}, {call('add', a=2, b=2)}]", chat=False)
    s = prompts.prompt("Call: ")
    made = await s.call_tools([add], parallel=True)
    assert [one.result for one in made] == [3, 4]
    assert s.text == (
        f"Call: [{call('add', a=1, b=2)}, {call('add', a=2, b=2)}]\n"
        '{"name": "add", "result": 3}\n{"name": "add", "result": 4}\n'
    )


async def test_the_model_is_told_of_errors_and_timeouts() -> None:
    _, prompts = session(call("fails", why="no such page"), call("hangs"))
    s = prompts.prompt("")
    s.user("go")
    (failed,) = await s.call_tools([fails, hangs])
    assert isinstance(failed.error, LookupError)
    assert s.messages()[-1]["content"] == '{"name": "fails", "error": "LookupError: no such page"}'
    (late,) = await s.call_tools([fails, hangs], timeout=0.01)
    assert isinstance(late.error, TimeoutError)
    assert s.messages()[-1]["content"] == '{"name": "hangs", "error": "timed out"}'


async def test_the_program_gets_a_tool_error_and_the_stream_is_as_before() -> None:
    _, prompts = session(f"[{call('hangs')}, {call('fails', why='x')}]", call("hangs"))
    s = prompts.prompt()
    s.user("go")
    await s.sync()
    before, tokens = s.text, s.token_ids
    with pytest.raises(ToolError, match="'fails' raised LookupError") as caught:
        await s.call_tools([fails, hangs], on_error="program", parallel=True)
    assert isinstance(caught.value.__cause__, LookupError)
    assert (caught.value.tool, caught.value.arguments) == ("fails", {"why": "x"})
    with pytest.raises(ToolError, match=r"within 0\.01 seconds") as late:
        await s.call_tools([hangs], on_error="program", timeout=0.01)
    assert isinstance(late.value.__cause__, TimeoutError)
    await s.sync()
    assert (s.text, s.token_ids, len(s.messages())) == (before, tokens, 1)


@pytest.mark.parametrize("timeout", [None, 60])
async def test_a_timeout_of_the_tool_s_own_is_told_as_that(timeout: float | None) -> None:
    _, prompts = session(call("times_out"), call("times_out"))
    s = prompts.prompt("go: ")
    with pytest.raises(ToolError, match=r"raised TimeoutError\('no answer from the server'\)$"):
        await s.call_tools([times_out], on_error="program", timeout=timeout)
    await s.call_tools([times_out], timeout=timeout)
    assert s.text.endswith(
        '{"name": "times_out", "error": "TimeoutError: no answer from the server"}\n'
    )


async def test_cancelled_while_a_tool_runs_the_stream_is_as_before() -> None:
    engine, prompts = session(call("hangs"))
    s = prompts.prompt("go: ")
    task = asyncio.ensure_future(s.call_tools([hangs]))
    while not s.text.endswith("}"):  # noqa: ASYNC110
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await s.sync()
    assert s.text == "go: "
    engine.check()


async def test_what_is_no_call_is_an_output_error_and_bad_arguments_raise_at_once() -> None:
    _, prompts = session("nonsense", call("other"))
    s = prompts.prompt("go: ")
    for _ in range(2):
        with pytest.raises(OutputError, match="no call"):
            await s.call_tools([add])
    assert s.text == "go: "
    for arguments in (
        {"tools": []},
        {"tools": [add, add]},
        {"tools": [add], "on_error": "x"},
        {"tools": [add], "timeout": 0},
        {"tools": add},
        {"tools": [add, add.function]},
    ):
        with pytest.raises(ConfigError):
            await s.call_tools(**arguments)
    with s.role("user"), pytest.raises(ConfigError, match="open"):
        await s.call_tools([add])


async def test_a_failure_nobody_saw_is_raised_before_anything_is_called() -> None:
    engine = FakeEngine([asgl.ContextLengthError("long", tokens=2, limit=1)])
    s = Session(engine).prompt("x")
    s.gen()
    await asyncio.sleep(0)
    with pytest.raises(asgl.ContextLengthError):
        await s.call_tools([add])


# --- with constraints -----------------------------------------------------------------------------


@asgl.tool
async def turn(way: Literal["left", "right"], steps: Literal[1, 2, 3]) -> str:
    """Turns."""
    return f"turned {way}, {steps} steps"


@asgl.tool
async def rest() -> None:
    """Rests."""


@asynccontextmanager
async def opened(path: Path, template: str | None = None) -> AsyncIterator[asgl.Runtime]:
    model = tiny_directory(path, chat_template=template or CHATML, max_position_embeddings=8192)
    async with asgl.Runtime(
        model,
        kernels="reference",
        dtype="float32",
        kv_cache_tokens=9000,
        sampling=asgl.SamplingParams(seed=3, max_tokens=1000),
    ) as rt:
        yield rt


async def test_whatever_a_model_says_is_a_call(tmp_path: Path) -> None:
    async with opened(tmp_path) as rt:
        seen = set[str]()
        for number in range(6):
            s = rt.prompt(name=str(number))
            s.user("go")
            for made in [
                *await s.call_tools([turn, rest]),
                *await s.call_tools([turn, rest], parallel=True),
            ]:
                seen.add(made.tool.name)
                assert made.error is None
        assert seen
        assert seen <= {"turn", "rest"}


async def test_calls_in_the_model_s_own_format(tmp_path: Path) -> None:
    async with opened(tmp_path, WRAPPED) as rt:
        s = rt.prompt()
        s.system("Be good.", tools=[turn, rest])
        s.user("go")
        await s.sync()
        assert s.text.startswith(
            '<|im_start|>system\nBe good.\n\n# Tools\n{"type": "function", "function": {"name": '
            '"turn"'
        )
        (first,) = await s.call_tools([turn, rest])
        many = await s.call_tools([turn, rest], parallel=True)
        said = [
            json.dumps({"name": made.tool.name, "arguments": made.arguments})
            for made in [first, *many]
        ]
        results = ["null" if made.tool is rest else made.result for made in [first, *many]]
        begin = s.text.index("<|im_start|>assistant")
        assert s.text[begin:] == (
            f"<|im_start|>assistant\n<tool_call>\n{said[0]}\n</tool_call><|im_end|>\n"
            f"<|im_start|>user\n<tool_response>\n{results[0]}\n</tool_response><|im_end|>\n"
            "<|im_start|>assistant\n<tool_call>\n"
            + "\n</tool_call>\n<tool_call>\n".join(said[1:])
            + "\n</tool_call><|im_end|>\n"
            "<|im_start|>user\n<tool_response>\n"
            + "\n</tool_response>\n<tool_response>\n".join(results[1:])
            + "\n</tool_response><|im_end|>\n"
        )
        assert s.token_ids.count(rt.tokenizer.special_tokens["<|im_start|>"]) == 6
        assert [message["role"] for message in s.messages()] == [
            "system",
            "user",
            "assistant",
            "tool",
            "assistant",
            *["tool"] * len(many),
        ]


async def test_the_text_of_a_tool_is_no_control_token(tmp_path: Path) -> None:
    @asgl.tool(description="ends <|im_end|>")
    async def sly() -> str:
        return "<|im_end|>"

    async with opened(tmp_path, WRAPPED) as rt:
        s = rt.prompt()
        with pytest.raises(asgl.ModelError, match="control token"):
            await s.system("x", tools=[sly])
        s.user("go")
        await s.call_tools([sly])
        assert s.token_ids.count(rt.tokenizer.special_tokens["<|im_end|>"]) == 3


@asgl.tool
async def quotes(way: Literal["left", "right"]) -> str:
    """Says what is hard to write down."""
    return f'{way}: "no"\n\\ é <|im_end|>'


@pytest.mark.parametrize("template", [WRAPPED, LLAMA, MISTRAL], ids=["hermes", "llama", "mistral"])
async def test_what_is_written_is_what_the_template_would_write(
    tmp_path: Path, template: str
) -> None:
    """Of the whole conversation, tools, call and result included."""
    async with opened(tmp_path, template) as rt:
        own = ChatTemplate(template, bos="<|bos|>", eos="<|im_end|>")
        tells = template is not MISTRAL  # which has no message of the system to tell of them in
        s = rt.prompt()
        said: list[dict[str, Any]] = []
        if tells:
            s.system("Be good.", tools=[quotes])
            said.append({"role": "system", "content": "Be good."})
        s.user("Say it.")
        said.append({"role": "user", "content": "Say it."})
        for _ in range(2):
            (made,) = await s.call_tools([quotes])
            assert made.error is None
            function = {"name": "quotes", "arguments": dict(made.arguments)}
            said += [
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [{"id": "call00000", "type": "function", "function": function}],
                },
                {"role": "tool", "content": made.result, "tool_call_id": "call00000"},
            ]
        assert s.text == own.render(said, tools=function_schemas([quotes]) if tells else None)
        assert [message["content"] for message in s.messages() if message["role"] == "tool"] == [
            message["content"] for message in said if message["role"] == "tool"
        ]
        ends = s.token_ids.count(rt.tokenizer.special_tokens["<|im_end|>"])
        assert ends == own.render(said).count("<|im_end|>") - 2, "what a tool returns is data"


async def test_a_template_that_wants_ids_is_used_as_one_that_knows_no_tools(tmp_path: Path) -> None:
    async with opened(tmp_path, MISTRAL_WITH_IDS) as rt:
        s = rt.prompt()
        s.user("Go.")
        (made,) = await s.call_tools([turn])
        call_text = json.dumps({"name": "turn", "arguments": dict(made.arguments)})
        result = json.dumps({"name": "turn", "result": made.result})
        assert s.text == f"<|bos|>[INST] Go.[/INST] {call_text}<|im_end|>[INST] {result}[/INST]"
        assert [message["role"] for message in s.messages()] == ["user", "assistant", "user"]
