"""What is known of how a variable was generated: see `PromptStream.info`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from asgl.engine.ticket import Ticket
from asgl.language.choices import probabilities
from asgl.plan import SampledToken
from asgl.types import FinishReason, TokenLogprob


@dataclass(frozen=True, slots=True)
class OpInfo:
    """How the value of a variable came about: what `PromptStream.info` gives. Of a gen that was
    tried again, the last try."""

    text: str
    """What was generated or chosen, without the message around it."""
    token_ids: tuple[int, ...]
    """The tokens of `text`."""
    finish_reason: FinishReason | None
    """Why the generation ended; None for a select."""
    matched_stop: str | int | None
    """The stop string or stop token that ended the generation."""
    prompt_tokens: int
    """How long the prompt was."""
    cached_tokens: int
    """How many tokens of the prompt were in the cache."""
    time_to_first_token: float | None
    """Seconds from the request to its first token; None if none was generated."""
    elapsed: float | None
    """Seconds from the request to its end."""
    index: int | None = None
    """Which option was chosen; None for a gen."""
    scores: tuple[float, ...] = ()
    """The score of each option, as `asgl.language.choices` defines it for the method."""
    token_logprobs: tuple[tuple[float, ...], ...] = ()
    """For each option the log-probabilities of its tokens."""
    _sampled: Sequence[SampledToken] | None = field(default=None, repr=False)
    _decode: Callable[[list[int]], str] | None = field(default=None, repr=False, compare=False)

    @property
    def probabilities(self) -> list[float]:
        """Of a select, the share of each option in the probability that the model gives to all of
        them; empty for a gen."""
        return probabilities(self.token_logprobs) if self.token_logprobs else []

    @property
    def logprobs(self) -> list[TokenLogprob] | None:
        """One for each token that was generated, also for one that ended the generation; None if
        they were not asked for (`gen(logprobs=...)`)."""
        if self._sampled is None or self._decode is None:
            return None
        return with_texts(self._sampled, self._decode)


def info_of_gen(
    ticket: Ticket, token_ids: Iterable[int], logprobs: bool, decode: Callable[[list[int]], str]
) -> OpInfo:
    """Of a generation that has ended. `logprobs`: whether they were asked for."""
    return OpInfo(
        ticket.text,
        tuple(token_ids),
        ticket.finish_reason,
        ticket.matched_stop,
        *_costs(ticket),
        _sampled=ticket.tokens if logprobs else None,
        _decode=decode if logprobs else None,
    )


def info_of_select(
    ticket: Ticket,
    text: str,
    token_ids: Iterable[int],
    index: int,
    scores: Iterable[float],
    token_logprobs: Iterable[Iterable[float]],
) -> OpInfo:
    """Of a select; `ticket` is the request that saw the prompt."""
    return OpInfo(
        text,
        tuple(token_ids),
        None,
        None,
        *_costs(ticket),
        index=index,
        scores=tuple(scores),
        token_logprobs=tuple(map(tuple, token_logprobs)),
    )


def _costs(ticket: Ticket) -> tuple[int, int, Any, Any]:
    return ticket.prompt_tokens, ticket.cached_tokens, seconds_to_first(ticket), seconds(ticket)


def seconds_to_first(ticket: Ticket) -> float | None:
    """Seconds from the request to its first token."""
    return None if ticket.first_token_at is None else ticket.first_token_at - ticket.submitted_at


def seconds(ticket: Ticket) -> float | None:
    """Seconds from the request to its end."""
    return None if ticket.finished_at is None else ticket.finished_at - ticket.submitted_at


def with_texts(
    tokens: Iterable[SampledToken], decode: Callable[[list[int]], str]
) -> list[TokenLogprob]:
    """The log-probabilities of tokens, with the text of each."""
    return [
        TokenLogprob(
            token.token_id,
            decode([token.token_id]),
            token.logprob or 0.0,
            tuple(TokenLogprob(other, decode([other]), logprob) for other, logprob in token.top),
        )
        for token in tokens
    ]
