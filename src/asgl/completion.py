"""Completions: what ends once, with a value or an error, and tells those who wait for it.

Requests of the engine, ops of a stream and tasks are completions, so whoever waits for one of them
need not know which. All of it happens on one event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from asgl.errors import InternalError

T = TypeVar("T")


class Signal:
    """Wakes all tasks that wait for something to change. They look again what it was."""

    __slots__ = ("_futures",)

    def __init__(self) -> None:
        self._futures: set[asyncio.Future[None]] = set()

    async def wait(self) -> None:
        """Returns at the next `notify`."""
        future = asyncio.get_running_loop().create_future()
        self._futures.add(future)
        try:
            await future
        finally:
            self._futures.discard(future)

    def notify(self) -> None:
        """Wakes those who wait now."""
        for future in self._futures:
            if not future.done():
                future.set_result(None)
        self._futures.clear()


class Completion(Generic[T]):
    """Settles once: with `value`, or with `error`."""

    __slots__ = ("_callbacks", "error", "settled", "value")

    def __init__(self) -> None:
        self.settled = False
        self.value: T | None = None
        self.error: BaseException | None = None
        self._callbacks: list[Callable[[], object]] = []

    def settle(self, value: T | None = None, *, error: BaseException | None = None) -> None:
        """Ends it, and calls the callbacks in the order in which they were added."""
        if self.settled:
            raise InternalError(f"{self!r} was settled twice")
        self.settled = True
        self.value, self.error = value, error
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def result(self) -> T:
        """The value; raises the error. To be called once it is settled."""
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]  # T may be None

    def add_callback(self, callback: Callable[[], object]) -> None:
        """Calls `callback` when it settles, from within `settle`. It must not be settled yet."""
        self._callbacks.append(callback)

    def remove_callback(self, callback: Callable[[], object]) -> None:
        """Forgets the callback, if it was added."""
        if callback in self._callbacks:
            self._callbacks.remove(callback)

    async def wait(self) -> None:
        """Returns once it is settled, however it ended. To stop waiting changes nothing."""
        if self.settled:
            return
        signal = Signal()
        self.add_callback(signal.notify)
        try:
            await signal.wait()
        finally:
            self.remove_callback(signal.notify)
