"""How a gen is carried out."""

from __future__ import annotations

import dis
import inspect
from array import array
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

from asgl.engine.ticket import Ticket
from asgl.errors import OutputError
from asgl.language import messages, seeds
from asgl.language.context import StreamContext
from asgl.language.op_info import info_of_gen
from asgl.language.operation import Operation
from asgl.language.ops import Gen
from asgl.language.transcript import Transcript
from asgl.language.waiting import Steps, in_thread, request, seal


def run_gen(op: Operation, spec: Gen, transcript: Transcript, context: StreamContext) -> Steps[Any]:
    """Generates, again if the validator asks for it: each try starts from the same point, with a
    seed of its own."""
    yield from seal(transcript, context)
    prompt, attempt, rejected, feedback = transcript.prompt(), 0, "", ""
    while True:
        ticket = yield from _generate(
            op, spec, attempt, prompt, rejected, feedback, transcript, context
        )
        value, verdict = _judge(spec, ticket)
        if verdict.valid or op.cancel_reason is not None:
            break
        gives_up = attempt == spec.retries or ticket.finish_reason == "stopped"
        kind = "refused" if gives_up else "retried"
        context.emit_validation(kind, op, attempt, ticket.text, str(verdict))
        if gives_up:
            if isinstance(verdict.error, OutputError) and not attempt:
                raise verdict.error
            raise OutputError(
                f"no valid text in {attempt + 1} tries; the last: {ticket.text!r}: {verdict}",
                text=ticket.text,
                finish_reason=ticket.finish_reason or "",
                request_id=ticket.request_id,
            ) from verdict.error
        attempt, rejected, feedback = attempt + 1, ticket.text, verdict.feedback
    output = ticket.output
    assert output is not None
    tokens = [token.token_id for token in ticket.tokens[: output.kept_tokens]]
    if output.remainder:  # a stop cut a token in two: what is left of it is tokenized anew
        tokens += context.engine.tokenizer.encode(output.remainder)
    completes = bool(tokens) and not output.healed and not feedback and transcript.cut
    how = "sampled" if spec.constraint is None else "constrained"
    start = transcript.append_tokens(
        tokens, ticket.text, how, healed=output.healed, completes=completes
    )
    context.emit_text("generated", transcript.tokens, len(tokens), ticket.text, ticket.request_id)
    op.start_of_text = min(op.start_of_text, start)  # it may have completed a character
    op.token_ids += tokens
    if spec.name is not None:
        op.values[spec.name] = value
        decode = context.engine.tokenizer.decode
        op.infos[spec.name] = info_of_gen(ticket, tokens, spec.logprobs > 0, decode)
    return value


def _generate(
    op: Operation,
    spec: Gen,
    attempt: int,
    prompt: array[int],
    rejected: str,
    feedback: str,
    transcript: Transcript,
    context: StreamContext,
) -> Steps[Ticket]:
    """One generation, which appends nothing. `feedback` is what the validator said of the last,
    which was `rejected`."""
    engine, params, grammar = context.engine, spec.params, None
    if spec.constraint is not None:
        source = spec.constraint.source
        grammar = engine.grammars.known(source) or (
            yield from in_thread(context, engine.grammars.compile, source)
        )
    assert params.seed is not None
    seed = params.seed if not attempt else seeds.again(params.seed, attempt)
    if op.allowance is not None:
        params = op.allowance.clamp(params)
    if feedback:  # it comes after the stream's own tokens, and is not to be healed
        prompt = _with_feedback(prompt, rejected, feedback, transcript, context)
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
    op.live_name = spec.name
    ticket = yield from request(op, context, submit, live=live)
    if op.allowance is not None:
        op.allowance.finish(len(ticket.tokens), ticket.finish_reason)
    return ticket


def _with_feedback(
    prompt: array[int], rejected: str, feedback: str, transcript: Transcript, context: StreamContext
) -> array[int]:
    """The prompt of the next try. In a message of the assistant the rejected text ends its message,
    the feedback is the user's, and the answer begins anew; elsewhere, and in a call of tools, whose
    message has an end of its own, the feedback is appended."""
    engine, turn = context.engine, transcript.turn
    if turn is None or turn.role != "assistant" or not turn.suffix:
        return array("i", [*prompt, *engine.tokenizer.encode(feedback)])
    draft = Transcript(engine.tokenizer)
    draft.restore(transcript.snapshot())
    draft.append(rejected)
    messages.end_turn(draft, engine)
    messages.begin_turn(draft, context, None, "user")
    draft.append(feedback)
    messages.end_turn(draft, engine)
    given = transcript.text[turn.start :]
    messages.begin_turn(draft, context, None, turn.role, generated=not given)
    draft.append(given)
    draft.seal()
    return draft.tokens


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
    """Whether the validator is a Python function that says None by itself, or ends without a
    return: then its None is content. That of any other, of `re.compile(...).fullmatch` and a lambda
    that calls it, say, comes from what it calls, and means no."""
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
