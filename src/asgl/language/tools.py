"""Tools: coroutines that a model may call.

    @asgl.tool
    async def weather(city: str, days: int = 1) -> str:
        \"\"\"The weather of the next days.

        Args:
            city: Where.
            days: For how many days.
        \"\"\"

    s.system("Be brief.", tools=[weather])
    s.user("Do I need an umbrella in Lyon?")
    (call,) = await s.call_tools([weather])          # the model calls, the tool runs, its result is appended

A call is JSON of an object with a name and arguments, constrained to the schemas of the tools, so
it is always one that can be made. It is written as the model's own chat template writes calls, if
that knows tools, else as

    the message of the assistant    {"name": "weather", "arguments": {"city": "Lyon"}}
    and after it, for each call     {"name": "weather", "result": "rain"}     or     {"name": "weather", "error": "..."}

the latter in a message of the role "tool", or of the user where the template knows none. With
`parallel` the call is a list of such objects. A stream without messages gets the same as lines of
text.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import re
import types
import typing
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import Enum
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    ParamSpec,
    TypeVar,
    get_args,
    get_origin,
    overload,
)

from asgl.errors import ConfigError

P = ParamSpec("P")
T = TypeVar("T")
Json = dict[str, Any]

_SCALARS: Mapping[Any, Json] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    type(None): {"type": "null"},
    None: {"type": "null"},
    Any: {},
}
_ARGUMENT = re.compile(r"\s{1,4}(\w+)\s*(?:\([^)]*\))?:\s*(.*)")
"""A line of an `Args:` section that begins what is said of an argument."""


class Tool(Generic[P, T]):
    """A coroutine function that a model may call; a program still can, as before. Made by
    `asgl.tool`.

    `schema` is what models are told: {"name", "description", "parameters"}, the parameters as a
    JSON schema.
    """

    def __init__(
        self, function: Callable[P, Awaitable[T]], name: str | None, description: str | None
    ) -> None:
        if not inspect.iscoroutinefunction(function):
            raise ConfigError(
                f"a tool must be a coroutine function: write `async def`, not {function!r}"
            )
        self.function = function
        self.name = name if name is not None else function.__name__
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", self.name):
            raise ConfigError(
                "the name of a tool must be up to 64 letters, digits, '_' and '-', not "
                f"{self.name!r}"
            )
        text, arguments = _documented(inspect.getdoc(function) or "")
        self._parameters = _parameters(function, self.name)
        properties: Json = {}
        self._definitions: Json = {}
        for parameter, hint in self._parameters.items():
            properties[parameter] = schema = self._schema_of(parameter, hint)
            if parameter in arguments and "description" not in schema:
                properties[parameter] = schema | {"description": arguments[parameter]}
        required = [
            name
            for name, one in inspect.signature(function).parameters.items()
            if one.default is one.empty
        ]
        self.schema: Json = {
            "name": self.name,
            "description": description if description is not None else text,
            "parameters": {
                "type": "object",
                "properties": properties,
                "required": required,
                "additionalProperties": False,
            },
        }
        self.__doc__ = function.__doc__

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Tool {self.name}({', '.join(self._parameters)})>"

    @property
    def definitions(self) -> Json:
        """The `$defs` that the schema refers to, under names that are no other tool's."""
        return self._definitions

    def arguments(self, given: Mapping[str, Any]) -> Json:
        """The arguments of a call, from JSON to what the type hints say. ValueError or TypeError if
        they do not fit."""
        unknown = sorted(set(given) - set(self._parameters))
        missing = [name for name in self.schema["parameters"]["required"] if name not in given]
        if unknown or missing:
            raise TypeError(
                f"arguments {', '.join(unknown or missing)} {'unknown' if unknown else 'missing'}"
            )
        return {name: _value(value, self._parameters[name]) for name, value in given.items()}

    def _schema_of(self, parameter: str, hint: Any) -> Json:
        try:
            schema = _schema(hint)
        except TypeError as error:
            raise ConfigError(
                f"the parameter {parameter!r} of the tool {self.name!r}: {error}"
            ) from error
        definitions = schema.pop("$defs", {})
        prefix = f"{self.name}.{parameter}."
        self._definitions |= {
            prefix + name: _renamed(one, prefix) for name, one in definitions.items()
        }
        return _renamed(schema, prefix)


@dataclasses.dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that a model made."""

    tool: Tool[..., Any]
    """The tool that was called."""
    arguments: Mapping[str, Any]
    """As the model wrote them."""
    result: Any = None
    """What the tool returned; None if it failed."""
    error: Exception | None = None
    """What the tool raised, or TimeoutError; the model was told."""


@overload
def tool(function: Callable[P, Awaitable[T]]) -> Tool[P, T]: ...
@overload
def tool(
    *, name: str | None = None, description: str | None = None
) -> Callable[[Callable[P, Awaitable[T]]], Tool[P, T]]: ...
def tool(
    function: Callable[..., Awaitable[Any]] | None = None,
    *,
    name: str | None = None,
    description: str | None = None,
) -> Any:
    """Makes a coroutine function a tool, as a decorator: `@asgl.tool`, or `@asgl.tool(name=...,
    description=...)`.

    Each parameter needs a type hint: str, int, float, bool, None, Any, Literal, an Enum, list and
    dict of these, unions, a pydantic model, or Annotated[type, "what it is"]. What the model is
    told of it comes from the docstring: its text up to the arguments, and what an `Args:` section,
    or `:param name:` lines, say of each. Raises ConfigError for what no schema can say.
    """
    if function is not None:
        return Tool(function, name, description)
    return lambda decorated: Tool(decorated, name, description)


def by_name(tools: Sequence[Tool[..., Any]]) -> dict[str, Tool[..., Any]]:
    """ConfigError if there are none, or two of one name."""
    named = (
        {one.name: one for one in tools if isinstance(one, Tool)}
        if isinstance(tools, Sequence)
        else {}
    )
    if not named or len(named) != len(tools):
        raise ConfigError(
            "tools must be at least one tool, made by @asgl.tool, each with a name of its own, "
            f"not {tools!r}"
        )
    return named


def call_schema(
    tools: Sequence[Tool[..., Any]], name_key: str = "name", arguments_key: str = "arguments"
) -> Json:
    """The JSON schema of a call of one of the tools."""
    calls: list[Json] = [
        {
            "type": "object",
            "properties": {name_key: {"const": one.name}, arguments_key: one.schema["parameters"]},
            "required": [name_key, arguments_key],
            "additionalProperties": False,
        }
        for one in tools
    ]
    schema = calls[0] if len(calls) == 1 else {"anyOf": calls}
    definitions = {name: part for one in tools for name, part in one.definitions.items()}
    return schema | ({"$defs": definitions} if definitions else {})


def list_schema(schema: Json, most: int) -> Json:
    """The JSON schema of a list of at least one of these, and at most so many."""
    items = {key: part for key, part in schema.items() if key != "$defs"}
    listed: Json = {"type": "array", "items": items, "minItems": 1, "maxItems": most}
    return listed | ({"$defs": schema["$defs"]} if "$defs" in schema else {})


def described(tools: Sequence[Tool[..., Any]]) -> str:
    """What a system message tells of the tools where the model's template has no way of its own."""
    lines = [json.dumps(_self_contained(one), ensure_ascii=False) for one in tools]
    return (
        "You can call these tools, each described by a JSON schema:\n"
        + "\n".join(lines)
        + '\nTo call one, write {"name": its name, "arguments": its arguments}.'
    )


def function_schemas(tools: Sequence[Tool[..., Any]]) -> list[Json]:
    """As chat templates expect them."""
    return [{"type": "function", "function": _self_contained(one)} for one in tools]


def result_text(value: Any) -> str:
    """A tool's result for a model: text as it is, anything else as JSON. TypeError if it is
    none."""
    return value if isinstance(value, str) else json.dumps(json_value(value), ensure_ascii=False)


def json_value(value: Any) -> Any:
    """The value as JSON: pydantic models, dataclasses and enums too. TypeError or ValueError if it
    is none."""

    def other(part: Any) -> Any:
        if hasattr(part, "model_dump"):
            return part.model_dump(mode="json")
        if dataclasses.is_dataclass(part) and not isinstance(part, type):
            return dataclasses.asdict(part)
        if isinstance(part, Enum):
            return part.value
        raise TypeError(f"a tool must return JSON, and {part!r} is none")

    return json.loads(json.dumps(value, default=other, allow_nan=False))


# --- signatures -----------------------------------------------------------------------------------


def _self_contained(one: Tool[..., Any]) -> Json:
    if not one.definitions:
        return one.schema
    return one.schema | {"parameters": one.schema["parameters"] | {"$defs": one.definitions}}


def _parameters(function: Callable[..., Any], name: str) -> dict[str, Any]:
    """The type hint of each parameter."""
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception as error:  # a hint is code, and may raise anything
        raise ConfigError(f"the type hints of the tool {name!r} cannot be read: {error}") from error
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ConfigError(
                f"the tool {name!r} has a parameter {str(parameter)!r}, which no schema can say: "
                "name each one"
            )
        if parameter.name not in hints:
            raise ConfigError(
                f"the parameter {parameter.name!r} of the tool {name!r} needs a type hint"
            )
    return {parameter: hints[parameter] for parameter in inspect.signature(function).parameters}


def _schema(hint: Any) -> Json:
    """The JSON schema of a type. TypeError if there is none."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        texts = [extra for extra in inner[1:] if isinstance(extra, str)]
        return _schema(inner[0]) | ({"description": texts[0]} if texts else {})
    if hint in _SCALARS:
        return dict(_SCALARS[hint])
    if origin is Literal:
        return {"enum": list(inner)}
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_schema(one) for one in inner]}
    if hint is list or origin is list:
        return {"type": "array"} | ({"items": _schema(inner[0])} if inner else {})
    if hint is dict or origin is dict:
        if inner and inner[0] is not str:
            raise TypeError(f"the keys of {hint!r} must be str")
        return {"type": "object"} | ({"additionalProperties": _schema(inner[1])} if inner else {})
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {"enum": [json_value(member.value) for member in hint]}
    if isinstance(hint, type) and hasattr(hint, "model_json_schema"):
        return hint.model_json_schema()  # pyright: ignore[reportAttributeAccessIssue]
    raise TypeError(
        f"{hint!r} has no JSON schema; use str, int, float, bool, None, Literal, an Enum, list, "
        "dict, unions of "
        "these, or a pydantic model"
    )


def _value(value: Any, hint: Any) -> Any:
    """The JSON value as the type says. ValueError or TypeError if it is none of it."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _value(value, inner[0])
    if origin in (typing.Union, types.UnionType):
        for one in inner:
            try:
                return _value(value, one)
            except (TypeError, ValueError):
                continue
    elif (hint is list or origin is list) and isinstance(value, list):
        return [_value(one, inner[0]) for one in value] if inner else value
    elif (hint is dict or origin is dict) and isinstance(value, dict):
        return {key: _value(one, inner[1]) for key, one in value.items()} if inner else value
    elif isinstance(hint, type) and issubclass(hint, Enum):
        return hint(value)
    elif isinstance(hint, type) and hasattr(hint, "model_validate"):
        return hint.model_validate(value)  # pyright: ignore[reportAttributeAccessIssue]
    elif (
        hint is Any
        or (origin is Literal and value in inner)
        or (hint in (None, type(None)) and value is None)
    ):
        return value
    elif (
        hint is float
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    ):
        return float(value)
    elif hint in (str, int, bool) and type(value) is hint:
        return value
    raise TypeError(f"{value!r} is not {hint!r}")


def _renamed(schema: Any, prefix: str) -> Any:
    """The schema with its references to definitions under other names."""
    if isinstance(schema, list):
        return [_renamed(part, prefix) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: f"#/$defs/{prefix}{part.removeprefix('#/$defs/')}"
        if key == "$ref" and isinstance(part, str)
        else _renamed(part, prefix)
        for key, part in schema.items()
    }


def _documented(text: str) -> tuple[str, dict[str, str]]:
    """What a docstring says, up to its first section, and what it says of each argument."""
    arguments: dict[str, str] = {}
    lines, name, section = list[str](), "", ""
    for line in text.splitlines():
        if (field := re.match(r":(\w+)\s*([^:]*):\s*(.*)", line)) is not None:
            section, name = (
                "fields",
                field[2].split()[-1] if field[1] == "param" and field[2].split() else "",
            )
            if name:
                arguments[name] = field[3]
        elif re.fullmatch(
            r"(Args|Arguments|Parameters|Returns?|Raises|Yields|Examples?|Notes?):\s*", line
        ):
            section, name = line.rstrip(": "), ""
        elif not section:
            lines.append(line)
        elif section in ("Args", "Arguments", "Parameters") and (entry := _ARGUMENT.match(line)):
            name = entry[1]
            arguments[name] = entry[2]
        elif name and line.strip():
            arguments[name] += " " + line.strip()
        else:
            name = ""
    return " ".join(" ".join(lines).split()), arguments
