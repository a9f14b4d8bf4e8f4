"""Programs: functions over a prompt stream, run alone, inside one another, and in batches.

    s = await tips(rt, "health")                    # on a Runtime: a fresh stream, finished
    tip = await tips(s, "health")                   # on a stream: inside it, and its value
    outcomes = await tips.batch(rt, ["health", "sleep"])
    async with tips.as_completed(rt, topics) as results: ...
    run = tips.start(rt, "health")                  # a handle: async for piece in run

`asgl.compile.function` makes programs of functions.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import (
    Any,
    Generic,
    Literal,
    ParamSpec,
    Protocol,
    TypeVar,
    Unpack,
    cast,
    overload,
)

import anyio

from asgl.checks import integer
from asgl.completion import Signal
from asgl.errors import ConfigError
from asgl.language.budget import Budget
from asgl.language.failures import cancelled
from asgl.language.run import ProgramStream, Run
from asgl.language.session import PromptOptions
from asgl.language.stream import PromptStream
from asgl.sampling import SamplingParams

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Source(Protocol):
    """Where programs get their streams from: a Runtime."""

    def prompt(
        self,
        text: str = "",
        *,
        sampling: SamplingParams | None = None,
        cache_salt: str | None = None,
        priority: int = 0,
        deadline: float | None = None,
        budget: Budget | None = None,
        name: str | None = None,
    ) -> PromptStream: ...

    def batch_progress(
        self, total: int, what: str, /
    ) -> AbstractContextManager[Callable[[], object]]:
        """Shows the progress of a batch of so many programs; what it gives is called after each."""
        ...


class RunOptions(PromptOptions, total=False):
    """How a program is run on a Runtime: the keyword arguments of `Runtime.prompt`, of the stream
    that the program gets. `name`: None for the program's own."""

    name: str | None


class Program(ABC, Generic[T_co]):
    """What runs on a stream, alone or once for each item of a batch: a function, or the graph of
    one."""

    @property
    @abstractmethod
    def _name(self) -> str:
        """Streams are named after it."""

    @property
    @abstractmethod
    def _signature(self) -> inspect.Signature:
        """The stream, and the arguments after it."""

    @abstractmethod
    async def _body(self, stream: PromptStream, /, *args: Any, **kwargs: Any) -> T_co:
        """Submits what the program submits; the program's value."""

    async def _prepare(self, rt: Source, runs: int, /) -> None:
        """Called before the first of several runs."""

    async def _run_on(
        self, where: PromptStream | Source, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> T_co | ProgramStream[T_co]:
        if isinstance(where, PromptStream):
            self._refuse_options(kwargs)
            with where._queue.owned():
                return await self._body(where, *args, **kwargs)
        return await self._run(*self._open(where, args, kwargs))

    def _start(self, rt: Source, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Run[T_co]:
        _check_source(rt)
        own = {key: value for key, value in kwargs.items() if not self._is_option(key)}
        self._check_arguments(args, own, "the arguments do")
        stream, args, kwargs = self._open(rt, args, kwargs)
        return Run(stream, lambda: self._run(stream, args, kwargs))

    def _open(
        self, rt: Source, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[ProgramStream[T_co], tuple[Any, ...], dict[str, Any]]:
        """The stream of a run, and the program's own arguments."""
        _check_source(rt)
        own = {key: value for key, value in kwargs.items() if not self._is_option(key)}
        options: dict[str, Any] = {key: kwargs[key] for key in kwargs.keys() - own.keys()}
        if options.get("name") is None:
            options["name"] = self._name
        return ProgramStream(rt.prompt(**options)._queue), args, own

    def _is_option(self, key: str) -> bool:
        """Whether the keyword argument says how to run, unless the program has such a parameter."""
        return key in RunOptions.__annotations__ and key not in self._signature.parameters

    def _refuse_options(self, kwargs: Mapping[str, Any]) -> None:
        given = [key for key in kwargs if self._is_option(key)]
        variadic = inspect.Parameter.VAR_KEYWORD
        if given and all(one.kind is not variadic for one in self._signature.parameters.values()):
            raise ConfigError(
                f"{given[0]}= is for a run of {self._name} on a Runtime; on a stream it goes by "
                "what the stream was made with"
            )

    def _check_arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], what: str) -> None:
        try:
            self._signature.bind(None, *args, **kwargs)
        except TypeError as error:
            raise ConfigError(f"{what} not fit {self._name}{self._signature}: {error}") from None

    @overload
    async def batch(
        self,
        rt: Source,
        items: Iterable[Any],
        *,
        concurrency: int = 64,
        progress: bool = True,
        on_error: Literal["raise"] = "raise",
        **options: Unpack[RunOptions],
    ) -> list[ProgramStream[T_co]]: ...
    @overload
    async def batch(
        self,
        rt: Source,
        items: Iterable[Any],
        *,
        concurrency: int = 64,
        progress: bool = True,
        on_error: Literal["return"],
        **options: Unpack[RunOptions],
    ) -> list[ProgramStream[T_co] | Exception]: ...
    async def batch(
        self,
        rt: Source,
        items: Iterable[Any],
        *,
        concurrency: int = 64,
        progress: bool = True,
        on_error: Literal["raise", "return"] = "raise",
        **options: Unpack[RunOptions],
    ) -> Sequence[ProgramStream[T_co] | Exception]:
        """Runs the program once for each item, at most `concurrency` at a time; the finished
        streams in the items' order.

        An item holds the arguments: a mapping those given by name, a tuple those given by position,
        and anything else is the one argument. (A mapping that is itself the argument goes into a
        tuple.) The streams are named after the program, or `name`, and the item's number, so that
        inherited seeds give each item samples of its own. The other options are those of each
        stream (see `Runtime.prompt`); a budget bounds all items together.

        on_error: "raise" cancels the rest at the first failure, in the engine too, and raises it,
        with a note that says which item it was; "return" puts the exception in the place of the
        stream. progress: a bar in the terminal. Raises ConfigError, before anything runs, if an
        item does not fit the function's parameters.
        """
        if on_error not in ("raise", "return"):
            raise ConfigError(f"on_error must be 'raise' or 'return', not {on_error!r}")
        running = self.as_completed(rt, items, concurrency=concurrency, **options)
        running.until_failure = on_error == "raise"
        outcomes: list[ProgramStream[T_co] | Exception | None] = [None] * len(running)
        shown = (
            rt.batch_progress(len(running), self._name)
            if progress
            else contextlib.nullcontext(_nothing)
        )
        with shown as advance:
            async with running as results:
                async for index, outcome in results:
                    if isinstance(outcome, Exception) and on_error == "raise":
                        raise outcome
                    outcomes[index] = outcome
                    advance()
        return cast("list[ProgramStream[T_co] | Exception]", outcomes)

    def as_completed(
        self,
        rt: Source,
        items: Iterable[Any],
        *,
        concurrency: int = 64,
        **options: Unpack[RunOptions],
    ) -> Completed[T_co]:
        """`async with tips.as_completed(rt, items) as results:` runs the program for each item, as
        `batch` does; iterating over `results` gives (index, outcome) as they end, an outcome being
        a finished stream or an exception. Leaving the block cancels what is left."""
        _check_source(rt)
        integer("concurrency", concurrency, 1)
        if isinstance(items, str | bytes | Mapping) or not isinstance(items, Iterable):
            raise ConfigError(f"items must be a list, of one item for each run, not {items!r}")
        if unknown := options.keys() - RunOptions.__annotations__.keys():
            raise TypeError(f"unexpected keyword argument {sorted(unknown)[0]!r}")
        calls = [self._call(rt, index, item, options) for index, item in enumerate(items)]
        return Completed(calls, concurrency, self._name, lambda: self._prepare(rt, len(calls)))

    def _call(
        self, rt: Source, index: int, item: Any, options: RunOptions
    ) -> Callable[[], Awaitable[ProgramStream[T_co]]]:
        args: tuple[Any, ...] = (
            item if isinstance(item, tuple) else () if isinstance(item, Mapping) else (item,)
        )
        kwargs: dict[str, Any] = dict(item) if isinstance(item, Mapping) else {}
        self._check_arguments(args, kwargs, f"item {index} does")
        named: dict[str, Any] = {**options, "name": f"{options.get('name') or self._name}[{index}]"}

        async def call() -> ProgramStream[T_co]:
            stream: ProgramStream[T_co] = ProgramStream(rt.prompt(**named)._queue)
            return await self._run(stream, args, kwargs, item=index)

        return call

    async def _run(
        self,
        stream: ProgramStream[T_co],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        item: int | None = None,
    ) -> ProgramStream[T_co]:
        """Runs on a fresh stream, to the end of all that is submitted to it. item: its place in a
        batch."""
        tell = stream._queue.context.emit_program
        tell("started", self._name, item)
        try:
            with stream._queue.owned():
                stream.returned = await self._body(stream, *args, **kwargs)
                await stream.sync()
        except BaseException as error:
            stream._queue.close("its program failed or was cancelled")
            if isinstance(error, asyncio.CancelledError):
                tell("cancelled", self._name, item)
            else:
                tell("failed", self._name, item, error)
            raise
        tell("finished", self._name, item)
        return stream


class Completed(Generic[T_co]):
    """The programs of a batch, and what became of them: see `Program.as_completed`."""

    def __init__(
        self,
        calls: list[Callable[[], Awaitable[ProgramStream[T_co]]]],
        concurrency: int,
        name: str,
        prepare: Callable[[], Awaitable[None]],
    ) -> None:
        self._calls = calls
        self._prepare = prepare
        self.until_failure = False
        """Whether no program is begun after one has failed."""
        self._concurrency = min(concurrency, len(calls))
        self._name = name
        self._group = anyio.create_task_group()
        self._ended: deque[tuple[int, ProgramStream[T_co] | Exception]] = deque()
        self._given = 0
        self._failed = False
        self._changed = Signal()
        self._exit: BaseException | None = None
        """A KeyboardInterrupt or SystemExit that a program raised."""
        self._open = False

    def __len__(self) -> int:
        return len(self._calls)

    async def __aenter__(self) -> Completed[T_co]:
        await self._prepare()
        await self._group.__aenter__()
        self._open = True
        waiting = iter(enumerate(self._calls))
        for _ in range(self._concurrency):
            self._group.start_soon(self._work, waiting)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> Literal[False]:
        self._open = False
        self._group.cancel_scope.cancel()
        stopped = error if isinstance(error, asyncio.CancelledError) else None
        await self._group.__aexit__(None if stopped is None else type(stopped), stopped, None)
        if self._exit is not None:
            raise self._exit
        return False

    def __aiter__(self) -> Completed[T_co]:
        return self

    async def __anext__(self) -> tuple[int, ProgramStream[T_co] | Exception]:
        if self._given == len(self._calls):
            raise StopAsyncIteration
        if not self._open:
            raise ConfigError(
                "the results of a batch come inside `async with ...as_completed(...) as results:`"
            )
        if self._ended:
            await asyncio.sleep(0)
        while not self._ended:
            await self._changed.wait()
        self._given += 1
        return self._ended.popleft()

    async def _work(
        self, waiting: Iterator[tuple[int, Callable[[], Awaitable[ProgramStream[T_co]]]]]
    ) -> None:
        """Runs one program after the other."""
        for index, call in waiting:
            if self._failed and self.until_failure:
                return
            try:
                outcome: ProgramStream[T_co] | Exception = await call()
            except Exception as error:
                outcome = error
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                outcome = cancelled(
                    f"{self._name} ended with a CancelledError of its own", None
                )  # nobody cancelled the task
            except (KeyboardInterrupt, SystemExit) as error:
                self._exit = error
                self._group.cancel_scope.cancel()
                return
            if isinstance(outcome, Exception):
                outcome.add_note(f"in item {index} of {self._name}")
                self._failed = True
            self._ended.append((index, outcome))
            self._changed.notify()


def _check_source(where: object) -> None:
    if not callable(getattr(where, "prompt", None)):
        raise ConfigError(f"a program runs on a Runtime or on a stream, not on {where!r}")


def _nothing() -> None:
    """Shows no progress."""
