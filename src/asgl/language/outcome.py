"""How things end: an outcome settles once, wakes those who wait, and remembers whether a failure
was seen."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from asgl.errors import OpCancelledError


class Signal:
    """Wakes all tasks that wait for something to change. They look again what it was."""

    __slots__ = ("_futures",)

    def __init__(self) -> None:
        self._futures: set[asyncio.Future[None]] = set()

    async def wait(self) -> None:
        future = asyncio.get_running_loop().create_future()
        self._futures.add(future)
        try:
            await future
        finally:
            self._futures.discard(future)

    def notify(self) -> None:
        for future in self._futures:
            if not future.done():
                future.set_result(None)
        self._futures.clear()


class Failure:
    """An error that somebody must see. `root` is the failure that caused it, if it is only a
    consequence.

    It is seen once it was raised to somebody, as itself or as the cause of another error.
    """

    __slots__ = ("error", "root", "seen", "where")

    def __init__(self, error: BaseException, *, where: str, root: Failure | None = None) -> None:
        self.error, self.where, self.seen = error, where, False
        self.root = root.root or root if root is not None else None

    def see(self) -> None:
        self.seen = True
        if self.root is not None:
            self.root.seen = True


def unseen_errors(failures: list[Failure]) -> list[BaseException]:
    """The errors of the failures that nobody saw, each once; now they are seen.

    A root that nobody saw stands for its consequences.
    """
    errors: list[BaseException] = []
    for failure in failures:
        told = failure.root if failure.root is not None and not failure.root.seen else failure
        if not failure.seen and all(told.error is not error for error in errors):
            errors.append(told.error)
    for failure in failures:
        failure.see()
    return errors


async def telling(failure: Failure | None) -> None:
    """A turn of the event loop before a failure is raised. It counts as seen, unless whoever waits
    is cancelled just then."""
    if failure is None:
        return await asyncio.sleep(0)
    before = failure.seen, failure.root is not None and failure.root.seen
    failure.see()
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError:
        failure.seen = before[0]
        if failure.root is not None:
            failure.root.seen = before[1]
        raise


class Outcome:
    """The end of an op or of a task, once it is there: a value, or an error."""

    __slots__ = (
        "__weakref__",
        "_callbacks",
        "awaiting",
        "changed",
        "ended",
        "error",
        "failure",
        "settled",
        "value",
    )

    def __init__(self) -> None:
        self.settled = False
        self.value: Any = None
        self.error: BaseException | None = None
        self.failure: Failure | None = None
        """Set with an error that somebody must see: the op's own, or that of the op it was queued
        behind."""
        self.ended = Signal()
        self.changed = Signal()
        """Notified at the end too, and when there is new text."""
        self.awaiting = 0
        """How many tasks wait for it, and would miss it."""
        self._callbacks: list[Callable[[], object]] = []

    def settle(
        self,
        value: Any = None,
        *,
        error: BaseException | None = None,
        failure: Failure | None = None,
    ) -> None:
        self.settled = True
        self.value, self.error, self.failure = value, error, failure
        self.ended.notify()
        self.changed.notify()
        loop = asyncio.get_running_loop() if self._callbacks else None
        for (
            callback
        ) in self._callbacks:  # from the loop, so that a long chain of streams is no deep recursion
            assert loop is not None
            loop.call_soon(callback)
        self._callbacks.clear()

    def see(self) -> None:
        """Somebody is about to be told how this ended."""
        if self.failure is not None:
            self.failure.see()

    def result(self) -> Any:
        """The value; or raises the error, which now was seen."""
        self.see()
        if self.error is not None:
            raise self.error
        return self.value

    def add_callback(self, callback: Callable[[], object]) -> None:
        self._callbacks.append(callback)

    def remove_callback(self, callback: Callable[[], object]) -> None:
        if callback in self._callbacks:
            self._callbacks.remove(callback)


def cancelled(message: str, stream: Any, failure: Failure | None = None) -> OpCancelledError:
    """What those get who depend on an op that was cancelled, or on one that failed."""
    error = OpCancelledError(message, stream=stream)
    if failure is not None:
        error.__cause__ = failure.error
    return error
