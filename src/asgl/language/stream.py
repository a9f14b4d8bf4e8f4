"""`PromptStream`: the state of a prompt, and what a program can do with it."""

from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
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
from asgl.errors import ConfigError
from asgl.language import saved_prompt
from asgl.language.fork import TaskHandle
from asgl.language.internal_ops import Rewind, TakeSnapshot
from asgl.language.op_queue import ForkBlock, OnError
from asgl.language.operation import OpenMessage, Operation
from asgl.language.ops import Content, GenOptions
from asgl.language.stream_ops import StreamOps
from asgl.language.tool_calls import (
    OnToolError,
    ToolCalls,
    ToolChoice,
    Turn,
    agent,
    call_tools,
    checked,
)
from asgl.language.tools import AnyTool
from asgl.shown import Piece, card_html, legend_html, table_html, text_html

P = ParamSpec("P")
T = TypeVar("T")
ItemT = TypeVar("ItemT")


class Mark:
    """A point of a stream to go back to: see `PromptStream.mark`."""

    __slots__ = ("message", "snapshot")

    def __init__(self, snapshot: Operation, message: OpenMessage | None) -> None:
        self.snapshot, self.message = snapshot, message


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

    def __iadd__(self, content: str | Content) -> Self:
        """`branches += content` appends it to each of them."""
        for branch in self._opened:
            branch.append(content)
        return self

    @overload
    def gather(self, name: str, /) -> list[Any]: ...
    @overload
    def gather(self, name: str, other: str, /, *names: str) -> list[dict[str, Any]]: ...
    def gather(self, *names: str) -> list[Any]:
        """The variable of each branch, in order; of several names, a dict of them for each branch.
        VariableError if a branch lacks one: nothing is ever left out."""
        if len(names) == 1:
            return [branch[names[0]] for branch in self._opened]
        return [{name: branch[name] for name in names} for branch in self._opened]

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


class PromptStream(StreamOps):
    """A prompt that grows. Made by `Runtime.prompt`, and by forking another.

    Ops are submitted in order: each call queues at once and returns a handle to await, or not.
    ConfigError and StreamClosedError are raised at the call, every other error where the handle is
    awaited. A failed or cancelled op leaves the stream as it was before, and ends those queued
    behind it with OpCancelledError.
    """

    __slots__ = ()

    # --- tools

    async def call_tools(
        self,
        tools: Sequence[AnyTool],
        *,
        choice: ToolChoice = "required",
        on_error: OnToolError = "model",
        timeout: float | None = None,
        parallel: bool = False,
        on_text: Callable[[str], object] | None = None,
        **options: Unpack[GenOptions],
    ) -> ToolCalls:
        """Lets the model call a tool, runs it, and appends the result: see `asgl.language.tools`.
        Returns the calls, a list whose `text` is what the model said beside them.

        The call is generated after all that is submitted, constrained to the tools' schemas, in a
        message of the assistant if the stream has messages. `options` are those of `gen`;
        `max_tokens` must be enough for the call. With parallel=True the model may make up to 8
        calls, which run at once.

        choice: "required", the model calls one of the tools; a tool, this one; "auto", it calls or
        answers, as its own tokens say, and an answer, which makes no calls, is a message of its
        own; "none", it answers. `on_text` is called with each piece of an answer as it comes.

        What a tool raises, also TimeoutError after `timeout` seconds, the model is told instead of
        a result, and is in `ToolCall.error`. With on_error="program" it is raised as ToolError,
        with what the tool raised as its cause, and calls that still run are cancelled. However this
        fails or is cancelled, the stream then says what it said before. Nothing else should be
        submitted to the stream meanwhile. Raises OutputError for a call that max_tokens cut short.
        """
        executor = self._queue.executor("call_tools")
        how = checked(tools, choice, on_error, timeout, parallel, on_text, options)
        return await call_tools(executor, how)

    def agent(
        self,
        tools: Sequence[AnyTool],
        *,
        max_turns: int = 8,
        on_error: OnToolError = "model",
        timeout: float | None = None,
        parallel: bool = False,
        on_text: Callable[[str], object] | None = None,
        **options: Unpack[GenOptions],
    ) -> AsyncIterator[Turn]:
        """`async for turn in s.agent(tools):` lets the model call tools until it answers, or has
        made `max_turns` turns: `turn.end` of the last says which.

        A turn is a `call_tools` with choice="auto", with its other arguments, and like that it
        happens wholly or not at all: what it raises leaves the stream as the turn before left it.
        To break out of the loop is to leave it at the end of a turn. A budget that is open bounds
        the turns. What else the program submits between them, a word of the user, say, they see.
        """
        executor = self._queue.executor("call_tools")
        how = checked(tools, "auto", on_error, timeout, parallel, on_text, options)
        return agent(executor, how, integer("max_turns", max_turns, 1))

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
