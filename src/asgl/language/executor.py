"""The executor of a stream: its ops are carried out one after the other, in the order in which they
were submitted. There is no task per stream: what an op waits for calls `_resume` when it settles.

The head of the queue is the op that runs. It ends wholly (`_finish`) or not at all: when it fails
or is cancelled the transcript is rolled back to where it began, and those queued behind it are
cancelled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

from asgl.completion import Completion
from asgl.errors import (
    BudgetError,
    EngineError,
    StreamClosedError,
    StreamError,
)
from asgl.language import seeds
from asgl.language.budget import Allowance, allowance
from asgl.language.executor_state import ExecutorState
from asgl.language.failures import Failure, cancelled
from asgl.language.fork import TaskGroupFork, sample
from asgl.language.handle import Handle
from asgl.language.internal_ops import (
    FIRST_OPS,
    CloseMessage,
    Join,
    StartFrom,
    TakeSnapshot,
)
from asgl.language.interpreter import close_message, interpret
from asgl.language.op_queue import ForkBlock, OnError, OpQueue, check_not_forked, check_op
from asgl.language.operation import Operation, Spec
from asgl.language.ops import Extend, Gen, Op, Role, Select, TextOf, map_gens
from asgl.language.transcript import Snapshot

_NUMBERED = ("extend", "gen", "select", "role")
"""The kinds of op that may ask the engine for something: they are numbered, for seeds and tracers,
and bound by budgets."""


class Executor(ExecutorState):
    """The `OpQueue` that carries out what is submitted."""

    failure: Failure | None

    # --- submitting

    def submit(self, spec: Spec, *, grows: bool = True) -> Operation:
        self.check_loop()
        check_op(self, spec)
        self.check_accepts(grows=grows)
        if spec.kind not in _NUMBERED:
            bounded = isinstance(spec, TextOf)
            return self.enqueue(spec, bound=self._allowance() if bounded else None)
        assert isinstance(spec, Extend | Gen | Select | Role)
        spec = self._with_sampling(spec)
        return self.enqueue(spec, numbered=True, bound=self._allowance())

    def make(
        self, make: Callable[..., Spec], name: str | None, options: Mapping[str, Any]
    ) -> Operation:
        return self.submit(make(name, **options))

    def enqueue(
        self, spec: Spec, *, numbered: bool = False, bound: Allowance | None = None
    ) -> Operation:
        """Queues an op, whatever state the stream is in."""
        op = Operation(
            spec,
            self,
            number=self._ops if numbered else None,
            message=self.message,
            allowance=bound,
        )
        self._ops += numbered
        self.queue.append(op)
        self.context.session.busy.add(self)
        for name in op.names:
            self._submitted[name] = op
        self.context.emit_op("submitted", op)
        self.changed.notify()
        self._advance()
        return op

    def children(self, n: int, seed: int | None = None) -> Sequence[Executor]:
        options = self.context.options
        if seed is not None:
            options = replace(options, sampling=replace(options.sampling, seed=seed))
        self.check_loop()
        self.check_accepts(grows=False)
        number = self._ops
        base = self.enqueue(TakeSnapshot(), numbered=True)
        children: list[Executor] = []
        for index in range(n):
            path = (*self.context.path, number, index)
            child = Executor(self.context.session, options, path=path, parent=self)
            child.base = base
            child.context.emit_stream("forked", self.context.id)
            child.enqueue(StartFrom(base))
            children.append(child)
        return children

    def fork(self, n: int, on_error: OnError) -> ForkBlock:
        return TaskGroupFork(self, n, on_error == "keep")

    def join(self, branches: Sequence[OpQueue]) -> None:
        self.check_accepts(grows=True)
        ends: list[tuple[Operation, Operation]] = []
        for branch in branches:
            assert isinstance(branch, Executor)
            assert branch.base is not None
            ends.append((branch.base, branch.enqueue(TakeSnapshot())))
            branch.context.emit_stream("joined", self.context.id)
        self.submit(Join(tuple(ends)))

    @property
    def broken(self) -> bool:
        return self.closed is not None or (self.failure is not None and not self.failure.seen)

    def check_accepts(self, *, grows: bool) -> None:
        if self.failure is not None and not self.failure.seen:
            self.failure.see()
            raise StreamClosedError(
                f"{self.context.describe()} refuses new ops: an earlier one failed and nobody had "
                "seen it, until now; catch this error to go on from the unchanged text",
                stream=self.stream,
            ) from self.failure.error
        closed = self.closed or self.context.session.closed
        if closed is not None:
            raise StreamClosedError(
                f"{self.context.describe()} is closed: {closed}", stream=self.stream
            ) from (self.failure.error if self.failure is not None else None)
        if grows:
            check_not_forked(self)

    def _allowance(self) -> Allowance | None:
        return allowance(self.context.options.budgets)

    def _with_sampling(self, op: Op) -> Op:
        """The op with its sampling parameters complete, seed included."""
        order = count()
        engine, options = self.engine, self.context.options

        def complete(gen: Gen) -> Gen:
            params = gen.params.over(options.sampling).over(engine.defaults)
            engine.check_sampling(params)
            if (seed := gen.params.seed) is None:
                seed = (
                    seeds.random()
                    if params.seed is None
                    else seeds.derive(
                        params.seed, options.origin, self.context.path, self._ops, next(order)
                    )
                )
            return replace(gen, params=params.seeded(seed))

        return map_gens(op, complete)

    # --- carrying out

    def _advance(self) -> None:
        """Starts ops until one has to wait. The loop is the outermost one, so that a thousand ops
        that need not wait are no deep recursion."""
        if self._advancing:
            return
        self._advancing = True
        try:
            while self.queue and self._steps is None:
                op = self.queue[0]
                op.start()
                self._savepoint = self.transcript.savepoint()
                self._steps = interpret(op, self.transcript, self.context)
                self.context.emit_op("started", op)
                self._step(self._begin_allowance(op))
        finally:
            self._advancing = False

    def _begin_allowance(self, op: Operation) -> BudgetError | None:
        """The error with which an op ends that no budget has time for."""
        if op.allowance is not None:
            try:
                op.allowance.begin(self.interrupt)
            except BudgetError as error:
                return error
        return None

    def _step(self, error: BaseException | None = None) -> None:
        """Goes on with the running op, by throwing `error` into it if there is one, until it waits
        or ends.

        What the op's code does meanwhile may call back into this executor: a validator may cancel
        the op, which a generator that is running cannot take. `cancel` then leaves the reason with
        the op, and it is done here, once the generator has returned.
        """
        op, steps = self.queue[0], self._steps
        assert steps is not None
        end: Callable[[], None]
        self._stepping = True
        try:
            waiting_for = steps.throw(error) if error is not None else next(steps)
        except StopIteration as stop:
            end = partial(self._finish, stop.value)
        except Exception as failed:
            end = partial(self._fail, failed)
        else:
            end = partial(self._wait, waiting_for)
        finally:
            self._stepping = False
        if op.cancel_reason is not None:
            self.cancel(op, op.cancel_reason)
        else:
            end()

    def _wait(self, completion: Completion[Any]) -> None:
        callback: Any = self._resume
        if isinstance(completion, Operation):
            # from the loop, so that a long chain of streams that wait for each other is no deep
            # recursion, and those who await the op have their turn first
            callback = partial(self.context.session.loop.call_soon, self._resume_after, completion)
        self._waiting_for, self._resume_callback = completion, callback
        completion.add_callback(callback)

    def _resume_after(self, completion: Completion[Any]) -> None:
        """Goes on if the running op still waits for it: it may have been cancelled meanwhile."""
        if self._waiting_for is completion:
            self._resume()

    def _resume(self) -> None:
        self._stop_waiting()
        self._step()
        self._advance()

    def _stop_waiting(self) -> None:
        if self._waiting_for is not None and self._resume_callback is not None:
            self._waiting_for.remove_callback(self._resume_callback)
        self._waiting_for = self._resume_callback = None

    def interrupt(self, error: Exception) -> None:
        """Ends the running op with an error; what it waits for is cancelled, in the engine too."""
        if self._waiting_for is not None:
            self._stop_waiting()
            self._step(error)
            self._advance()

    def progressed(self) -> None:
        """Tells those who watch that the running op has new text."""
        op = self.queue[0]
        op.changed.notify()
        self.changed.notify()
        if op.allowance is not None and op.ticket is not None:
            op.allowance.count(len(op.ticket.tokens))

    # --- how ops end

    def _finish(self, value: Any) -> None:
        op = self.queue.popleft()
        self.transcript.set_variables(op.values, op.infos)
        self._release(op)
        self.context.emit_op("finished", op)
        op.finish(value)
        self._ended()

    def _fail(self, error: Exception) -> None:
        op, *behind = self.queue
        self.queue.clear()
        self._roll_back()
        self._release(op)
        if isinstance(error, StreamError) and error.stream is None:
            error.stream = self.stream
        self.failure = failure = Failure(error, op.root)
        self.context.session.record(failure)
        if isinstance(error, EngineError):
            self.closed = "the engine failed or was closed"
        elif op.kind == "start":
            self.closed = "the stream that it begins from failed"
        elif op.kind == "load":
            self.closed = "what it was to be loaded from could not be read"
        self.context.emit_op("failed", op, repr(error))
        op.fail(failure)
        name = self.context.describe()
        self._drop(behind, f"queued behind a {op.kind} of {name} that failed: {error}", failure)
        self._ended()
        if self.on_failure is not None:
            self.context.session.loop.call_soon(self.on_failure, self, failure)

    def cancel(self, op: Operation, why: str = "") -> bool:
        """Cancels the op if it has not ended, in the engine too, and with it what is queued behind
        it: later ops were written for a text that now does not come."""
        if op.settled:
            return False
        index = self.queue.index(op)
        if index == 0 and self._stepping:
            op.cancel_reason = why  # see _step
            return True
        dropped = [self.queue.pop() for _ in range(len(self.queue) - index)][::-1]
        if index == 0 and self._steps is not None:
            self._stop_waiting()
            self._steps.close()
            self._roll_back()
            self._release(op)
        name = self.context.describe()
        self._drop(dropped[:1], why or f"a {op.kind} of {name} was cancelled")
        self._drop(dropped[1:], why or f"queued behind a {op.kind} of {name} that was cancelled")
        self._ended()
        return True

    def cancel_all(self, why: str) -> None:
        if self.queue:
            self.cancel(self.queue[0], why)

    def close(self, why: str) -> None:
        """Cancels what is submitted; nothing more is accepted."""
        if self.closed is None:
            self.cancel_all(f"{self.context.describe()} was closed: {why}")
            self.closed = why
            self.context.session.open.discard(self)
            self.context.emit_stream("closed")

    def _drop(self, ops: list[Operation], why: str, failure: Failure | None = None) -> None:
        for op in ops:
            if isinstance(op.spec, CloseMessage):  # its block was left all the same
                close_message(op.spec.message, True, self.transcript, self.context)
            elif op.kind in FIRST_OPS:
                self.closed = "it was cancelled before it began"
            self._forget_names(op)
            self.context.emit_op("cancelled", op, why)
            op.cancel(cancelled(why, self.stream, failure), failure)

    def _roll_back(self) -> None:
        assert self._savepoint is not None
        self.transcript.roll_back(self._savepoint)
        self.context.emit_text("undone", self.transcript.tokens, 0)

    def _release(self, op: Operation) -> None:
        """Forgets what was kept while the op ran."""
        self._steps = self._savepoint = None
        if op.allowance is not None:
            op.allowance.end()
            self.context.emit_budgets(op)
        self._forget_names(op)

    def _forget_names(self, op: Operation) -> None:
        for name in op.names:
            if self._submitted.get(name) is op:
                del self._submitted[name]

    def _ended(self) -> None:
        """Ops have ended: those who watch the stream look again."""
        if not self.queue:
            self.context.session.busy.discard(self)
        self.changed.notify()

    # --- what takes ops of its own

    def ask(self, spec: Spec, *, grows: bool = False) -> Operation:
        """Queues an op that asks the model and has no seed of its own: seeds of others do not
        depend on it."""
        self.check_loop()
        self.check_accepts(grows=grows)
        return self.enqueue(spec, bound=self._allowance())

    async def snapshot(self) -> Snapshot:
        """The transcript, once all that is submitted by now is done."""
        return (await self.ended(self.submit(TakeSnapshot(), grows=False))).result()

    async def prefetch(self) -> Snapshot:
        """Computes the keys and values of all that is submitted by now. It only reads the stream:
        seeds do not depend on it."""
        self.check_loop()
        self.check_accepts(grows=False)
        extend = Handle[None](self.enqueue(Extend(()), bound=self._allowance()))
        if extend.done():  # the prompt cannot be computed at all: this is what there is to say
            await extend
        snapshot = self.submit(TakeSnapshot(), grows=False)
        await extend
        return (await self.ended(snapshot)).result()

    async def sample(self, name: str | None, n: int, options: Mapping[str, Any]) -> list[Any]:
        return await sample(self, name, n, options)

    def executor(self, what: str) -> Executor:
        return self
