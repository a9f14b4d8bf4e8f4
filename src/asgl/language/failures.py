"""How ops and tasks end, and whether somebody was told of a failure.

Nothing is lost: a failure that nobody saw is raised when its fork block or its Runtime is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

from asgl.completion import Completion
from asgl.errors import OpCancelledError

T = TypeVar("T")


class Failure:
    """An error that somebody must see. `root` is the failure that caused it, if it is only a
    consequence.

    It is seen once it was raised to somebody, as itself or as the cause of another error.
    """

    __slots__ = ("error", "root", "seen")

    def __init__(self, error: BaseException, root: Failure | None = None) -> None:
        self.error = error
        self.seen = False
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


def cancelled(
    message: str, stream: object = None, failure: Failure | None = None
) -> OpCancelledError:
    """The error for those who depend on an op that was cancelled, or on one that failed."""
    error = OpCancelledError(message, stream=stream)
    if failure is not None:
        error.__cause__ = failure.error
    return error


async def telling(failure: Failure | None) -> None:
    """Yields to the event loop once, before a failure is raised.

    The failure counts as seen meanwhile, so that its fork block does not take it for unseen; if
    the task is cancelled just then, it was not told after all.
    """
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


class Outcome(Completion[T], Generic[T]):
    """The end of an op or of a task, which programs await."""

    __slots__ = ("awaiting", "failure")

    def __init__(self) -> None:
        super().__init__()
        self.failure: Failure | None = None
        """Of an error that somebody must see: the op's own, or that of one that it depends on."""
        self.awaiting = 0
        """How many tasks await it, and would miss it."""

    def see(self) -> None:
        """Marks the failure as seen: somebody is about to be told."""
        if self.failure is not None:
            self.failure.see()

    def result(self) -> T:
        """The value; raises the error, which then was seen."""
        self.see()
        return super().result()

    async def awaited(self, abandon: Callable[[], object]) -> T:
        """The value, once it is there; raises the error. If the task that waits is cancelled and
        was the last one, `abandon` is called."""
        if self.settled:
            await telling(self.failure)
        while not self.settled:
            self.awaiting += 1
            try:
                await self.wait()
            except asyncio.CancelledError:
                if self.awaiting == 1:
                    abandon()
                raise
            finally:
                self.awaiting -= 1
        return self.result()
