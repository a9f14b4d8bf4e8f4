"""What a `PromptStream` writes to.

An `Executor` carries out what is submitted; a trace of the compiler writes it down. Streams,
handles and fork blocks know no more of either than this.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol, TypeAlias

from asgl.errors import ConfigError, StreamClosedError
from asgl.language.context import StreamContext
from asgl.language.failures import Failure
from asgl.language.handle import Handle
from asgl.language.op_info import OpInfo
from asgl.language.operation import OpenMessage, Operation, Spec
from asgl.language.ops import Calls, Extend, Role, TextOf
from asgl.types import Message

OnError: TypeAlias = Literal["cancel", "keep"]


def check_op(queue: OpQueue, spec: Spec) -> None:
    """ConfigError for an op that no stream takes in this place."""
    if isinstance(spec, Role | Calls) and queue.message is not None:
        role = spec.role if isinstance(spec, Role) else "assistant"
        raise ConfigError(
            f"a message of the role {role!r} was submitted inside a {queue.message.role!r} "
            "message: leave that block first (a branch that was forked inside it stays inside: "
            "fork before it)"
        )
    for source in spec.sources if isinstance(spec, TextOf | Extend | Role) else ():
        if source.owner is queue:
            raise ConfigError(
                "a handle was appended to its own stream, which has its text already; append it to "
                "another"
            )
        source.owner.check_loop()


def check_not_forked(queue: OpQueue) -> None:
    """StreamClosedError while a fork block of the stream is open."""
    if queue.open_forks:
        raise StreamClosedError(
            f"{queue.context.describe()} is forked: submit to its branches, or leave the fork "
            "block first",
            stream=queue.stream,
        )


class ForkBlock(Protocol):
    """The inside of `async with s.fork(n)`, to the stream and its branches."""

    async def open(self) -> Sequence[OpQueue]:
        """Opens the task group; the queues of the branches."""
        ...

    async def close(self, error: BaseException | None) -> None:
        """Waits for the branches, or stops them if `error` left the block. Raises failures; if it
        returns, `error` goes on."""
        ...

    def start(self, queue: Any, call: Callable[[], Awaitable[Any]]) -> Any:
        """Runs `call` as a task of a branch; its TaskHandle."""
        ...


class OpQueue(Protocol):
    """Takes the ops of one stream, in order."""

    stream: Any
    """The PromptStream that writes to it."""
    message: OpenMessage | None
    """The role block that is open where ops are submitted now."""
    open_forks: int
    """How many fork blocks of the stream are open."""
    group: ForkBlock | None
    """The fork block that the stream is a branch of, while that is open."""
    parent: OpQueue | None
    """The queue that it was forked from."""
    base: Operation | None
    """The snapshot of `parent` that the stream starts from."""
    error: BaseException | None
    """Of a branch whose fork keeps failures: what nobody awaited."""

    @property
    def context(self) -> StreamContext: ...

    # --- submitting

    @property
    def broken(self) -> bool:
        """Whether nothing can be submitted because an op failed, or the stream was closed."""
        ...

    def check_accepts(self, *, grows: bool) -> None:
        """StreamClosedError if nothing can be submitted; `grows`: nothing that appends."""

    def enqueue(self, spec: Spec) -> Operation:
        """Queues an op of the stream's own, whatever state it is in."""
        ...

    def submit(self, spec: Spec, *, grows: bool = True) -> Operation:
        """Queues an op. ConfigError and StreamClosedError are raised here; all other errors settle
        the op."""
        ...

    def make(
        self, make: Callable[..., Spec], name: str | None, options: Mapping[str, Any]
    ) -> Operation:
        """Queues the op `make(name, **options)`."""
        ...

    def children(self, n: int, seed: int | None = None) -> Sequence[OpQueue]:
        """Queues of streams that start with what this one says once all before is done. They have
        its options, but for a `seed` that is given here."""
        ...

    def fork(self, n: int, on_error: OnError) -> ForkBlock: ...

    def join(self, branches: Sequence[OpQueue]) -> None:
        """Appends what children of this queue said since they were forked."""

    # --- reading

    @property
    def text(self) -> str: ...

    @property
    def origins(self) -> Sequence[tuple[str, str]]:
        """The text in parts, each with where it comes from: see `transcript.Origin`."""
        ...

    @property
    def token_ids(self) -> list[int]: ...

    @property
    def messages(self) -> Sequence[Message]: ...

    @property
    def variables(self) -> Mapping[str, Any]: ...

    def variable(self, name: str) -> Any:
        """VariableError if it is not there."""

    def info(self, name: str) -> OpInfo:
        """How the variable came about. VariableError if it is not there, or was not generated."""
        ...

    def owned(self) -> AbstractContextManager[None]:
        """While a program runs on the stream: what is read as it comes does not end before."""
        ...

    def handle(self, op: Operation) -> Handle[Any]: ...

    # --- waiting

    async def get(self, name: str) -> Any:
        """The variable, once the op that sets it is finished."""

    async def sync(self) -> None:
        """Waits for all that was submitted. Raises the failure that nobody has seen."""

    async def sample(self, name: str | None, n: int, options: Mapping[str, Any]) -> list[Any]: ...

    def executor(self, what: str) -> Any:
        """The `Executor`, for the method `what` of a stream, which needs one. A trace has none, and
        says that `what` cannot be a part of a graph."""
        ...

    # --- ending

    def cancel_all(self, why: str) -> None: ...

    def close(self, why: str) -> None: ...


class ForkableQueue(OpQueue, Protocol):
    """An `OpQueue` that carries its ops out, as far as fork blocks know it."""

    failure: Failure | None
    """The last failure of an op."""
    on_failure: Callable[[Any, Failure], object] | None
    """Called with the queue when an op has failed, after those who await it had their turn."""

    @property
    def queue(self) -> Sequence[Operation]: ...

    def children(self, n: int, seed: int | None = None) -> Sequence[ForkableQueue]: ...

    def cancel(self, op: Operation, why: str = "") -> bool: ...

    async def idle(self) -> None:
        """Waits until nothing is submitted any more, however it ended."""
