"""What a `gen` may say, and what its text then stands for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeAlias

from asgl.engine.ticket import Ticket
from asgl.errors import ConfigError, OutputError
from asgl.types import GrammarSource


class JsonModel(Protocol):
    """A pydantic model, or a class that can do the same."""

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]: ...

    @classmethod
    def model_validate_json(cls, json_data: str) -> Self: ...


JsonSchema: TypeAlias = Mapping[str, Any]

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
        if reason == "length" and (self.source.open_end or not ticket.whole):
            raise OutputError(
                f"max_tokens, or the end of the model's context, cut the value short: {text!r}",
                text=text,
                finish_reason=reason,
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


def constraint(
    regex: str | None,
    json_schema: JsonSchema | type[JsonModel] | None,
    grammar: str | None,
    choices: Sequence[str] | None,
    dtype: type | None,
) -> Constraint | None:
    """The one that was asked for, None if none was. ConfigError for several, or for one that is
    none."""
    given = [
        name
        for name, value in (
            ("regex", regex),
            ("json_schema", json_schema),
            ("grammar", grammar),
            ("choices", choices),
            ("dtype", dtype),
        )
        if value is not None
    ]
    if len(given) > 1:
        raise ConfigError(
            f"{' and '.join(given)} were given, of which only one can be: put both into one grammar"
        )
    if regex is not None:
        return Constraint(GrammarSource("regex", _checked_text("regex", regex)))
    if grammar is not None:
        return Constraint(GrammarSource("grammar", _checked_text("grammar", grammar)))
    if choices is not None:
        return Constraint(GrammarSource("choices", json.dumps(checked_choices(choices))))
    if dtype is not None:
        if dtype not in _SOURCES:
            raise ConfigError(f"dtype must be int, float or bool, not {dtype!r}")
        return Constraint(_SOURCES[dtype], _boolean if dtype is bool else dtype)
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


def _of_schema(given: JsonSchema | type[JsonModel]) -> Constraint:
    parse: Callable[[str], Any] | None = None
    schema: Any = given
    if isinstance(given, type):
        if not hasattr(given, "model_json_schema") or not hasattr(given, "model_validate_json"):
            raise ConfigError(
                f"json_schema must be a dict or a pydantic model class, not {given!r}"
            )
        parse = given.model_validate_json
        try:
            schema = given.model_json_schema()
        except Exception as error:  # of pydantic's own kind, which is not imported here
            raise ConfigError(f"{given.__name__} has no JSON schema: {error}") from error
    elif not isinstance(given, Mapping):
        raise ConfigError(f"json_schema must be a dict or a pydantic model class, not {given!r}")
    try:
        text = json.dumps(
            schema if parse is not None else dict(schema), allow_nan=False, ensure_ascii=False
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(f"the JSON schema is no JSON: {error}") from error
    _checked_text("json_schema", text)
    return Constraint(GrammarSource("json_schema", text), parse)


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
