"""The ops of a prompt stream as its methods: the part of `PromptStream` that appends."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, Unpack, overload

from asgl.checks import integer
from asgl.errors import ConfigError
from asgl.language import ops
from asgl.language.constraint import JsonSchema, ValueType
from asgl.language.handle import Handle, SelectHandle
from asgl.language.internal_ops import CloseMessage
from asgl.language.operation import OpenMessage
from asgl.language.ops import (
    Content,
    Extend,
    Gen,
    GenOptions,
    Role,
    Select,
    SelectMethod,
    TypedGen,
    ValueT,
)
from asgl.language.run_probe import Score
from asgl.language.stream_probes import StreamProbes
from asgl.language.stream_state import StreamState
from asgl.language.tools import AnyTool
from asgl.types import TokenLogprob

T = TypeVar("T")
StreamT = TypeVar("StreamT", bound=StreamState)


class RoleBlock(Generic[StreamT]):
    """A `with` block whose content is one message: see `PromptStream.role`."""

    __slots__ = ("_message", "_stream")

    def __init__(self, stream: StreamT, role: str) -> None:
        self._stream = stream
        self._message = OpenMessage(role)

    def __enter__(self) -> StreamT:
        queue = self._stream._queue
        if queue.message is not None:
            raise ConfigError(
                f"a message of the role {self._message.role!r} cannot begin inside a "
                f"{queue.message.role!r} message"
            )
        queue.check_accepts(grows=True)
        queue.message = self._message
        return self._stream

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        queue = self._stream._queue
        queue.message = None
        queue.enqueue(CloseMessage(self._message, error is not None or queue.broken))


class StreamOps(StreamProbes):
    """A stream as one writes it: see `asgl.PromptStream`."""

    __slots__ = ()

    # --- ops

    @overload
    def submit(self, content: Extend) -> Handle[None]: ...
    @overload
    def submit(self, content: TypedGen[T]) -> Handle[T]: ...  # pyright: ignore[reportOverlappingOverload]
    @overload
    def submit(self, content: Gen | Role) -> Handle[str]: ...
    @overload
    def submit(self, content: Select) -> SelectHandle: ...
    @overload
    def submit(self, content: Content | str) -> Handle[Any]: ...
    def submit(self, content: Content | str) -> Handle[Any]:
        """Queues an op, or several that were added up; the handle of the last."""
        handle: Handle[Any] | None = None
        for op in ops.ops_of(content):
            handle = self._queue.handle(self._queue.submit(op))
        if handle is None:
            raise ConfigError("there is nothing to submit")
        return handle

    def __iadd__(self, content: Content | str) -> Self:
        """`s += content` is `s.append(content)`."""
        self.append(content)
        return self

    def append(self, content: Content | str) -> None:
        """Appends text, the text of another stream's handle, or ops: `s += content`. Nothing is
        computed until needed."""
        for op in ops.ops_of(content):
            self._queue.submit(op)

    @overload
    def extend(self, content: str | Content) -> Handle[None]: ...
    @overload
    def extend(self, content: str, *, logprobs: int) -> Handle[list[TokenLogprob]]: ...
    def extend(self, content: str | Content, *, logprobs: int | None = None) -> Handle[Any]:
        """Appends text and computes its KV; awaiting it waits for that. `await s.extend("")`
        computes what is there.

        With `logprobs=k`, the value is the log-probability of each token of the text, with the k
        likeliest tokens of its place, as `score` gives them. The text then is tokenized on its own.
        """
        if logprobs is None:
            return self.submit(ops.extend(content))
        if not isinstance(content, str):
            raise ConfigError(f"log-probabilities are those of a text, not of {content!r}")
        spec = Score(content, integer("logprobs", logprobs, 0), True)
        return Handle(self._queue.executor("score").ask(spec, grows=True))

    @overload
    def gen(
        self, name: str | None = None, *, dtype: ValueType[ValueT], **options: Unpack[GenOptions]
    ) -> Handle[ValueT]: ...
    @overload
    def gen(
        self, name: str | None = None, *, dtype: object, **options: Unpack[GenOptions]
    ) -> Handle[Any]: ...
    @overload
    def gen(
        self,
        name: str | None = None,
        *,
        json_schema: ValueType[ValueT],
        **options: Unpack[GenOptions],
    ) -> Handle[ValueT]: ...
    @overload
    def gen(
        self,
        name: str | None = None,
        *,
        json_schema: JsonSchema | None = None,
        **options: Unpack[GenOptions],
    ) -> Handle[str]: ...
    @overload
    def gen(
        self, name: str | None = None, *, json_schema: object, **options: Unpack[GenOptions]
    ) -> Handle[Any]: ...
    def gen(self, name: str | None = None, **options: Any) -> Handle[Any]:
        """Generates text; the handle's value is the text, or what the text stands for (`dtype`,
        `json_schema`: see `asgl.gen`).

        The variable `name` is set to the value.
        """
        return self._queue.handle(self._queue.make(ops.gen, name, options))

    def select(
        self,
        name: str | None,
        choices: Sequence[str],
        *,
        method: SelectMethod = "token_length_normalized",
        token_healing: bool = False,
    ) -> SelectHandle:
        """Appends the likeliest of `choices`; the handle's value is that option, and the variable
        `name` is set to it.

        `asgl.language.choices` explains the methods.
        """
        options = {"choices": choices, "method": method, "token_healing": token_healing}
        handle: Any = self._queue.handle(self._queue.make(ops.select, name, options))
        return handle

    @overload
    async def sample(
        self,
        name: str | None = None,
        *,
        n: int,
        dtype: ValueType[ValueT],
        **options: Unpack[GenOptions],
    ) -> list[ValueT]: ...
    @overload
    async def sample(
        self,
        name: str | None = None,
        *,
        n: int,
        dtype: object,
        **options: Unpack[GenOptions],
    ) -> list[Any]: ...
    @overload
    async def sample(
        self,
        name: str | None = None,
        *,
        n: int,
        json_schema: ValueType[ValueT],
        **options: Unpack[GenOptions],
    ) -> list[ValueT]: ...
    @overload
    async def sample(
        self,
        name: str | None = None,
        *,
        n: int,
        json_schema: JsonSchema | None = None,
        **options: Unpack[GenOptions],
    ) -> list[str]: ...
    @overload
    async def sample(
        self,
        name: str | None = None,
        *,
        n: int,
        json_schema: object,
        **options: Unpack[GenOptions],
    ) -> list[Any]: ...
    async def sample(self, name: str | None = None, *, n: int, **options: Any) -> list[Any]:
        """`n` different continuations from this point, by forking. Appends nothing; sets the
        variable `name` to the list.

        With a `seed`, each derives its own from it. If one fails the others are cancelled, and its
        error is raised.
        """
        return await self._queue.sample(name, integer("n", n, 1), options)

    # --- roles

    def system(self, content: str | Content, *, tools: Sequence[AnyTool] = ()) -> Handle[str]:
        """A whole system message, which tells the model of `tools`; the handle's value is its
        content."""
        return self.submit(ops.system(content, tools=tools))

    def user(self, content: str | Content) -> Handle[str]:
        """A whole message of the user; the handle's value is its content."""
        return self.submit(ops.user(content))

    def assistant(self, content: str | Content) -> Handle[str]:
        """A whole message of the assistant; the handle's value is its content."""
        return self.submit(ops.assistant(content))

    def role(self, role: str) -> RoleBlock[Self]:
        """`with s.role("assistant"):` what is submitted inside is the content of one message."""
        if not isinstance(role, str) or not role:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"a role must be a string such as 'user', not {role!r}")
        return RoleBlock(self, role)
