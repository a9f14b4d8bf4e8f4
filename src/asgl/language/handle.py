"""Handles: what a submitted op gives at once, and its value once it is done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from asgl.language.backend import Ticket
from asgl.language.item import Item
from asgl.language.ops import Content, Gen, Role, Select
from asgl.language.outcome import Outcome, Signal, telling
from asgl.types import FinishReason, TokenLogprob

if TYPE_CHECKING:
    from asgl.language.core import Core

T_co = TypeVar("T_co", covariant=True)


class Handle(Content, Generic[T_co]):
    """A submitted op. `await handle` gives its value, or raises its error; `async for piece in
    handle` its text as it comes.

    The op runs whether or not anybody awaits. Cancelling the last task that awaits it, or iterates
    over it, cancels it; to break out of an iteration does not. A handle can be appended to another
    stream, which then waits for its text.
    """

    __slots__ = ("core", "item")

    def __init__(self, core: Core, item: Item) -> None:
        self.core = core
        self.item = item

    def __await__(self) -> Generator[Any, Any, T_co]:
        return self._result().__await__()

    def __aiter__(self) -> AsyncIterator[str]:
        return _Pieces(self)

    def done(self) -> bool:
        """Whether the op has ended: with a value, with an error, or cancelled."""
        return self.item.settled

    def cancel(self) -> bool:
        """Cancels the op, and those queued behind it; False if it has ended already. Who awaits it
        gets OpCancelledError."""
        if self.item.settled:
            return False
        self.core.session.check_loop()
        return self.core.cancel(self.item)

    def stop(self) -> bool:
        """Ends the generation that runs for the op now, and keeps its text; False if none does."""
        ticket = self.item.ticket
        if ticket is None or ticket.settled or ticket.output is None:
            return False
        self.core.session.check_loop()
        self.core.place.engine.stop(ticket)
        return True

    @property
    def text(self) -> str:
        """The text of the op: so far while it runs, "" if it failed. Of a message, its content."""
        return self.core.text_of(self.item)

    @property
    def token_ids(self) -> list[int]:
        """The tokens that were generated or selected and appended; all of them once the op is
        done."""
        live = self.item.live
        if self.item.settled or live is None or live.output is None:
            return list(self.item.token_ids)
        return [
            *self.item.token_ids,
            *(token.token_id for token in live.tokens[: live.output.kept_tokens]),
        ]

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the generation ended; None before that, and for other ops."""
        return self._ticket.finish_reason if self._ticket is not None else None

    @property
    def matched_stop(self) -> str | int | None:
        """The stop string or stop token that ended the generation."""
        return self._ticket.matched_stop if self._ticket is not None else None

    @property
    def logprobs(self) -> list[TokenLogprob] | None:
        """One for each token that was generated, also for one that ended the generation; None if
        they were not asked for."""
        ticket = self._ticket
        if ticket is None or not _asks_for_logprobs(self.item.work):
            return None
        decode = self.core.place.engine.tokenizer.decode
        return [
            TokenLogprob(
                token.token_id,
                decode([token.token_id]),
                token.logprob or 0.0,
                tuple(
                    TokenLogprob(other, decode([other]), logprob) for other, logprob in token.top
                ),
            )
            for token in ticket.tokens
        ]

    @property
    def prompt_tokens(self) -> int | None:
        """How long the prompt was; None before the op began."""
        return self._ticket.prompt_tokens if self._ticket is not None else None

    @property
    def cached_tokens(self) -> int | None:
        """How many tokens of the prompt were in the cache; None before the op began."""
        return self._ticket.cached_tokens if self._ticket is not None else None

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds from the start of the op, when it left the stream's queue."""
        ticket = self._ticket
        if ticket is None or ticket.first_token_at is None:
            return None
        return ticket.first_token_at - ticket.submitted_at

    @property
    def elapsed(self) -> float | None:
        """Seconds that the op took since it left the stream's queue; None before its end."""
        ticket = self._ticket
        return (
            None
            if ticket is None or ticket.finished_at is None
            else ticket.finished_at - ticket.submitted_at
        )

    @property
    def _ticket(self) -> Ticket | None:
        return self.item.ticket

    async def _result(self) -> T_co:
        if self.item.settled:
            await telling(self.item.failure)
        while not self.item.settled:
            await self.watch(self.item.ended)
        return self.item.result()

    async def watch(self, signal: Signal) -> None:
        """Waits for the signal as one who awaits the op: if this is cancelled and was the last, so
        is the op."""
        item = self.item
        item.awaiting += 1
        try:
            with self.core.held():
                await signal.wait()
        except asyncio.CancelledError:
            if item.awaiting == 1 and not any(not pieces.left for pieces in item.iterators):
                self.core.cancel(item)
            raise
        finally:
            item.awaiting -= 1

    def __repr__(self) -> str:
        outcome: Outcome = self.item
        state = (
            "running"
            if not outcome.settled
            else "done"
            if outcome.error is None
            else type(outcome.error).__name__
        )
        name = f" {self.item.names[0]!r}" if self.item.names else ""
        return f"<{type(self).__name__} of {self.item.kind}{name}: {state}>"

    def __str__(self) -> str:
        raise TypeError(
            f"{self!r} is no text yet: write s += 'before' + handle, which waits for it, or use "
            "(await handle)"
        )

    def __format__(self, format_spec: str) -> str:
        return str(self)


class SelectHandle(Handle[str]):
    """The handle of a select. Its value is the chosen option."""

    __slots__ = ()

    @property
    def index(self) -> int | None:
        """Which option was chosen; None before that."""
        return self.item.index

    @property
    def scores(self) -> list[float] | None:
        """The score of each option, as `asgl.language.choices` defines it for the method."""
        return self.item.scores

    @property
    def token_logprobs(self) -> list[list[float]] | None:
        """For each option the log-probabilities of its tokens."""
        return self.item.token_logprobs


class _Pieces:
    """Iterates over the text of an op."""

    def __init__(self, handle: Handle[Any]) -> None:
        self._handle = handle
        self._given = 0
        self.left = False
        """Whether this is no longer a reason for the op to go on. While it waits, it counts as one
        who awaits instead."""
        handle.item.iterators.add(self)

    def __aiter__(self) -> _Pieces:
        return self

    async def __anext__(self) -> str:
        handle, item = self._handle, self._handle.item
        if item.settled:
            await telling(item.failure)
        elif len(handle.text) > self._given:
            await asyncio.sleep(0)
        self.left = True
        while not item.settled and len(handle.text) <= self._given:
            await handle.watch(item.changed)
        text = handle.text
        if item.error is None and len(text) > self._given:
            self.left = False
            piece, self._given = text[self._given :], len(text)
            return piece
        item.result()
        raise StopAsyncIteration


def _asks_for_logprobs(work: object) -> bool:
    """Whether the last request of the op reports log-probabilities."""
    if isinstance(work, Role):
        gens = [part for part in work.content if isinstance(part, Gen | Select)]
        return bool(gens) and _asks_for_logprobs(gens[-1])
    return isinstance(work, Gen) and work.logprobs > 0
