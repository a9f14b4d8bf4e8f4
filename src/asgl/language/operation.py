"""The record of an op: what was submitted to a stream, how far it is, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any, ClassVar, NamedTuple, Protocol
from weakref import WeakSet

from asgl.completion import Signal
from asgl.engine.ticket import Ticket
from asgl.errors import InternalError
from asgl.language.backend import Engine
from asgl.language.budget import Allowance
from asgl.language.failures import Failure, Outcome
from asgl.language.op_info import OpInfo


class OpState(Enum):
    """See `Operation`."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Spec(Protocol):
    """What an op is asked to do: the values of `ops`, and the streams' own of `internal_ops`."""

    kind: ClassVar[str]

    @property
    def names(self) -> tuple[str, ...]:
        """The variables that the op sets."""
        ...


class Owner(Protocol):
    """The queue that an op was submitted to."""

    @property
    def stream(self) -> Any: ...

    @property
    def engine(self) -> Engine: ...

    @property
    def context(self) -> Any: ...

    def check_loop(self) -> None: ...

    def cancel(self, op: Operation, why: str = "") -> bool: ...

    def interrupt(self, error: Exception) -> None: ...

    def progressed(self) -> None: ...

    def text_of(self, op: Operation) -> str: ...


class OpenMessage:
    """A message that a `with s.role(...)` block writes. Its header is written with the first
    content that is submitted inside."""

    __slots__ = ("failed", "role")

    def __init__(self, role: str) -> None:
        self.role = role
        self.failed = False
        """Whether an op inside it failed or was cancelled: then it is not written if it is
        empty."""


class Choice(NamedTuple):
    """What a select has chosen: the option, all scores, and the log-probabilities that they come
    from."""

    option: int
    scores: Sequence[float]
    token_logprobs: Sequence[Sequence[float]]


class Operation(Outcome[Any]):
    """An op of a stream. All changes of `state` are made here:

        QUEUED ── start ──> RUNNING ── finish ──> FINISHED
          │                    ├────── fail ────> FAILED
          └───── cancel ───────┴───── cancel ───> CANCELLED

    spec: what it is to do, and `kind`, its name. owner: the queue that it was submitted to.
    number: its place among the numbered ops of its stream; None for what streams do by themselves.
    message: the role block that was open when it was submitted. allowance: what it may spend; None
    if no budget bounds it.
    """

    __slots__ = (
        "allowance",
        "cancel_reason",
        "changed",
        "choice",
        "infos",
        "iterators",
        "kind",
        "live",
        "live_name",
        "message",
        "names",
        "number",
        "owner",
        "root",
        "spec",
        "start_of_text",
        "state",
        "text",
        "ticket",
        "token_ids",
        "values",
    )

    def __init__(
        self,
        spec: Spec,
        owner: Owner,
        *,
        number: int | None = None,
        message: OpenMessage | None = None,
        allowance: Allowance | None = None,
    ) -> None:
        super().__init__()
        self.state = OpState.QUEUED
        self.spec: Any = spec
        self.kind = spec.kind
        self.names = spec.names
        self.owner = owner
        self.number = number
        self.message = message
        self.allowance = allowance
        self.changed = Signal()
        """Notified when there is new text, and at the end."""
        self.iterators: WeakSet[Any] = WeakSet()
        """The iterators over its text that still are in use."""
        self.cancel_reason: str | None = None
        """Why it is to be cancelled, once its code, which is on the stack, has returned."""
        self.root: Failure | None = None
        """The failure of another op that this one waited for."""
        self.ticket: Ticket | None = None
        """The last request that was made for it."""
        self.live: Ticket | None = None
        """The generation whose text is the op's text as it comes."""
        self.values: dict[str, Any] = {}
        """The variables that it sets, once it is finished."""
        self.start_of_text = 0
        """Where its content begins in the stream's text."""
        self.text = ""
        """The content that it appended, once it is finished."""
        self.token_ids: list[int] = []
        """The tokens that it generated or selected, once it is finished."""
        self.infos: dict[str, OpInfo] = {}
        """How the variables among `values` that were generated or selected came about."""
        self.live_name: str | None = None
        """The variable that `live` is generated for."""
        self.choice: Choice | None = None
        """Of a select, once it has chosen."""

    def start(self) -> None:
        self._move(OpState.RUNNING, OpState.QUEUED)

    def finish(self, value: Any) -> None:
        """Ends with a value."""
        self._move(OpState.FINISHED, OpState.RUNNING)
        self.settle(value)
        self.changed.notify()

    def fail(self, failure: Failure) -> None:
        """Ends with an error of its own."""
        self._move(OpState.FAILED, OpState.RUNNING)
        self.failure = failure
        self._spoil_message()
        self.settle(error=failure.error)
        self.changed.notify()

    def cancel(self, error: BaseException, failure: Failure | None = None) -> None:
        """Ends because somebody cancelled it, or because an op before it failed with `failure`."""
        self._move(OpState.CANCELLED, OpState.QUEUED, OpState.RUNNING)
        self.failure = failure
        self._spoil_message()
        self.settle(error=error)
        self.changed.notify()

    def _spoil_message(self) -> None:
        if self.message is not None:
            self.message.failed = True

    def __str__(self) -> str:
        name = f" {self.names[0]!r}" if self.names else ""
        done = "done" if self.error is None else type(self.error).__name__
        return f"{self.kind}{name}: {done if self.settled else 'running'}"

    def _move(self, state: OpState, *allowed: OpState) -> None:
        if self.state not in allowed:
            raise InternalError(f"an op that is {self.state.value} cannot become {state.value}")
        self.state = state
