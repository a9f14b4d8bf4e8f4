"""How each op is carried out: a generator for each kind, which changes the transcript and yields
the completions that it waits for.

Whoever drives a generator (`executor`) goes on with it once what it yielded has settled, and may
close it there, or throw an error into it: then it stops what it has under way in its `finally`
clauses, and the executor rolls the transcript back.
"""

from __future__ import annotations

import asyncio
import dis
import inspect
from array import array
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias, TypeVar

from asgl.completion import Completion
from asgl.engine.ticket import Ticket
from asgl.errors import BudgetError, OutputError, StreamError
from asgl.language import messages, seeds
from asgl.language.choices import best, scores_of
from asgl.language.context import StreamContext
from asgl.language.failures import cancelled
from asgl.language.internal_ops import (
    AppendTurn,
    CloseMessage,
    Join,
    Rewind,
    SetVariable,
    StartFrom,
    StartFromFile,
)
from asgl.language.operation import OpenMessage, Operation
from asgl.language.ops import Computed, Extend, Gen, Role, Select, Text, TextOf
from asgl.language.transcript import SYNCHRONOUS_BYTES, Snapshot, Transcript, token_ids_of

T = TypeVar("T")
Steps: TypeAlias = Generator[Completion[Any], None, T]


def interpret(op: Operation, transcript: Transcript, context: StreamContext) -> Steps[Any]:
    """Does what the op says; returns its value."""
    if op.kind in _AT_ONCE:
        return _AT_ONCE[op.kind](op.spec, transcript, context)
    if op.kind in _WHOLE:
        return (yield from _WHOLE[op.kind](op, op.spec, transcript, context))
    message = op.message
    if message is not None and (
        transcript.turn is None or transcript.turn.opened_by is not message
    ):
        messages.begin_turn(transcript, context.engine, message, message.role)
    op.start_of_text = transcript.text_length
    value = yield from _content(op, op.spec, transcript, context)
    op.text = transcript.text[op.start_of_text :]
    return value


# --- what interpreters wait for


class _Task(Completion[T]):
    """A coroutine that runs as a task."""

    __slots__ = ("cancel",)

    def __init__(self, coroutine: Any) -> None:
        super().__init__()
        task = asyncio.ensure_future(coroutine)
        self.cancel = task.cancel
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Future[T]) -> None:
        if task.cancelled():
            self.settle(error=cancelled("a task that the op waited for was cancelled"))
        else:
            error = task.exception()
            self.settle(None if error is not None else task.result(), error=error)


def _wait_for(completion: Completion[T]) -> Steps[T]:
    if not completion.settled:
        yield completion
    return completion.result()


def _task(coroutine: Any) -> Steps[Any]:
    """What a coroutine returns."""
    task = _Task[Any](coroutine)
    try:
        return (yield from _wait_for(task))
    finally:
        task.cancel()


def _in_thread(context: StreamContext, function: Callable[..., Any], *args: Any) -> Steps[Any]:
    """What a function returns that is too slow for the event loop."""
    return (yield from _task(context.engine.run_in_thread(function, *args)))


def _other(op: Operation, source: Operation) -> Steps[Operation]:
    """Another op, once it is finished. If it does not finish, `op` fails as a consequence."""
    if not source.settled:
        yield source
    if source.error is not None:
        op.root = source.failure
        raise cancelled(
            f"waited for <{source}>, which did not finish: {source.error}",
            source.owner.stream,
            source.failure,
        )
    return source


def _request(
    op: Operation, context: StreamContext, submit: Callable[..., Ticket], *, live: bool = False
) -> Steps[Ticket]:
    """Makes a request of the engine and waits for it. `live`: its text is the op's as it comes."""
    ticket = submit(namespace=context.options.cache_salt, priority=context.options.priority)
    op.ticket = ticket
    op.live = ticket if live else None
    deadline, timer = context.options.deadline, None
    try:
        if not ticket.settled:
            ticket.on_progress = op.owner.progressed
            if deadline is not None:
                timer = context.session.loop.call_later(deadline, _expire, op, deadline)
            yield ticket
        return ticket.result()
    finally:
        if timer is not None:
            timer.cancel()
        if not ticket.settled:
            context.engine.cancel(ticket)
        op.live = None


def _expire(op: Operation, deadline: float) -> None:
    assert op.ticket is not None
    number = op.ticket.request_id
    op.owner.interrupt(
        BudgetError(
            f"request {number} was not done within the deadline of {deadline:g} seconds: raise it, "
            "or ask for less",
            spent=deadline,
            limit=deadline,
            request_id=number,
        )
    )


# --- ops on the transcript as a whole


def _start(
    op: Operation, spec: StartFrom, transcript: Transcript, context: StreamContext
) -> Steps[None]:
    transcript.restore((yield from _other(op, spec.snapshot)).result())


def _load(
    op: Operation, spec: StartFromFile, transcript: Transcript, context: StreamContext
) -> Steps[None]:
    if spec.kv is not None:
        load = context.engine.saved.load_prompt
        yield from _task(load(spec.kv, spec.snapshot.tokens, context.options.cache_salt))
    transcript.restore(spec.snapshot)


def _rewind(spec: Rewind, transcript: Transcript, context: StreamContext) -> None:
    transcript.restore(spec.snapshot.result())


def _set(
    op: Operation, spec: SetVariable, transcript: Transcript, context: StreamContext
) -> Steps[None]:
    value = spec.value
    op.values[spec.name] = (
        (yield from _computed(op, value)) if isinstance(value, Computed) else value
    )


def _append_turn(spec: AppendTurn, transcript: Transcript, context: StreamContext) -> None:
    for piece in spec.pieces:
        if piece.of_template:
            messages.write(transcript, context.engine, piece.text)
        else:
            transcript.append(piece.text)
    transcript.messages += spec.messages


def _close(spec: CloseMessage, transcript: Transcript, context: StreamContext) -> None:
    close_message(spec.message, spec.by_exception, transcript, context)


def close_message(
    message: OpenMessage, by_exception: bool, transcript: Transcript, context: StreamContext
) -> None:
    """Ends the message of a role block. One without content is written empty, unless an exception
    is why it is empty."""
    if transcript.turn is None and not by_exception:
        messages.begin_turn(transcript, context.engine, message, message.role)
    if transcript.turn is not None and transcript.turn.opened_by is message:
        messages.end_turn(transcript, context.engine)


def _role(op: Operation, spec: Role, transcript: Transcript, context: StreamContext) -> Steps[str]:
    described_tools = messages.begin_turn(transcript, context.engine, op, spec.role, spec.tools)
    op.start_of_text = transcript.text_length
    trims = messages.parts_of(context.engine, spec.role).trims
    last = len(spec.content) - 1
    for index, part in enumerate(spec.content):
        if isinstance(part, Computed):
            part = Text((yield from _computed(op, part)))
        if isinstance(part, Text) and trims:
            text = part.text if index else part.text.lstrip()
            part = replace(part, text=text.rstrip() if index == last else text)
        yield from _content(op, part, transcript, context)
    op.text = transcript.text[op.start_of_text :]
    transcript.append(described_tools)
    messages.end_turn(transcript, context.engine)
    return op.text


# --- ops that append content


def _content(
    op: Operation, spec: Any, transcript: Transcript, context: StreamContext
) -> Steps[Any]:
    """Appends what `spec`, the op or a part of it, stands for."""
    if isinstance(spec, Text):
        transcript.append(spec.text)
        return None
    return (yield from _CONTENT[spec.kind](op, spec, transcript, context))


def _text_of(
    op: Operation, spec: TextOf, transcript: Transcript, context: StreamContext
) -> Steps[None]:
    transcript.append((yield from _other(op, spec.source)).text)


def _append_computed(
    op: Operation, spec: Computed, transcript: Transcript, context: StreamContext
) -> Steps[None]:
    transcript.append((yield from _computed(op, spec)))


def _computed(op: Operation, spec: Computed) -> Steps[Any]:
    done: list[Operation] = []
    for source in spec.values_of:
        done.append((yield from _other(op, source)))
    return spec.make(done)


def _seal(transcript: Transcript, context: StreamContext) -> Steps[None]:
    """Tokenizes the run, off the loop if it is long."""
    run, encode = transcript.run, context.engine.tokenizer.encode
    parts = run.parts
    if not parts:
        return
    prefix = transcript.prefix
    if run.size > SYNCHRONOUS_BYTES and not run.knows(parts, prefix):
        ids = yield from _in_thread(context, token_ids_of, parts, encode, prefix)
        run.learn(parts, prefix, ids)
    transcript.seal(run.token_ids(encode, prefix))


def _snapshot(
    op: Operation, spec: object, transcript: Transcript, context: StreamContext
) -> Steps[Snapshot]:
    yield from _seal(transcript, context)
    return transcript.snapshot()


def _extend(
    op: Operation, spec: Extend, transcript: Transcript, context: StreamContext
) -> Steps[None]:
    for part in spec.content:
        yield from _content(op, part, transcript, context)
    yield from _seal(transcript, context)
    if transcript.tokens:
        yield from _request(op, context, partial(context.engine.extend, transcript.tokens))


def _join(op: Operation, spec: Join, transcript: Transcript, context: StreamContext) -> Steps[None]:
    yield from _seal(transcript, context)
    for start, end in spec.branches:
        branch: Snapshot = (yield from _other(op, end)).result()
        if start.error is not None:
            raise cancelled("a branch to be joined never began", None, start.failure)
        base: Snapshot = start.result()
        tokens = _beyond(base.tokens, branch.tokens, context)
        if branch.bos_added and not base.bos_added:
            # the branch began with nothing, so it has a beginning-of-text token of its own
            if transcript.tokens:
                tokens = tokens[1:]
            else:
                transcript.bos_added = True
        transcript.append_tokens(tokens, branch.text[len(base.text) :])
        transcript.messages += branch.messages[len(base.messages) :]
        transcript.has_roles = transcript.has_roles or branch.has_roles


def _beyond(base: array[int], branch: array[int], context: StreamContext) -> array[int]:
    """The tokens that a branch has beyond those it began with.

    If token healing has taken the last of those back, a token that is part of what it began with is
    cut, and its rest tokenized.
    """
    if branch[: len(base)] == base:
        return branch[len(base) :]
    tokenizer = context.engine.tokenizer
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


# --- gen


def _gen(op: Operation, spec: Gen, transcript: Transcript, context: StreamContext) -> Steps[Any]:
    """Generates, again if the validator asks for it: each try starts from the same point, with a
    seed of its own."""
    yield from _seal(transcript, context)
    prompt, attempt, feedback = transcript.prompt(), 0, ""
    while True:
        ticket = yield from _generate(op, spec, attempt, prompt, feedback, transcript, context)
        value, verdict = _judge(spec, ticket)
        if verdict.valid or op.cancel_reason is not None:
            break
        if attempt == spec.retries or ticket.finish_reason == "stopped":
            if isinstance(verdict.error, OutputError) and not attempt:
                raise verdict.error
            raise OutputError(
                f"no valid text in {attempt + 1} tries; the last: {ticket.text!r}: {verdict}",
                text=ticket.text,
                finish_reason=ticket.finish_reason or "",
                request_id=ticket.request_id,
            ) from verdict.error
        attempt, feedback = attempt + 1, verdict.feedback
    output = ticket.output
    assert output is not None
    tokens = [token.token_id for token in ticket.tokens[: output.kept_tokens]]
    if output.remainder:  # a stop cut a token in two: what is left of it is tokenized anew
        tokens += context.engine.tokenizer.encode(output.remainder)
    transcript.heal(output.healed)
    transcript.append_tokens(tokens, ticket.text)
    op.token_ids += tokens
    if spec.name is not None:
        op.values[spec.name] = value
    return value


def _generate(
    op: Operation,
    spec: Gen,
    attempt: int,
    prompt: array[int],
    feedback: str,
    transcript: Transcript,
    context: StreamContext,
) -> Steps[Ticket]:
    """One generation, which appends nothing. `feedback` is what the validator said of the last."""
    engine, params, grammar = context.engine, spec.params, None
    if spec.constraint is not None:
        source = spec.constraint.source
        grammar = engine.grammars.known(source) or (
            yield from _in_thread(context, engine.grammars.compile, source)
        )
    assert params.seed is not None
    seed = params.seed if not attempt else seeds.again(params.seed, attempt)
    if op.allowance is not None:
        params = op.allowance.clamp(params)
    if feedback:  # it comes after the stream's own tokens, and is not to be healed
        prompt = array("i", [*prompt, *engine.tokenizer.encode(feedback)])
        params = replace(params, token_healing=False)
    ends = () if params.ignore_eos else engine.tokenizer.end_tokens
    if transcript.turn is not None:
        ends = tuple(dict.fromkeys((*ends, *messages.end_of_turn(transcript, engine))))
    submit = partial(
        engine.generate,
        prompt,
        params,
        seed=seed,
        logprobs=spec.logprobs or None,
        end_tokens=ends,
        grammar=grammar,
        asked=spec,
    )
    live = spec.validate is None and not spec.retries
    ticket = yield from _request(op, context, submit, live=live)
    if op.allowance is not None:
        op.allowance.finish(len(ticket.tokens), ticket.finish_reason)
    return ticket


class _Verdict(NamedTuple):
    """What a validator says of a value."""

    valid: bool
    feedback: str = ""
    error: Exception | None = None

    def __str__(self) -> str:
        if self.error is not None:
            return repr(self.error)
        return self.feedback or "the validator returned False, or None from what it called"


def _judge(spec: Gen, ticket: Ticket) -> tuple[Any, _Verdict]:
    """The value of what was generated, and whether it is valid."""
    value: Any = None
    try:
        value = ticket.text if spec.constraint is None else spec.constraint.value(ticket)
        if spec.validate is None:
            return value, _Verdict(True)
        said = spec.validate(value)
        if inspect.iscoroutine(said):
            said.close()
            raise TypeError("validate must be a plain function, and it gave a coroutine")
    except Exception as error:
        return value, _Verdict(False, error=error)
    if isinstance(said, str) and said:
        return value, _Verdict(False, said)
    if said is None and not _ends_without_a_value(spec.validate):
        said = False
    return value, _Verdict(said is not False)


def _ends_without_a_value(validate: Callable[..., object]) -> bool:
    """Whether the validator is a Python function that says None by itself, or ends without a return:
    then its None is content. That of any other, of `re.compile(...).fullmatch` and a lambda that calls it, say,
    comes from what it calls, and means no."""
    code = getattr(validate, "__code__", None)
    if code is None:
        return False
    instructions = list(dis.get_instructions(code))
    return any(
        one.argval is None
        and (
            one.opname == "RETURN_CONST"
            or (one.opname == "LOAD_CONST" and after.opname in ("RETURN_VALUE", "JUMP_FORWARD"))
        )
        for one, after in pairwise([*instructions, instructions[-1]])
    )


# --- select


def _select(
    op: Operation, spec: Select, transcript: Transcript, context: StreamContext
) -> Steps[str]:
    yield from _seal(transcript, context)
    prompt, before = transcript.prompt(), transcript.prefix
    healed = 0
    if spec.token_healing:
        healed, before = context.engine.heal(prompt)
        prompt = prompt[: len(prompt) - healed]
    options = yield from _encoded_options(spec, before, context)
    logprobs = yield from _score(op, prompt, options, context, spec)
    alone: list[list[float]] = []
    if spec.method == "unconditional_likelihood_normalized":
        ticket = op.ticket
        alone = yield from _score_alone(op, options, context)
        op.ticket = ticket  # the handle tells of the request that saw the prompt
    op.scores = scores_of(spec.method, logprobs, alone)
    op.index = best(op.scores)
    op.token_logprobs = logprobs
    choice = spec.choices[op.index]
    transcript.heal(healed)
    transcript.append_tokens(options[op.index], choice)
    op.token_ids += options[op.index]
    if spec.name is not None:
        op.values[spec.name] = choice
    return choice


def _encoded_options(spec: Select, before: str, context: StreamContext) -> Steps[list[list[int]]]:
    """The tokens of `before` and each option; off the loop if there is much to tokenize."""

    def encoded() -> list[list[int]]:
        return [encode(before + choice) for choice in spec.choices]

    encode = context.engine.tokenizer.encode
    long = sum(map(len, spec.choices)) + len(before) * len(spec.choices) > SYNCHRONOUS_BYTES
    options: list[list[int]] = (yield from _in_thread(context, encoded)) if long else encoded()
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
    ticket = yield from _request(op, context, submit)
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


_AT_ONCE: dict[str, Callable[..., None]] = {
    "rewind": _rewind,
    "turn": _append_turn,
    "close": _close,
}
_WHOLE: dict[str, Callable[..., Steps[Any]]] = {
    "start": _start,
    "load": _load,
    "set": _set,
    "role": _role,
}
_CONTENT: dict[str, Callable[..., Steps[Any]]] = {
    "text of": _text_of,
    "computed": _append_computed,
    "extend": _extend,
    "gen": _gen,
    "select": _select,
    "join": _join,
    "snapshot": _snapshot,
}
"""By `Spec.kind`: ops that never wait; ops that stand outside of messages, or are one; ops whose text
goes into the message that is open, if one is."""
