"""Ops as values: what a program asks of a prompt stream. Bad arguments raise ConfigError here,
before anything is queued.

An op says nothing about a stream: it can be kept, added to others (`a + b` is the two, one after
the other) and submitted to any number of streams.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import (
    Any,
    ClassVar,
    Generic,
    NamedTuple,
    NoReturn,
    TypeAlias,
    TypedDict,
    TypeVar,
    Unpack,
    get_args,
    overload,
)

from asgl.checks import flag, integer, token_ids
from asgl.errors import ConfigError
from asgl.language.choices import NamedMethod, SelectMethod
from asgl.language.constraint import Constraint, JsonSchema, ValueType, checked_choices, constraint
from asgl.language.operation import Operation
from asgl.language.tools import AnyTool, by_name
from asgl.sampling import SamplingParams

T_co = TypeVar("T_co", covariant=True)
ValueT = TypeVar("ValueT")


class Content:
    """Anything that can be appended to a stream. Contents and strings can be added to each
    other."""

    __slots__ = ()

    def as_ops(self) -> tuple[Op, ...]:
        """The ops that append it, in order."""
        raise NotImplementedError

    def __bool__(self) -> NoReturn:
        raise TypeError(f"{self._shown} is neither true nor false: {self._instead}")

    def __format__(self, spec: str) -> NoReturn:
        raise TypeError(f"{self._shown} is no text that an f-string could hold: {self._instead}")

    @property
    def _shown(self) -> str:
        return f"an op ({type(self).__name__})"

    @property
    def _instead(self) -> str:
        return "append it, s += 'before ' + op, and ask for its value, await s.get(name)"

    def __add__(self, other: Content | str) -> Ops:
        return Ops(ops_of(self) + ops_of(other))

    def __radd__(self, other: Content | str) -> Ops:
        return Ops(ops_of(other) + ops_of(self))


@dataclass(frozen=True)
class Ops(Content):
    """Several ops, submitted one after the other."""

    parts: tuple[Op, ...]

    def as_ops(self) -> tuple[Op, ...]:
        return self.parts


class Single(Content):
    """A content that is one op. `names` are the variables that it sets, `sources` the ops whose
    text or values go into it."""

    __slots__ = ()
    kind: ClassVar[str]

    @property
    def names(self) -> tuple[str, ...]:
        return ()

    @property
    def sources(self) -> tuple[Operation, ...]:
        return ()

    def as_ops(self) -> tuple[Op, ...]:
        return (self,)  # type: ignore[return-value]  # each subclass is one of Op


@dataclass(frozen=True)
class Text(Single):
    """Appends text."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class TextOf(Single):
    """Appends the text of an op of another stream, once that is there."""

    kind: ClassVar[str] = "text of"
    source: Operation

    @property
    def sources(self) -> tuple[Operation, ...]:
        return (self.source,)


@dataclass(frozen=True)
class Computed(Single):
    """Appends the text that `make` gives for finished ops, once they are. Compiled programs use it
    for texts that generated values go into; the ops may be of the same stream."""

    kind: ClassVar[str] = "computed"
    values_of: tuple[Operation, ...]
    make: Callable[[Sequence[Operation]], Any]


@dataclass(frozen=True)
class Tokens(Single):
    """Appends tokens by what they are: the texts of control tokens, or ids."""

    kind: ClassVar[str] = "tokens"
    tokens: tuple[str | int, ...]


@dataclass(frozen=True)
class Extend(Single):
    """Appends, and computes the keys and values of all that the stream says so far."""

    kind: ClassVar[str] = "extend"
    content: tuple[Text | TextOf | Computed, ...]

    @property
    def sources(self) -> tuple[Operation, ...]:
        return tuple(source for part in self.content for source in part.sources)


@dataclass(frozen=True)
class Gen(Single):
    """Generates text, and sets the variable `name` to it."""

    kind: ClassVar[str] = "gen"
    name: str | None
    params: SamplingParams
    logprobs: int = 0
    validate: Callable[[Any], object] | None = None
    retries: int = 0
    constraint: Constraint | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return () if self.name is None else (self.name,)


class TypedGen(Gen, Generic[T_co]):
    """A Gen whose value is no str."""


@dataclass(frozen=True)
class Select(Single):
    """Appends the likeliest of `choices`, and sets the variable `name` to it."""

    kind: ClassVar[str] = "select"
    name: str | None
    choices: tuple[str, ...]
    method: SelectMethod
    token_healing: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        return () if self.name is None else (self.name,)


@dataclass(frozen=True)
class Role(Single):
    """Appends a whole message of the role: atomic, whatever its content is made of. A system
    message may tell the model of `tools`."""

    kind: ClassVar[str] = "role"
    role: str
    content: tuple[Text | TextOf | Computed | Tokens | Extend | Gen | Select, ...]
    tools: tuple[AnyTool, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for part in self.content for name in part.names)

    @property
    def sources(self) -> tuple[Operation, ...]:
        return tuple(source for part in self.content for source in part.sources)


class WrittenCall(NamedTuple):
    """A call of a tool that somebody made, and its result, as messages have them."""

    name: str
    arguments: str
    """A JSON object, as text."""
    result: str


@dataclass(frozen=True)
class Calls(Single):
    """Appends calls of tools and their results, as the model's chat template writes them."""

    kind: ClassVar[str] = "calls"
    calls: tuple[WrittenCall, ...]


Op: TypeAlias = Text | TextOf | Computed | Tokens | Extend | Gen | Select | Role | Calls


def ops_of(content: object) -> tuple[Op, ...]:
    """The ops that `content` is: a string, a handle, an op, or several added up. ConfigError for
    anything else."""
    if isinstance(content, str):
        return (Text(content),)
    if isinstance(content, Content):
        return content.as_ops()
    raise ConfigError(
        f"only text, ops and handles can be appended to a stream, not {content!r}"
        + ("; write str(...) around it" if isinstance(content, int | float) else "")
    )


def map_gens(op: Op, change: Callable[[Gen], Gen]) -> Op:
    """The op with each Gen in it changed, in order."""
    if isinstance(op, Gen):
        return change(op)
    if isinstance(op, Role):
        return replace(
            op,
            content=tuple(change(part) if isinstance(part, Gen) else part for part in op.content),
        )
    return op


def token(text: str) -> Tokens:
    """A control token of the model, by its text: `s += asgl.token("<think>")`. This is the way to
    write what no data can ever be; give it no text of a user.

    ModelError where the op is awaited if the model has no such control token: those that it has are
    in `rt.tokenizer.special_tokens`.
    """
    if not isinstance(text, str) or not text:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"a control token is given by its text, such as '<think>', not {text!r}")
    return Tokens((text,))


def tokens(ids: Sequence[int]) -> Tokens:
    """Tokens of the model by their ids, control tokens among them. ModelError where the op is
    awaited if the model's vocabulary does not have them all."""
    return Tokens(token_ids("tokens", ids))


def extend(content: str | Content) -> Extend:
    """Appends text, and computes its keys and values ahead of their use. The op's value is None."""
    parts = ops_of(content)
    texts = tuple(part for part in parts if isinstance(part, Text | TextOf | Computed))
    if len(texts) != len(parts):
        raise ConfigError("extend takes text and handles; add other ops with +")
    return Extend(texts)


class SamplingOptions(TypedDict, total=False):
    """The fields of `asgl.SamplingParams`, as keyword arguments. None, or leaving one out, is
    unset."""

    max_tokens: int | None
    min_tokens: int | None
    stop: str | Sequence[str] | None
    stop_regex: str | Sequence[str] | None
    stop_token_ids: Sequence[int] | None
    keep_stop: bool | None
    token_healing: bool | None
    ignore_eos: bool | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    frequency_penalty: float | None
    presence_penalty: float | None
    repetition_penalty: float | None
    logit_bias: Mapping[int, float] | None
    seed: int | None


class GenOptions(SamplingOptions, total=False):
    """The keyword arguments of `gen`."""

    logprobs: int
    validate: Callable[[Any], object] | None
    retries: int
    regex: str | None
    grammar: str | None
    choices: Sequence[str] | None


@overload
def gen(
    name: str | None = None, *, dtype: ValueType[ValueT], **options: Unpack[GenOptions]
) -> TypedGen[ValueT]: ...
@overload
def gen(
    name: str | None = None, *, dtype: object, **options: Unpack[GenOptions]
) -> TypedGen[Any]: ...
@overload
def gen(
    name: str | None = None, *, json_schema: ValueType[ValueT], **options: Unpack[GenOptions]
) -> TypedGen[ValueT]: ...
@overload
def gen(
    name: str | None = None, *, json_schema: JsonSchema | None = None, **options: Unpack[GenOptions]
) -> Gen: ...
@overload  # a union or a Literal, say: to type checkers these are objects
def gen(
    name: str | None = None, *, json_schema: object, **options: Unpack[GenOptions]
) -> TypedGen[Any]: ...
def gen(
    name: str | None = None,
    *,
    logprobs: int = 0,
    validate: Callable[[Any], object] | None = None,
    retries: int = 0,
    regex: str | None = None,
    json_schema: object = None,
    grammar: str | None = None,
    choices: Sequence[str] | None = None,
    dtype: object = None,
    **sampling: Unpack[SamplingOptions],
) -> Gen:
    """Generates text; its value is the text, a str. `asgl.SamplingParams` explains the parameters;
    None is unset, and what nobody sets is max_tokens=128 and temperature=1.0.

    `logprobs=k` reports each generated token's log-probability beside those of the k likeliest.

    At most one of these says what the text must be, from its first character to its last: `regex`,
    a regular expression; `json_schema`, a JSON schema, or a type that pydantic makes of JSON (a
    model, a dataclass, list[Model], a Literal, a TypeAdapter), of which the value then is one;
    `grammar`, a grammar in Lark's notation; `choices`, a list of texts;
    `dtype`, a type: int, float and bool are written bare, str is the text itself without a
    constraint, and any other, as for `json_schema`, is written as JSON. GrammarError if it does not
    compile; OutputError, which has the text, if max_tokens cut the text short.

    `validate` is called with the value. It is invalid if it raises, or returns False, or a None
    that is not its own, as `re.compile(...).fullmatch` does; then the generation is repeated from
    the same point with another seed, `retries` times at most, and after that ends with OutputError,
    whose cause is what the validator raised last. A validator may also return a string, which is
    invalid too: feedback that the next try gets to see appended to the prompt, and that is gone
    afterwards. No text is shown while it runs: only a valid one becomes the op's.
    """
    integer("logprobs", logprobs, 0)
    if unknown := sampling.keys() - SamplingOptions.__annotations__.keys():
        raise TypeError(f"gen() got an unexpected keyword argument {sorted(unknown)[0]!r}")
    params = SamplingParams(**sampling)
    if validate is not None and (not callable(validate) or inspect.iscoroutinefunction(validate)):
        raise ConfigError(f"validate must be a plain function of the value, not {validate!r}")
    integer("retries", retries, 0)
    limits = constraint(regex, json_schema, grammar, choices, dtype)
    if retries and validate is None and limits is None:
        raise ConfigError(
            "retries need a validator: give validate=, a function that raises, or returns False, "
            "for what is not "
            "valid"
        )
    kind = Gen if limits is None or limits.parse is None else TypedGen
    return kind(_checked_name(name), params, logprobs, validate, retries, limits)


def select(
    name: str | None,
    choices: Sequence[str],
    *,
    method: SelectMethod = "token_length_normalized",
    token_healing: bool = False,
) -> Select:
    """Appends the likeliest of `choices`; its value is the chosen str. `asgl.language.choices`
    explains the methods.

    With token_healing the last tokens of the prompt, as `asgl.engine.healing` chooses them, are
    taken off, and each option is tokenized with their text before it.
    """
    options = checked_choices(choices)
    if not callable(method) and method not in get_args(NamedMethod):
        raise ConfigError(
            f"method must be one of {', '.join(get_args(NamedMethod))}, or a function of the "
            f"options, not {method!r}"
        )
    flag("token_healing", token_healing)
    return Select(_checked_name(name), options, method, token_healing)


def role(role: str, content: str | Content) -> Role:
    """A whole message of any role that the model's chat template knows; its value is the content, a
    str."""
    if not isinstance(role, str) or not role:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"a role must be a string such as 'user', not {role!r}")
    parts = ops_of(content)
    inner = tuple(part for part in parts if not isinstance(part, Role | Calls))
    if len(inner) != len(parts):
        raise ConfigError(
            f"a message of the role {role!r} cannot hold another message: add them with +"
        )
    return Role(role, inner)


def system(content: str | Content, *, tools: Sequence[AnyTool] = ()) -> Role:
    """A whole system message. It tells the model of `tools`: in its own way if its chat template
    has one, else in text."""
    if tools:
        by_name(tools)
    return replace(role("system", content), tools=tuple(tools))


def user(content: str | Content) -> Role:
    """A whole message of the user."""
    return role("user", content)


def assistant(content: str | Content) -> Role:
    """A whole message of the assistant, usually with a `gen` in it."""
    return role("assistant", content)


def _checked_name(name: str | None) -> str | None:
    if name is not None and (not isinstance(name, str) or not name):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"a variable's name must be a string with characters in it, not {name!r}")
    return name
