"""A ticket: what the engine hands out for a request, and how news of it comes back.

Tickets live on the event loop. A ticket settles exactly once: with a result (`error` is None) or
with an error. The listener is called synchronously from the engine's loop; it must be quick, and
may submit further requests.
"""

from __future__ import annotations

from typing import Protocol

from asgl.engine.output import OutputText
from asgl.errors import InternalError
from asgl.plan import SampledToken
from asgl.scheduling.request import Request
from asgl.types import FinishReason


class Listener(Protocol):
    def on_progress(self, ticket: Ticket, /) -> None:
        """New tokens came (generation only). Not called once the ticket is settled."""

    def on_settled(self, ticket: Ticket, /) -> None:
        """The ticket is settled: `ticket.error` says how."""


class Ticket:
    """The state of one request, as its submitter sees it. Times are seconds of the engine's clock.

    Generation: `tokens`, `text`, `finish_reason`, `matched_stop`, and `output`, which says where a
    stop cut. Scoring: `option_logprobs`, one list of floats per option.
    """

    __slots__ = (
        "error",
        "finish_reason",
        "finished_at",
        "first_token_at",
        "listener",
        "option_logprobs",
        "output",
        "request",
        "settled",
        "submitted_at",
        "tokens",
    )

    def __init__(
        self, request: Request, listener: Listener, output: OutputText | None, submitted_at: float
    ) -> None:
        self.request = request
        self.listener = listener
        self.output = output
        self.tokens: list[SampledToken] = []
        self.option_logprobs: list[list[float]] = []
        self.finish_reason: FinishReason | None = None
        self.error: BaseException | None = None
        self.settled = False
        self.submitted_at = submitted_at
        self.first_token_at: float | None = None
        self.finished_at: float | None = None

    @property
    def request_id(self) -> int:
        return self.request.id

    @property
    def prompt_tokens(self) -> int:
        return len(self.request.prompt)

    @property
    def whole(self) -> bool:
        """Whether the tokens are all that the grammar of the request asks for; True without a
        grammar."""
        return self.request.grammar is None or self.request.grammar.accepting

    @property
    def cached_tokens(self) -> int:
        """How many of the prompt's tokens were found in the cache when the request was first
        admitted."""
        return self.request.cached_tokens

    @property
    def text(self) -> str:
        """The text that is certain so far: no part of a stop, no half of a character."""
        return self.output.text if self.output is not None else ""

    @property
    def matched_stop(self) -> str | int | None:
        return self.output.matched_stop if self.output is not None else None

    def settle(
        self, now: float, *, reason: FinishReason | None = None, error: BaseException | None = None
    ) -> None:
        if self.settled:
            raise InternalError(f"request {self.request_id} was settled twice")
        self.settled = True
        self.finished_at = now
        self.finish_reason, self.error = reason, error
        self.listener.on_settled(self)
