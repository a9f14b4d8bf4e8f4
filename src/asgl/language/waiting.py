"""What the interpreters of ops wait for: requests, other ops, and tasks.

An interpreter is a generator that yields completions (`Steps`). It may be closed, or an error may
be thrown into it, wherever it waits: what it has under way is stopped in `finally` clauses.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeAlias, TypeVar

from asgl.completion import Completion
from asgl.engine.ticket import Ticket
from asgl.errors import BudgetError
from asgl.language.context import StreamContext
from asgl.language.failures import cancelled
from asgl.language.operation import Operation
from asgl.language.transcript import SYNCHRONOUS_BYTES, Transcript

T = TypeVar("T")
Steps: TypeAlias = Generator[Completion[Any], None, T]


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


def wait_for(completion: Completion[T]) -> Steps[T]:
    if not completion.settled:
        yield completion
    return completion.result()


def task(coroutine: Any) -> Steps[Any]:
    """What a coroutine returns."""
    running = _Task[Any](coroutine)
    try:
        return (yield from wait_for(running))
    finally:
        running.cancel()


def in_thread(context: StreamContext, function: Callable[..., Any], *args: Any) -> Steps[Any]:
    """What a function returns that is too slow for the event loop."""
    return (yield from task(context.engine.run_in_thread(function, *args)))


def other_op(op: Operation, source: Operation) -> Steps[Operation]:
    """Another op, once it is finished. If it does not finish, `op` fails as a consequence."""
    if not source.settled:
        context = op.owner.context
        context.emit_wait("waits", op, source)
        try:
            yield source
        finally:
            context.emit_wait("goes on", op, source)
    if source.error is not None:
        op.root = source.failure
        raise cancelled(
            f"waited for <{source}>, which did not finish: {source.error}",
            source.owner.stream,
            source.failure,
        )
    return source


def request(
    op: Operation, context: StreamContext, submit: Callable[..., Ticket], *, live: bool = False
) -> Steps[Ticket]:
    """Makes a request of the engine and waits for it. `live`: its text is the op's as it comes."""
    ticket = submit(namespace=context.options.cache_salt, priority=context.options.priority)
    op.ticket = ticket
    op.live = ticket if live else None
    context.emit_op("requested", op)
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
        op.live = op.live_name = None


def requests(
    op: Operation, context: StreamContext, submits: Sequence[Callable[..., Ticket]]
) -> Steps[list[Ticket]]:
    """Makes several requests of the engine at once, and waits for all of them. If one fails the
    others are cancelled."""
    options, deadline, timer = context.options, context.options.deadline, None
    tickets = [
        submit(namespace=options.cache_salt, priority=options.priority) for submit in submits
    ]
    op.ticket = tickets[0]
    try:
        if deadline is not None:
            timer = context.session.loop.call_later(deadline, _expire, op, deadline)
        for ticket in tickets:
            if not ticket.settled:
                yield ticket
            ticket.result()
        return tickets
    finally:
        if timer is not None:
            timer.cancel()
        for ticket in tickets:
            if not ticket.settled:
                context.engine.cancel(ticket)


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


def seal(transcript: Transcript, context: StreamContext) -> Steps[None]:
    """Tokenizes the run, off the loop if it is long."""
    run, tokenizer = transcript.run, context.engine.tokenizer
    parts, after = run.parts, transcript.after
    if not parts:
        return
    if run.size > SYNCHRONOUS_BYTES and not run.knows(parts, after):
        run.learn(parts, after, (yield from in_thread(context, tokenizer.encode_run, parts, after)))
    before = len(transcript.tokens)
    transcript.seal()
    context.emit_text("prompt", transcript.tokens, len(transcript.tokens) - before)
