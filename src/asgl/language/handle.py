"""Handles: what a submitted op gives at once, and its value once it is done."""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import AsyncIterator, Generator
from typing import Any, Generic, TypeVar

from asgl.completion import Signal
from asgl.engine.ticket import Ticket
from asgl.errors import StreamError
from asgl.language.choices import probabilities
from asgl.language.constraint import partial_value
from asgl.language.failures import telling
from asgl.language.op_info import seconds, seconds_to_first, with_texts
from asgl.language.operation import Choice, Operation
from asgl.language.ops import Content, Gen, Op, Role, Select, TextOf
from asgl.shown import Piece, card_html, legend_html, table_html, text_html
from asgl.types import FinishReason, TokenLogprob

T_co = TypeVar("T_co", covariant=True)


class Handle(Content, Generic[T_co]):
    """A submitted op. `await handle` gives its value, or raises its error; `async for piece in
    handle` its text as it comes.

    The op runs whether or not anybody awaits. Cancelling the last task that awaits it, or iterates
    over it, cancels it; to break out of an iteration does not. A handle can be appended to another
    stream, which then waits for its text.
    """

    __slots__ = ("_op",)

    def __init__(self, op: Operation) -> None:
        self._op = op

    def as_ops(self) -> tuple[Op, ...]:
        return (TextOf(self._op),)

    def __await__(self) -> Generator[Any, Any, T_co]:
        return self._result().__await__()

    def __aiter__(self) -> AsyncIterator[str]:
        return _Pieces(self._op)

    async def partials(self) -> AsyncIterator[Any]:
        """The JSON value of a typed generation as it comes: what the text so far has of it, each
        time that this changes, as plain lists, dicts, strings and numbers; the last is whole.

        A number at the end may still grow, and a string. Ends without one for text that is no JSON.
        Raises, and is cancelled, as iterating over the handle does.
        """
        text, last = "", None
        async for piece in self:
            text += piece
            value = partial_value(text)
            if value is not None and value != last:
                last = value
                yield copy.deepcopy(value)

    def done(self) -> bool:
        """Whether the op has ended: with a value, with an error, or cancelled."""
        return self._op.settled

    def cancel(self) -> bool:
        """Cancels the op, and those queued behind it; False if it has ended already. Who awaits it
        gets OpCancelledError."""
        if self._op.settled:
            return False
        self._op.owner.check_loop()
        return self._op.owner.cancel(self._op)

    def stop(self) -> bool:
        """Ends the generation that runs for the op now, and keeps its text; False if none does."""
        ticket = self._op.ticket
        if ticket is None or ticket.settled or ticket.output is None:
            return False
        self._op.owner.check_loop()
        self._op.owner.engine.stop(ticket)
        return True

    @property
    def text(self) -> str:
        """The text of the op: so far while it runs, "" if it failed. Of a message, its content."""
        return self._op.owner.text_of(self._op)

    @property
    def token_ids(self) -> list[int]:
        """The tokens that were generated or selected and appended; all of them once the op is
        done."""
        live = self._op.live
        if self._op.settled or live is None or live.output is None:
            return list(self._op.token_ids)
        generated = live.tokens[: live.output.kept_tokens]
        return [*self._op.token_ids, *(token.token_id for token in generated)]

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
        if ticket is None or not _asks_for_logprobs(self._op.spec):
            return None
        return with_texts(ticket.tokens, self._op.owner.engine.tokenizer.decode)

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
        return seconds_to_first(self._ticket) if self._ticket is not None else None

    @property
    def elapsed(self) -> float | None:
        """Seconds that the op took since it left the stream's queue; None before its end."""
        return seconds(self._ticket) if self._ticket is not None else None

    @property
    def _ticket(self) -> Ticket | None:
        return self._op.ticket

    async def _result(self) -> T_co:
        self._op.owner.check_loop()
        return await self._op.awaited(lambda: abandon(self._op))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._op}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: the text by its tokens, and how it came to be."""
        op, ticket = self._op, self._ticket
        facts: list[tuple[str, str]] = []
        if ticket is not None:
            facts.append(
                ("prompt", f"{ticket.prompt_tokens} tokens, {ticket.cached_tokens} cached")
            )
        if self.finish_reason is not None:
            facts.append(("finished by", self.finish_reason))
        if self.elapsed is not None:
            facts.append(("seconds", f"{self.elapsed:.3f}"))
        if op.error is not None:
            facts.append(("error", repr(op.error)))
        for name, value in op.values.items():
            facts.append((name, repr(value)))
        pieces = _pieces_of(op)
        hows = dict.fromkeys(piece.how for piece in pieces)
        return card_html(str(op), text_html(pieces), legend_html(hows), table_html(facts))

    @property
    def _shown(self) -> str:
        return repr(self)

    @property
    def _instead(self) -> str:
        return "write (await handle) for its value, or append it to another stream, which waits"

    def __eq__(self, other: object) -> bool:
        if other is None or isinstance(other, Content):
            return self is other
        raise TypeError(f"{self!r} is not its value, and equals nothing else: {self._instead}")

    __hash__ = object.__hash__


class SelectHandle(Handle[str]):
    """The handle of a select. Its value is the chosen option."""

    __slots__ = ()

    @property
    def index(self) -> int:
        """Which option was chosen. This and what follows raises StreamError before that."""
        return self._chosen.option

    @property
    def scores(self) -> list[float]:
        """The score of each option, as `asgl.language.choices` defines it for the method."""
        return list(self._chosen.scores)

    @property
    def token_logprobs(self) -> list[list[float]]:
        """For each option the log-probabilities of its tokens."""
        return [list(option) for option in self._chosen.token_logprobs]

    @property
    def probabilities(self) -> list[float]:
        """The share of each option in the probability that the model gives to all of them,
        whatever the method."""
        return probabilities(self._chosen.token_logprobs)

    @property
    def _chosen(self) -> Choice:
        if self._op.choice is None:
            ended = "did not finish" if self._op.settled else "has not chosen yet: await it first"
            raise StreamError(f"{self!r} {ended}", stream=self._op.owner.stream)
        return self._op.choice


def abandon(op: Operation) -> None:
    """Cancels an op whose last awaiter was cancelled, unless an iterator over it is in use."""
    if all(pieces.waiting for pieces in op.iterators):
        op.owner.cancel(op)


class _Pieces:
    """Iterates over the text of an op."""

    def __init__(self, op: Operation) -> None:
        self._op = op
        self._given = 0
        self.waiting = False
        """While it waits, or when it has ended, it is no reason of its own for the op to go on."""
        op.iterators.add(self)

    def __aiter__(self) -> _Pieces:
        return self

    async def __anext__(self) -> str:
        op = self._op
        op.owner.check_loop()
        if op.settled:
            await telling(op.failure)
        elif len(op.owner.text_of(op)) > self._given:
            await asyncio.sleep(0)
        self.waiting = True
        while not op.settled and len(op.owner.text_of(op)) <= self._given:
            await _watch(op, op.changed)
        text = op.owner.text_of(op)
        if op.error is None and len(text) > self._given:
            self.waiting = False
            piece, self._given = text[self._given :], len(text)
            return piece
        op.result()
        raise StopAsyncIteration


async def _watch(op: Operation, signal: Signal) -> None:
    """Waits for the signal as one who awaits the op."""
    op.awaiting += 1
    try:
        await signal.wait()
    except asyncio.CancelledError:
        if op.awaiting == 1:
            abandon(op)
        raise
    finally:
        op.awaiting -= 1


def _asks_for_logprobs(spec: object) -> bool:
    """Whether the last request of the op reports log-probabilities."""
    if isinstance(spec, Role):
        asking = [part for part in spec.content if isinstance(part, Gen | Select)]
        return bool(asking) and _asks_for_logprobs(asking[-1])
    return isinstance(spec, Gen) and spec.logprobs > 0


def _pieces_of(op: Operation) -> list[Piece]:
    """The text of an op, by tokens where they are known to be all of it."""
    text, ticket = op.owner.text_of(op), op.ticket
    if isinstance(op.spec, Select):
        return [Piece(text, "selected")]
    if not isinstance(op.spec, Gen) or ticket is None or ticket.output is None:
        return [Piece(text)]
    how = "sampled" if op.spec.constraint is None else "constrained"
    pieces: list[Piece] = []
    left = text
    for index, token in enumerate(ticket.tokens):
        piece = ticket.output.piece(index)
        if not left.startswith(piece):
            break
        told = "" if token.logprob is None else f"{100 * math.exp(token.logprob):.1f} %"
        pieces.append(Piece(piece, "forced" if token.forced else how, told))
        left = left[len(piece) :]
    return [*pieces, Piece(left, how)] if left else pieces
