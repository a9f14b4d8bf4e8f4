"""`PromptStream`: the state of a prompt, and what a program can do with it."""

from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import (
    Any,
    Concatenate,
    Literal,
    NoReturn,
    ParamSpec,
    Self,
    TypeVar,
    Unpack,
    get_args,
    overload,
)

from asgl.checks import integer
from asgl.errors import ConfigError, VariableError
from asgl.language import ops, saved_prompt
from asgl.language.constraint import JsonSchema, ValueType
from asgl.language.fork import TaskHandle
from asgl.language.handle import Handle, SelectHandle
from asgl.language.internal_ops import CloseMessage, Rewind, SetVariable, TakeSnapshot
from asgl.language.op_queue import ForkBlock, OnError, OpQueue
from asgl.language.operation import OpenMessage, Operation
from asgl.language.ops import (
    Content,
    Extend,
    Gen,
    GenOptions,
    Role,
    ScalarT,
    Select,
    SelectMethod,
    TypedGen,
    ValueT,
)
from asgl.language.tool_calls import OnToolError, call_tools
from asgl.language.tools import Tool, ToolCall
from asgl.shown import Piece, card_html, legend_html, table_html, text_html
from asgl.types import Message

P = ParamSpec("P")
T = TypeVar("T")
ItemT = TypeVar("ItemT")


class Mark:
    """A point of a stream to go back to: see `PromptStream.mark`."""

    __slots__ = ("message", "snapshot")

    def __init__(self, snapshot: Operation, message: OpenMessage | None) -> None:
        self.snapshot, self.message = snapshot, message


class RoleBlock:
    """A `with` block whose content is one message: see `PromptStream.role`."""

    __slots__ = ("_message", "_stream")

    def __init__(self, stream: PromptStream, role: str) -> None:
        self._stream = stream
        self._message = OpenMessage(role)

    def __enter__(self) -> PromptStream:
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


_ENTER = "write `async with s.fork(n) as branches:`, which opens it and waits for what runs in it"


class Branches(Sequence["PromptStream"]):
    """The branches of a fork block, and the block itself: `async with s.fork(n) as branches:`."""

    def __init__(self, block: ForkBlock) -> None:
        self._block = block
        self._branches: list[PromptStream] | None = None

    @overload
    def __getitem__(self, index: int) -> PromptStream: ...
    @overload
    def __getitem__(self, index: slice) -> list[PromptStream]: ...
    def __getitem__(self, index: int | slice) -> PromptStream | list[PromptStream]:
        return self._opened[index]

    def __setitem__(self, index: int, branch: PromptStream) -> None:
        """Only so that `branches[i] += "text"` works: a branch cannot be replaced by another
        stream."""
        if self._opened[index] is not branch:
            raise ConfigError("a branch cannot be replaced by another stream")

    def __len__(self) -> int:
        return len(self._opened)

    @property
    def _opened(self) -> list[PromptStream]:
        """The branches; ConfigError if there are none, because the block was not entered."""
        if self._branches is None:
            raise ConfigError(f"the fork has no branches yet: {_ENTER}")
        return self._branches

    def __await__(self) -> NoReturn:
        raise TypeError(f"a fork is not awaited: {_ENTER}")

    def __enter__(self) -> NoReturn:
        raise TypeError(f"a fork is no plain context manager: {_ENTER}")

    def __exit__(self, *_: object) -> None:
        """Never called: `__enter__` raises. Without it Python would say less."""

    def __del__(self) -> None:
        if self._branches is None:
            warnings.warn(f"a fork was never entered: {_ENTER}", RuntimeWarning, stacklevel=2)

    def gather(self, name: str) -> list[Any]:
        """The variable of each branch, in order. VariableError if a branch lacks it: nothing is
        ever left out."""
        return [branch[name] for branch in self._opened]

    async def __aenter__(self) -> Branches:
        self._branches = [PromptStream(queue) for queue in await self._block.open()]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> Literal[False]:
        await self._block.close(error)
        return False


class PromptStream:
    """A prompt that grows. Made by `Runtime.prompt`, and by forking another.

    Ops are submitted in order: each call queues at once and returns a handle to await, or not.
    ConfigError and StreamClosedError are raised at the call, every other error where the handle is
    awaited. A failed or cancelled op leaves the stream as it was before, and ends those queued
    behind it with OpCancelledError.
    """

    __slots__ = ("__weakref__", "_queue")

    def __init__(self, queue: OpQueue) -> None:
        self._queue = queue
        queue.stream = self

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

    def extend(self, content: str | Content) -> Handle[None]:
        """Appends text and computes its KV; awaiting it waits for that. `await s.extend("")`
        computes what is there."""
        return self.submit(ops.extend(content))

    @overload
    def gen(
        self, name: str | None = None, *, dtype: type[ScalarT], **options: Unpack[GenOptions]
    ) -> Handle[ScalarT]: ...
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
        dtype: type[ScalarT],
        **options: Unpack[GenOptions],
    ) -> list[ScalarT]: ...
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

    def system(
        self, content: str | Content, *, tools: Sequence[Tool[..., Any]] = ()
    ) -> Handle[str]:
        """A whole system message, which tells the model of `tools`; the handle's value is its
        content."""
        return self.submit(ops.system(content, tools=tools))

    def user(self, content: str | Content) -> Handle[str]:
        """A whole message of the user; the handle's value is its content."""
        return self.submit(ops.user(content))

    def assistant(self, content: str | Content) -> Handle[str]:
        """A whole message of the assistant; the handle's value is its content."""
        return self.submit(ops.assistant(content))

    def role(self, role: str) -> RoleBlock:
        """`with s.role("assistant"):` what is submitted inside is the content of one message."""
        if not isinstance(role, str) or not role:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"a role must be a string such as 'user', not {role!r}")
        return RoleBlock(self, role)

    def messages(self) -> list[Message]:
        """The whole messages so far. A system message that the template adds by itself is not among
        them."""
        messages = self._queue.messages
        return [Message(role=message["role"], content=message["content"]) for message in messages]

    async def call_tools(
        self,
        tools: Sequence[Tool[..., Any]],
        *,
        on_error: OnToolError = "model",
        timeout: float | None = None,
        parallel: bool = False,
        **options: Unpack[GenOptions],
    ) -> list[ToolCall]:
        """Lets the model call a tool, runs it, and appends the result: see `asgl.language.tools`.
        Returns the calls.

        The call is generated after all that is submitted, constrained to the tools' schemas, in a
        message of the assistant if the stream has messages. `options` are those of `gen`;
        `max_tokens` must be enough for the call. With parallel=True the model may make up to 8
        calls, which run at once.

        What a tool raises, also TimeoutError after `timeout` seconds, the model is told instead of
        a result, and is in `ToolCall.error`. With on_error="program" it is raised as ToolError,
        with what the tool raised as its cause, and calls that still run are cancelled. However this
        fails or is cancelled, the stream then says what it said before. Nothing else should be
        submitted to the stream meanwhile. Raises OutputError for a call that max_tokens cut short.
        """
        executor = self._queue.executor("call_tools")
        return await call_tools(executor, tools, on_error, timeout, parallel, options)

    # --- what is there

    def __getitem__(self, name: str) -> Any:
        """`s["name"]` is the value of a finished variable. VariableError if there is none of that
        name, or it is not finished."""
        return self._queue.variable(name)

    def __setitem__(self, name: str, value: Any) -> None:
        """`s["name"] = value` sets a variable, in its turn: of ops that were submitted for one name
        the last wins."""
        if not isinstance(name, str) or not name:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"a variable's name must be a string, not {name!r}")
        self._queue.submit(SetVariable(name, value))

    def __contains__(self, name: object) -> bool:
        """Whether `s["name"]` is there by now."""
        try:
            self._queue.variable(name)  # pyright: ignore[reportArgumentType]
        except VariableError:
            return False
        return True

    async def get(self, name: str) -> Any:
        """The variable's value; waits if an op that sets it was submitted. Cancelling this does not
        cancel the op."""
        return await self._queue.get(name)

    @property
    def text(self) -> str:
        """What the stream says so far, role headers included; what still runs is not in it."""
        return self._queue.text

    @property
    def token_ids(self) -> list[int]:
        """The tokens of `text`. Those of text that no op has sealed yet may change as text is
        appended."""
        return self._queue.token_ids

    @property
    def variables(self) -> Mapping[str, Any]:
        """The finished variables, as they are now."""
        return MappingProxyType(dict(self._queue.variables))

    @property
    def name(self) -> str | None:
        """What `Runtime.prompt(name=...)` called it; forks have the name of their parent."""
        return self._queue.context.options.name

    @property
    def cache_salt(self) -> str | None:
        """The streams that this one shares cached prefixes with are those of the same salt."""
        return self._queue.context.options.cache_salt

    @property
    def error(self) -> BaseException | None:
        """Of a branch of `fork(on_error="keep")`: the failure that nobody awaited, or None."""
        return self._queue.error

    def pieces(self) -> AsyncIterator[str]:
        """All text of the stream from its beginning, as it comes, until nothing that was submitted
        is left.

        Raises the error of an op that fails. Text that a failed op had shown is taken back from the
        stream, not from here.
        """
        return self._queue.executor("pieces").pieces()

    async def sync(self) -> None:
        """Waits for all that is submitted. Raises the failure that nobody has seen yet. Cancelling
        it only stops waiting."""
        await self._queue.sync()

    async def prefetch(self) -> list[int]:
        """Computes the KV of all that is submitted by now; the tokens. It only reads the stream:
        seeds do not depend on it."""
        return list((await self._queue.executor("prefetch").prefetch()).tokens)

    # --- going back, going apart

    def mark(self) -> Mark:
        """This point of the stream, to come back to."""
        return Mark(self._queue.submit(TakeSnapshot(), grows=False), self._queue.message)

    def rewind(self, mark: Mark) -> None:
        """Back to an earlier point of this stream: text, messages and variables. What was computed
        stays cached."""
        queue = self._queue
        if not isinstance(mark, Mark) or mark.snapshot.owner is not queue:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigError(f"rewind needs a mark of the same stream, not {mark!r}")
        if mark.snapshot.error is not None:
            raise ConfigError(f"the mark was never reached: {mark.snapshot.error}")
        if mark.message is not None and mark.message is not queue.message:
            raise ConfigError(
                f"the mark lies inside a {mark.message.role!r} block that was left: mark before "
                "the "
                "block"
            )
        queue.submit(Rewind(mark.snapshot))

    def fork(self, n: int, *, on_error: OnError = "cancel") -> Branches:
        """`async with s.fork(n) as branches:` n streams that go on from here; leaving the block
        waits for all of them."""
        if on_error not in get_args(OnError):
            raise ConfigError(f"on_error must be 'cancel' or 'keep', not {on_error!r}")
        return Branches(self._queue.fork(integer("n", n, 1), on_error))

    def copy(self) -> PromptStream:
        """A stream that goes on from here by itself."""
        return PromptStream(self._queue.children(1)[0])

    def join(self, branches: Iterable[PromptStream]) -> None:
        """Appends what each branch says beyond the point where it began, in order: tokens, text and
        messages."""
        given = list(branches)
        for branch in given:
            if not isinstance(branch, PromptStream) or branch._queue.parent is not self._queue:  # pyright: ignore[reportUnnecessaryIsInstance]
                raise ConfigError(
                    "only branches and copies of this very stream can be joined to it"
                )
        self._queue.join([branch._queue for branch in given])

    @overload
    async def map(
        self,
        fn: Callable[[PromptStream, ItemT], Awaitable[T]],
        items: Iterable[ItemT],
        *,
        on_error: Literal["cancel"] = "cancel",
    ) -> list[T]: ...
    @overload
    async def map(
        self,
        fn: Callable[[PromptStream, ItemT], Awaitable[T]],
        items: Iterable[ItemT],
        *,
        on_error: Literal["keep"],
    ) -> list[T | BaseException]: ...
    async def map(
        self,
        fn: Callable[[PromptStream, ItemT], Awaitable[T]],
        items: Iterable[ItemT],
        *,
        on_error: OnError = "cancel",
    ) -> Sequence[T | BaseException]:
        """Runs `fn(branch, item)` for each item, each on a branch of its own; the results in order.

        With on_error="keep" the failure of an item stands in the place of its result.
        """
        work = list(items)
        if not work:
            await asyncio.sleep(0)
            return []
        async with self.fork(len(work), on_error=on_error) as branches:
            tasks = [
                branch.start_soon(fn, item) for branch, item in zip(branches, work, strict=True)
            ]
        return [
            branch.error if branch.error is not None else task.result()
            for branch, task in zip(branches, tasks, strict=True)
        ]

    def start_soon(
        self,
        fn: Callable[Concatenate[PromptStream, P], Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> TaskHandle[T]:
        """Runs `await fn(branch, ...)` as a task of the fork block that this stream is a branch
        of."""
        group = self._queue.group
        if group is None:
            raise ConfigError(
                f"{self._queue.context.describe()} is no branch of an open fork block: start_soon "
                "needs one to run in"
            )
        return group.start(self._queue, lambda: fn(self, *args, **kwargs))

    async def save(self, path: str | os.PathLike[str], *, kv: bool = False) -> None:
        """Writes what the stream says once all that is submitted by now is done: text, tokens,
        variables and messages.

        `Runtime.load` goes on from it, in this process or another. With kv=True the file has the
        keys and values too, some kilobytes a token, which are computed first if they are not
        cached. It appears whole or not at all. Raises ConfigError if a variable is no JSON, inside
        a role block, or if the file cannot be written.
        """
        executor = self._queue.executor("save")
        if kv:
            await executor.prefetch()
        await saved_prompt.save(executor, Path(path), kv)

    # --- the end

    async def aclose(self) -> None:
        """Cancels what is submitted, in the engine too, and closes the stream. What it says can
        still be read."""
        self._queue.close("aclose() was called")
        await asyncio.sleep(0)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> Literal[False]:
        """Waits for all ops, or on an exception cancels them; either way the stream then is
        closed."""
        try:
            if error is None:
                await self.sync()
        finally:
            self._queue.close("its block was left")
        return False

    def __repr__(self) -> str:
        return f"<PromptStream: {self._queue}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: messages and text by where they come from, and the variables."""
        queue = self._queue
        pieces = [Piece(text, how) for text, how in queue.origins]
        hows = dict.fromkeys(piece.how for piece in pieces)
        told = [(message["role"], message["content"]) for message in queue.messages]
        variables = [(name, repr(value)) for name, value in queue.variables.items()]
        parts = [text_html(pieces), legend_html(hows)]
        for title, rows in (("messages", told), ("variables", variables)):
            if rows:
                parts.append(f"<div><b>{title}</b></div>{table_html(rows)}")
        return card_html(queue.context.describe(), *parts)
