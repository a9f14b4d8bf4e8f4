"""What the streams of a Runtime have in common, and what a stream has in common with its forks."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal
from weakref import WeakSet

from asgl.errors import ConfigError
from asgl.language.backend import Engine
from asgl.language.budget import Budget
from asgl.language.failures import Failure, unseen_errors
from asgl.language.operation import Operation
from asgl.sampling import SamplingParams
from asgl.trace import OpEvent, StreamEvent

_MOST_FAILURES = 1024


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """How a prompt was asked for; its forks have the same options.

    name, cache_salt, priority, deadline: those of `Runtime.prompt`. origin: name and initial text,
    which seeds derive from. budgets: bound all ops, besides the budgets that are open where they
    are submitted.
    """

    name: str | None = None
    origin: tuple[str | None, str] = (None, "")
    sampling: SamplingParams = field(default_factory=SamplingParams)
    cache_salt: str | None = None
    priority: int = 0
    deadline: float | None = None
    budgets: tuple[Budget, ...] = ()


class SessionContext:
    """What the streams of one Runtime share: the engine, the event loop, and the failures that
    nobody has seen. Belongs to the event loop that it is made on."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.loop = asyncio.get_running_loop()
        self.closed: str | None = None
        """Why no stream accepts ops any more."""
        self.busy: set[Any] = set()
        """The executors that have ops queued."""
        self.open: WeakSet[Any] = WeakSet()
        """The executors that are not closed, as long as somebody refers to them."""
        self.lost_failures = 0
        """How many failures were dropped, because a thousand others had not been seen."""
        self._failures: list[Failure] = []
        self._ids = count()

    def next_id(self) -> int:
        return next(self._ids)

    def record(self, failure: Failure) -> None:
        """Keeps a failure until somebody saw it."""
        if len(self._failures) >= _MOST_FAILURES:
            self._failures = [other for other in self._failures if not other.seen]
        if len(self._failures) < _MOST_FAILURES:
            self._failures.append(failure)
        else:
            self.lost_failures += 1

    def unseen_failures(self) -> list[BaseException]:
        """The failures of ops that nobody has seen, oldest first; each is given once."""
        failures, self._failures = self._failures, []
        return unseen_errors(failures)

    def check_loop(self) -> None:
        """ConfigError if this is not the event loop of the Runtime."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        if loop is not self.loop:
            raise ConfigError(
                "a Runtime and its streams belong to the event loop that the Runtime was opened "
                f"on, and this is {'another one' if loop is not None else 'code outside of it'}: "
                "open a Runtime here"
            )


class StreamContext:
    """Who a stream is. `root`: the id of the prompt that it comes from, by whatever forks. `path`:
    for each fork on the way its number among the ops, and the index of the branch."""

    def __init__(
        self,
        session: SessionContext,
        options: StreamOptions,
        path: tuple[int, ...] = (),
        root: int | None = None,
    ) -> None:
        self.session = session
        self.engine = session.engine
        self.options = options
        self.path = path
        self.id = session.next_id()
        self.root = self.id if root is None else root

    def describe(self) -> str:
        """The stream, as error messages call it."""
        name = f"the stream {self.options.name!r}" if self.options.name else f"stream {self.root}"
        path = ".".join(map(str, self.path[1::2]))
        return f"branch {path} of {name}" if path else name

    def emit_stream(
        self, kind: Literal["opened", "forked", "joined", "closed"], parent: int | None = None
    ) -> None:
        """Tells the tracers; `parent` is the id of the stream that it was forked from or joined
        to."""
        if tracers := self.engine.tracers:
            tracers.emit(StreamEvent(kind, self.id, parent, self.options.name))

    def emit_op(
        self,
        kind: Literal["submitted", "started", "finished", "failed", "cancelled"],
        op: Operation,
        reason: str = "",
    ) -> None:
        """Tells the tracers of a numbered op."""
        if op.number is None or not (tracers := self.engine.tracers):
            return
        tracers.emit(
            OpEvent(
                kind,
                self.id,
                op.number,
                op.kind,
                op.names[0] if op.names else None,
                op.ticket.request_id if op.ticket is not None else None,
                op.text if kind == "finished" else "",
                reason,
            )
        )
