"""The news of requests, on its way to those who asked: tickets by request, each settled exactly
once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from asgl.engine.ticket import Ticket
from asgl.errors import GrammarError
from asgl.scheduling.request import Update
from asgl.trace import RequestEvent, Tracers
from asgl.types import FinishReason


class Delivery:
    """The tickets that are not settled yet. clock: seconds, for the times in tickets."""

    def __init__(self, tracers: Tracers, clock: Callable[[], float]) -> None:
        self._tracers = tracers
        self._clock = clock
        self._tickets: dict[int, Ticket] = {}
        self._news: deque[Update] = deque()
        """Taken from the scheduler, and not handed out yet."""

    @property
    def open(self) -> list[Ticket]:
        return list(self._tickets.values())

    def add(self, ticket: Ticket) -> None:
        """The ticket's request was submitted: its news is delivered from now on."""
        self._tickets[ticket.request_id] = ticket
        self.emit("submitted", ticket)

    def deliver(self, updates: Iterable[Update]) -> bool:
        """Hands the scheduler's news to the tickets; whether any was settled. A callback may call
        it: that hands out the rest."""
        self._news.extend(updates)
        settled = False
        while self._news:
            update = self._news.popleft()
            settled |= update.ended
            self._deliver_one(update)
        return settled

    def _deliver_one(self, update: Update) -> None:
        ticket = self._tickets.get(update.request.id)
        if ticket is None:
            return  # cancelled by a callback of another request, just now
        if update.event is not None:
            self.emit(update.event, ticket)
            return
        if update.token is not None:
            if ticket.first_token_at is None:
                ticket.first_token_at = self._clock()
            ticket.tokens.append(update.token)
        if not update.ended:
            if ticket.on_progress is not None:
                _tell(ticket.on_progress, ticket)
            return
        if update.request.branches is not None:
            ticket.option_logprobs = update.request.branches.results()
        error = ticket.output.error if ticket.output is not None else None
        grammar = update.request.grammar
        if error is None and grammar is not None and grammar.error is not None:
            error = GrammarError(
                f"the grammar cannot go on after {ticket.text[-100:]!r}: {grammar.error}",
                request_id=ticket.request_id,
            )
        self.settle(ticket, reason=update.reason if error is None else None, error=error)

    def settle(
        self,
        ticket: Ticket,
        *,
        reason: FinishReason | None = None,
        error: BaseException | None = None,
    ) -> None:
        """Settles the ticket, with a result or an error, and tells its submitter."""
        self._tickets.pop(ticket.request_id, None)
        if ticket.output is not None and reason in ("length", "stopped", "grammar"):
            ticket.output.finish()
        if error is not None:
            self.emit("failed", ticket, repr(error))
        else:
            self.emit("finished", ticket, reason or "")
        _tell(lambda: ticket.finish(self._clock(), reason=reason, error=error), ticket)

    def withdraw(self, ticket: Ticket) -> None:
        """Settles the ticket as cancelled, without telling its submitter."""
        del self._tickets[ticket.request_id]
        ticket.withdraw(self._clock())
        self.emit("cancelled", ticket)

    def emit(self, kind: Any, ticket: Ticket, reason: str = "") -> None:
        if self._tracers:
            self._tracers.emit(
                RequestEvent(
                    kind,
                    ticket.request_id,
                    ticket.prompt_tokens,
                    ticket.cached_tokens,
                    ticket.request.generated,
                    reason,
                )
            )


def _tell(callback: Callable[[], object], ticket: Ticket) -> None:
    """A callback that raises is a bug above; it must not end the engine and every other request
    with it."""
    try:
        callback()
    except Exception as error:
        message = f"a callback of request {ticket.request_id} raised"
        asyncio.get_running_loop().call_exception_handler({"message": message, "exception": error})
