"""What a stream's executor knows: the state of its queue, to read and to wait for. `executor` is
what changes it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from asgl.completion import Completion, Signal
from asgl.errors import VariableError
from asgl.language.backend import Engine
from asgl.language.context import SessionContext, StreamContext, StreamOptions
from asgl.language.failures import Failure, telling
from asgl.language.handle import Handle, SelectHandle
from asgl.language.internal_ops import FIRST_OPS, SetVariable
from asgl.language.op_info import OpInfo
from asgl.language.op_queue import ForkBlock
from asgl.language.operation import OpenMessage, Operation
from asgl.language.ops import Computed
from asgl.language.transcript import Savepoint, Transcript
from asgl.language.waiting import Steps
from asgl.types import Message


class ExecutorState:
    """The state of an `Executor`."""

    def __init__(
        self,
        session: SessionContext,
        options: StreamOptions,
        *,
        path: tuple[int, ...] = (),
        ops: int = 0,
        parent: ExecutorState | None = None,
    ) -> None:
        """`ops`: how many numbered ops the stream has had before, if it was loaded."""
        root = parent.context.root if parent is not None else None
        self.context = StreamContext(session, options, path, root)
        session.open.add(self)
        self.parent: Any = parent
        self.message: OpenMessage | None = parent.message if parent is not None else None
        self.transcript = Transcript(session.engine.tokenizer)
        self.queue: deque[Operation] = deque()
        self.failure: Failure | None = None
        """The last failure of an op of this stream."""
        self.closed: str | None = None
        """Why the stream is closed."""
        self.open_forks = 0
        """How many fork blocks of this stream are open."""
        self.changed = Signal()
        """Notified when there is new text, and when an op ends."""
        self.stream: Any = None
        self.group: ForkBlock | None = None
        self.on_failure: Callable[[Any, Failure], object] | None = None
        self.base: Operation | None = None
        self.owners: list[asyncio.Task[Any] | None] = []
        """The tasks of the programs that run on the stream, and may still submit to it."""
        self.error: BaseException | None = None
        self._submitted: dict[str, Operation] = {}
        """For each variable that is not finished, the op that was submitted last for it."""
        self._ops = ops
        self._steps: Steps[Any] | None = None
        """What the running op still has to do."""
        self._savepoint: Savepoint | None = None
        """Where the running op began."""
        self._waiting_for: Completion[Any] | None = None
        self._resume_callback: Callable[[], object] | None = None
        self._advancing = False
        self._stepping = False
        """Whether code of the running op is on the stack: a validator's, say."""

    @property
    def engine(self) -> Engine:
        return self.context.engine

    def check_loop(self) -> None:
        self.context.session.check_loop()

    # --- reading: what the running op has appended is not certain, and is left out

    @property
    def text(self) -> str:
        text = self.transcript.text
        return text if self._savepoint is None else text[: self._savepoint.text]

    @property
    def origins(self) -> list[tuple[str, str]]:
        text, start, parts = self.text, 0, list[tuple[str, str]]()
        for end, how in (*self.transcript.origins, (len(text), "given")):
            if start < min(end, len(text)):
                parts.append((text[start:end], how))
                start = end
        return parts

    @property
    def token_ids(self) -> list[int]:
        return self.transcript.token_ids(self._savepoint)

    @property
    def messages(self) -> Sequence[Message]:
        messages = self.transcript.messages
        return messages if self._savepoint is None else messages[: self._savepoint.messages]

    @property
    def variables(self) -> Mapping[str, Any]:
        return self.transcript.variables

    def text_of(self, op: Operation) -> str:
        """What the op appended, or has so far."""
        if op.settled or not self.queue or self.queue[0] is not op:
            return op.text
        return self.transcript.text[op.start_of_text :] + self.live_text

    @property
    def live_text(self) -> str:
        """What the running op has generated so far."""
        live = self.queue[0].live if self.queue else None
        return live.text if live is not None else ""

    def variable(self, name: str) -> Any:
        op, variables = self._submitted.get(name), self.transcript.variables
        if op is None and name in variables:
            return variables[name]
        if op is not None and _is_set(op):
            return op.spec.value
        begins = bool(self.queue) and self.queue[0].kind in FIRST_OPS
        what = (
            f"the variable {name!r} is not finished: await s.get({name!r})"
            if op is not None or begins
            else f"there is no variable {name!r}"
        )
        known = ", ".join(map(repr, sorted(variables))) or "none"
        raise VariableError(f"{what} (finished variables: {known})", stream=self.stream, name=name)

    @property
    def ops(self) -> int:
        """How many numbered ops were submitted: seeds derive from it."""
        return self._ops

    def __str__(self) -> str:
        tail = self.text[-41:]
        shown = tail if len(tail) <= 40 else "..." + tail[1:]
        return f"{self.context.describe()}, {len(self.queue)} submitted, {shown!r}"

    def handle(self, op: Operation) -> Handle[Any]:
        return SelectHandle(op) if op.kind == "select" else Handle(op)

    def info(self, name: str) -> OpInfo:
        self.variable(name)
        if name not in self.transcript.infos:
            raise VariableError(
                f"the variable {name!r} was set, not generated: there is nothing to tell of it",
                stream=self.stream,
                name=name,
            )
        return self.transcript.infos[name]

    def submitted(self, name: str) -> Operation | None:
        """The op that was submitted last for a variable that is not finished."""
        return self._submitted.get(name)

    # --- who writes to it

    @contextmanager
    def owned(self) -> Generator[None]:
        """While a program runs on the stream, in the task that calls this."""
        owner = asyncio.current_task()
        self.owners.append(owner)
        try:
            yield
        finally:
            self.owners.remove(owner)
            self.changed.notify()

    @property
    def goes_on(self) -> bool:
        """Whether more may come that the task which asks need not submit itself."""
        if self.queue:
            return True
        if not self.owners:
            return False
        task = asyncio.current_task()
        return any(owner is not task for owner in self.owners)

    # --- waiting

    async def ended(self, op: Operation) -> Operation:
        """Waits for the end of an op, however it ends. To stop waiting changes nothing."""
        self.check_loop()
        if op.settled:
            await asyncio.sleep(0)
        await op.wait()
        return op

    async def idle(self) -> None:
        """Waits until nothing is submitted any more, however it ended."""
        self.check_loop()
        while self.queue:
            await self.changed.wait()

    async def get(self, name: str) -> Any:
        if name not in self._submitted and self.queue and self.queue[0].kind in FIRST_OPS:
            (await self.ended(self.queue[0])).result()
        op = self._submitted.get(name)
        if op is None or _is_set(op):
            value = self.variable(name)  # as it is now: others may submit for it meanwhile
            await asyncio.sleep(0)
            return value
        (await self.ended(op)).result()
        return op.values[name]

    async def sync(self) -> None:
        if self.failure is not None and not self.failure.seen:
            await telling(self.failure)
            raise self.failure.error
        if not self.queue:
            return await asyncio.sleep(0)
        last = await self.ended(self.queue[-1])
        last.see()
        if last.error is not None:
            raise last.failure.error if last.failure is not None else last.error
        return None


def _is_set(op: Operation) -> bool:
    """Whether the op sets its variable to a value that is known before its turn comes."""
    return isinstance(op.spec, SetVariable) and not isinstance(op.spec.value, Computed)
