"""How a select is carried out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from asgl.errors import StreamError
from asgl.language.choices import Option, best, scores_by, scores_of
from asgl.language.context import StreamContext
from asgl.language.op_info import info_of_select
from asgl.language.operation import Choice, Operation
from asgl.language.ops import Select
from asgl.language.transcript import SYNCHRONOUS_BYTES, Transcript
from asgl.language.waiting import Steps, in_thread, request, seal


def run_select(
    op: Operation, spec: Select, transcript: Transcript, context: StreamContext
) -> Steps[str]:
    yield from seal(transcript, context)
    after = transcript.after
    prompt, before, healed = transcript.prompt(), "", 0
    if spec.token_healing:
        healed, before = context.engine.heal(prompt)
        prompt = prompt[: len(prompt) - healed]
    space = "" if spec.token_healing or not _wants_space(transcript.text, spec.choices) else " "
    before += space
    options = yield from _encoded_options(spec, before, after, context)
    logprobs = yield from _score(op, prompt, options, context, spec)
    alone: list[list[float]] = []
    if spec.method == "unconditional_likelihood_normalized":
        ticket = op.ticket
        alone = yield from _score_alone(op, options, context)
        op.ticket = ticket  # the handle tells of the request that saw the prompt
    scores = (
        scores_by(spec.method, list(map(Option, spec.choices, logprobs)))
        if callable(spec.method)
        else scores_of(spec.method, logprobs, alone)
    )
    index = best(scores)
    op.choice = Choice(index, scores, logprobs)
    option, tokens = spec.choices[index], options[index]
    transcript.append_tokens(tokens, space + option, "selected", healed=healed)
    context.emit_text("selected", transcript.tokens, len(tokens))
    op.token_ids += tokens
    if spec.name is not None:
        op.values[spec.name] = option
        assert op.ticket is not None
        op.infos[spec.name] = info_of_select(op.ticket, option, tokens, index, scores, logprobs)
    return option


def _wants_space(text: str, choices: Sequence[str]) -> bool:
    """Whether a space is meant between the prompt and the options: it ends with a word, and all of
    them begin with one."""
    return text[-1:].isalnum() and all(choice[0].isalnum() for choice in choices)


def _encoded_options(
    spec: Select, before: str, after: int | None, context: StreamContext
) -> Steps[list[list[int]]]:
    """The tokens of `before` and each option; off the loop if there is much to tokenize."""

    def encoded() -> list[list[int]]:
        return [tokenizer.encode_run((before + choice,), after) for choice in spec.choices]

    tokenizer = context.engine.tokenizer
    long = sum(map(len, spec.choices)) + len(before) * len(spec.choices) > SYNCHRONOUS_BYTES
    options: list[list[int]] = (yield from in_thread(context, encoded)) if long else encoded()
    for choice, tokens in zip(spec.choices, options, strict=True):
        if not tokens:
            raise StreamError(
                f"the model's vocabulary has no token for any part of the option {choice!r}: leave "
                "it out"
            )
    return options


def _score(
    op: Operation,
    prompt: Sequence[int],
    options: Sequence[Sequence[int]],
    context: StreamContext,
    asked: Select | None = None,
) -> Steps[list[list[float]]]:
    submit = partial(context.engine.score, prompt, options, asked=asked)
    ticket = yield from request(op, context, submit)
    return [list(option) for option in ticket.option_logprobs]


def _score_alone(
    op: Operation, options: list[list[int]], context: StreamContext
) -> Steps[list[list[float]]]:
    """The log-probabilities of the options without the prompt (see `choices`)."""
    bos = context.engine.tokenizer.bos
    if bos is not None:
        return (yield from _score(op, [bos], options, context))
    alone = [[0.0] * len(option) for option in options]
    for first in dict.fromkeys(option[0] for option in options):
        order = [
            index for index, option in enumerate(options) if option[0] == first and len(option) > 1
        ]
        if order:
            rest = [options[index][1:] for index in order]
            scores = yield from _score(op, [first], rest, context)
            for index, values in zip(order, scores, strict=True):
                alone[index][1:] = values
    return alone
