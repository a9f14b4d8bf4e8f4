"""Tools: functions that a model may call.

    @asgl.tool
    async def weather(city: str, days: int = 1) -> str:
        \"\"\"The weather of the next days.

        Args:
            city: Where.
            days: For how many days.
        \"\"\"

    s.system("Be brief.", tools=[weather])
    s.user("Do I need an umbrella in Lyon?")
    (call,) = await s.call_tools([weather])     # the model calls, the tool runs and is answered

A call is JSON of an object with a name and arguments, constrained to the schemas of the tools, so
it is always one that can be made. It is written as the model's own chat template writes calls, if
that knows tools, else as

    the message of the assistant    {"name": "weather", "arguments": {"city": "Lyon"}}
    and after it, for each call     {"name": "weather", "result": "rain"}
                              or    {"name": "weather", "error": "..."}

the last two in a message of the role "tool", or of the user where the template knows none. With
`parallel` the call is a list of such objects. A stream without messages gets the same as lines of
text.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import json
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import (
    Annotated,
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    Self,
    TypeVar,
    get_args,
    get_origin,
    overload,
)

import anyio.to_thread
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from asgl.errors import ConfigError
from asgl.language.constraint import first_line, schema_of, with_member_values

P = ParamSpec("P")
Q = ParamSpec("Q")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
OwnerT = TypeVar("OwnerT")
Json = dict[str, Any]

_SECTION = re.compile(
    r"^(?=:\w+[^:\n]*:|(?:Args|Arguments|Parameters|Returns?|Raises|Yields|Examples?|Notes?):\s*$)",
    re.MULTILINE,
)
"""Where a section of a docstring begins, or a field such as `:param name:`."""
_ARGUMENT = re.compile(r"^[ \t]{1,4}(\w+)\s*(?:\([^)]*\))?:", re.MULTILINE)
"""What a text on an argument begins with, in an `Args:` section."""


class AnyTool:
    """A tool, whatever its function takes and gives: see `Tool`."""

    name: str
    """What models call it by."""
    schema: Json
    """What models are told of it: {"name", "description", "parameters"}."""
    function: Callable[..., Any]
    """The function itself."""

    async def run(self, arguments: Mapping[str, Any]) -> Any:
        """Calls the function with the arguments of a call, as JSON; a plain function in a thread.
        ValueError or TypeError if they do not fit, else whatever it raises."""
        raise NotImplementedError


class Tool(AnyTool, Generic[P, T_co]):
    """A function that a model may call; a program still can, as before. Made by `asgl.tool`.

    `schema` is what models are told: {"name", "description", "parameters"}, the parameters as a
    JSON schema.
    """

    function: Callable[P, T_co]
    """The function itself."""

    def __init__(
        self, function: Callable[P, T_co], name: str | None, description: str | None
    ) -> None:
        if not (inspect.isroutine(function) or isinstance(function, functools.partial)):
            raise ConfigError(f"a tool must be a function, not {function!r}")
        written, fixed = _written(function)
        self.function = function
        self.name = name if name is not None else written.__name__
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", self.name):
            raise ConfigError(
                "the name of a tool must be up to 64 letters, digits, '_' and '-', not "
                f"{self.name!r}"
            )
        what = f"the tool {self.name!r}"
        text, told = _documented(inspect.getdoc(written) or "")
        self._signature = inspect.signature(function)
        open_ones = [one for name, one in self._signature.parameters.items() if name not in fixed]
        self._is_method = _is_method(written, open_ones)
        if self._is_method:
            del open_ones[0]
        self._parameters = _hinted(open_ones, written, what)
        self._arguments = _adapter(self._parameters, told, what)
        self.schema: Json = {
            "name": self.name,
            "description": description if description is not None else text,
            "parameters": schema_of(self._arguments, what, f"#/$defs/{self.name}.{{model}}"),
        }
        parameters = self.schema["parameters"]
        if "$defs" in parameters:  # under names that are no other tool's
            parameters["$defs"] = {
                f"{self.name}.{model}": part for model, part in parameters["$defs"].items()
            }
        self.__doc__ = written.__doc__

    @overload
    def __get__(self, instance: None, owner: type, /) -> Self: ...
    @overload
    def __get__(
        self: Tool[Concatenate[OwnerT, Q], T], instance: OwnerT, owner: type | None = None, /
    ) -> Tool[Q, T]: ...
    @overload
    def __get__(self, instance: object, owner: type | None = None, /) -> Self: ...
    def __get__(self, instance: object, owner: type | None = None, /) -> Any:
        """A tool that was written as a method, of an instance."""
        if instance is None or not self._is_method:
            return self
        bound = copy.copy(self)
        bound.function = self.function.__get__(instance, owner)
        bound._signature = inspect.signature(bound.function)
        bound._is_method = False
        return bound

    def __eq__(self, other: object) -> bool:
        """Tools of one function are equal, as its bound methods are."""
        if not isinstance(other, Tool):
            return NotImplemented
        return (self.name, self.function) == (other.name, other.function)

    def __hash__(self) -> int:
        return hash((self.name, self.function))

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T_co:
        given = self._signature.bind_partial(*args, **kwargs).arguments
        for one in self._parameters:
            if isinstance(one.default, FieldInfo) and one.name not in given:
                if one.default.is_required():
                    raise TypeError(f"the tool {self.name!r} needs the argument {one.name!r}")
                kwargs[one.name] = one.default.get_default(
                    call_default_factory=True, validated_data=given
                )
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Tool {self.name}({', '.join(one.name for one in self._parameters)})>"

    async def run(self, arguments: Mapping[str, Any]) -> Any:
        call: Any = functools.partial(self.function, **self.arguments(arguments))
        if inspect.iscoroutinefunction(self.function):
            return await call()
        result = await anyio.to_thread.run_sync(call, abandon_on_cancel=True)
        return await result if inspect.isawaitable(result) else result

    def arguments(self, given: Mapping[str, Any]) -> Json:
        """The arguments of a call, from JSON to what the type hints say, with the defaults of those
        that are not given. ValueError or TypeError if they do not fit."""
        try:
            return self._arguments.validate_json(json.dumps(dict(given), allow_nan=False))
        except ValidationError as error:
            wrong = error.errors(include_url=False, include_context=False, include_input=False)
            raise ValueError(
                "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in wrong)
            ) from error


@dataclasses.dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that a model made."""

    tool: AnyTool
    """The tool that was called."""
    arguments: Mapping[str, Any]
    """As the model wrote them."""
    result: Any = None
    """What the tool returned; None if it failed."""
    error: Exception | None = None
    """What the tool raised, or TimeoutError; the model was told."""


@overload
def tool(
    function: Callable[P, T], *, name: str | None = None, description: str | None = None
) -> Tool[P, T]: ...
@overload
def tool(
    *, name: str | None = None, description: str | None = None
) -> Callable[[Callable[P, T]], Tool[P, T]]: ...
def tool(
    function: Callable[..., Any] | None = None,
    *,
    name: str | None = None,
    description: str | None = None,
) -> Any:
    """Makes a function a tool, as a decorator: `@asgl.tool`, or `@asgl.tool(name=...,
    description=...)`. What a model calls runs as a coroutine if it is one, else in a thread, where
    it goes on to its end if the call is cancelled or timed out. In a class it may be a method.

    Each parameter needs a type hint, of any type that pydantic makes of JSON, with what pydantic's
    `Field` says of it. What the model is told of it is `Field(description=...)`, or the text in
    Annotated[type, "what it is"], or comes from the docstring: its text up to the arguments, and
    what an `Args:` section, or `:param name:` lines, say of each. What a `functools.partial` gives
    by keyword is not the model's to say. Raises ConfigError for what no schema can say.
    """
    if function is not None:
        return Tool(function, name, description)
    return lambda decorated: Tool(decorated, name, description)


def by_name(tools: Sequence[AnyTool]) -> dict[str, AnyTool]:
    """ConfigError if there are none, or two of one name."""
    named = (
        {one.name: one for one in tools if isinstance(one, AnyTool)}
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
    tools: Sequence[AnyTool], name_key: str = "name", arguments_key: str = "arguments"
) -> Json:
    """The JSON schema of a call of one of the tools."""
    calls, definitions = list[Json](), Json()
    for one in tools:
        parameters = dict(one.schema["parameters"])
        definitions |= parameters.pop("$defs", {})
        calls.append(
            {
                "type": "object",
                "properties": {name_key: {"const": one.name}, arguments_key: parameters},
                "required": [name_key, arguments_key],
                "additionalProperties": False,
            }
        )
    schema = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return schema | ({"$defs": definitions} if definitions else {})


def list_schema(schema: Json, most: int) -> Json:
    """The JSON schema of a list of at least one of these, and at most so many."""
    items = {key: part for key, part in schema.items() if key != "$defs"}
    listed: Json = {"type": "array", "items": items, "minItems": 1, "maxItems": most}
    return listed | ({"$defs": schema["$defs"]} if "$defs" in schema else {})


def described(tools: Sequence[AnyTool]) -> str:
    """What a system message tells of the tools where the model's template has no way of its own."""
    lines = [json.dumps(one.schema, ensure_ascii=False) for one in tools]
    return (
        "You can call these tools, each described by a JSON schema:\n"
        + "\n".join(lines)
        + '\nTo call one, write {"name": its name, "arguments": its arguments}.'
    )


def function_schemas(tools: Sequence[AnyTool]) -> list[Json]:
    """As chat templates expect them."""
    return [{"type": "function", "function": one.schema} for one in tools]


def result_text(value: Any) -> str:
    """A tool's result for a model: text as it is, anything else as JSON. ValueError if it is
    none."""
    return value if isinstance(value, str) else json.dumps(json_value(value), ensure_ascii=False)


def json_value(value: Any) -> Any:
    """The value as JSON, as pydantic writes it: models, dataclasses, enums and dates too.
    ValueError if it is none."""
    return json.loads(json.dumps(to_jsonable_python(value), allow_nan=False))


# --- signatures -----------------------------------------------------------------------------------


def _written(function: Callable[..., Any]) -> tuple[Callable[..., Any], set[str]]:
    """The function as it was written, and the arguments that a partial of it fixes by keyword."""
    fixed = set[str]()
    while isinstance(function, functools.partial):
        fixed |= function.keywords.keys()
        function = function.func
    return function, fixed


def _is_method(written: Callable[..., Any], parameters: Sequence[inspect.Parameter]) -> bool:
    """Whether the function was written in the body of a class, with an instance as its first
    parameter, and is not bound to one yet."""
    enclosing = getattr(written, "__qualname__", "").rpartition(".")[0]
    if inspect.ismethod(written) or not enclosing or enclosing.endswith("<locals>"):
        return False
    return bool(parameters) and parameters[0].name == "self"


def _hinted(
    parameters: Sequence[inspect.Parameter], written: Callable[..., Any], what: str
) -> list[inspect.Parameter]:
    """The parameters as a model gives them, by keyword, each with its type hint."""
    try:
        hints = typing.get_type_hints(written, include_extras=True)
    except Exception as error:  # a hint is code, and may raise anything
        raise ConfigError(f"the type hints of {what} cannot be read: {error}") from error
    for one in parameters:
        if one.kind not in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY):
            raise ConfigError(
                f"{what} has a parameter {str(one)!r}, which no schema can say: name each one"
            )
        if one.name not in hints:
            raise ConfigError(f"the parameter {one.name!r} of {what} needs a type hint")
    return [one.replace(kind=one.KEYWORD_ONLY, annotation=hints[one.name]) for one in parameters]


def _adapter(
    parameters: Sequence[inspect.Parameter], told: Mapping[str, str], what: str
) -> TypeAdapter[Json]:
    """Makes the arguments of a call from JSON."""

    def arguments(**given: Any) -> Json:
        return given

    stand_in: Any = arguments  # pydantic calls it with what it made of the JSON
    stand_in.__signature__ = inspect.Signature(parameters)
    try:
        stand_in.__annotations__ = {
            one.name: _annotation(one.annotation, told.get(one.name)) for one in parameters
        }
        return TypeAdapter(stand_in, config=ConfigDict(strict=True))
    except Exception as error:  # a type is code, and may raise anything
        raise ConfigError(f"{what}: {first_line(error)}") from error


def _annotation(hint: Any, told: str | None) -> Any:
    """The hint with what a text in it, or else the docstring, tells of the parameter."""
    hint = with_member_values(hint)
    base, *extras = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    texts = [extra for extra in extras if isinstance(extra, str)]
    # the first in order, so that another Field overrides it
    return Annotated[(base, Field(description=texts[0] if texts else told), *extras)]


def _documented(text: str) -> tuple[str, dict[str, str]]:
    """What a docstring says up to its first section, and what it says of each argument."""
    first, *sections = _SECTION.split(text)
    told: dict[str, str] = {}
    for section in sections:
        if field := re.match(r":param\s+(?:[^:]*\s)?(\w+)\s*:", section):
            told[field[1]] = section[field.end() :]
        elif section.startswith(("Args:", "Arguments:", "Parameters:")):
            _, *entries = _ARGUMENT.split(section)
            told |= zip(entries[::2], entries[1::2], strict=True)
    paragraphs = {name: re.split(r"\n\s*\n", part)[0] for name, part in told.items()}
    return " ".join(first.split()), {
        name: " ".join(part.split()) for name, part in paragraphs.items()
    }
