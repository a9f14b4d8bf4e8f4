"""Constrained generations from end to end, on a tiny random model that by itself says nothing but
noise."""

from __future__ import annotations

import asyncio
import functools
import json
import random
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, field_validator
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

import asgl
from asgl.scheduling.scheduler import Scheduler
from tiny import tiny_directory

HOT = asgl.SamplingParams(seed=5, temperature=1.3, max_tokens=400)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_directory(tmp_path_factory.mktemp("tiny"))


@asynccontextmanager
async def opened(model: Path, **options: Any) -> AsyncIterator[asgl.Runtime]:
    """A Runtime whose books must balance once nothing runs."""
    settings: dict[str, Any] = {
        "kernels": "reference",
        "dtype": "float32",
        "kv_cache_tokens": 8000,
        "sampling": HOT,
    }
    async with asgl.Runtime(model, **{**settings, **options}) as rt:
        yield rt
        await rt.prompt("x").gen(max_tokens=1)
        seen = rt.statistics()
        assert seen.free + seen.evictable == seen.capacity
        assert seen.running == seen.waiting == 0


class Person(BaseModel):
    name: str = Field(max_length=8)
    age: int = Field(ge=0, le=130)
    tall: bool


def fixed(*names: str) -> dict[str, Any]:
    """A schema of fields that all must come, with values of a letter or two."""
    return {
        "type": "object",
        "properties": {name: {"type": "string", "pattern": "^[a-z]{1,2}$"} for name in names},
        "required": list(names),
    }


# --- random schemas, and what is valid by them


def random_schema(generator: random.Random, depth: int = 0) -> dict[str, Any]:
    kinds = ["string", "pattern", "integer", "number", "boolean", "null", "enum", "const"]
    kind = generator.choice(kinds + ["object", "object", "array", "anyOf"] * (depth < 3))
    if kind == "string":
        low = generator.randint(0, 3)
        return {"type": "string", "minLength": low, "maxLength": low + generator.randint(0, 6)}
    if kind == "pattern":
        return {
            "type": "string",
            "pattern": generator.choice(["^[a-c]{2,4}$", "^(x|yz)+[0-9]$", "^[A-Z][a-z]{0,5}$"]),
        }
    if kind in ("integer", "number"):
        low = generator.randint(-500, 500)
        return {"type": kind, "minimum": low, "maximum": low + generator.randint(0, 1000)}
    if kind in ("boolean", "null"):
        return {"type": kind}
    if kind == "enum":
        return {
            "enum": generator.sample(
                ["a", "two words", 'q"uote', "é", 1, -7, True, None, "a b"], generator.randint(1, 4)
            )
        }
    if kind == "const":
        return {"const": generator.choice(["fixed", 42, False, "\n"])}
    if kind == "array":
        low = generator.randint(0, 2)
        return {
            "type": "array",
            "items": random_schema(generator, depth + 1),
            "minItems": low,
            "maxItems": low + 2,
        }
    if kind == "anyOf":
        return {
            "anyOf": [random_schema(generator, depth + 1) for _ in range(generator.randint(1, 3))]
        }
    names = generator.sample(
        ["name", "age", "x", "long property", "ü", "the end", 'a"b'], generator.randint(0, 4)
    )
    return {
        "type": "object",
        "properties": {name: random_schema(generator, depth + 1) for name in names},
        "required": [name for name in names if generator.random() < 0.7],
        **({"additionalProperties": False} if generator.random() < 0.5 else {}),
    }


def is_valid(value: Any, schema: dict[str, Any]) -> bool:
    """By the words of the JSON schema specification, for what `random_schema` makes."""
    if "anyOf" in schema:
        return any(is_valid(value, part) for part in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        options = schema["enum"] if "enum" in schema else [schema["const"]]
        return any(type(value) is type(option) and value == option for option in options)
    kind = schema["type"]
    if kind == "string":
        return isinstance(value, str) and (
            re.search(schema["pattern"], value) is not None
            if "pattern" in schema
            else schema["minLength"] <= len(value) <= schema["maxLength"]
        )
    if kind in ("integer", "number"):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return (
            number
            and (kind == "number" or value == int(value))
            and schema["minimum"] <= value <= schema["maximum"]
        )
    if kind in ("boolean", "null"):
        return isinstance(value, bool) if kind == "boolean" else value is None
    if kind == "array":
        return (
            isinstance(value, list)
            and schema["minItems"] <= len(value) <= schema["maxItems"]
            and all(is_valid(item, schema["items"]) for item in value)
        )
    return (
        isinstance(value, dict)
        and set(schema["required"]) <= set(value) <= set(schema["properties"])
        and all(is_valid(item, schema["properties"][name]) for name, item in value.items())
    )


async def outcomes(
    rt: asgl.Runtime, settings: list[dict[str, Any]]
) -> list[str | asgl.OutputError]:
    """The texts of generations that run side by side, or how they were cut short."""

    async def one(number: int, options: dict[str, Any]) -> str | asgl.OutputError:
        try:
            return await rt.prompt(f"{number}: ").gen(**options, seed=number)
        except asgl.OutputError as error:
            return error

    return list(
        await asyncio.gather(*(one(number, options) for number, options in enumerate(settings)))
    )


async def test_two_hundred_random_schemas_never_give_an_invalid_output(model: Path) -> None:
    generator = random.Random(1)
    schemas = [random_schema(generator) for _ in range(200)]
    async with opened(model) as rt:
        found = await outcomes(rt, [{"json_schema": schema} for schema in schemas])
        assert rt.statistics().forced_tokens > 1000
    for schema, text in zip(schemas, found, strict=True):
        if isinstance(text, str):
            assert is_valid(json.loads(text), schema), (schema, text)
        else:
            assert text.finish_reason == "length"
    assert sum(isinstance(text, str) for text in found) >= 180


def random_regex(generator: random.Random, depth: int = 0) -> str:
    kind = generator.choice(
        ["literal", "class", "any"]
        if depth > 2
        else ["literal", "class", "sequence", "either", "repeat"]
    )
    if kind == "literal":
        text = "".join(
            generator.choice("abcXYZ019_-.+* é中😀") for _ in range(generator.randint(1, 4))
        )
        return re.escape(text).replace(r"\ ", " ")
    if kind == "class":
        return generator.choice(["[a-f]", "[0-9]", "[^a-z]", "[éa😀]", "[A-Za-z_]", r"[\]\-x]"])
    if kind == "any":
        return "."
    parts = [random_regex(generator, depth + 1) for _ in range(generator.randint(1, 3))]
    if kind == "sequence":
        return "".join(f"({part})" for part in parts)
    if kind == "either":
        return f"({'|'.join(parts)})"
    return f"({parts[0]})" + generator.choice(["?", "{2}", "{1,3}", "{0,4}"])


async def test_fifty_random_regexes_never_give_an_invalid_output(model: Path) -> None:
    generator = random.Random(2)
    patterns = [random_regex(generator) for _ in range(50)]
    async with opened(model) as rt:
        found = await outcomes(rt, [{"regex": pattern} for pattern in patterns])
    for pattern, text in zip(patterns, found, strict=True):
        assert isinstance(text, str), pattern
        assert re.fullmatch(pattern, text), (pattern, text)


# --- jump-forward


async def test_jumping_forward_changes_nothing_but_the_number_of_steps(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run(jump: bool) -> tuple[list[list[int]], list[str], int, int]:
        made = functools.partial(Scheduler, jump_forward=jump)
        monkeypatch.setattr("asgl.runtime.Scheduler", made)
        async with opened(model) as rt:
            schema = fixed("first name", "last name", "the street", "city", "country")
            handles = [
                rt.prompt("Fill in: ").gen(json_schema=schema, seed=number) for number in range(6)
            ]
            texts = [await handle for handle in handles]
            seen = rt.statistics()
            return [handle.token_ids for handle in handles], texts, seen.steps, seen.forced_tokens

    ids, texts, steps, forced = await run(True)
    plain_ids, plain_texts, plain_steps, none = await run(False)
    assert texts == plain_texts
    assert ids == plain_ids
    assert none == 0
    assert forced > sum(map(len, ids)) / 2
    assert plain_steps >= 1.6 * steps


async def test_forced_text_has_the_tokens_that_it_would_have_in_a_prompt(model: Path) -> None:
    async with opened(model) as rt:
        handle = rt.prompt("x").gen(json_schema={"const": "the other and you and the rest"})
        text = await handle
        assert handle.token_ids == rt.tokenizer.encode(text)
        assert handle.finish_reason == "grammar"


# --- side by side with everything else


async def test_constrained_and_free_generations_share_steps(model: Path) -> None:
    async with opened(model, kv_cache_tokens=300) as rt:  # too small for all: some are retracted
        rt._running.engine.scheduler.admission.reserve_share = (
            0.1  # as after a long time without a retraction
        )
        handles = []
        for number in range(12):
            s = rt.prompt(f"Number {number}: ")
            free = {"max_tokens": 60, "ignore_eos": True}
            bound = {"regex": "[a-z]{40}", "max_tokens": 100}
            handles.append(s.gen("x", **(bound if number % 2 else free), seed=number))
        texts = [await handle for handle in handles]
        assert rt.statistics().retractions > 0
        assert all(re.fullmatch("[a-z]{40}", text) for text in texts[1::2])
        assert all(len(handle.token_ids) == 60 for handle in handles[::2])


async def test_branches_and_samples_each_have_a_place_of_their_own_in_one_grammar(
    model: Path,
) -> None:
    async with opened(model) as rt:
        s = rt.prompt("Codes: ")
        async with s.fork(8) as branches:
            for branch in branches:
                branch.gen("code", regex="code-[a-z]{3}-[0-9]{2}")
        codes = branches.gather("code")
        assert all(re.fullmatch("code-[a-z]{3}-[0-9]{2}", code) for code in codes)
        assert len(set(codes)) == 8
        numbers = await s.sample("numbers", n=4, dtype=int)
        assert all(type(number) is int for number in numbers)
        assert s["numbers"] == numbers


async def test_a_fork_goes_on_from_a_constrained_text_that_is_cached(model: Path) -> None:
    async with opened(model) as rt:
        s = rt.prompt("A: ")
        await s.gen("a", json_schema=fixed("one", "two", "three"))
        async with s.fork(2) as branches:
            handles = [branch.gen("b", regex="[xy]{5}") for branch in branches]
        for handle in handles:
            assert re.fullmatch("[xy]{5}", handle.text)
            assert (handle.cached_tokens or 0) > 30


async def test_cancelled_at_any_time_the_books_balance(model: Path) -> None:
    async with opened(model) as rt:
        for turns in (0, 1, 3, 7, 20, 50):
            handle = rt.prompt("x").gen(json_schema=fixed("first", "second", "third"))
            for _ in range(turns):
                await asyncio.sleep(0)
            handle.cancel()


# --- values


async def test_values_are_of_the_type_that_was_asked_for(model: Path) -> None:
    async with opened(model) as rt:
        s = rt.prompt("n = ")
        number = await s.gen("int", dtype=int, temperature=0.5)
        assert type(number) is int
        handle = s.gen("float", dtype=float)
        assert type(await handle) is float
        assert float(handle.text) == s["float"]
        assert (await s.gen("bool", dtype=bool)) in (True, False)
        choice = await s.gen("choice", choices=["yes", "no", "yes please"])
        assert choice in ("yes", "no", "yes please")
        person = await s.gen("person", json_schema=Person)
        assert type(person) is Person
        assert s["person"] is person
        assert Person.model_validate_json("{" + s.text.rpartition("{")[2]) == person
        assert s.text.startswith(f"n = {'' if s.text[4] != ' ' else ' '}{number}")
        calculation = await s.gen(grammar='start: N ("+" N)*\nN: /[0-9]/', max_tokens=20)
        assert eval(calculation) >= 0


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Movie(TypedDict):
    title: Literal["M", "Z"]
    year: Annotated[int, Field(ge=1900, le=2000)]


@dataclass
class Place:
    city: Literal["Lyon", "Oslo"]
    at: tuple[Annotated[int, Field(ge=0, lt=90)], bool] | None = None


class Tight(BaseModel):
    model_config = ConfigDict(strict=True)
    color: Color
    place: Place
    price: Decimal = Field(max_digits=4, decimal_places=2)
    share: Decimal = Field(ge=0, le=1, decimal_places=2)


TYPES: list[tuple[Any, type]] = [
    (list[Annotated[int, Field(ge=0, le=9)]], list),
    (Annotated[list[Movie], Field(min_length=1, max_length=2)], list),
    (Movie, dict),
    (Place, Place),
    (Tight, Tight),
    (TypeAdapter(Annotated[list[Place], Field(max_length=1)]), list),
    (Color, Color),
    (Literal[Color.RED], Color),
    (Literal["yes", "no"] | bool, object),
    (Color | None, object),
    (Annotated[Decimal, Field(max_digits=6)], Decimal),
    (UUID, UUID),
]


async def test_a_value_is_of_any_type_that_pydantic_makes_of_json(model: Path) -> None:
    async with opened(model) as rt:
        asked = [
            (kind, is_a, rt.prompt(f"{seed}").gen("v", json_schema=kind, seed=seed))
            for kind, is_a in TYPES
            for seed in range(4)
        ]
        values = [await handle for _, _, handle in asked]
    for (kind, is_a, handle), value in zip(asked, values, strict=True):
        assert isinstance(value, is_a), (kind, handle.text)
        if kind != Literal[Color.RED]:  # pydantic takes the member alone, and JSON has none
            oracle = kind if isinstance(kind, TypeAdapter) else TypeAdapter(kind)
            assert value == oracle.validate_json(handle.text)


class Opaque: ...


@pytest.mark.parametrize("kind", [Opaque, 3, "Person", len, lambda: 1, Color.RED, "{}", b"", []])
def test_what_no_value_can_be_made_of_is_refused_at_the_call(kind: Any) -> None:
    with pytest.raises(asgl.ConfigError, match="json_schema must be a dict, or a type"):
        asgl.gen(json_schema=kind)


def test_a_type_without_a_schema_is_refused_at_the_call() -> None:
    with pytest.raises(asgl.ConfigError, match="json_schema has no JSON schema"):
        asgl.gen(json_schema=Callable[[int], int])


async def test_a_number_ends_where_something_else_begins(model: Path) -> None:
    async with opened(model) as rt:
        streams = [rt.prompt(f"{number} apples: ") for number in range(30)]
        handles = [s.gen(dtype=int, seed=number) for number, s in enumerate(streams)]
        for s, handle in zip(streams, handles, strict=True):
            value = await handle
            assert re.fullmatch(r" ?-?(0|[1-9][0-9]{0,17})", handle.text)
            assert value == int(handle.text)
            assert handle.finish_reason in ("grammar", "eos")
            assert s.text.endswith(handle.text)  # what ended it is no part of it


async def test_a_value_that_is_cut_short_is_an_error_that_has_the_text(model: Path) -> None:
    async with opened(model) as rt:
        s = rt.prompt("x: ")
        for options, text in (
            ({"json_schema": Person}, r'\{"name": "'),
            ({"regex": "abc[d-f]{50}"}, "abc[d-f]*"),
            ({"dtype": int, "logit_bias": {ord("7"): 1000.0}}, "7+"),
        ):
            with pytest.raises(asgl.OutputError, match="cut the value short") as caught:
                await s.gen("v", **options, max_tokens=12)
            assert re.match(text, caught.value.text)
            assert caught.value.finish_reason == "length"
            assert (s.text, "v" in s) == ("x: ", False)
        whole = s.gen(regex="[a-z]*", max_tokens=3, min_tokens=3)  # wherever it ends
        assert re.fullmatch("[a-z]+", await whole)
        assert len(whole.token_ids) == 3


async def test_a_value_that_a_model_class_refuses_is_tried_again(model: Path) -> None:
    class Even(BaseModel):
        n: int = Field(ge=0, le=9)

        @field_validator("n")
        @classmethod
        def even(cls, n: int) -> int:
            if n % 2:
                raise ValueError("odd")
            return n

    async with opened(model) as rt:
        found = [
            await rt.prompt("x").gen(json_schema=Even, seed=number, retries=30)
            for number in range(5)
        ]
        assert all(value.n % 2 == 0 for value in found)
        with pytest.raises(asgl.OutputError, match="odd"):
            for number in range(30):
                await rt.prompt("x").gen(json_schema=Even, seed=number)


# --- with the rest of the language


async def test_streaming_gives_the_whole_text(model: Path) -> None:
    async with opened(model) as rt:
        handle = rt.prompt("x").gen(json_schema=fixed("first", "second"))
        pieces = [piece async for piece in handle]
        assert len(pieces) > 2
        assert "".join(pieces) == handle.text == await handle


async def test_a_stop_ends_it_before_its_end(model: Path) -> None:
    async with opened(model) as rt:
        s = rt.prompt("x")
        handle = s.gen(json_schema=fixed("first", "second"), stop='", "sec')
        text = await handle
        assert re.fullmatch(r'\{"first": "[a-z]{1,2}', text)
        assert (handle.finish_reason, handle.matched_stop) == ("stop", '", "sec')
        assert s.text == "x" + text
        assert rt.tokenizer.decode(s.token_ids) == s.text


async def test_log_probabilities_of_all_tokens_the_forced_ones_too(model: Path) -> None:
    async with opened(model) as rt:
        plain, asking = (rt.prompt("x").gen(json_schema=fixed("first"), logprobs=k) for k in (0, 3))
        assert await plain == await asking
        assert asking.token_ids == plain.token_ids
        logprobs = asking.logprobs or []
        assert [entry.token_id for entry in logprobs] == asking.token_ids
        assert all(entry.logprob < 0 and len(entry.top) == 3 for entry in logprobs)
        # of the model itself: a select over the same text, which knows of no grammar, sees the same
        check = rt.prompt("x").select(None, [asking.text], method="sum")
        await check
        if rt.tokenizer.encode(asking.text) == asking.token_ids:
            assert check.token_logprobs is not None
            assert [entry.logprob for entry in logprobs] == pytest.approx(
                check.token_logprobs[0], abs=1e-3
            )


async def test_in_a_message_the_end_of_turn_comes_only_where_the_text_may_end(model: Path) -> None:
    async with opened(model) as rt:
        s = rt.prompt()
        s.user("A code?")
        with s.role("assistant"):
            await s.gen("code", regex="[a-z]{12}([0-9]{1,9})?", min_tokens=20)
        assert re.fullmatch("[a-z]{12}([0-9]{1,9})?", s["code"])
        assert s.messages()[-1] == {"role": "assistant", "content": s["code"]}


async def test_ignore_eos_goes_on_as_long_as_the_grammar_does(model: Path) -> None:
    async with opened(model) as rt:
        handle = rt.prompt("x").gen(regex="[a-z]{1,30}", ignore_eos=True)
        await handle
        assert (len(handle.text), handle.finish_reason) == (30, "grammar")


async def test_greedy_and_penalised(model: Path) -> None:
    async with opened(model) as rt:
        await rt.prompt("x").gen(regex="[abc]{8}", temperature=0)
        text = await rt.prompt("x").gen(regex="[abc]{3}", temperature=0, presence_penalty=100.0)
        assert sorted(text) == ["a", "b", "c"]
        text = await rt.prompt("x").gen(choices=["aaa", "bbb"], logit_bias={ord("b"): 100.0})
        assert text == "bbb"


# --- failures


@pytest.mark.parametrize(
    "options", [{"regex": "a(b"}, {"json_schema": {"type": "strin"}}, {"grammar": "start: x"}]
)
async def test_what_does_not_compile_fails_at_the_await_and_leaves_the_stream_as_it_was(
    model: Path, options: Any
) -> None:
    async with opened(model) as rt:
        s = rt.prompt("x")
        with pytest.raises(asgl.GrammarError, match="does not compile"):
            await s.gen("v", **options)
        assert s.text == "x"
        assert await s.gen("v", regex="ok") == "ok"


async def test_a_slow_compilation_does_not_hold_up_the_loop(model: Path) -> None:
    slow = {"enum": [f"option {number * 7919 % 30011}" for number in range(30000)]}
    async with opened(model) as rt:
        await rt.prompt("x").gen(regex="a")
        handle = rt.prompt("x").gen(json_schema=slow, max_tokens=5)
        others = 0
        while not handle.done():  # the loop goes round, and others generate, while it compiles
            assert await rt.prompt("y").gen(regex="[ab]") in ("a", "b")
            others += 1
        assert others > 1
        with pytest.raises(asgl.OutputError):
            await handle


async def test_cancelled_while_it_compiles(model: Path) -> None:
    async with opened(model) as rt:
        s = rt.prompt("x")
        handle = s.gen(regex="[0-9a-f]{3}")
        await asyncio.sleep(0)
        handle.cancel()
        with pytest.raises(asgl.OpCancelledError):
            await handle
        assert re.fullmatch("[0-9a-f]{3}", await s.gen(regex="[0-9a-f]{3}"))


def test_an_option_that_begins_another_may_end() -> None:
    """With " Paris" and " Paris Hilton", what does not go on with " Hilton" ends " Paris"."""
    assert asgl.gen(choices=[" Paris", " Paris Hilton"]).constraint.source.open_end
    assert not asgl.gen(choices=["yes", "no", "no"]).constraint.source.open_end
