"""How each op is carried out: generators that change the state and yield what they wait for.

A generator knows the state, the item and the engine, not the stream: who drives it (`core`) can
stop it at any wait and roll the state back, so an op needs no clean-up of its own.
"""

from __future__ import annotations

import inspect
from array import array
from collections.abc import Generator
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

from asgl.errors import OutputError, StreamError
from asgl.language import roles, seeds
from asgl.language.backend import Ticket
from asgl.language.choices import best, scores_of
from asgl.language.item import (
    Begin,
    CloseTurn,
    Item,
    Join,
    Place,
    Point,
    Restore,
    Rewind,
    SetVariable,
    Work,
    Write,
)
from asgl.language.ops import Computed, Extend, FromHandle, Gen, Role, Select, Text
from asgl.language.outcome import cancelled
from asgl.language.state import Snapshot, State
from asgl.language.text import SYNCHRONOUS_BYTES, token_ids_of
from asgl.language.waits import ForCall, ForHandle, ForTicket, InThread, Wait

Steps: TypeAlias = Generator[Wait, Any, Any]


def carry_out(item: Item, state: State, place: Place) -> Steps:
    """Does the work of the item; returns its value."""
    work = item.work
    if isinstance(work, Begin):
        begun: Item = yield ForHandle(work.point)
        state.restore(begun.value)
    elif isinstance(work, Restore):
        path, snapshot = work.path, work.snapshot
        if path is not None:
            yield ForCall(
                lambda: place.engine.saved.load_prompt(path, snapshot.tokens, place.namespace)
            )
        state.restore(snapshot)
    elif isinstance(work, Write):
        for text, of_template in work.pieces:
            if of_template:
                roles.write(state, place.engine, text)
            else:
                state.append(text)
        state.messages += work.messages
    elif isinstance(work, SetVariable):
        value = work.value
        item.values[work.name] = (
            (yield from _computed(value)) if isinstance(value, Computed) else value
        )
    elif isinstance(work, Rewind):
        state.restore(work.point.value)
    elif isinstance(work, CloseTurn):
        close_turn(work, state, place)
    elif isinstance(work, Role):
        return (yield from _message(work, item, state, place))
    else:
        if item.block is not None and (state.turn is None or state.turn.block is not item.block):
            roles.begin_turn(state, place.engine, item.block, item.block.role)
        item.start = state.text_length
        value = yield from _content(work, item, state, place)
        item.text = state.text[item.start :]
        return value
    return None


def close_turn(work: CloseTurn, state: State, place: Place) -> None:
    """Ends the message of a role block, if it has one by now."""
    if state.turn is not None and state.turn.block is work.block:
        roles.end_turn(state, place.engine)
    elif not work.by_exception and state.turn is None:
        roles.begin_turn(state, place.engine, work.block, work.block.role)
        roles.end_turn(state, place.engine)


def _content(work: Work, item: Item, state: State, place: Place) -> Steps:
    if isinstance(work, Text):
        state.append(work.text)
        return None
    if isinstance(work, FromHandle):
        source: Item = yield ForHandle(work.handle)
        state.append(source.text)
        return None
    if isinstance(work, Computed):
        state.append((yield from _computed(work)))
        return None
    if isinstance(work, Extend):
        return (yield from _extend(work, item, state, place))
    if isinstance(work, Gen):
        return (yield from _generate(work, item, state, place))
    if isinstance(work, Select):
        return (yield from _select(work, item, state, place))
    if isinstance(work, Join):
        return (yield from _join(work, state, place))
    assert isinstance(work, Point)
    yield from _seal(state, place)
    return state.snapshot()


def _computed(work: Computed) -> Steps:
    done: list[Item] = []
    for handle in work.handles:
        done.append((yield ForHandle(handle)))
    return work.make(done)


def _seal(state: State, place: Place) -> Steps:
    """Tokenizes the run, off the loop if it is long."""
    parts, encode = state.run.parts, place.engine.tokenizer.encode
    if not parts:
        return
    prefix = state.prefix
    if state.run.bytes > SYNCHRONOUS_BYTES and not state.run.knows(parts, prefix):
        state.run.learn(
            parts, prefix, (yield InThread(place.engine, token_ids_of, parts, encode, prefix))
        )
    state.seal(state.run.token_ids(encode, prefix))


def _message(work: Role, item: Item, state: State, place: Place) -> Steps:
    told = roles.begin_turn(state, place.engine, item, work.role, work.tools)
    item.start = state.text_length
    trims = roles.parts_of(place.engine, work.role).trims
    last = len(work.content) - 1
    for index, part in enumerate(work.content):
        if isinstance(part, Computed):
            part = Text((yield from _computed(part)))
        if isinstance(part, Text) and trims:
            text = part.text if index else part.text.lstrip()
            part = replace(part, text=text.rstrip() if index == last else text)
        yield from _content(part, item, state, place)
    item.text = state.text[item.start :]
    state.append(told)
    roles.end_turn(state, place.engine)
    return item.text


def _extend(work: Extend, item: Item, state: State, place: Place) -> Steps:
    for part in work.content:
        yield from _content(part, item, state, place)
    yield from _seal(state, place)
    if state.tokens:

        def submit(asked: Any) -> Ticket:
            return place.engine.extend(
                state.tokens, namespace=place.namespace, priority=place.priority, asked=asked
            )

        yield ForTicket(place, submit, item)


def _generate(work: Gen, item: Item, state: State, place: Place) -> Steps:
    """Generates, again if the validator asks for it: each try starts from the same point, with a
    seed of its own."""
    yield from _seal(state, place)
    prompt, attempt, feedback = state.prompt(), 0, ""
    while True:
        after = (
            array("i", [*prompt, *place.engine.tokenizer.encode(feedback)]) if feedback else prompt
        )
        ticket: Ticket = yield from _request(work, attempt, after, item, state, place)
        value, verdict = _verdict(work, ticket)
        if verdict.valid:
            return _append_generated(work, ticket, value, item, state, place)
        if attempt == work.retries or ticket.finish_reason == "stopped":
            if isinstance(verdict.error, OutputError) and not attempt:
                raise verdict.error
            raise OutputError(
                f"no valid text in {attempt + 1} tries; the last: {ticket.text!r}: {verdict}",
                text=ticket.text,
                finish_reason=ticket.finish_reason or "",
                request_id=ticket.request_id,
            ) from verdict.error
        attempt, feedback = attempt + 1, verdict.feedback


def _request(
    work: Gen, attempt: int, prompt: array[int], item: Item, state: State, place: Place
) -> Steps:
    """One generation, which appends nothing; returns its ticket."""
    engine, params, item.part = place.engine, work.params, work
    grammar: Any = None
    if work.constraint is not None:
        source = work.constraint.source
        grammar = engine.grammars.known(source) or (
            yield InThread(engine, engine.grammars.compile, source)
        )
    assert params.seed is not None
    seed = seeds.again(params.seed, attempt)
    if item.allowance is not None:
        params = item.allowance.clamp(params)
    if (
        prompt is not state.tokens
    ):  # feedback comes after the stream's own tokens, and is not to be healed
        params = replace(params, token_healing=False)
    ends = () if params.ignore_eos else engine.tokenizer.end_tokens
    ends = tuple(dict.fromkeys((*ends, *roles.end_of_turn(state, engine))))

    def submit(asked: Any) -> Ticket:
        return engine.generate(
            prompt,
            params,
            seed=seed,
            logprobs=work.logprobs or None,
            end_tokens=ends,
            grammar=grammar,
            namespace=place.namespace,
            priority=place.priority,
            asked=asked,
        )

    ticket: Ticket = yield ForTicket(
        place, submit, item, live=work.validate is None and not work.retries
    )
    item.live = None
    if item.allowance is not None:
        item.allowance.finish(len(ticket.tokens), ticket.finish_reason)
    return ticket


def _append_generated(
    work: Gen, ticket: Ticket, value: Any, item: Item, state: State, place: Place
) -> Any:
    output = ticket.output
    assert output is not None
    tokens = [token.token_id for token in ticket.tokens[: output.kept_tokens]]
    if output.remainder:  # a stop cut a token in two: what is left of it is tokenized anew
        tokens += place.engine.tokenizer.encode(output.remainder)
    state.heal(output.healed)
    state.append_tokens(tokens, ticket.text)
    item.token_ids += tokens
    if work.name is not None:
        item.values[work.name] = value
    return value


class _Verdict(NamedTuple):
    """What a validator says of a value."""

    valid: bool
    feedback: str = ""
    error: Exception | None = None

    def __str__(self) -> str:
        return (
            repr(self.error)
            if self.error is not None
            else self.feedback or "the validator returned False"
        )


def _verdict(work: Gen, ticket: Ticket) -> tuple[Any, _Verdict]:
    """The value of what was generated, and whether it is valid."""
    value: Any = None
    try:
        value = ticket.text if work.constraint is None else work.constraint.value(ticket)
        said = work.validate(value) if work.validate is not None else None
        if inspect.iscoroutine(said):
            said.close()
            raise TypeError("validate must be a plain function, and it gave a coroutine")
    except Exception as error:
        return value, _Verdict(False, error=error)
    return value, _Verdict(False, said) if isinstance(said, str) and said else _Verdict(
        said is not False
    )


def _select(work: Select, item: Item, state: State, place: Place) -> Steps:
    yield from _seal(state, place)
    item.part = work
    prompt, before = state.prompt(), state.prefix
    healed = 0
    if work.token_healing:
        healed, before = place.engine.heal(prompt)
        prompt = prompt[: len(prompt) - healed]
    options = yield from _encoded_options(work, before, place)
    logprobs: list[list[float]] = yield from _score(prompt, options, item, place)
    ticket, item.part = item.ticket, None
    alone: list[list[float]] = []
    if work.method == "unconditional_likelihood_normalized":
        alone = yield from _score_alone(options, item, place)
        item.ticket = ticket  # the handle tells of the request that saw the prompt
    item.scores = scores_of(work.method, logprobs, alone)
    item.index = best(item.scores)
    item.token_logprobs = logprobs
    choice = work.choices[item.index]
    state.heal(healed)
    state.append_tokens(options[item.index], choice)
    item.token_ids += options[item.index]
    if work.name is not None:
        item.values[work.name] = choice
    return choice


def _encoded_options(work: Select, before: str, place: Place) -> Steps:
    """The tokens of `before` and each option; off the loop if there is much to tokenize."""

    def encoded() -> list[list[int]]:
        return [encode(before + choice) for choice in work.choices]

    encode = place.engine.tokenizer.encode
    long = sum(map(len, work.choices)) + len(before) * len(work.choices) > SYNCHRONOUS_BYTES
    options: list[list[int]] = (yield InThread(place.engine, encoded)) if long else encoded()
    for choice, tokens in zip(work.choices, options, strict=True):
        if not tokens:
            raise StreamError(
                f"the model's vocabulary has no token for any part of the option {choice!r}: leave "
                "it out"
            )
    return options


def _score(prompt: Any, options: list[list[int]], item: Item, place: Place) -> Steps:
    def submit(asked: Any) -> Ticket:
        return place.engine.score(
            prompt, options, namespace=place.namespace, priority=place.priority, asked=asked
        )

    ticket: Ticket = yield ForTicket(place, submit, item)
    return [list(option) for option in ticket.option_logprobs]


def _score_alone(options: list[list[int]], item: Item, place: Place) -> Steps:
    """The log-probabilities of the options without the prompt (see `choices`)."""
    bos = place.engine.tokenizer.bos
    if bos is not None:
        return (yield from _score([bos], options, item, place))
    alone = [[0.0] * len(option) for option in options]
    for first in dict.fromkeys(option[0] for option in options):
        order = [
            index for index, option in enumerate(options) if option[0] == first and len(option) > 1
        ]
        if order:
            scores = yield from _score(
                [first], [options[index][1:] for index in order], item, place
            )
            for index, values in zip(order, scores, strict=True):
                alone[index][1:] = values
    return alone


def _join(work: Join, state: State, place: Place) -> Steps:
    yield from _seal(state, place)
    for begin, end in work.spans:
        done: Item = yield ForHandle(end)
        if begin.error is not None:
            raise cancelled("a branch to be joined never began", None, begin.failure)
        base: Snapshot = begin.value
        branch: Snapshot = done.value
        tokens = _beyond(base.tokens, branch.tokens, place)
        if (
            branch.bos_added and not base.bos_added
        ):  # the branch began with nothing, so it has a BOS of its own
            if state.tokens:
                tokens = tokens[1:]
            else:
                state.bos_added = True
        state.append_tokens(tokens, branch.text[len(base.text) :])
        state.messages += branch.messages[len(base.messages) :]
        state.has_roles = state.has_roles or branch.has_roles


def _beyond(base: array[int], branch: array[int], place: Place) -> array[int]:
    """The tokens that a branch has beyond those it began with.

    If it has generated the last of those once more, a token that is part of what it began with is
    cut, and its rest tokenized.
    """
    if branch[: len(base)] == base:
        return branch[len(base) :]
    tokenizer = place.engine.tokenizer
    common = next(
        at for at, (mine, other) in enumerate(zip(base, branch, strict=False)) if mine != other
    )
    missing = sum(len(tokenizer.token_bytes(token)) for token in base[common:])
    while missing > 0 and common < len(branch):
        piece = tokenizer.token_bytes(branch[common])
        common += 1
        missing -= len(piece)
        if missing < 0:
            rest = piece[missing:].decode("utf-8", "replace")
            return array("i", tokenizer.encode(rest)) + branch[common:]
    return branch[common:]
