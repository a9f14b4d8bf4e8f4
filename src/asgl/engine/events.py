"""What the tracers are told of requests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from asgl.engine.ticket import Ticket
from asgl.plan import SampledToken
from asgl.trace import RequestEvent, TokenEvent, Tracers
from asgl.types import TokenLogprob

RequestKind: TypeAlias = Literal[
    "submitted", "admitted", "retracted", "finished", "cancelled", "failed"
]


def tell_of_request(
    tracers: Tracers, kind: RequestKind, ticket: Ticket, reason: str = "", *, generated: int
) -> None:
    """Tells that the ticket's request changed its state. generated: how many tokens it has by
    now."""
    request = ticket.request
    work: Literal["generate", "score", "extend"] = (
        "score" if request.options is not None else "generate" if ticket.output else "extend"
    )
    tracers.emit(
        RequestEvent(
            kind,
            request.id,
            len(request.prompt),
            ticket.cached_tokens,
            generated,
            reason,
            work,
        )
    )


def tell_of_token(
    tracers: Tracers,
    ticket: Ticket,
    token: SampledToken,
    constrained: bool,
    decode: Callable[[Sequence[int]], str],
) -> None:
    """Tells of the token that the ticket got last. constrained: a grammar says what it may be."""
    source: Literal["sampled", "constrained", "forced"] = (
        "forced" if token.forced else "constrained" if constrained else "sampled"
    )
    tracers.emit(
        TokenEvent(
            ticket.request_id,
            token.token_id,
            ticket.output.piece(len(ticket.tokens) - 1) if ticket.output is not None else "",
            source,
            token.logprob,
            tuple(TokenLogprob(other, decode([other]), logprob) for other, logprob in token.top),
        )
    )
