"""What a `gen` may say, and what its text then stands for."""

from __future__ import annotations

import inspect
import json
import math
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, Union, get_args, get_origin

from pydantic import BeforeValidator, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import from_json

from asgl.engine.ticket import Ticket
from asgl.errors import ConfigError, OutputError
from asgl.types import GrammarSource

T = TypeVar("T")
JsonSchema: TypeAlias = Mapping[str, Any]
ValueType: TypeAlias = type[T] | TypeAdapter[T]
"""A type of which a value is generated, or pydantic's adapter of it."""

_INTEGER = " ?-?(0|[1-9][0-9]{0,17})"
_SOURCES: Mapping[type, GrammarSource] = {
    # a space may come first: to models, " 42" after a word is one word more
    int: GrammarSource("regex", _INTEGER, open_end=True),
    float: GrammarSource(
        "regex", _INTEGER + r"(\.[0-9]{0,17})?([eE][+-]?[0-9]{1,2})?", open_end=True
    ),
    bool: GrammarSource("regex", " ?([Tt]rue|[Ff]alse)"),
}


@dataclass(frozen=True)
class Constraint:
    """What the text of a generation must be, and what it is the text of."""

    source: GrammarSource
    parse: Callable[[str], Any] | None = None
    """The value of a text; ValueError if it has none. None: the value is the text."""

    def value(self, ticket: Ticket) -> Any:
        """The value of what was generated. OutputError if it was cut short, or is none of the type
        after all."""
        text, reason = ticket.text, ticket.finish_reason or ""
        # of a number that max_tokens ended nobody knows whether it was the whole one
        if reason == "length" and (
            not ticket.whole or (self.source.open_end and self.source.kind == "regex")
        ):
            raise OutputError(
                f"max_tokens, or the end of the model's context, cut the value short: {text!r}",
                text=text,
                finish_reason=reason,
                partial=partial_value(text) if self.source.kind == "json_schema" else None,
                request_id=ticket.request_id,
            )
        if self.parse is None:
            return text
        try:
            return self.parse(text)
        except ValueError as error:
            raise OutputError(
                f"the text {text!r} is no valid value: {error}",
                text=text,
                finish_reason=reason,
                request_id=ticket.request_id,
            ) from error


def partial_value(text: str) -> Any:
    """The value of the beginning of a JSON text, as far as it goes; None if it has none yet."""
    try:
        return from_json(text, allow_partial="trailing-strings")
    except ValueError:
        return None


def constraint(
    regex: str | None,
    json_schema: object,
    grammar: str | GrammarSource | None,
    choices: Sequence[str] | None,
    dtype: object,
) -> Constraint | None:
    """The one that was asked for, None if none was. ConfigError for several, or for one that is
    none."""
    names = ("regex", "json_schema", "grammar", "choices", "dtype")
    values = (regex, json_schema, grammar, choices, dtype)
    given = [name for name, value in zip(names, values, strict=True) if value is not None]
    if len(given) > 1:
        raise ConfigError(
            f"{' and '.join(given)} were given, of which only one can be: put both into one grammar"
        )
    if regex is not None:
        return Constraint(GrammarSource("regex", _checked_text("regex", regex)))
    if isinstance(grammar, GrammarSource):  # of calls of tools
        return Constraint(grammar)
    if grammar is not None:
        return Constraint(GrammarSource("grammar", _checked_text("grammar", grammar)))
    if choices is not None:
        options = checked_choices(choices)
        # where one option begins another, it is chosen by whatever does not go on with the other
        begins = any(a != b and b.startswith(a) for a in options for b in options)
        return Constraint(GrammarSource("choices", json.dumps(options), open_end=begins))
    if dtype is str:
        return None  # the text itself
    if isinstance(dtype, type) and dtype in _SOURCES:
        return Constraint(_SOURCES[dtype], _boolean if dtype is bool else dtype)
    if dtype is not None:
        if isinstance(dtype, Mapping):
            raise ConfigError("dtype is a type: give a schema as json_schema=")
        return _of_schema(dtype, "dtype")
    return None if json_schema is None else _of_schema(json_schema)


def checked_choices(choices: Sequence[str]) -> tuple[str, ...]:
    """The options as a tuple; ConfigError if there are none, or if one is no text."""
    if isinstance(choices, str | bytes) or not isinstance(choices, Iterable):
        raise ConfigError(f"choices must be a list of strings, not {choices!r}")
    options = tuple(choices)
    if not options:
        raise ConfigError("choices is empty: give at least one option")
    for option in options:
        if not isinstance(option, str) or not option:
            raise ConfigError(f"choices must be strings, none of them empty, not {option!r}")
        _checked_text("an option", option)
    return options


def _of_schema(given: object, what: str = "json_schema") -> Constraint:
    if isinstance(given, Mapping):
        return _of_json(dict(given), None)
    if isinstance(given, type | TypeAdapter):
        return _of_type(given, what)
    # hints that are equal may differ: int | str == str | int
    return _of_type.__wrapped__(given, what)


@lru_cache(maxsize=256)  # to write a schema takes a millisecond
def _of_type(given: Any, what: str) -> Constraint:
    try:
        if isinstance(given, str) or inspect.isroutine(given):
            raise TypeError("it is no type")
        adapter = (
            given if isinstance(given, TypeAdapter) else TypeAdapter(with_member_values(given))
        )
    except Exception as error:  # a type is code, and may raise anything
        raise ConfigError(
            f"{what} must be {'a dict, or ' if what == 'json_schema' else ''}a type that pydantic "
            f"makes from JSON, such as a model, not {given!r}: {first_line(error)}"
        ) from error
    return _of_json(schema_of(adapter, what), adapter.validate_json)


def _of_json(schema: Mapping[str, Any], parse: Callable[[str], Any] | None) -> Constraint:
    try:
        text = json.dumps(schema, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"the JSON schema is no JSON: {error}") from error
    return Constraint(GrammarSource("json_schema", _checked_text("json_schema", text)), parse)


def _checked_text(name: str, value: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{name} must be a string, not {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{name} has a character that no text can have: {error}") from error
    return value


def _boolean(text: str) -> bool:
    word = text.strip().lower()
    if word not in ("true", "false"):
        raise ValueError(f"{word!r} is neither true nor false")
    return word == "true"


# --- types ----------------------------------------------------------------------------------------


def schema_of(adapter: TypeAdapter[Any], what: str, ref: str = "#/$defs/{model}") -> dict[str, Any]:
    """The JSON schema of the type, its references written as `ref` says. ConfigError, which names
    `what`, if no schema can say what the type is."""
    try:
        return adapter.json_schema(schema_generator=_Schemas, ref_template=ref)
    except Exception as error:  # a type may bring a schema of its own, which is code
        raise ConfigError(f"{what} has no JSON schema: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """What an error says, without pydantic's advice on how to go on, which is for its own users."""
    return str(error).partition("\n")[0]


def with_member_values(hint: Any) -> Any:
    """The hint with each `Literal` of enum members taking the members' values too: they are what
    JSON has, and pydantic takes only the members themselves."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        members = [member for member in inner if isinstance(member, Enum)]
        given = BeforeValidator(lambda value: next((m for m in members if m.value == value), value))
        return Annotated[hint, given] if members else hint
    changed = tuple(map(with_member_values, inner))
    if all(one is other for one, other in zip(changed, inner, strict=True)):
        return hint
    if origin is Annotated:
        return Annotated[(changed[0], *hint.__metadata__)]
    return (Union if origin is types.UnionType else origin)[changed]


class _Schemas(GenerateJsonSchema):
    """Pydantic's JSON schemas, saying what pydantic leaves to its validators: a grammar can keep to
    it, and a model cannot guess it."""

    def render_warning_message(self, kind: Any, detail: str) -> None:
        """A default that is no JSON is left out: a program may have one."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Titles repeat the names of the fields, and cost tokens of the prompt."""
        return False

    def default_schema(self, schema: Any) -> JsonSchemaValue:
        told = super().default_schema(schema)
        if isinstance(told.get("default"), float) and not math.isfinite(told["default"]):
            del told["default"]  # no JSON
        return told

    def decimal_schema(self, schema: Any) -> JsonSchemaValue:
        """A number if there are bounds, which no regex can say. Else a string: pydantic reads
        numbers as floats, and digits would be lost."""
        digits, places = schema.get("max_digits"), schema.get("decimal_places")
        if any(bound in schema for bound in ("ge", "gt", "le", "lt", "multiple_of")):
            number = super().decimal_schema(schema)["anyOf"][0]
            # as multipleOf, checkers would compute with floats, and refuse 0.07
            limits = {"x-max-digits": digits, "x-decimal-places": places}
            return {**number, **{key: most for key, most in limits.items() if most is not None}}
        return {"type": "string", "pattern": f"^-?({_decimal(digits, places)})$"}

    def dict_schema(self, schema: Any) -> JsonSchemaValue:
        """Keys of JSON are strings: those that are to be integers must look like them."""
        told = super().dict_schema(schema)
        if schema.get("keys_schema", {}).get("type") == "int":
            values = told.pop("additionalProperties", True)
            told |= {"patternProperties": {"^-?(0|[1-9][0-9]*)$": values}}
            told["additionalProperties"] = False
        return told


def _decimal(digits: int | None, places: int | None) -> str:
    """A regex of decimals of so many digits at most, so many of them after the point."""

    def fraction(most: int) -> str:
        return rf"(\.[0-9]{{1,{most}}})?" if most else ""

    if digits is None:
        return "(0|[1-9][0-9]*)" + (r"(\.[0-9]+)?" if places is None else fraction(places))
    if digits == places:  # to pydantic, 0 before nothing is a digit
        return rf"0\.[0-9]{{1,{places}}}"
    wholes = ["0", *(f"[1-9][0-9]{{{more}}}" for more in range(digits - (places or 0)))]
    return "|".join(
        whole + fraction(digits - count if places is None else places)
        for count, whole in enumerate(wholes)
    )
