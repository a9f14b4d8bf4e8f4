"""What a running op may wait for. Each wait is started once, wakes its stream when it is done, and
can be cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol
from weakref import ReferenceType

from asgl.errors import BudgetError
from asgl.language.backend import Engine, Ticket
from asgl.language.ops import Gen, Select
from asgl.language.outcome import Failure, cancelled

if TYPE_CHECKING:
    from asgl.language.core import Core
    from asgl.language.handle import Handle
    from asgl.language.item import Item, Place


class Wake:
    """How a stream is woken: the one thing of it that the engine holds.

    The stream is held weakly, so that one that nobody else refers to goes, and its op is cancelled.
    While a task waits for the stream it is held strongly: the task may be referred to by nothing
    but what it waits for.
    """

    __slots__ = ("_core", "hold")

    def __init__(self, core: ReferenceType[Core]) -> None:
        self._core = core
        self.hold: Core | None = None

    @property
    def part(self) -> Gen | Select | None:
        """What of the running op asks the model now. An engine that answers by script looks
        here."""
        core = self._core()
        return core.queue[0].part if core is not None and core.queue else None

    def on_progress(self, ticket: Ticket, /) -> None:
        if (core := self._core()) is not None:
            core.progressed()

    def on_settled(self, ticket: Ticket, /) -> None:
        if (
            (core := self._core()) is not None
            and isinstance(core.wait, ForTicket)
            and core.wait.ticket is ticket
        ):
            core.resume()

    def interrupt(self, error: Exception) -> None:
        """Ends the running op with an error."""
        if (core := self._core()) is not None:
            core.interrupt(error)

    def ready(self, wait: Wait) -> None:
        if (core := self._core()) is not None and core.wait is wait:
            core.resume()


class Wait(Protocol):
    failure: Failure | None
    """The failure of somebody else that ended the wait."""

    def start(self, wake: Wake) -> None: ...
    @property
    def done(self) -> bool: ...
    def result(self) -> Any: ...
    def cancel(self) -> None: ...


class ForTicket:
    """Submits a request and waits for its end; the result is the ticket."""

    failure: Failure | None = None

    def __init__(
        self, place: Place, submit: Callable[[Any], Ticket], item: Item, *, live: bool = False
    ) -> None:
        self._engine, self._deadline, self._submit, self._item, self._live = (
            place.engine,
            place.deadline,
            submit,
            item,
            live,
        )
        self.ticket: Ticket | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self, wake: Wake) -> None:
        self.ticket = ticket = self._item.ticket = self._submit(wake.part)
        if not ticket.settled:
            ticket.on_progress = lambda: wake.on_progress(ticket)
            ticket.add_callback(lambda: wake.on_settled(ticket))
        if self._live:
            self._item.live = self.ticket
        if self._deadline is not None and not self.ticket.settled:
            self._timer = asyncio.get_running_loop().call_later(
                self._deadline, self._expire, wake, self._deadline
            )

    @property
    def done(self) -> bool:
        return self.ticket is not None and self.ticket.settled

    def result(self) -> Ticket:
        assert self.ticket is not None
        self._stop_timer()
        if self.ticket.error is not None:
            raise self.ticket.error
        return self.ticket

    def cancel(self) -> None:
        self._stop_timer()
        if self.ticket is not None and not self.ticket.settled:
            self._engine.cancel(self.ticket)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _expire(self, wake: Wake, deadline: float) -> None:
        assert self.ticket is not None
        if not self.ticket.settled:
            wake.interrupt(
                BudgetError(
                    f"request {self.ticket.request_id} was not done within the deadline of "
                    f"{deadline:g} seconds: raise it, or ask "
                    "for less",
                    spent=deadline,
                    limit=deadline,
                    request_id=self.ticket.request_id,
                )
            )


class ForHandle:
    """Waits for an op of another stream; the result is the op's item."""

    def __init__(self, handle: Handle[Any]) -> None:
        self._handle = handle
        self._wake: Wake | None = None
        self.failure: Failure | None = None

    def start(self, wake: Wake) -> None:
        if not self.done:
            self._wake = wake
            self._handle.core.hold()
            self._handle.item.add_callback(self._ready)

    @property
    def done(self) -> bool:
        return self._handle.item.settled

    def result(self) -> Item:
        item = self._handle.item
        if item.error is not None:
            self.failure = item.failure
            raise cancelled(
                f"waited for {self._handle!r}, which did not finish: {item.error}",
                self._handle.core.stream,
                item.failure,
            )
        return item

    def cancel(self) -> None:
        if self._wake is not None:
            self._wake = None
            self._handle.item.remove_callback(self._ready)
            self._handle.core.release()

    def _ready(self) -> None:
        if (wake := self._wake) is not None:
            self.cancel()
            wake.ready(self)


class ForCall:
    """Awaits what a call gives, as a task of its own; the result is that of the task."""

    failure: Failure | None = None

    def __init__(self, call: Callable[[], Awaitable[Any]]) -> None:
        self._call = call
        self._task: asyncio.Future[Any] | None = None

    def start(self, wake: Wake) -> None:
        self._task = asyncio.ensure_future(self._call())
        self._task.add_done_callback(lambda _: wake.ready(self))

    @property
    def done(self) -> bool:
        return self._task is not None and self._task.done()

    def result(self) -> Any:
        assert self._task is not None
        return self._task.result()

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()


class InThread(ForCall):
    """Runs a function off the loop; the result is what it returns."""

    def __init__(self, engine: Engine, function: Callable[..., Any], *args: Any) -> None:
        super().__init__(lambda: engine.run_in_thread(function, *args))
