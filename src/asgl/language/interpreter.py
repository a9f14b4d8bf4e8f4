"""What each op does: a function for each kind, which changes the transcript.

Those that may wait are generators (`waiting`). Who drives them (`executor`) rolls the transcript
back if they do not end with a value.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from functools import partial
from typing import Any

from asgl.errors import ModelError, StreamError
from asgl.language import messages, run_probe
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
from asgl.language.ops import Calls, Computed, Extend, Gen, Role, Select, Text, TextOf, Tokens
from asgl.language.run_gen import run_gen
from asgl.language.run_select import run_select
from asgl.language.tool_styles import Answered, calls_in, style_of
from asgl.language.transcript import Snapshot, Transcript, Turn
from asgl.language.waiting import Steps, other_op, request, seal, task


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
        generated = op.kind in ("gen", "select", "next token", "beam")
        messages.begin_turn(transcript, context, message, message.role, generated=generated)
    op.start_of_text = transcript.text_length
    value = yield from _content(op, op.spec, transcript, context)
    op.text = transcript.text[op.start_of_text :]
    return value


# --- ops on the transcript as a whole


def _start(
    op: Operation, spec: StartFrom, transcript: Transcript, context: StreamContext
) -> Steps[None]:
    transcript.restore((yield from other_op(op, spec.snapshot)).result())
    context.emit_text("rewound", transcript.tokens, 0)


def _load(
    op: Operation, spec: StartFromFile, transcript: Transcript, context: StreamContext
) -> Steps[None]:
    if spec.kv is not None:
        load = context.engine.saved.load_prompt
        yield from task(load(spec.kv, spec.snapshot.tokens, context.options.cache_salt))
    transcript.restore(spec.snapshot)
    context.emit_text("loaded", transcript.tokens, len(transcript.tokens))


def _rewind(spec: Rewind, transcript: Transcript, context: StreamContext) -> None:
    transcript.restore(spec.snapshot.result())
    context.emit_text("rewound", transcript.tokens, 0)


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
    transcript.roles += spec.roles
    start = transcript.text_length
    transcript.turn = Turn(spec, "assistant", start, spec.suffix) if spec.opens else None


def _calls(spec: Calls, transcript: Transcript, context: StreamContext) -> None:
    before = calls_in(transcript.messages)
    if not transcript.roles:
        raise StreamError("calls of tools come after a message that asks for them, and none does")
    style = style_of(context, list(transcript.roles), {}, parallel=len(spec.calls) > 1)
    calls = [Answered.of_text(*call) for call in spec.calls]
    _append_turn(style.opening(), transcript, context)
    transcript.append(style.text_of(calls))
    _append_turn(style.answer(calls, before), transcript, context)


def _close(spec: CloseMessage, transcript: Transcript, context: StreamContext) -> None:
    close_message(spec.message, spec.by_exception, transcript, context)


def close_message(
    message: OpenMessage, by_exception: bool, transcript: Transcript, context: StreamContext
) -> None:
    """Ends the message of a role block. One without content is written empty, unless an exception
    or an op that failed is why it is empty."""
    if transcript.turn is None and not (by_exception or message.failed):
        messages.begin_turn(transcript, context, message, message.role)
    if transcript.turn is not None and transcript.turn.opened_by is message:
        messages.end_turn(transcript, context.engine)


def _role(op: Operation, spec: Role, transcript: Transcript, context: StreamContext) -> Steps[str]:
    first = spec.content[0] if spec.content else None
    parts, told = messages.begin_turn(
        transcript,
        context,
        op,
        spec.role,
        tools=spec.tools,
        generated=isinstance(first, Gen | Select),
    )
    op.start_of_text = transcript.text_length
    last = len(spec.content) - 1
    for index, part in enumerate(spec.content):
        if isinstance(part, Computed):
            part = Text((yield from _computed(op, part)))
        if isinstance(part, Text):
            text = part.text if index else part.text.lstrip(parts.trims_left)
            part = Text(text if index != last else text.rstrip(parts.trims_right))
        yield from _content(op, part, transcript, context)
    op.text = transcript.text[op.start_of_text :]
    transcript.append(told)
    messages.end_turn(transcript, context.engine)
    return op.text


# --- ops that append content


def _content(
    op: Operation, spec: Any, transcript: Transcript, context: StreamContext
) -> Steps[Any]:
    """Appends what `spec`, the op or a part of it, stands for."""
    if isinstance(spec, Text):
        messages.append_content(transcript, spec.text)
        return None
    if spec.kind in ("gen", "select"):
        messages.check_place(transcript, spec.kind)
    return (yield from _CONTENT[spec.kind](op, spec, transcript, context))


def _text_of(
    op: Operation, spec: TextOf, transcript: Transcript, context: StreamContext
) -> Steps[None]:
    messages.append_content(transcript, (yield from other_op(op, spec.source)).text)


def _append_computed(
    op: Operation, spec: Computed, transcript: Transcript, context: StreamContext
) -> Steps[None]:
    messages.append_content(transcript, (yield from _computed(op, spec)))


def _tokens(
    op: Operation, spec: Tokens, transcript: Transcript, context: StreamContext
) -> Steps[None]:
    tokenizer = context.engine.tokenizer
    for token in spec.tokens:
        if isinstance(token, str) and token not in tokenizer.special_tokens:
            known = ", ".join(list(tokenizer.special_tokens)[:20]) or "none"
            raise ModelError(f"the model has no control token {token!r}; those it has: {known}")
        if isinstance(token, int) and token >= tokenizer.vocabulary:
            raise ModelError(
                f"there is no token {token}: the model's vocabulary has {tokenizer.vocabulary}"
            )
    yield from seal(transcript, context)
    ids = [
        tokenizer.special_tokens[token] if isinstance(token, str) else token
        for token in spec.tokens
    ]
    if transcript.cut:
        raise StreamError("tokens cannot be appended in the middle of a character")
    text = tokenizer.decode(ids)
    transcript.append_tokens(ids, text, "given")
    context.emit_text("prompt", transcript.tokens, len(ids))
    op.token_ids += ids


def _computed(op: Operation, spec: Computed) -> Steps[Any]:
    done: list[Operation] = []
    for source in spec.values_of:
        done.append((yield from other_op(op, source)))
    return spec.make(done)


def _snapshot(
    op: Operation, spec: object, transcript: Transcript, context: StreamContext
) -> Steps[Snapshot]:
    yield from seal(transcript, context)
    return transcript.snapshot()


def _extend(
    op: Operation, spec: Extend, transcript: Transcript, context: StreamContext
) -> Steps[None]:
    for part in spec.content:
        yield from _content(op, part, transcript, context)
    yield from seal(transcript, context)
    if transcript.tokens:
        yield from request(op, context, partial(context.engine.extend, transcript.tokens))


def _join(op: Operation, spec: Join, transcript: Transcript, context: StreamContext) -> Steps[None]:
    yield from seal(transcript, context)
    for start, end in spec.branches:
        branch: Snapshot = (yield from other_op(op, end)).result()
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
        text, completes = branch.text[len(base.text) :], False
        goes_on = bool(tokens) and branch.tokens[: len(base.tokens)] == base.tokens
        if goes_on and context.engine.tokenizer.cut_bytes(base.tokens[-4:]):
            # the branch began in the middle of a character: it goes on only where the base ended
            completes = transcript.tokens[-4:] == base.tokens[-4:]
            text = branch.text[len(base.text) - 1 :]
            text = text if completes else context.engine.tokenizer.decode(tokens)
        if branch.roles == base.roles:  # it wrote no messages of its own
            messages.check_text(transcript, text)
        transcript.append_tokens(tokens, text, "joined", completes=completes)
        context.emit_text("joined", transcript.tokens, len(tokens))
        transcript.messages += branch.messages[len(base.messages) :]
        transcript.roles += branch.roles[len(base.roles) :]


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


_AT_ONCE: dict[str, Callable[..., None]] = {
    "rewind": _rewind,
    "turn": _append_turn,
    "calls": _calls,
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
    "tokens": _tokens,
    "gen": run_gen,
    "select": run_select,
    "join": _join,
    "snapshot": _snapshot,
    **run_probe.RUN,
}
"""By `Spec.kind`: ops that never wait; ops that stand outside of messages, or are one; ops whose
text goes into the message that is open, if one is."""
