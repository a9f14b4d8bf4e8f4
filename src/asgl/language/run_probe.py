"""How the model is asked about a point of a stream, which nothing is appended to: the tokens that
may come next, the likelihood of a text, and the likeliest continuations."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

from asgl.engine.ticket import Ticket
from asgl.errors import StreamError
from asgl.language import messages
from asgl.language.context import StreamContext
from asgl.language.internal_ops import Internal
from asgl.language.op_info import with_texts
from asgl.language.operation import Operation
from asgl.language.transcript import Transcript
from asgl.language.waiting import Steps, request, requests, seal
from asgl.sampling import LIBRARY_DEFAULTS, SamplingParams
from asgl.types import FinishReason, TokenLogprob

_ONE = SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True).over(LIBRARY_DEFAULTS)
"""Of a generation that only shows the distribution of its one token."""


class BeamResult(NamedTuple):
    """A continuation that a beam search found: see `PromptStream.beam`."""

    text: str
    """What it says, without what ended it."""
    token_ids: tuple[int, ...]
    """The tokens of the text."""
    logprob: float
    """Of all tokens, one that ended it included."""
    score: float
    """What the search ranked it by: `logprob` over the number of tokens to the power of
    `length_penalty`."""
    finish_reason: FinishReason
    """Why it ended: "eos", "stop" or "length"."""


@dataclass(frozen=True)
class NextToken(Internal):
    """Its value is the list of the likeliest next tokens."""

    kind: ClassVar[str] = "next token"
    top: int


@dataclass(frozen=True)
class Score(Internal):
    """Its value is the log-probability of each token of a text that might come next; `top` of the
    likeliest with each."""

    kind: ClassVar[str] = "score"
    text: str
    top: int
    appends: bool
    """Whether the text is appended, too."""


@dataclass(frozen=True)
class Beam(Internal):
    """Its value is a list of `BeamResult`, the best first."""

    kind: ClassVar[str] = "beam"
    n: int
    width: int
    max_tokens: int
    stop: tuple[str, ...]
    length_penalty: float


def run_next_token(
    op: Operation, spec: NextToken, transcript: Transcript, context: StreamContext
) -> Steps[list[TokenLogprob]]:
    yield from seal(transcript, context)
    (ticket,) = yield from _next(op, [transcript.prompt()], spec.top, context)
    return list(with_texts(ticket.tokens, context.engine.tokenizer.decode)[0].top)


def run_score(
    op: Operation, spec: Score, transcript: Transcript, context: StreamContext
) -> Steps[list[TokenLogprob]]:
    yield from seal(transcript, context)
    prompt, tokenizer = transcript.prompt(), context.engine.tokenizer
    tokens = tokenizer.encode_run((spec.text,), transcript.after) if spec.text else []
    if not tokens:
        return []
    ticket = yield from request(op, context, partial(context.engine.score, prompt, [tokens]))
    tops: list[tuple[TokenLogprob, ...]] = [()] * len(tokens)
    if spec.top:
        # the scores come without their rivals: each place is asked for them, all in one batch
        places = [array("i", [*prompt, *tokens[:place]]) for place in range(len(tokens))]
        asked = yield from _next(op, places, spec.top, context)
        tops = [with_texts(one.tokens, tokenizer.decode)[0].top for one in asked]
    if spec.appends:
        messages.check_text(transcript, spec.text)
        transcript.append_tokens(tokens, spec.text, "given")
        context.emit_text("prompt", transcript.tokens, len(tokens))
        op.token_ids += tokens
    return [
        TokenLogprob(token, tokenizer.decode([token]), logprob, top)
        for token, logprob, top in zip(tokens, ticket.option_logprobs[0], tops, strict=True)
    ]


class _Live(NamedTuple):
    """A beam that goes on."""

    tokens: tuple[int, ...]
    logprob: float


def run_beam(
    op: Operation, spec: Beam, transcript: Transcript, context: StreamContext
) -> Steps[list[BeamResult]]:
    yield from seal(transcript, context)
    prompt, engine = transcript.prompt(), context.engine
    ends = {*engine.tokenizer.end_tokens, *messages.end_of_turn(transcript, engine)}
    live, done = [_Live((), 0.0)], list[BeamResult]()

    def result(beam: _Live, text: str, reason: FinishReason, kept: int) -> BeamResult:
        score = beam.logprob / len(beam.tokens) ** spec.length_penalty
        return BeamResult(text, beam.tokens[:kept], beam.logprob, score, reason)

    def text_of(tokens: Sequence[int]) -> str:
        return engine.tokenizer.decode(tokens, control=False)

    for _ in range(spec.max_tokens):
        prompts = [array("i", [*prompt, *beam.tokens]) for beam in live]
        # one more for each that may end: `width` then still go on
        tickets = yield from _next(op, prompts, spec.width + len(ends), context)
        grown = [
            _Live((*beam.tokens, token), beam.logprob + logprob)
            for beam, ticket in zip(live, tickets, strict=True)
            for token, logprob in ticket.tokens[0].top
            if logprob > -math.inf
        ]
        grown.sort(key=lambda beam: -beam.logprob)
        live = []
        for place, beam in enumerate(grown):
            text = text_of(beam.tokens)
            found = [text.find(stop) for stop in spec.stop if stop in text]
            if len(live) == spec.width:
                break
            if beam.tokens[-1] in ends:
                if place < spec.width:  # what ends far behind the others is none of the best
                    done.append(result(beam, text_of(beam.tokens[:-1]), "eos", -1))
            elif found:
                done.append(result(beam, text[: min(found)], "stop", len(beam.tokens)))
            else:
                live.append(beam)
        done.sort(key=lambda one: -one.score)
        del done[spec.n :]
        if not live or (
            len(done) == spec.n and result(live[0], "", "length", 0).score <= done[-1].score
        ):
            break
    else:
        done += [result(beam, text_of(beam.tokens), "length", len(beam.tokens)) for beam in live]
    if not done:
        raise StreamError("the model gives every continuation a probability of zero")
    return sorted(done, key=lambda one: -one.score)[: spec.n]


def _next(
    op: Operation, prompts: Sequence[array[int]], top: int, context: StreamContext
) -> Steps[list[Ticket]]:
    """The distribution after each prompt: a request for each, all at once."""
    params = _ONE if op.allowance is None else op.allowance.clamp(_ONE)
    submit: list[Callable[..., Ticket]] = [
        partial(context.engine.generate, prompt, params, seed=0, logprobs=top, end_tokens=())
        for prompt in prompts
    ]
    tickets = yield from requests(op, context, submit)
    if op.allowance is not None:
        op.allowance.finish(len(tickets), None)
    return tickets


RUN: dict[str, Callable[..., Steps[Any]]] = {
    "next token": run_next_token,
    "score": run_score,
    "beam": run_beam,
}
"""By `Spec.kind`."""
