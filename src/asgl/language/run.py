"""The run of a program as a handle: see `Program.start`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import Any, Generic, NoReturn, TypeVar
from weakref import WeakSet

from asgl.errors import VariableError
from asgl.language.failures import Failure, Outcome, cancelled
from asgl.language.op_info import OpInfo
from asgl.language.op_queue import OpQueue
from asgl.language.pieces import StreamPieces, VariablePieces, submitted
from asgl.language.stream import PromptStream
from asgl.types import Message

T_co = TypeVar("T_co", covariant=True)


class ProgramStream(PromptStream, Generic[T_co]):
    """The stream of a program that was run on a Runtime. All that the program submitted is done;
    one may go on from it."""

    __slots__ = ("returned",)

    def __init__(self, queue: OpQueue) -> None:
        super().__init__(queue)
        self.returned: T_co
        """What the program returned."""


class Run(Generic[T_co]):
    """A program that runs on a stream of its own: `run = program.start(rt, ...)`.

    `await run` gives the finished stream, or raises the program's error; `async for piece in run`
    all its text as it comes, to the end of the program. It runs whether or not anybody awaits.
    Cancelling the last task that awaits it cancels it, in the engine too. A failure that nobody
    awaits is raised when the Runtime is left, which also cancels what still runs.
    """

    __slots__ = ("_iterators", "_outcome", "_stream", "_task")

    def __init__(
        self,
        stream: ProgramStream[T_co],
        program: Callable[[], Awaitable[ProgramStream[T_co]]],
    ) -> None:
        self._stream = stream
        self._iterators: WeakSet[Any] = WeakSet()
        """Those over its text that still are in use."""
        self._outcome = Outcome[ProgramStream[T_co]]()
        session = stream._queue.context.session
        self._task = asyncio.ensure_future(self._settle(program))
        stream._queue.executor("start").owners.append(self._task)
        session.tasks.add(self._task)
        self._task.add_done_callback(session.tasks.discard)
        self._task.add_done_callback(self._ended)

    async def _settle(self, program: Callable[[], Awaitable[ProgramStream[T_co]]]) -> None:
        try:
            self._outcome.settle(await program())
        except Exception as error:
            self._outcome.failure = failure = Failure(error)
            self._stream._queue.context.session.record(failure)
            self._outcome.settle(error=error)

    def _ended(self, task: asyncio.Future[None]) -> None:
        """However it did: also a task that was cancelled before it began."""
        executor = self._stream._queue.executor("start")
        executor.owners.remove(self._task)
        if not self._outcome.settled:
            what = f"the program that ran on {executor.context.describe()} was cancelled"
            executor.close(what)
            self._outcome.settle(error=cancelled(what, self._stream))
        executor.changed.notify()

    # --- its end

    def __await__(self) -> Generator[Any, Any, ProgramStream[T_co]]:
        return self._result().__await__()

    async def _result(self) -> ProgramStream[T_co]:
        self._stream._queue.executor("start").check_loop()
        return await self._outcome.awaited(self._abandon)

    def _abandon(self) -> None:
        """Cancels the run, whose last awaiter was cancelled, unless an iterator is in use."""
        if all(pieces.waiting for pieces in self._iterators):
            self.cancel()

    def done(self) -> bool:
        """Whether the program has ended: with a value, with an error, or cancelled."""
        return self._outcome.settled

    def cancel(self) -> bool:
        """Cancels the program and what it has submitted; False if it has ended already. Who awaits
        it gets OpCancelledError."""
        if self._outcome.settled:
            return False
        self._stream._queue.executor("start").check_loop()
        return self._task.cancel()

    # --- as it comes

    def __aiter__(self) -> AsyncIterator[str]:
        return _RunPieces(self)

    async def stream(self, name: str) -> AsyncIterator[str]:
        """The text of a variable as it comes, also one that the program has not come to yet: of
        the op that was submitted last for that name, or else of the first to come.

        Raises the error with which the op, or the program before it, ended; VariableError if the
        program ended without one. To stop iterating, or to be cancelled in it, stops nothing.
        """
        try:
            async for piece in VariablePieces(self._stream._queue.executor("pieces"), name):
                yield piece
        except VariableError:
            self._raise_error()
            raise

    async def get(self, name: str) -> Any:
        """The value of a variable, also one that the program has not come to yet. Raises as
        `stream` does; to be cancelled in it only stops waiting."""
        executor = self._stream._queue.executor("pieces")
        executor.check_loop()
        await submitted(executor, name)
        try:
            return await executor.get(name)
        except VariableError:
            self._raise_error()
            raise

    def _raise_error(self) -> None:
        """The error of the program, if it has ended with one: then that is what there is to say."""
        if self._outcome.error is not None:
            self._outcome.result()

    # --- what is there

    def __getitem__(self, name: str) -> Any:
        """The value of a variable that is finished: see `PromptStream.__getitem__`."""
        return self._stream[name]

    def info(self, name: str) -> OpInfo:
        """How a finished variable was generated: see `PromptStream.info`."""
        return self._stream.info(name)

    @property
    def text(self) -> str:
        """What the program's stream says so far."""
        return self._stream.text

    def messages(self) -> list[Message]:
        """The whole messages so far."""
        return self._stream.messages()

    def __bool__(self) -> NoReturn:
        raise TypeError(f"{self!r} is neither true nor false: await it, or ask run.done()")

    def __repr__(self) -> str:
        how = "done" if self._outcome.error is None else type(self._outcome.error).__name__
        return f"<Run on {self._stream._queue}: {how if self.done() else 'running'}>"


class _RunPieces:
    """Iterates over all text of a run's stream. Who waits in it is as one who awaits the run."""

    def __init__(self, run: Run[Any]) -> None:
        self._run = run
        self._pieces = StreamPieces(run._stream._queue.executor("pieces"), raises=False)
        self.waiting = False
        run._iterators.add(self)

    def __aiter__(self) -> _RunPieces:
        return self

    async def __anext__(self) -> str:
        outcome = self._run._outcome
        self.waiting = True
        outcome.awaiting += 1
        try:
            piece = await self._pieces.__anext__()
        except StopAsyncIteration:
            await self._run
            raise
        except asyncio.CancelledError:
            if outcome.awaiting == 1:
                self._run._abandon()
            raise
        finally:
            outcome.awaiting -= 1
        self.waiting = False
        return piece
