"""Fork blocks: branches of a stream, with a task group that exists only inside the block.

    async with s.fork(3) as branches:       branches begin from what s says; nothing is copied by the engine, nothing waits
        ...                                 the body
    # all ops and tasks of the branches have ended

A failure that somebody awaits is theirs. One that nobody awaits stops body and siblings, in the
engine too, or with on_error="keep" is kept as `branch.error`. Leaving raises one ExceptionGroup of
what was not delivered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar, get_args, overload

import anyio

from asgl.errors import ConfigError, OpCancelledError
from asgl.language.core import Core
from asgl.language.outcome import Failure, Outcome, cancelled, telling, unseen_errors

if TYPE_CHECKING:
    from asgl.language.stream import PromptStream

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
OnError: TypeAlias = Literal["cancel", "keep"]


class TaskHandle(Generic[T_co]):
    """A task of a fork block. Awaiting it gives what its function returns; cancelling the last who
    awaits cancels it."""

    __slots__ = ("outcome", "scope")

    def __init__(self) -> None:
        self.outcome = Outcome()
        self.scope = anyio.CancelScope()

    def __await__(self) -> Generator[Any, Any, T_co]:
        return self._result().__await__()

    def done(self) -> bool:
        """Whether the task has ended: with a value, with an error, or cancelled."""
        return self.outcome.settled

    def cancel(self) -> bool:
        """Cancels the task; False if it has ended already. Others who await it get
        OpCancelledError."""
        if self.outcome.settled:
            return False
        self.scope.cancel()
        return True

    async def _result(self) -> T_co:
        outcome = self.outcome
        if outcome.settled:
            await telling(outcome.failure)
        while not outcome.settled:
            outcome.awaiting += 1
            try:
                await outcome.ended.wait()
            except asyncio.CancelledError:
                if outcome.awaiting == 1:
                    self.cancel()
                raise
            finally:
                outcome.awaiting -= 1
        return outcome.result()


class Branches(Sequence["PromptStream"]):
    """The branches of a fork block, and the block itself."""

    def __init__(self, parent: PromptStream, n: int, on_error: OnError) -> None:
        if on_error not in get_args(OnError):
            raise ConfigError(f"on_error must be 'cancel' or 'keep', not {on_error!r}")
        self._parent = parent
        self._n = n
        self._keeps = on_error == "keep"
        self._branches: list[PromptStream] = []
        self._tasks: list[tuple[TaskHandle[Any], Core]] = []
        self._group = anyio.create_task_group()
        self._open = False
        self._aborted = False
        self._errors: list[BaseException] = []
        """What leaving the block will raise."""
        self._kept: list[Failure] = []
        """What is kept at the branches."""
        self._exit: BaseException | None = None
        """A KeyboardInterrupt or SystemExit that a task raised."""

    # --- the branches

    @overload
    def __getitem__(self, index: int) -> PromptStream: ...
    @overload
    def __getitem__(self, index: slice) -> list[PromptStream]: ...
    def __getitem__(self, index: int | slice) -> PromptStream | list[PromptStream]:
        return self._branches[index]

    def __setitem__(self, index: int, branch: PromptStream) -> None:
        """Only so that `branches[i] += "text"` works: a branch cannot be replaced by another
        stream."""
        if self._branches[index] is not branch:
            raise ConfigError("a branch cannot be replaced by another stream")

    def __len__(self) -> int:
        return len(self._branches)

    def gather(self, name: str) -> list[Any]:
        """The variable of each branch, in order. VariableError if a branch lacks it: nothing is
        ever left out."""
        return [branch[name] for branch in self._branches]

    # --- the block

    async def __aenter__(self) -> Branches:
        from asgl.language.stream import (
            PromptStream,
        )  # stands above: a stream makes its fork blocks

        if self._branches:
            raise ConfigError("a fork block can be entered once: fork again")
        core = self._parent._core
        children = core.children(self._n)
        await self._group.__aenter__()
        core.forks += 1
        self._open = True
        for child in children:
            child.group = self
            self._branches.append(PromptStream(child))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> Literal[False]:
        ended: BaseException | None = error
        if ended is None:
            try:
                await self._finish()
            except asyncio.CancelledError as stopped:
                ended = stopped
        if ended is not None:
            self._abort()
        outer = await self._close(ended if isinstance(ended, asyncio.CancelledError) else None)
        if self._exit is not None:
            raise self._exit
        if error is not None and not isinstance(
            error, Exception | BaseExceptionGroup | asyncio.CancelledError
        ):
            return False
        if outer is not None:
            if outer is error:
                return False
            raise outer
        errors = self._collect(error if not isinstance(error, asyncio.CancelledError) else None)
        if errors:
            raise BaseExceptionGroup(
                f"{len(errors)} failure(s) in a fork of {self._parent._core.describe()}", errors
            ) from None
        return False

    async def _finish(self) -> None:
        """Waits for all ops and tasks of the branches."""
        while True:
            for branch in self._branches:
                await branch._core.idle()
            running = [task for task, _ in self._tasks if not task.done()]
            if not running and not any(branch._core.queue for branch in self._branches):
                return await asyncio.sleep(0)
            if running:
                await running[0].outcome.ended.wait()

    async def _close(self, stopped: asyncio.CancelledError | None) -> asyncio.CancelledError | None:
        """Waits for the tasks, and ends the group; returns the cancellation that came from outside
        the block, if one did."""
        try:
            if stopped is None:
                await self._group.__aexit__(None, None, None)
            else:
                await self._group.__aexit__(type(stopped), stopped, stopped.__traceback__)
        except asyncio.CancelledError as outside:
            self._abort()
            return outside
        finally:
            self._open = False
            self._parent._core.forks -= 1
            for branch in self._branches:
                branch._core.group = None
                branch._core.cancel_all(
                    "its fork block was left"
                )  # what a stopped task submitted while it cleaned up
        return None

    def _collect(self, body: BaseException | None) -> list[BaseException]:
        """What leaving the block raises: the body's error first, then what nobody has seen; each
        once, with its branch."""
        failures = [
            (core.failure, core)
            for core in (branch._core for branch in self._branches)
            if core.failure is not None
        ]
        failures += [
            (task.outcome.failure, core)
            for task, core in self._tasks
            if task.outcome.failure is not None
        ]
        for failure, core in failures:
            if not failure.seen:
                self._take(failure, core)
            if failure.error is body:
                _note(failure.error, core)
        for failure in self._kept:
            failure.see()
        errors: list[BaseException] = [body] if body is not None else []
        return errors + [error for error in self._errors if error is not body]

    def _abort(self) -> None:
        """Stops the body, the tasks and the ops of all branches, in the engine too."""
        if self._aborted:
            return
        self._aborted = True
        self._group.cancel_scope.cancel()
        for branch in self._branches:
            branch._core.cancel_all("its fork block was stopped")

    # --- failures

    def notice(self, core: Core, failure: Failure) -> None:
        """An op or a task of a branch failed. Called after those who await it had their turn."""
        if failure.seen or not self._open:
            return
        self._take(failure, core)
        if not self._keeps:
            self._abort()

    def _take(self, failure: Failure, core: Core) -> None:
        """Makes the failure the block's: to be raised, or kept at the branch."""
        if self._aborted and isinstance(failure.error, OpCancelledError) and failure.root is None:
            failure.see()  # a consequence of stopping the block
        elif failure.root is not None and any(
            failure.root.error is error for error in self._errors
        ):
            failure.see()
        elif self._keeps:
            if failure not in self._kept:
                self._kept.append(failure)
                errors = [failure.error] if core.error is None else [core.error, failure.error]
                core.error = (
                    errors[0]
                    if len(errors) == 1
                    else BaseExceptionGroup("several failures", errors)
                )
        else:
            for error in unseen_errors([failure]):
                _note(error, core)
                if all(error is not other for other in self._errors):
                    self._errors.append(error)

    # --- tasks

    def start(self, branch: PromptStream, call: Callable[[], Awaitable[T]]) -> TaskHandle[T]:
        """Runs the call as a task of the group."""
        handle: TaskHandle[T] = TaskHandle()
        self._tasks.append((handle, branch._core))
        self._group.start_soon(self._run, handle, branch._core, call)
        return handle

    async def _run(
        self, handle: TaskHandle[Any], core: Core, call: Callable[[], Awaitable[Any]]
    ) -> None:
        outcome = handle.outcome
        try:
            with handle.scope:
                outcome.settle(await call())
        except Exception as error:
            failure = Failure(error, where=core.describe())
            outcome.settle(error=error, failure=failure)
            core.session.loop.call_soon(self.notice, core, failure)
        except (KeyboardInterrupt, SystemExit) as error:
            self._exit = error
            self._abort()
        finally:
            if not outcome.settled:
                outcome.settle(
                    error=cancelled(f"a task of {core.describe()} was cancelled", core.stream)
                )


def _note(error: BaseException, core: Core) -> None:
    note = f"in {core.describe()}"
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)
