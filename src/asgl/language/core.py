"""The queue of a stream: ops are carried out one after the other, driven by what they wait for,
without a task of its own.

    submit(work) -> item        appends to the queue, and starts it if nothing runs
    resume()                    what the running op waited for is there: goes on, and with the op after it
    cancel(item)                the item and those behind it end with OpCancelledError

The head of the queue is the op that runs. It ends wholly (`_finish`) or not at all (`_fail`,
`cancel`: the state is rolled back to where it began).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol
from weakref import ref

from asgl.errors import (
    BudgetError,
    ConfigError,
    EngineError,
    StreamClosedError,
    StreamError,
    VariableError,
)
from asgl.language import seeds
from asgl.language.budgets import Allowance, Budget, allowance
from asgl.language.handle import Handle
from asgl.language.item import (
    Begin,
    Block,
    CloseTurn,
    Item,
    Place,
    Point,
    Restore,
    SetVariable,
    Work,
)
from asgl.language.ops import Computed, FromHandle, Gen, Op, Role, Text, handles_of, map_gens
from asgl.language.outcome import Failure, Signal, cancelled
from asgl.language.state import Savepoint, Snapshot, State
from asgl.language.steps import Steps, carry_out, close_turn
from asgl.language.waits import Wait, Wake
from asgl.sampling import SamplingParams
from asgl.trace import OpEvent, StreamEvent

if TYPE_CHECKING:
    from asgl.language.session import Session
    from asgl.language.stream import PromptStream


class Group(Protocol):
    """A fork block, to its branches."""

    def notice(self, core: Core, failure: Failure) -> None:
        """An op of a branch failed; called once those who await it had their turn."""
        ...


class Core:
    """What a PromptStream and its handles share. Nothing that it refers to refers back, so it goes
    with the last of them."""

    def __init__(
        self,
        session: Session,
        *,
        name: str | None,
        origin: tuple[str | None, str],
        path: tuple[int, ...],
        sampling: SamplingParams,
        namespace: str | None,
        priority: int,
        block: Block | None = None,
        budgets: tuple[Budget, ...] = (),
        deadline: float | None = None,
    ) -> None:
        self.session = session
        self.id = self.root = session.next_id()
        """`root` is the id of the prompt that the stream comes from, by whatever forks."""
        self.name = name
        self.origin = origin
        self.path = path
        self.sampling = sampling
        self.budgets = budgets
        """Bound all ops of the stream and its forks, besides the budgets that are open where they
        are submitted."""
        self.block = block
        """The role block that is open where ops are submitted now."""
        self.place = Place(session.engine, namespace, priority, deadline)
        self.state = State(session.engine.tokenizer)
        self.queue: deque[Item] = deque()
        self.submitted: dict[str, Item] = {}
        """For each variable that is not finished, the op that was submitted last for it."""
        self.failure: Failure | None = None
        """The last failure of an op of this stream."""
        self.closed: str | None = None
        """Why the stream is closed."""
        self.forks = 0
        """How many fork blocks of this stream are open."""
        self.group: Group | None = None
        """The fork block that this stream is a branch of, while it is open."""
        self.changed = Signal()
        self.facade: ref[PromptStream] | None = None
        self.parent: ref[Core] | None = None
        self.base: Item | None = None
        """The point of `parent` that the stream begins from."""
        self.error: BaseException | None = None
        """Of a branch whose fork keeps failures: what nobody awaited."""
        self.wait: Wait | None = None
        """What the running op waits for."""
        self._wake = Wake(ref(self))
        self._holds = 0
        self._ops = 0
        self._steps: Steps | None = None
        self._begun: Savepoint | None = None
        """Where the running op began."""
        self._advancing = False
        self._stepping = False
        """Whether code of the running op is on the stack: a validator's, say."""
        self._stopped: str | None = None
        """Why the op that steps now is to be cancelled, once it has stepped."""
        session.streams.add(self)

    # --- submitting

    def submit(self, work: Work, *, grows: bool = True, numbered: bool = False) -> Item:
        """Queues the work. ConfigError and StreamClosedError are raised here; all other errors
        settle the item."""
        self.session.check_loop()
        if isinstance(work, Role) and self.block is not None:
            raise ConfigError(
                f"a message of the role {work.role!r} was submitted inside a {self.block.role!r} "
                "message: leave "
                "that block first (a branch that was forked inside it stays inside: fork before it)"
            )
        for handle in handles_of(work):
            if handle.core is self:
                raise ConfigError(
                    "a handle was appended to its own stream, which has its text already; append "
                    "it to another"
                )
            handle.core.session.check_loop()
        self.check_accepts(grows)
        if isinstance(work, Op) and not isinstance(work, Text | FromHandle | Computed):
            work, numbered = self._resolve(work), True
        bound = (
            allowance(self.budgets)
            if isinstance(work, Op) and not isinstance(work, Text | Computed)
            else None
        )
        return self.enqueue(work, numbered=numbered, bound=bound)

    def enqueue(
        self, work: Work, *, numbered: bool = False, bound: Allowance | None = None
    ) -> Item:
        """Queues the work, whatever state the stream is in."""
        block = (
            None
            if isinstance(work, Begin | Restore | SetVariable | CloseTurn | Role)
            else self.block
        )
        item = Item(work, number=self._ops if numbered else None, block=block, allowance=bound)
        self._ops += numbered
        self.queue.append(item)
        for name in item.names:
            self.submitted[name] = item
        self._emit("submitted", item)
        self._advance()
        return item

    def children(self, n: int) -> list[Core]:
        """Streams that begin with what this one says once all that was submitted is done."""
        number = self._ops
        point = self.submit(Point(), grows=False, numbered=True)
        return [self._child(point, (*self.path, number, index)) for index in range(n)]

    def _child(self, point: Item, path: tuple[int, ...]) -> Core:
        child = Core(
            self.session,
            name=self.name,
            origin=self.origin,
            path=path,
            sampling=self.sampling,
            namespace=self.place.namespace,
            priority=self.place.priority,
            block=self.block,
            budgets=self.budgets,
            deadline=self.place.deadline,
        )
        parent: ref[Core] = ref(self)
        child.root, child.parent, child.base = self.root, parent, point
        child.emit_stream("forked", self)
        child.enqueue(Begin(Handle(self, point)))
        return child

    def check_accepts(self, grows: bool) -> None:
        if self.failure is not None and not self.failure.seen:
            self.failure.see()
            raise StreamClosedError(
                f"{self.describe()} refuses new ops: an earlier one failed and nobody had seen it, "
                "until "
                "now; catch this error to go on from the unchanged text",
                stream=self.stream,
            ) from self.failure.error
        if self.closed is not None:
            error = StreamClosedError(
                f"{self.describe()} is closed: {self.closed}", stream=self.stream
            )
            raise error from (self.failure.error if self.failure is not None else None)
        if grows and self.forks:
            raise StreamClosedError(
                f"{self.describe()} is forked: submit to its branches, or leave the fork block "
                "first",
                stream=self.stream,
            )

    def _resolve(self, op: Op) -> Op:
        """The op with its sampling parameters complete, seed included."""
        order = count()

        def complete(gen: Gen) -> Gen:
            params = gen.params.over(self.sampling).over(self.place.engine.defaults)
            self.place.engine.check_sampling(params)
            if gen.params.seed is not None:
                seed = gen.params.seed
            elif params.seed is not None:
                seed = seeds.derive(params.seed, self.origin, self.path, self._ops, next(order))
            else:
                seed = seeds.random()
            return replace(gen, params=replace(params, seed=seed))

        return map_gens(op, complete)

    @property
    def ops(self) -> int:
        """How many numbered ops were submitted: seeds derive from it."""
        return self._ops

    @classmethod
    def resumed(
        cls, session: Session, ops: int, snapshot: Snapshot, file: Path | None, **options: Any
    ) -> Core:
        """A stream that goes on from a saved state. `file`: of keys and values to be cached
        first."""
        core = cls(session, **options)
        core._ops = ops
        core.emit_stream("opened")
        core.enqueue(Restore(snapshot, file))
        return core

    # --- carrying out

    def _advance(self) -> None:
        if self._advancing:
            return
        self._advancing = True
        try:
            while self.queue and self.wait is None:
                item = self.queue[0]
                self._begun = self.state.savepoint()
                self._steps = carry_out(item, self.state, self.place)
                self._emit("started", item)
                self._step(None, self._admit(item))
        finally:
            self._advancing = False

    def _admit(self, item: Item) -> BudgetError | None:
        """The error with which an op ends that no budget has time for."""
        if item.allowance is not None:
            try:
                item.allowance.begin(self._wake.interrupt)
            except BudgetError as error:
                return error
        return None

    def interrupt(self, error: Exception) -> None:
        """Ends the running op with an error; what it waits for is cancelled, in the engine too."""
        if self.wait is not None:
            self.wait.cancel()
            self._step(None, error)
            self._advance()

    def resume(self) -> None:
        """What the running op waited for is there."""
        assert self.wait is not None
        self._step(*_outcome(self.wait))
        self._advance()

    def _step(self, value: Any, error: BaseException | None) -> None:
        """Goes on with the running op until it has to wait, or ends."""
        steps = self._steps
        assert steps is not None
        while True:
            end: Callable[[], None] | None = None
            self._stepping = True
            try:
                wait = steps.throw(error) if error is not None else steps.send(value)
                if self._stopped is None:
                    self.wait = wait
                    wait.start(self._wake)
            except StopIteration as stop:
                end = partial(self._finish, stop.value)
            except Exception as failed:
                end = partial(self._fail, failed)
            finally:
                self._stepping = False
            if self._stopped is not None:
                why, self._stopped = self._stopped, None
                self.cancel(self.queue[0], why)
                return None
            if end is not None:
                return end()
            assert self.wait is not None
            if not self.wait.done:
                return None
            value, error = _outcome(self.wait)

    def progressed(self) -> None:
        """The running op has new text."""
        item = self.queue[0]
        item.changed.notify()
        self.changed.notify()
        if item.allowance is not None and item.ticket is not None:
            item.allowance.count(len(item.ticket.tokens))

    def _finish(self, value: Any) -> None:
        item = self.queue.popleft()
        self._rest(item)
        self.state.variables.update(item.values)
        self._forget_names(item)
        self._emit("finished", item)
        item.settle(value)
        self.changed.notify()

    def _fail(self, error: Exception) -> None:
        item, *behind = self.queue
        root = self.wait.failure if self.wait is not None else None
        assert self._begun is not None
        self.state.roll_back(self._begun)
        self.queue.clear()
        self._rest(item)
        if isinstance(error, StreamError) and error.stream is None:
            error.stream = self.stream
        self.failure = failure = Failure(error, where=self.describe(), root=root)
        self.session.record(failure)
        if isinstance(error, EngineError):
            self.closed = "the engine failed or was closed"
        elif isinstance(item.work, Begin):
            self.closed = "the stream that it begins from failed"
        elif isinstance(item.work, Restore):
            self.closed = "what it was to be loaded from could not be read"
        self._forget_names(item)
        self._emit("failed", item, repr(error))
        item.settle(error=error, failure=failure)
        self._drop(
            behind,
            f"queued behind a {item.kind} of {self.describe()} that failed: {error}",
            failure,
        )
        self.changed.notify()
        if self.group is not None:
            self.session.loop.call_soon(self.group.notice, self, failure)

    def cancel(self, item: Item, why: str = "") -> bool:
        """Cancels the item if it is not settled, in the engine too, and with it what is queued
        behind it."""
        if item.settled:
            return False
        index = self.queue.index(item)
        if index == 0 and self._stepping:  # by its own validator: when that has returned
            self._stopped = why
            return True
        behind = [self.queue.pop() for _ in range(len(self.queue) - index)][::-1]
        if index == 0 and self._steps is not None:
            if self.wait is not None:
                self.wait.cancel()
            self._steps.close()
            assert self._begun is not None
            self.state.roll_back(self._begun)
            self._rest(item)
        self._drop(behind[:1], why or f"a {item.kind} of {self.describe()} was cancelled")
        self._drop(
            behind[1:],
            why or f"queued behind a {item.kind} of {self.describe()} that was cancelled",
        )
        self.changed.notify()
        return True

    def cancel_all(self, why: str) -> None:
        if self.queue:
            self.cancel(self.queue[0], why)

    def close(self, why: str) -> None:
        """Cancels what is submitted; nothing more is accepted."""
        if self.closed is None:
            self.cancel_all(f"{self.describe()} was closed: {why}")
            self.closed = why
            self.emit_stream("closed")

    def _drop(self, items: list[Item], why: str, failure: Failure | None = None) -> None:
        for item in items:
            if isinstance(item.work, CloseTurn):  # its block was left all the same
                close_turn(replace(item.work, by_exception=True), self.state, self.place)
            elif isinstance(item.work, Begin | Restore):
                self.closed = "it was cancelled before it began"
            self._forget_names(item)
            self._emit("cancelled", item, why)
            item.settle(error=cancelled(why, self.stream, failure), failure=failure)

    def _rest(self, item: Item) -> None:
        self.wait = self._steps = self._begun = None
        if item.allowance is not None:
            item.allowance.end()

    def _forget_names(self, item: Item) -> None:
        for name in item.names:
            if self.submitted.get(name) is item:
                del self.submitted[name]

    # --- reading

    @property
    def finished(self) -> Savepoint | None:
        """Where the running op began: what lies behind it is not certain. None if no op runs."""
        return self._begun

    @property
    def text(self) -> str:
        return self.state.text if self._begun is None else self.state.text[: self._begun.text]

    def text_of(self, item: Item) -> str:
        """What the item appended, or has so far."""
        if item.settled or not self.queue or self.queue[0] is not item:
            return item.text
        return self.state.text[item.start :] + (item.live.text if item.live is not None else "")

    def variable(self, name: str) -> Any:
        item = self.submitted.get(name)
        if (
            item is not None
            and isinstance(item.work, SetVariable)
            and not isinstance(item.work.value, Computed)
        ):
            return item.work.value
        if item is None and name in self.state.variables:
            return self.state.variables[name]
        known = ", ".join(map(repr, sorted(self.state.variables))) or "none"
        pending = item is not None or bool(
            self.queue and isinstance(self.queue[0].work, Begin | Restore)
        )
        what = (
            f"the variable {name!r} is not finished: await s.get({name!r})"
            if pending
            else f"there is no variable {name!r}"
        )
        raise VariableError(f"{what} (finished variables: {known})", stream=self.stream, name=name)

    @property
    def stream(self) -> PromptStream:
        from asgl.language.stream import PromptStream  # the public face, which stands above

        facade = self.facade() if self.facade is not None else None
        return facade if facade is not None else PromptStream(self)

    def describe(self) -> str:
        """How error messages call the stream."""
        name = f"the stream {self.name!r}" if self.name else f"stream {self.root}"
        return name if not self.path else f"branch {'.'.join(map(str, self.path[1::2]))} of {name}"

    # --- waiting

    def hold(self) -> None:
        """Somebody waits: the engine must not let go of the stream."""
        self._holds += 1
        self._wake.hold = self

    def release(self) -> None:
        self._holds -= 1
        if not self._holds:
            self._wake.hold = None

    @contextmanager
    def held(self) -> Generator[None]:
        self.session.check_loop()
        self.hold()
        try:
            yield
        finally:
            self.release()

    async def settled(self, item: Item) -> None:
        """Waits for the end of an item. To stop waiting changes nothing."""
        if item.settled:
            return await asyncio.sleep(0)
        with self.held():
            while not item.settled:
                await item.ended.wait()
        return None

    async def idle(self) -> None:
        """Waits until nothing is submitted any more, however it ended."""
        with self.held():
            while self.queue:
                await self.changed.wait()

    # --- telling

    def emit_stream(
        self, kind: Literal["opened", "forked", "joined", "closed"], parent: Core | None = None
    ) -> None:
        if tracers := self.place.engine.tracers:
            tracers.emit(
                StreamEvent(kind, self.id, parent.id if parent is not None else None, self.name)
            )

    def _emit(
        self,
        kind: Literal["submitted", "started", "finished", "failed", "cancelled"],
        item: Item,
        reason: str = "",
    ) -> None:
        if item.number is None or not (tracers := self.place.engine.tracers):
            return
        tracers.emit(
            OpEvent(
                kind,
                self.id,
                item.number,
                item.kind,
                item.names[0] if item.names else None,
                item.ticket.request_id if item.ticket is not None else None,
                item.text if kind == "finished" else "",
                reason,
            )
        )

    def __del__(self) -> None:
        """Cancels what runs when nobody refers to the stream or its handles any more; maybe on
        another thread (gc)."""
        wait: Wait | None = getattr(self, "wait", None)
        if wait is not None and not wait.done:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self.session.loop.call_soon_threadsafe(wait.cancel)


def _outcome(wait: Wait) -> tuple[Any, BaseException | None]:
    try:
        return wait.result(), None
    except (
        asyncio.CancelledError
    ):  # of the worker's task, not of ours: it must not look like a cancel of whoever awaits
        return None, cancelled("the work was cancelled by the event loop", None)
    except Exception as error:
        return None, error
