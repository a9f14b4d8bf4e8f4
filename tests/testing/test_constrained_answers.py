"""A ScriptedRuntime says only what the constraint of the op lets a model say. jsonschema and
pydantic judge its answers in JSON."""

from __future__ import annotations

import itertools
import json
from datetime import date
from typing import Annotated, Any, Literal

import jsonschema
import pydantic
import pytest

import asgl
from asgl.testing import ScriptedRuntime, ScriptError

LARK = """
start: verb " " /[a-z]+/ number?
verb: "go" | "see"
number: " " /[0-9]{1,3}/
"""


class Person(pydantic.BaseModel):
    name: str
    age: Annotated[int, pydantic.Field(ge=0, le=150)]
    kind: Literal["a", "b"] = "a"
    friends: list[Person] = []


class Adult(Person):
    @pydantic.field_validator("age")
    @classmethod
    def grown(cls, age: int) -> int:
        if age < 18:
            raise ValueError("too young")
        return age


async def said(answer: Any, **options: Any) -> Any:
    async with ScriptedRuntime({"x": [answer]}) as rt:
        return await rt.prompt("a").gen("x", **options)


@pytest.mark.parametrize(
    ("options", "right", "wrong"),
    [
        ({"grammar": LARK}, ["go home", "see x 123"], ["go", "goes home", "go home 1234", "Go x"]),
        ({"regex": "[a-z]+é?"}, ["a", "zé"], ["", "éa", "a1", "a\n"]),
        ({"regex": r"(?i)yes|\p{Greek}+"}, ["YES", "λόγος"], ["yes!", "logos"]),
        ({"choices": ["a", "a b"]}, ["a", "a b"], ["a ", "b", ""]),
    ],
)
async def test_answers_match_the_whole_constraint(
    options: dict[str, Any], right: list[str], wrong: list[str]
) -> None:
    for answer in right:
        assert await said(answer, **options) == answer
    for answer in wrong:
        with pytest.raises(ScriptError, match="is nothing that the"):
            await said(answer, **options)


@pytest.mark.parametrize(
    ("dtype", "right", "wrong"),
    [
        (int, [0, -12, " 7"], ["seven", 1.5, "007", True]),
        (float, [0.5, 3, "1e5"], ["half", float("nan"), "."]),
        (bool, [True, "False"], [1, "yes"]),
    ],
)
async def test_answers_are_of_the_dtype(dtype: Any, right: list[Any], wrong: list[Any]) -> None:
    for answer in right:
        assert type(await said(answer, dtype=dtype)) is dtype
    for answer in wrong:
        with pytest.raises(ScriptError, match="is nothing that the regex"):
            await said(answer, dtype=dtype)


ANSWERS = [
    {"name": "Ada", "age": 36},
    {"age": 36, "name": "Ada"},
    {"name": "Ada", "age": 36, "kind": "b", "friends": [{"age": 1, "name": "Bo"}]},
    '{"name":"Ada","age":36}',
    '{\n  "name": "\\u0041da",\n  "age": 36\n}\n',
    '{"age": 36, "name": "Zoë"}',
    {"name": "Ada"},
    {"name": "Ada", "age": 151},
    {"name": "Ada", "age": -1},
    {"name": "Ada", "age": "old"},
    {"name": "Ada", "age": 1.5},
    {"name": None, "age": 36},
    {"name": "Ada", "age": 36, "kind": "c"},
    {"name": "Ada", "age": 36, "friends": [{"name": "Bo"}]},
    [],
    '{"name": "Ada", "age": 36',
    '{"name": "Ada", "age": 36}}',
    "Ada, 36",
]


@pytest.mark.parametrize("answer", ANSWERS, ids=str)
async def test_answers_are_valid_by_jsonschema(answer: Any) -> None:
    schema = Person.model_json_schema()
    try:
        jsonschema.validate(json.loads(answer) if isinstance(answer, str) else answer, schema)
        valid = True
    except (ValueError, jsonschema.ValidationError):
        valid = False
    if valid:
        assert isinstance(await said(answer, json_schema=schema), str)
    else:
        with pytest.raises(ScriptError, match="is nothing that the json_schema"):
            await said(answer, json_schema=schema)


@pytest.mark.parametrize("answer", ANSWERS, ids=str)
async def test_answers_are_valid_by_pydantic(answer: Any) -> None:
    text = answer if isinstance(answer, str) else json.dumps(answer)
    try:
        value = Person.model_validate_json(text, strict=True)
    except pydantic.ValidationError:
        with pytest.raises(ScriptError, match="is nothing that the json_schema"):
            await said(answer, json_schema=Person)
    else:
        assert await said(answer, json_schema=Person) == value
        assert await said(value, json_schema=Person) == value


async def test_what_only_a_validator_refuses_is_tried_again() -> None:
    async with ScriptedRuntime(
        {"x": [{"name": "Bo", "age": 3}, {"name": "Bo", "age": 30}], "y": {"name": "Bo", "age": 3}}
    ) as rt:
        s = rt.prompt("a")
        assert (await s.gen("x", json_schema=Adult, retries=1)).age == 30
        with pytest.raises(asgl.OutputError, match="too young"):
            await s.gen("y", json_schema=Adult)


async def test_the_text_is_the_one_that_a_model_would_say() -> None:
    async with ScriptedRuntime({"x": '{"age":3,"name":"\\u00e9"}', "r": "a7"}) as rt:
        handle = rt.prompt("a").gen("x", json_schema=Person)
        assert (await handle).name == "é"
        assert handle.text == '{"name": "é", "age": 3}'
        handles = [rt.prompt("a").gen("r", regex=regex) for regex in ("[a-z][0-9]", "[a-z][0-9]+")]
        assert [await each for each in handles] == ["a7", "a7"]
        assert [each.finish_reason for each in handles] == ["grammar", "eos"]


async def test_a_valid_answer_is_cut_as_a_models_would_be() -> None:
    async with ScriptedRuntime({"x": {"name": "Bo", "age": 3}}) as rt:
        with pytest.raises(asgl.OutputError, match="cut the value short"):
            await rt.prompt("a").gen("x", json_schema=Person, max_tokens=2)


@pytest.mark.parametrize(
    ("answer", "options", "told"),
    [
        ("ab1", {"regex": "[a-z]+"}, "'1' cannot come after 'ab'"),
        ("1", {"regex": "[a-z]+"}, "'1' cannot come first"),
        ("go", {"grammar": LARK}, "it cannot end after 'go'"),
        ({"name": "Ada"}, {"json_schema": Person}, "'}' cannot come after '{\"name\": \"Ada\"'"),
    ],
)
async def test_the_error_says_where_it_goes_wrong(
    answer: Any, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(ScriptError) as caught:
        await said(answer, **options)
    assert str(caught.value).endswith(told)
    assert "answer for a gen 'x', after 'a'" in str(caught.value)


@pytest.mark.parametrize(
    "options", [{"regex": "("}, {"grammar": "start: x"}, {"json_schema": {"type": "no"}}]
)
async def test_constraints_that_do_not_compile(options: dict[str, Any]) -> None:
    with pytest.raises(asgl.GrammarError):
        await said("a", **options)


async def test_partial_values_come_one_by_one_and_the_last_is_whole() -> None:
    class Note(pydantic.BaseModel):
        title: str
        tags: list[str]

    said = {"title": "On tea and milk", "tags": ["a", "b c"]}
    async with ScriptedRuntime({"note": said}) as rt:
        s = rt.prompt("x")
        parts = [part async for part in s.gen("note", dtype=Note).partials()]
        assert parts[-1] == said
        assert s["note"] == Note(**said)
    assert len(parts) > 4
    assert parts[0] == {}  # as soon as it is an object
    for before, after in itertools.pairwise(parts):
        assert before != after
        assert set(before) <= set(after)
        assert after.get("title", "").startswith(before.get("title", ""))


async def test_what_was_cut_has_its_partial_value() -> None:
    async with ScriptedRuntime({"many": [["one two", "three"]] * 2, "text": "five six"}) as rt:
        s = rt.prompt("x")
        with pytest.raises(asgl.OutputError, match="cut the value short") as caught:
            await s.gen("many", dtype=list[str], max_tokens=2)
        assert caught.value.partial == ["one two"]
        with pytest.raises(asgl.OutputError) as caught:
            await s.gen("many", json_schema=list[str], max_tokens=1)
        assert caught.value.partial == ["one"]
        with pytest.raises(asgl.OutputError) as caught:
            await s.gen("text", choices=["five six"], max_tokens=1)
        assert caught.value.partial is None


@pytest.mark.parametrize(
    ("dtype", "said", "value"),
    [
        (str, "free text", "free text"),
        (Literal["a", 3], "3", 3),
        (date, '"2024-02-29"', date(2024, 2, 29)),
        (int | None, "null", None),
        (dict[str, int], '{"a": 1}', {"a": 1}),
        (pydantic.TypeAdapter(list[int]), "[1, 2]", [1, 2]),
    ],
)
async def test_a_dtype_of_any_kind(dtype: Any, said: str, value: Any) -> None:
    async with ScriptedRuntime({"x": said}) as rt:
        assert await rt.prompt("x").gen("x", dtype=dtype) == value


@pytest.mark.parametrize("wrong", [{"type": "object"}, "int", 3, print])
def test_what_is_no_dtype(wrong: Any) -> None:
    with pytest.raises(asgl.ConfigError, match="dtype"):
        asgl.gen(dtype=wrong)
