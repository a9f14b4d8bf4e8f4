"""A ticket: what the engine hands out for a request, and how news of it comes back.

Tickets live on the event loop. A ticket settles exactly once, its value being itself, or with an
error. `on_progress` and the callbacks are called from the engine's loop: they must be quick, and
may submit further requests.
"""

from __future__ import annotations

from collections.abc import Callable

from asgl.completion import Completion
from asgl.engine.output import OutputText
from asgl.plan import SampledToken
from asgl.scheduling.request import Request
from asgl.scheduling.sequence import SequenceState
from asgl.types import FinishReason


class Ticket(Completion["Ticket"]):
    """The state of one request, as its submitter sees it. Times are seconds of the engine's clock.

    A generation has `tokens`, `text`, `finish_reason`, `matched_stop`, and `output`, which says
    where a stop cut. A scoring has `option_logprobs`, a list of floats for each option.
    `on_progress` is called when tokens came and the ticket is not settled by them. `asked` is
    whatever the submitter gave to say what the request is for.
    """

    __slots__ = (
        "asked",
        "finish_reason",
        "finished_at",
        "first_token_at",
        "on_progress",
        "option_logprobs",
        "output",
        "request",
        "sequence",
        "submitted_at",
        "tokens",
    )

    def __init__(
        self,
        request: Request,
        output: OutputText | None,
        submitted_at: float,
        asked: object = None,
    ) -> None:
        super().__init__()
        self.request = request
        self.sequence: SequenceState | None = None
        """How far the request is; None unless the scheduler has accepted it."""
        self.output = output
        self.asked = asked
        self.on_progress: Callable[[], object] | None = None
        self.tokens: list[SampledToken] = []
        self.option_logprobs: list[list[float]] = []
        self.finish_reason: FinishReason | None = None
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
        grammar = self.sequence.grammar if self.sequence is not None else self.request.grammar
        return grammar is None or grammar.accepting

    @property
    def cached_tokens(self) -> int:
        """How many of the prompt's tokens were found in the cache when the request was first
        admitted."""
        return self.sequence.cached_tokens if self.sequence is not None else 0

    @property
    def generated_tokens(self) -> int:
        """How many tokens the request has generated, those included that are not delivered yet."""
        return self.sequence.generated if self.sequence is not None else 0

    @property
    def text(self) -> str:
        """The text that is certain so far: no part of a stop, no half of a character."""
        return self.output.text if self.output is not None else ""

    @property
    def matched_stop(self) -> str | int | None:
        return self.output.matched_stop if self.output is not None else None

    def finish(
        self, now: float, *, reason: FinishReason | None = None, error: BaseException | None = None
    ) -> None:
        """Settles the ticket: with a result and its reason, or with an error."""
        self.finished_at = now
        self.finish_reason = reason
        self.settle(self if error is None else None, error=error)

    def withdraw(self, now: float) -> None:
        """Settles the ticket as cancelled by its submitter, who is told nothing."""
        self._callbacks.clear()
        self.finish(now)

    def __repr__(self) -> str:
        return f"<Ticket of request {self.request_id}>"
