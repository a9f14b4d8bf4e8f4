"""Fork blocks: branches of a stream, with a task group that exists only inside the block.

    async with s.fork(3) as branches:       branches start from what s says; nothing is copied
        ...                                 the body
    # all ops and tasks of the branches have ended

A failure that somebody awaits is theirs. One that nobody awaits stops body and siblings, in the
engine too, or with on_error="keep" is kept as `branch.error`. Leaving raises one ExceptionGroup of
what was not delivered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Generic, NoReturn, TypeVar

import anyio

from asgl.completion import Signal
from asgl.errors import ConfigError, OpCancelledError
from asgl.language.failures import Failure, Outcome, cancelled, unseen_errors
from asgl.language.handle import Handle
from asgl.language.internal_ops import SetVariable
from asgl.language.op_queue import ForkableQueue
from asgl.language.ops import gen

T_co = TypeVar("T_co", covariant=True)


class TaskHandle(Generic[T_co]):
    """A task of a fork block. Awaiting it gives what its function returns; cancelling the last who
    awaits cancels it."""

    __slots__ = ("_outcome", "_stop")

    def __init__(self, outcome: Outcome[Any], stop: Callable[[], object]) -> None:
        self._outcome, self._stop = outcome, stop

    def __await__(self) -> Generator[Any, Any, T_co]:
        return self._outcome.awaited(self.cancel).__await__()

    def __bool__(self) -> NoReturn:
        raise TypeError(f"{self!r} is neither true nor false: await it for its value")

    def __eq__(self, other: object) -> bool:
        if other is None or isinstance(other, TaskHandle):
            return self is other
        raise TypeError(f"{self!r} is not its value, and equals nothing else: await it")

    __hash__ = object.__hash__

    def done(self) -> bool:
        """Whether the task has ended: with a value, with an error, or cancelled."""
        return self._outcome.settled

    def result(self) -> T_co:
        """The value of a task that has ended; raises its error."""
        return self._outcome.result()

    def cancel(self) -> bool:
        """Cancels the task; False if it has ended already. Others who await it get
        OpCancelledError."""
        if self._outcome.settled:
            return False
        self._stop()
        return True


class TaskGroupFork:
    """The fork block of streams that run: see `op_queue.ForkBlock`."""

    def __init__(self, parent: ForkableQueue, n: int, keeps: bool) -> None:
        self._parent = parent
        self._n = n
        self._keeps = keeps
        self._branches: Sequence[ForkableQueue] = ()
        self._tasks: list[tuple[Outcome[Any], ForkableQueue]] = []
        self._group = anyio.create_task_group()
        self._open = False
        self._aborted = False
        self._errors: list[BaseException] = []
        """What leaving the block will raise."""
        self._kept: list[Failure] = []
        """What is kept at the branches."""
        self._exit: BaseException | None = None
        """A KeyboardInterrupt or SystemExit that a task raised."""

    async def open(self) -> Sequence[ForkableQueue]:
        if self._branches:
            raise ConfigError("a fork block can be entered once: fork again")
        self._branches = self._parent.children(self._n)
        await self._group.__aenter__()
        self._parent.open_forks += 1
        self._open = True
        for branch in self._branches:
            branch.group, branch.on_failure = self, self._notice
        return self._branches

    async def close(self, error: BaseException | None) -> None:
        """Ends the block, whose body has raised `error` or nothing. Returns if the error, or
        nothing, is to go on from there.

        The order matters. First the branches run to their end, or are stopped. Then the task group
        is left, which tells a cancellation from outside from our own: that one goes on bare. Only
        then are failures collected, since tasks that were stopped may fail as they clean up.
        """
        ended = error
        if ended is None:
            try:
                await self._finish()
            except asyncio.CancelledError as stopped:
                ended = stopped
        if ended is not None:
            self._abort()
        outer = await self._leave(ended if isinstance(ended, asyncio.CancelledError) else None)
        if self._exit is not None:
            raise self._exit
        cancelled_body = isinstance(error, asyncio.CancelledError)
        if error is not None and not (
            cancelled_body or isinstance(error, Exception | BaseExceptionGroup)
        ):
            return  # KeyboardInterrupt, SystemExit and GeneratorExit pass bare
        if outer is not None:
            if outer is error:
                return
            raise outer
        # a cancellation that did not come from outside is our own: a branch had failed
        errors = self._collect(None if cancelled_body else error)
        if errors:
            name = self._parent.context.describe()
            message = f"{len(errors)} failure(s) in a fork of {name}"
            raise BaseExceptionGroup(message, errors) from None

    async def _finish(self) -> None:
        """Waits for all ops and tasks of the branches."""
        while True:
            for branch in self._branches:
                await branch.idle()
            running = [task for task, _ in self._tasks if not task.settled]
            if not running and not any(branch.queue for branch in self._branches):
                return await asyncio.sleep(0)
            if running:
                await running[0].wait()

    async def _leave(self, stopped: asyncio.CancelledError | None) -> asyncio.CancelledError | None:
        """Waits for the tasks, and leaves the task group; returns the cancellation that came from
        outside the block, if one did."""
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
            self._parent.open_forks -= 1
            for branch in self._branches:
                branch.group = branch.on_failure = None
                # what a stopped task submitted while it cleaned up
                branch.cancel_all("its fork block was left")
        return None

    def _collect(self, body: BaseException | None) -> list[BaseException]:
        """What leaving the block raises: the body's error first, then what nobody has seen; each
        once, with its branch."""
        ended = [(branch.failure, branch) for branch in self._branches]
        ended += [(task.failure, branch) for task, branch in self._tasks]
        for failure, branch in ended:
            if failure is None:
                continue
            if not failure.seen:
                self._take(failure, branch)
            if failure.error is body:
                _note(failure.error, branch)
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
            branch.cancel_all("its fork block was stopped")

    # --- failures

    def _notice(self, queue: ForkableQueue, failure: Failure) -> None:
        if failure.seen or not self._open:
            return
        self._take(failure, queue)
        if not self._keeps:
            self._abort()

    def _take(self, failure: Failure, branch: ForkableQueue) -> None:
        """Makes the failure the block's: to be raised, or kept at the branch."""
        root = failure.root
        if self._aborted and isinstance(failure.error, OpCancelledError) and root is None:
            failure.see()  # a consequence of stopping the block
        elif root is not None and any(root.error is error for error in self._errors):
            failure.see()
        elif self._keeps:
            if failure not in self._kept:
                self._kept.append(failure)
                branch.error = (
                    failure.error
                    if branch.error is None
                    else BaseExceptionGroup("several failures", [branch.error, failure.error])
                )
        else:
            for error in unseen_errors([failure]):
                _note(error, branch)
                if all(error is not other for other in self._errors):
                    self._errors.append(error)

    # --- tasks

    def start(self, queue: ForkableQueue, call: Callable[[], Awaitable[Any]]) -> TaskHandle[Any]:
        outcome, scope = Outcome[Any](), anyio.CancelScope()
        self._tasks.append((outcome, queue))
        self._group.start_soon(self._run, outcome, scope, queue, call)
        return TaskHandle(outcome, scope.cancel)

    async def _run(
        self,
        outcome: Outcome[Any],
        scope: anyio.CancelScope,
        branch: ForkableQueue,
        call: Callable[[], Awaitable[Any]],
    ) -> None:
        try:
            with scope:
                outcome.settle(await call())
        except Exception as error:
            outcome.failure = failure = Failure(error)
            outcome.settle(error=error)
            branch.context.session.loop.call_soon(self._notice, branch, failure)
        except (KeyboardInterrupt, SystemExit) as error:
            self._exit = error
            self._abort()
        finally:
            if not outcome.settled:
                what = f"a task of {branch.context.describe()} was cancelled"
                outcome.settle(error=cancelled(what, branch.stream))


def _note(error: BaseException, branch: ForkableQueue) -> None:
    note = f"in {branch.context.describe()}"
    if note not in getattr(error, "__notes__", ()):
        error.add_note(note)


async def sample(
    parent: ForkableQueue, name: str | None, n: int, options: Mapping[str, Any]
) -> list[Any]:
    """`n` values of one gen, each from a branch of its own: see `PromptStream.sample`. A seed is
    that of the branches, so that each derives its own."""
    op = gen(name, **options)
    seed = op.params.seed
    op = replace(op, params=replace(op.params, seed=None))
    branches = parent.children(n, seed)
    for branch in branches:
        branch.stream = parent.stream
    ops = [branch.submit(op) for branch in branches]
    ended = Signal()
    for one in ops:
        if not one.settled:
            one.add_callback(ended.notify)
    try:
        while not all(one.settled for one in ops) and all(one.error is None for one in ops):
            await ended.wait()
        for one in ops:
            if one.error is not None:
                await Handle[Any](one)
        values = [await Handle[Any](one) for one in ops]
    finally:
        for branch, one in zip(branches, ops, strict=True):
            branch.cancel(one)
            one.see()
    if name is not None:
        parent.submit(SetVariable(name, values), grows=False)
    return values
