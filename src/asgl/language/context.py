"""What the streams of a Runtime have in common, and what a stream has in common with its forks."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal
from weakref import WeakSet

from asgl.errors import ConfigError, ModelError
from asgl.language.backend import ChatTemplate, Engine
from asgl.language.budget import Budget
from asgl.language.failures import Failure, unseen_errors
from asgl.language.operation import Operation
from asgl.sampling import SamplingParams
from asgl.trace import (
    BudgetEvent,
    OpEvent,
    ProgramEvent,
    StreamEvent,
    TextEvent,
    ValidationEvent,
    WaitEvent,
)

_MOST_FAILURES = 1024
_MOST_PIECES = 8192
"""Of a longer text tracers hear as a whole: token by token it would hold up the event loop."""


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """How a prompt was asked for; its forks have the same options.

    name, cache_salt, priority, deadline, template: those of `Runtime.prompt`. origin: name and
    initial text, which seeds derive from. budgets: bound all ops, besides the budgets that are open
    where they are submitted.
    """

    name: str | None = None
    origin: tuple[str | None, str] = (None, "")
    sampling: SamplingParams = field(default_factory=SamplingParams)
    cache_salt: str | None = None
    priority: int = 0
    deadline: float | None = None
    budgets: tuple[Budget, ...] = ()
    template: Mapping[str, Any] = field(default_factory=dict[str, Any])


class SessionContext:
    """What the streams of one Runtime share: the engine, the event loop, and the failures that
    nobody has seen. Belongs to the event loop that it is made on."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.loop = asyncio.get_running_loop()
        self.closed: str | None = None
        """Why no stream accepts ops any more."""
        self.tasks: set[asyncio.Task[None]] = set()
        """The runs of programs."""
        self.busy: set[Any] = set()
        """The executors that have ops queued."""
        self.open: WeakSet[Any] = WeakSet()
        """The executors that are not closed, as long as somebody refers to them."""
        self.lost_failures = 0
        """How many failures were dropped, because a thousand others had not been seen."""
        self._failures: list[Failure] = []
        self._ids = count()
        self._control: dict[int, str] | None = None

    def next_id(self) -> int:
        return next(self._ids)

    def record(self, failure: Failure) -> None:
        """Keeps a failure until somebody saw it."""
        if len(self._failures) >= _MOST_FAILURES:
            self._failures = [other for other in self._failures if not other.seen]
        if len(self._failures) < _MOST_FAILURES:
            self._failures.append(failure)
        else:
            self.lost_failures += 1

    def unseen_failures(self) -> list[BaseException]:
        """The failures of ops that nobody has seen, oldest first; each is given once."""
        failures, self._failures = self._failures, []
        return unseen_errors(failures)

    def pieces(self, token_ids: Sequence[int]) -> tuple[str, ...]:
        """The text of each token; a character of several tokens belongs to its last."""
        tokenizer = self.engine.tokenizer
        if self._control is None:
            self._control = {token: text for text, token in tokenizer.special_tokens.items()}
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        return tuple(
            self._control.get(token) or decoder.decode(tokenizer.token_bytes(token))
            for token in token_ids
        )

    def check_loop(self) -> None:
        """ConfigError if this is not the event loop of the Runtime."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        if loop is not self.loop:
            raise ConfigError(
                "a Runtime and its streams belong to the event loop that the Runtime was opened "
                f"on, and this is {'another one' if loop is not None else 'code outside of it'}: "
                "open a Runtime here"
            )


class StreamContext:
    """Who a stream is. `root`: the id of the prompt that it comes from, by whatever forks. `path`:
    for each fork on the way its number among the ops, and the index of the branch."""

    def __init__(
        self,
        session: SessionContext,
        options: StreamOptions,
        path: tuple[int, ...] = (),
        root: int | None = None,
    ) -> None:
        self.session = session
        self.engine = session.engine
        self.options = options
        self.path = path
        self.id = session.next_id()
        self.root = self.id if root is None else root

    @property
    def chat_template(self) -> ChatTemplate:
        """The model's chat template, with the prompt's arguments; ModelError if it has none."""
        template = self.engine.chat_template
        if template is None:
            raise ModelError(
                "this model has no chat template, so it knows no roles: write the prompt as plain "
                "text instead"
            )
        return template.with_arguments(self.options.template) if self.options.template else template

    def describe(self) -> str:
        """The stream, as error messages call it."""
        name = f"the stream {self.options.name!r}" if self.options.name else f"stream {self.root}"
        path = ".".join(map(str, self.path[1::2]))
        return f"branch {path} of {name}" if path else name

    # --- what tracers are told

    def emit_stream(
        self, kind: Literal["opened", "forked", "joined", "closed"], parent: int | None = None
    ) -> None:
        """`parent` is the id of the stream that it was forked from or joined to."""
        if tracers := self.engine.tracers:
            tracers.emit(StreamEvent(kind, self.id, parent, self.options.name))

    def emit_program(
        self,
        kind: Literal["started", "finished", "failed", "cancelled"],
        program: str,
        item: int | None,
        error: BaseException | None = None,
    ) -> None:
        """Tells of the program that runs on this stream; `item` is its place in a batch."""
        if tracers := self.engine.tracers:
            reason = repr(error) if error is not None else ""
            tracers.emit(ProgramEvent(kind, self.id, program, item, reason))

    def emit_op(
        self,
        kind: Literal["submitted", "started", "requested", "finished", "failed", "cancelled"],
        op: Operation,
        reason: str = "",
    ) -> None:
        """Tells of a numbered op."""
        if op.number is None or not (tracers := self.engine.tracers):
            return
        tracers.emit(
            OpEvent(
                kind,
                self.id,
                op.number,
                op.kind,
                op.names[0] if op.names else None,
                op.ticket.request_id if op.ticket is not None else None,
                op.text if kind == "finished" else "",
                reason,
            )
        )

    def emit_budgets(self, op: Operation) -> None:
        """Tells what the budgets of an op that ends have spent."""
        if op.allowance is None or op.number is None or not (tracers := self.engine.tracers):
            return
        for one in op.allowance.budgets:
            tracers.emit(
                BudgetEvent(self.id, op.number, one.spent, one.tokens, one.passed, one.seconds)
            )

    def emit_wait(
        self, kind: Literal["waits", "goes on"], op: Operation, source: Operation
    ) -> None:
        """Tells that the op waits for another one, or no longer."""
        if tracers := self.engine.tracers:
            other = source.owner.context.id
            tracers.emit(WaitEvent(kind, self.id, op.kind, other, _named(source)))

    def emit_validation(
        self, kind: Literal["retried", "refused"], op: Operation, attempt: int, text: str, why: str
    ) -> None:
        """Tells that a text which the op has generated is not valid."""
        if op.number is not None and (tracers := self.engine.tracers):
            tracers.emit(ValidationEvent(kind, self.id, op.number, attempt, text, why))

    def emit_text(
        self,
        source: Literal["prompt", "generated", "selected", "joined", "loaded", "rewound", "undone"],
        tokens: Sequence[int],
        count: int,
        text: str | None = None,
        request_id: int | None = None,
    ) -> None:
        """Tells that the last `count` of the stream's `tokens` are new. text: theirs, where the
        text of each token is known from elsewhere."""
        if not (tracers := self.engine.tracers):
            return
        position, pieces = len(tokens) - count, ()
        new = tokens[position:]
        if text is None and count > _MOST_PIECES:
            text = self.engine.tokenizer.decode(new)
        elif text is None:
            pieces = self.session.pieces(new)
        tracers.emit(TextEvent(source, self.id, position, count, text or "", pieces, request_id))


def _named(op: Operation) -> str:
    return f"{op.kind} {op.names[0]!r}" if op.names else op.kind
