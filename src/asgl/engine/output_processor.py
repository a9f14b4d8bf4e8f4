"""Hands what the scheduler reports of requests to their tickets, each of which settles exactly
once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from asgl.engine.events import RequestKind, tell_of_request, tell_of_token
from asgl.engine.ticket import Ticket
from asgl.errors import GrammarError, RequestError
from asgl.scheduling.sequence import SequenceState, Update
from asgl.trace import Tracers
from asgl.types import FinishReason


class OutputProcessor:
    """The tickets that are not settled yet. clock: gives seconds, for the times in tickets. decode:
    the text of tokens, for the tracers."""

    def __init__(
        self,
        tracers: Tracers,
        clock: Callable[[], float],
        decode: Callable[[Sequence[int]], str],
    ) -> None:
        self._tracers = tracers
        self._clock = clock
        self._decode = decode
        self._tickets: dict[int, Ticket] = {}
        self._updates: deque[Update] = deque()
        """Taken from the scheduler, and not handed out yet."""

    @property
    def open(self) -> list[Ticket]:
        return list(self._tickets.values())

    def add(self, ticket: Ticket) -> None:
        """Delivers what happens to the ticket's request, which was submitted, from now on."""
        self._tickets[ticket.request_id] = ticket
        self.emit("submitted", ticket)

    def deliver(self, updates: Iterable[Update]) -> bool:
        """Hands the updates to the tickets; whether any was settled. A callback may call it: that
        hands out the rest."""
        self._updates.extend(updates)
        settled = False
        while self._updates:
            update = self._updates.popleft()
            settled |= update.ended
            self._deliver_one(update)
        return settled

    def _deliver_one(self, update: Update) -> None:
        ticket = self._tickets.get(update.sequence.id)
        if ticket is None:
            return  # cancelled by a callback of another request, just now
        if update.event is not None:
            self.emit(update.event, ticket, update.cause)
            return
        if update.token is not None:
            if ticket.first_token_at is None:
                ticket.first_token_at = self._clock()
            ticket.tokens.append(update.token)
            if self._tracers:
                constrained = update.sequence.grammar is not None
                tell_of_token(self._tracers, ticket, update.token, constrained, self._decode)
        if not update.ended:
            if ticket.on_progress is not None:
                _tell(ticket.on_progress, ticket)
            return
        error = update.error or _error_of_output(ticket, update.sequence)
        if update.sequence.tree is not None and error is None:
            ticket.option_logprobs = update.sequence.tree.results()
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

    def emit(self, kind: RequestKind, ticket: Ticket, reason: str = "") -> None:
        if self._tracers:
            generated = ticket.generated_tokens
            tell_of_request(self._tracers, kind, ticket, reason, generated=generated)


def _error_of_output(ticket: Ticket, sequence: SequenceState) -> RequestError | None:
    """Why a generation cannot be completed, if its stops or its grammar say so."""
    if ticket.output is not None and ticket.output.error is not None:
        return ticket.output.error
    if sequence.grammar is not None and sequence.grammar.error is not None:
        return GrammarError(
            f"the grammar cannot go on after {ticket.text[-100:]!r}: {sequence.grammar.error}",
            request_id=ticket.request_id,
        )
    return None


def _tell(callback: Callable[[], object], ticket: Ticket) -> None:
    """Calls back. If that raises, it is a bug of the layer above, which must not end the engine and
    every other request with it: the event loop reports it."""
    try:
        callback()
    except Exception as error:
        message = f"a callback of request {ticket.request_id} raised"
        asyncio.get_running_loop().call_exception_handler({"message": message, "exception": error})
