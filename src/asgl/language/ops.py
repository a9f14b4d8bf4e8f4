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
    TYPE_CHECKING,
    Any,
    Generic,
    Literal,
    TypeAlias,
    TypedDict,
    TypeVar,
    Unpack,
    get_args,
    overload,
)

from asgl.errors import ConfigError
from asgl.language.constraint import Constraint, JsonSchema, ValueType, checked_choices, constraint
from asgl.language.tools import Tool, by_name
from asgl.sampling import SamplingParams

if TYPE_CHECKING:
    from asgl.language.handle import Handle
    from asgl.language.item import Item

T_co = TypeVar("T_co", covariant=True)
ScalarT = TypeVar("ScalarT", bound=int | float)
ValueT = TypeVar("ValueT")

SelectMethod: TypeAlias = Literal[
    "token_length_normalized",
    "greedy_token_selection",
    "unconditional_likelihood_normalized",
    "sum",
]


class Content:
    """Anything that can be appended to a stream. Contents and strings can be added to each
    other."""

    __slots__ = ()

    def __add__(self, other: Content | str) -> Ops:
        return Ops(ops_of(self) + ops_of(other))

    def __radd__(self, other: Content | str) -> Ops:
        return Ops(ops_of(other) + ops_of(self))


@dataclass(frozen=True)
class Ops(Content):
    """Several ops, submitted one after the other."""

    parts: tuple[Op, ...]


@dataclass(frozen=True)
class Text(Content):
    """Appends text."""

    text: str


@dataclass(frozen=True)
class FromHandle(Content):
    """Appends the text of a handle, once that is there."""

    handle: Handle[object]


@dataclass(frozen=True)
class Computed(Content):
    """Appends the text that `make` gives for the finished items of the handles, once they are
    there. Compiled programs use it for texts that generated values go into; the handles may be of
    the stream's own ops."""

    handles: tuple[Handle[object], ...]
    make: Callable[[Sequence[Item]], Any]


@dataclass(frozen=True)
class Extend(Content):
    """Appends, and computes the keys and values of all that the stream says so far."""

    content: tuple[Text | FromHandle | Computed, ...]


@dataclass(frozen=True)
class Gen(Content):
    """Generates text, and sets the variable `name` to it."""

    name: str | None
    params: SamplingParams
    logprobs: int = 0
    validate: Callable[[Any], object] | None = None
    retries: int = 0
    constraint: Constraint | None = None


class TypedGen(Gen, Generic[T_co]):
    """A Gen whose value is no str."""


@dataclass(frozen=True)
class Select(Content):
    """Appends the likeliest of `choices`, and sets the variable `name` to it."""

    name: str | None
    choices: tuple[str, ...]
    method: SelectMethod
    token_healing: bool = False


@dataclass(frozen=True)
class Role(Content):
    """Appends a whole message of the role: atomic, whatever its content is made of."""

    role: str
    content: tuple[Text | FromHandle | Computed | Extend | Gen | Select, ...]
    tools: tuple[Tool[..., Any], ...] = ()
    """What a system message tells of."""


Op: TypeAlias = Text | FromHandle | Computed | Extend | Gen | Select | Role


def ops_of(content: object) -> tuple[Op, ...]:
    """The ops that `content` is: a string, a handle, an op, or several added up. ConfigError for
    anything else."""
    if isinstance(content, str):
        return (Text(content),)
    if isinstance(content, Ops):
        return content.parts
    if isinstance(content, Text | FromHandle | Computed | Extend | Gen | Select | Role):
        return (content,)
    if isinstance(content, Content):  # the one that is left: handles, which know this module
        return (FromHandle(content),)  # pyright: ignore[reportArgumentType]
    raise ConfigError(
        f"only text, ops and handles can be appended to a stream, not {content!r}"
        + ("; write str(...) around it" if isinstance(content, int | float) else "")
    )


def names_of(op: object) -> tuple[str, ...]:
    """The variables that the op sets."""
    if isinstance(op, Gen | Select):
        return (op.name,) if op.name is not None else ()
    if isinstance(op, Role):
        return tuple(name for part in op.content for name in names_of(part))
    return ()


def handles_of(op: object) -> tuple[Handle[object], ...]:
    """The handles whose text the op appends."""
    if isinstance(op, FromHandle):
        return (op.handle,)
    if isinstance(op, Extend | Role):
        return tuple(handle for part in op.content for handle in handles_of(part))
    return ()


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


def extend(content: str | Content) -> Extend:
    """Appends text, and computes its keys and values ahead of their use. The op's value is None."""
    parts = ops_of(content)
    texts = tuple(part for part in parts if isinstance(part, Text | FromHandle | Computed))
    if len(texts) != len(parts):
        raise ConfigError("extend takes text and handles; add other ops with +")
    return Extend(texts)


class GenOptions(TypedDict, total=False):
    """The keyword arguments of `gen`; `asgl.SamplingParams` explains them. None, or leaving one
    out, is unset."""

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
    logprobs: int
    validate: Callable[[Any], object] | None
    retries: int
    regex: str | None
    grammar: str | None
    choices: Sequence[str] | None


@overload
def gen(
    name: str | None = None, *, dtype: type[ScalarT], **options: Unpack[GenOptions]
) -> TypedGen[ScalarT]: ...
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
    max_tokens: int | None = None,
    min_tokens: int | None = None,
    stop: str | Sequence[str] | None = None,
    stop_regex: str | Sequence[str] | None = None,
    stop_token_ids: Sequence[int] | None = None,
    keep_stop: bool | None = None,
    token_healing: bool | None = None,
    ignore_eos: bool | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
    top_k: int | None = None,
    min_p: float | None = None,
    frequency_penalty: float | None = None,
    presence_penalty: float | None = None,
    repetition_penalty: float | None = None,
    logit_bias: Mapping[int, float] | None = None,
    seed: int | None = None,
    logprobs: int = 0,
    validate: Callable[[Any], object] | None = None,
    retries: int = 0,
    regex: str | None = None,
    json_schema: object = None,
    grammar: str | None = None,
    choices: Sequence[str] | None = None,
    dtype: type | None = None,
) -> Gen:
    """Generates text; its value is the text, a str. `asgl.SamplingParams` explains the parameters;
    None is unset.

    `logprobs=k` reports each generated token's log-probability beside those of the k likeliest.

    At most one of these says what the text must be, from its first character to its last: `regex`,
    a regular expression; `json_schema`, a JSON schema, or a type that pydantic makes of JSON (a
    model, a dataclass, list[Model], a Literal, a TypeAdapter), of which the value then is one;
    `grammar`, a grammar in Lark's notation; `choices`, a list of texts;
    `dtype`, int, float or bool, of which the value then is one. GrammarError if it does not
    compile; OutputError, which has the text, if max_tokens cut the text short.

    `validate` is called with the value. It is invalid if it raises, or returns False; then the
    generation is repeated from the same point with another seed, `retries` times at most, and after
    that ends with OutputError, whose cause is what the validator raised last. A validator may also
    return a string, which is invalid too: feedback that the next try gets to see appended to the
    prompt, and that is gone afterwards. No text is shown while it runs: only a valid one becomes
    the op's.
    """
    if isinstance(logprobs, bool) or not isinstance(logprobs, int) or logprobs < 0:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(
            f"logprobs must be 0 or how many of the likeliest tokens to report, not {logprobs!r}"
        )
    params = SamplingParams(
        max_tokens=max_tokens,
        min_tokens=min_tokens,
        stop=stop,
        stop_regex=stop_regex,
        stop_token_ids=stop_token_ids,
        keep_stop=keep_stop,
        token_healing=token_healing,
        ignore_eos=ignore_eos,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        repetition_penalty=repetition_penalty,
        logit_bias=logit_bias,
        seed=seed,
    )
    if validate is not None and (not callable(validate) or inspect.iscoroutinefunction(validate)):
        raise ConfigError(f"validate must be a plain function of the value, not {validate!r}")
    if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"retries must be an integer of 0 or more, not {retries!r}")
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
    if method not in get_args(SelectMethod):
        raise ConfigError(
            f"method must be one of {', '.join(get_args(SelectMethod))}, not {method!r}"
        )
    if not isinstance(token_healing, bool):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"token_healing must be True or False, not {token_healing!r}")
    return Select(_checked_name(name), options, method, token_healing)


def role(role: str, content: str | Content) -> Role:
    """A whole message of any role that the model's chat template knows; its value is the content, a
    str."""
    if not isinstance(role, str) or not role:  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"a role must be a string such as 'user', not {role!r}")
    parts = ops_of(content)
    inner = tuple(part for part in parts if not isinstance(part, Role))
    if len(inner) != len(parts):
        raise ConfigError(
            f"a message of the role {role!r} cannot hold another message: add them with +"
        )
    return Role(role, inner)


def system(content: str | Content, *, tools: Sequence[Tool[..., Any]] = ()) -> Role:
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
        raise ConfigError(f"a variable's name must be a string, not {name!r}")
    return name
