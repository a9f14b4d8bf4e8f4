"""Tools: their schemas, and calls that are generated, run and answered."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import itertools
import json
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from functools import partial
from ipaddress import IPv4Address, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

import pydantic
import pytest
from fake_engine import FakeEngine, FakeTemplate
from pydantic import UUID4, BaseModel, ConfigDict, Field, SecretStr, StringConstraints, TypeAdapter
from tool_templates import LLAMA, MISTRAL, MISTRAL_WITH_IDS, WRAPPED
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

import asgl
from asgl.errors import ConfigError, OutputError, ToolError
from asgl.language import Session
from asgl.language.tools import call_schema, described, function_schemas, result_text
from asgl.models.chat_template import ChatTemplate
from tiny import CHATML, tiny_directory


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Point(BaseModel):
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
    assert parameters["properties"] == {
        "color": {"$ref": "#/$defs/paint.Color", "description": "With which color."},
        "where": {"$ref": "#/$defs/paint.Point"},
        "times": {"type": "integer", "default": 1, "description": "How often."},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
    }
    assert parameters["$defs"]["paint.Color"]["enum"] == ["red", "blue"]
    assert add.schema["parameters"]["properties"] == {
        "a": {"type": "integer", "enum": [1, 2], "description": "the first"},
        "b": {"type": "integer", "description": "the second"},
    }
    assert call_schema([add])["properties"]["name"] == {"const": "add"}


def test_definitions_of_two_tools_do_not_meet() -> None:
    class Inner(BaseModel):
        n: int

    class Outer(BaseModel):
        inner: Inner

    async def one(value: Outer) -> None: ...

    one.__annotations__["value"] = Outer
    first = asgl.tool(one, name="first")
    second = asgl.tool(one, name="second")
    schema = call_schema([first, second])
    assert sorted(schema["$defs"]) == [
        f"{tool}.{model}" for tool in ("first", "second") for model in ("Inner", "Outer")
    ]
    assert "#/$defs/second.Outer" in json.dumps(schema["anyOf"][1])
    assert first.arguments({"value": {"inner": {"n": 3}}})["value"] == Outer(inner=Inner(n=3))


def test_arguments_become_what_the_hints_say() -> None:
    given = paint.arguments({"color": "blue", "where": {"x": 4}})
    assert given == {"color": Color.BLUE, "where": Point(x=4), "times": 1, "note": None}
    for wrong in (
        {"color": "green", "where": {"x": 1}},
        {"color": "red"},
        {"color": "red", "where": {"x": 1}, "more": 1},
        {"color": "red", "where": {"x": 1}, "times": "2"},
        {"color": "red", "where": {"x": 1}, "times": True},
        {"color": "red", "where": {"x": 1}, "times": float("nan")},
    ):
        with pytest.raises(ValueError, match=r"\w+: |JSON"):
            paint.arguments(wrong)


def test_what_a_model_is_told_of_wrong_arguments_is_short() -> None:
    with pytest.raises(
        ValueError, match=r"^where\.x: Input should be a valid integer, .*; more: Unexpected"
    ):
        paint.arguments({"color": "red", "where": {"x": 1.5}, "more": 1})


# --- of every type that pydantic knows


class Size(IntEnum):
    HUGE = 2**60 + 1


class ByName(BaseModel):
    name: str


class ById(BaseModel):
    id: int
    name: str = "none"


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    when: datetime
    color: Color
    key: UUID


class Movie(TypedDict):
    title: str
    year: int


@dataclasses.dataclass
class Place:
    name: str
    at: tuple[float, float] = (0.0, 0.0)


class Span(NamedTuple):
    begin: int
    end: int


class Node(BaseModel):
    value: int
    children: list[Node] = []


KEY = "12345678-1234-4678-9234-567812345678"
STRICT = {"when": "2024-02-29T12:00:00Z", "color": "red", "key": KEY}

TYPES: list[tuple[Any, list[Any], list[Any]]] = [
    (Annotated[int, Field(ge=1, le=5)], [1, 5], [0, 6, "3", True, 2.5, None]),
    (Annotated[str, StringConstraints(pattern="^[a-c]+$", max_length=3)], ["abc"], ["d", "aaaa"]),
    (Annotated[list[int], Field(min_length=1)], [[1]], [[], ["1"]]),
    (float, [1, 1.5, -0.0], ["1", True, None]),
    (bool, [True], [1, "true"]),
    (str, ["", "é😀"], [1, None]),
    (None, [None], [0]),
    (Any, [None, {"a": [1]}], []),
    (Literal["a", 1, None, True], ["a", 1, None], ["b", 2]),
    (Color, ["red"], ["green", "RED"]),
    (Size, [2**60 + 1], [2**60, 1]),
    (list[Point], [[{"x": 1}], []], [{"x": 1}, [{"y": 1}]]),
    (dict[str, list[int]], [{"a": [1]}], [{"a": 1}]),
    (dict[Color, int], [{"red": 1}], [{"green": 1}]),
    (dict[Literal["a", "b"], int], [{"a": 1, "b": 2}], [{"c": 1}]),
    (tuple[int, str], [[1, "a"]], [[1], [1, "a", 2]]),
    (set[int], [[1, 2]], ["12"]),
    (int | str | None, [1, "1", None], [1.5, []]),
    (ByName | ById, [{"name": "a"}, {"id": 1}, {"id": 1, "name": "a"}], [{}, {"id": "x"}]),
    (Strict, [STRICT], [STRICT | {"key": 1}]),
    (Movie, [{"title": "M", "year": 1931}], [{"title": "M"}]),
    (Place, [{"name": "a"}, {"name": "a", "at": [1, 2]}], [{"at": [1, 2]}]),
    (Span, [[1, 2]], [[1]]),
    (Node, [{"value": 1, "children": [{"value": 2}]}], [{"value": 1, "children": [{}]}]),
    (date, ["2024-02-29"], ["2023-02-29", 5]),
    (datetime, ["2024-02-29T12:00:00"], ["noon"]),
    (timedelta, ["P1DT2H"], ["soon"]),
    (UUID4, [KEY], [KEY.replace("-4", "-1"), "x"]),
    (Path, ["a/b"], [1]),
    (bytes, ["abc", "é"], [1]),
    (SecretStr, ["hush"], [1]),
    (IPv4Address, ["127.0.0.1"], ["1.2.3", "::1"]),
    (IPv6Network, ["2001:db8::/32"], ["2001:db8::1/32"]),
    (pydantic.Base64Bytes, ["YWJj"], ["a"]),
    (pydantic.HttpUrl, ["https://a.org/b"], ["a.org"]),
]


def tool_of(hint: Any, default: Any = inspect.Parameter.empty) -> asgl.Tool[..., Any]:
    """A tool with one parameter, `value`, which it returns."""

    async def give(value: Any) -> Any:
        return value

    give.__annotations__["value"] = hint
    if default is not inspect.Parameter.empty:
        give.__defaults__ = (default,)
    return asgl.tool(give)


def untitled(schema: Any) -> Any:
    if isinstance(schema, list):
        return [untitled(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {key: untitled(part) for key, part in schema.items() if key != "title" or part == {}}


@pytest.mark.parametrize(("hint", "right", "wrong"), TYPES, ids=lambda one: str(one)[:40])
def test_each_type_has_the_schema_and_the_values_that_pydantic_gives_it(
    hint: Any, right: list[Any], wrong: list[Any]
) -> None:
    tool, oracle = tool_of(hint), TypeAdapter(hint)
    schema = oracle.json_schema(ref_template="#/$defs/give.{model}")
    defined = {f"give.{name}": part for name, part in schema.pop("$defs", {}).items()}
    parameters = untitled(tool.schema["parameters"])
    if "$ref" not in parameters["properties"]["value"]:
        assert parameters["properties"]["value"] == untitled(schema)
    assert parameters.get("$defs", {}).items() >= untitled(defined).items()
    for value in right:
        made = tool.arguments({"value": value})["value"]
        assert made == oracle.validate_json(json.dumps(value))
        assert type(made) is type(oracle.validate_json(json.dumps(value)))
    for value in wrong:
        with pytest.raises(ValueError, match="value"):
            tool.arguments({"value": value})


def test_a_literal_of_members_of_an_enum_takes_their_values() -> None:
    for hint, value, made in (
        (Literal[Color.RED], "red", Color.RED),
        (Literal[Color.RED] | None, "red", Color.RED),
        (list[Literal[Color.RED, "x"]], ["red", "x"], [Color.RED, "x"]),
        (dict[Literal[Color.BLUE], int], {"blue": 1}, {Color.BLUE: 1}),
        (Annotated[Literal[Size.HUGE], "how big"], 2**60 + 1, Size.HUGE),
    ):
        assert tool_of(hint).arguments({"value": value}) == {"value": made}
        with pytest.raises(ValueError, match="value"):
            tool_of(hint).arguments({"value": "green"})
    assert tool_of(Literal[Color.RED]).schema["parameters"]["properties"]["value"] == {
        "const": "red",
        "type": "string",
    }


DECIMALS = sorted(
    f"{sign}{whole}{fraction}"
    for sign, whole, fraction in itertools.product(
        ("", "-"),
        ("0", "1", "90", "123", "1234"),
        ("", ".1", ".10", ".123", ".0004"),
    )
)


@pytest.mark.parametrize("places", [None, 0, 1, 2, 3])
@pytest.mark.parametrize("digits", [None, 1, 2, 3, 4, 6])
def test_the_schema_of_a_decimal_takes_what_pydantic_takes(
    digits: int | None, places: int | None
) -> None:
    if digits is not None and places is not None and places > digits:
        return
    limits = {"max_digits": digits, "decimal_places": places}
    tool = tool_of(Annotated[Decimal, Field(**limits)] if digits or places else Decimal)
    pattern = tool.schema["parameters"]["properties"]["value"]["pattern"]
    for text in DECIMALS:
        try:
            assert tool.arguments({"value": text}) == {"value": Decimal(text)}
        except ValueError:
            assert not re.fullmatch(pattern, text), text
        else:  # it also takes zeros at the end that are too many
            assert re.fullmatch(pattern, text) or text.endswith("0"), text


def test_a_decimal_with_bounds_is_a_number_within_them() -> None:
    hint = Annotated[Decimal, Field(ge=0, lt=100, decimal_places=2)]
    tool = tool_of(hint)
    assert tool.schema["parameters"]["properties"]["value"] == {
        "type": "number",
        "minimum": 0,
        "exclusiveMaximum": 100,
        "x-decimal-places": 2,
    }
    assert tool.arguments({"value": 12.25}) == {"value": Decimal("12.25")}
    with pytest.raises(ValueError, match="less than 100"):
        tool.arguments({"value": 100})


def test_keys_that_are_integers_look_like_them() -> None:
    tool = tool_of(dict[int, str])
    assert tool.arguments({"value": {"-3": "x"}}) == {"value": {-3: "x"}}
    (pattern,) = tool.schema["parameters"]["properties"]["value"]["patternProperties"]
    for key in ("0", "-3", "12", "x", "1.5", "", "01x"):
        try:
            tool.arguments({"value": {key: ""}})
        except ValueError:
            assert not re.search(pattern, key)
        else:
            assert re.search(pattern, key)


# --- defaults, fields and partials


@asgl.tool
async def search(
    query: Annotated[str, "words"] = Field(min_length=1, alias="q"),
    most: int = Field(3, ge=1, description="how many"),
    tags: list[str] = Field(default_factory=list),  # noqa: B008
    near: float = float("inf"),
    key: object = print,
) -> list[Any]:
    """Searches.

    Args:
        most: Not what the field says.
        tags: With these.
    """
    return [query, most, tags, near]


async def test_a_field_as_the_default_says_the_default_and_the_rest() -> None:
    parameters = search.schema["parameters"]
    assert parameters["properties"] == {
        "q": {"type": "string", "minLength": 1, "description": "words"},
        "most": {"type": "integer", "minimum": 1, "default": 3, "description": "how many"},
        "tags": {"type": "array", "items": {"type": "string"}, "description": "With these."},
        "near": {"type": "number"},  # infinity is no JSON
        "key": {},
    }
    assert parameters["required"] == ["q"]
    given = search.arguments({"q": "x"})
    assert given == {"query": "x", "most": 3, "tags": [], "near": float("inf"), "key": print}
    with pytest.raises(ValueError, match=r"most: .*greater than or equal to 1"):
        search.arguments({"q": "x", "most": 0})
    # the same for a program
    assert await search("x") == ["x", 3, [], float("inf")]
    assert await search(query="x", most=1, tags=["a"]) == ["x", 1, ["a"], float("inf")]
    assert (await search("x"))[2] is not (await search("x"))[2]
    with pytest.raises(TypeError, match="query"):
        search()


def test_names_that_mean_something_to_pydantic_are_names_like_others() -> None:
    async def odd(schema: int, model_config: str, _x: int, json: int = 1, self: int = 2) -> None:
        """Has odd names."""

    tool = asgl.tool(odd)
    given = {"schema": 1, "model_config": "a", "_x": 2, "json": 3, "self": 4}
    assert tool.arguments(given) == given
    assert list(tool.schema["parameters"]["properties"]) == list(inspect.signature(odd).parameters)


async def weather(unit: str, city: str, days: int = 1) -> str:
    """The weather.

    Args:
        city: Where.
    """
    return f"{unit} {city} {days}"


class Service:
    async def ask(self, question: str) -> str:
        """Asks."""
        return question


async def test_partials_and_methods_are_tools() -> None:
    for function, rest in (
        (partial(weather, "C"), {"days": {"type": "integer", "default": 1}}),
        (partial(weather, "C", days=2), {}),
        (partial(partial(weather, days=2), unit="C"), {}),
    ):
        tool = asgl.tool(function)
        assert (tool.name, tool.schema["description"]) == ("weather", "The weather.")
        parameters = tool.schema["parameters"]
        city = {"type": "string", "description": "Where."}
        assert parameters["properties"] == {"city": city} | rest
        assert await tool.function(**tool.arguments({"city": "Oslo"})) == await tool(city="Oslo")
        with pytest.raises(ValueError, match="unit"):
            tool.arguments({"city": "Oslo", "unit": "F"})
    named = asgl.tool(partial(weather, "C"), name="celsius", description="In C.")
    assert (named.name, named.schema["description"]) == ("celsius", "In C.")
    asking = asgl.tool(Service().ask)
    assert await asking.function(**asking.arguments({"question": "x"})) == "x"


async def test_a_tool_is_still_a_coroutine_function() -> None:
    assert await add(1, b=2) == 3


def test_what_is_no_tool() -> None:
    class Opaque: ...

    async def many(*values: int) -> None: ...
    async def unhinted(value) -> None: ...  # type: ignore[no-untyped-def]
    async def unknown(value: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    for function in (many, unhinted, unknown, lambda: None, partial(print)):
        with pytest.raises(ConfigError, match="tool"):
            asgl.tool(function)  # type: ignore[type-var]
    for hint in (Opaque, list[Opaque], re.Match, 3):
        with pytest.raises(ConfigError, match="the tool 'give'"):
            tool_of(hint)
    with pytest.raises(ConfigError, match="name"):
        asgl.tool(name="a b")(many)


@pytest.mark.parametrize(
    "value",
    [
        Point(x=1),
        Place("a"),
        Color.RED,
        {"at": date(2024, 2, 29)},
        [Decimal("1.10"), UUID(KEY)],
        None,
    ],
)
def test_a_result_is_written_as_pydantic_writes_it(value: Any) -> None:
    assert json.loads(result_text(value)) == TypeAdapter(Any).dump_python(value, mode="json")


def test_what_is_no_json_is_no_result() -> None:
    assert result_text("as it is") == "as it is"
    for value in (float("nan"), object(), {"a": float("inf")}, b"\xff"):
        with pytest.raises(ValueError):  # noqa: PT011
            result_text(value)


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
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {
                    "id": "call_0",
                    "type": "function",
                    "function": {"name": "add", "arguments": '{"a": 1, "b": 41}'},
                }
            ],
        },
        {"role": "tool", "content": "42", "tool_call_id": "call_0"},
    ]
    assert call("add", a=1, b=41) in s.text
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
    assert s.messages()[-1]["content"] == '{"error": "LookupError: no such page"}'
    assert '{"name": "fails", "error": "LookupError: no such page"}' in s.text
    (late,) = await s.call_tools([fails, hangs], timeout=0.01)
    assert isinstance(late.error, TimeoutError)
    assert s.messages()[-1]["content"] == '{"error": "timed out"}'
    assert s.messages()[-1].get("tool_call_id") == "call_1"
    assert '{"name": "hangs", "error": "timed out"}' in s.text


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
async def opened(
    path: Path, template: str | None = None, markers: Sequence[str] = ()
) -> AsyncIterator[asgl.Runtime]:
    """markers: are control tokens of the model, though not called special, as in Qwen2.5."""
    model = tiny_directory(path, chat_template=template or CHATML, max_position_embeddings=8192)
    definition = json.loads((model / "tokenizer.json").read_text())
    spare = [token for token in definition["added_tokens"] if "spare" in token["content"]]
    for token, marker in zip(spare, markers, strict=False):
        token |= {"content": marker, "special": False}
    (model / "tokenizer.json").write_text(json.dumps(definition))
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


@pytest.mark.parametrize("markers", [(), ("<tool_call>", "</tool_call>")], ids=["text", "control"])
async def test_calls_in_the_model_s_own_format(tmp_path: Path, markers: Sequence[str]) -> None:
    async with opened(tmp_path, WRAPPED, markers) as rt:
        s = rt.prompt()
        s.system("Be good.", tools=[turn, rest])
        s.user("go")
        await s.sync()
        assert s.text.startswith(
            '<|im_start|>system\nBe good.\n\n# Tools\n{"type": "function", "function": {"name": '
            '"turn"'
        )
        (first,) = await s.call_tools([turn, rest])
        goes_on = {ord("\n"): 100.0}  # rather than to end after a call
        many = await s.call_tools([turn, rest], parallel=True, logit_bias=goes_on)
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
        for marker in markers:
            assert s.token_ids.count(rt.tokenizer.special_tokens[marker]) == 1 + len(many)
        assert len(many) == 8
        assert rt.tokenizer.decode(s.token_ids) == s.text
        assert [message["role"] for message in s.messages()] == [
            "system",
            "user",
            "assistant",
            "tool",
            "assistant",
            *["tool"] * len(many),
        ]
        again = rt.prompt()
        again += asgl.messages(s.messages(), tools=[turn, rest])
        assert (again.text, again.messages()) == (s.text, s.messages())


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
        again = rt.prompt()
        again += asgl.messages(s.messages(), tools=[quotes] if tells else [])
        assert (again.text, again.messages()) == (s.text, s.messages())
        ends = s.token_ids.count(rt.tokenizer.special_tokens["<|im_end|>"])
        assert ends == own.render(said).count("<|im_end|>") - 2, "what a tool returns is data"


async def test_a_template_that_wants_ids_is_used_as_one_that_knows_no_tools(tmp_path: Path) -> None:
    async with opened(tmp_path, MISTRAL_WITH_IDS) as rt:
        s = rt.prompt()
        s.user("Go.")
        (made,) = await s.call_tools([turn])
        call_text = json.dumps({"name": "turn", "arguments": dict(made.arguments)})
        result = json.dumps({"name": "turn", "result": made.result})
        assert s.text == f"<|bos|>[INST] Go.[/INST]{call_text}<|im_end|>[INST] {result}[/INST]"
        assert [message["role"] for message in s.messages()] == ["user", "assistant", "tool"]
        assert rt.prompt(s.messages()).text == s.text
