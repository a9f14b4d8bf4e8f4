"""The streams of a program that is traced: they write to a `TracedQueue`, which writes down what is
submitted instead of carrying it out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn, Protocol

from asgl.compile.nodes import Call, Fork, Node
from asgl.compile.symbols import Symbols, Use
from asgl.errors import ConfigError, VariableError
from asgl.language.context import StreamOptions
from asgl.language.failures import Outcome
from asgl.language.fork import TaskHandle
from asgl.language.handle import SelectHandle
from asgl.language.internal_ops import Join, Rewind, SetVariable, TakeSnapshot
from asgl.language.op_queue import ForkBlock, OnError, OpQueue, check_not_forked, check_op
from asgl.language.operation import OpenMessage, Operation, Spec
from asgl.language.ops import Calls, Gen, Role, Select, gen

_NEEDS_A_RUN = {
    "call_tools": "a tool runs on what the model says, which a graph has no place for: run the "
    "program directly",
    "graph": "a graph runs, and cannot be a part of another: call the program that it is the graph "
    "of",
}
"""What cannot be a part of a graph, and why."""


class Recorder(Protocol):
    """What traced queues write to: a `tracer.Trace`."""

    name: str
    symbols: Symbols
    nodes: list[Node]
    streams: int
    where: dict[Operation, tuple[TracedQueue, int]]

    def new_stream(self) -> int: ...

    def record(self, queue: TracedQueue, op: Operation) -> None: ...


class _Context:
    """The part of a `StreamContext` that a trace has."""

    def __init__(self, name: str, path: tuple[int, ...]) -> None:
        self.options = StreamOptions(name=name)
        self.path = path

    def describe(self) -> str:
        name, path = f"the stream {self.options.name!r}", ".".join(map(str, self.path))
        return f"branch {path} of {name}" if path else name


class TracedQueue:
    """An `OpQueue` that keeps what is submitted, and which of it is surely done at this point of
    the program.

    What a stream says, and how its ops end, is not known: whatever asks for it raises CompileError,
    which names the line of the program.
    """

    def __init__(
        self, trace: Recorder, parent: TracedQueue | None = None, base: Operation | None = None
    ) -> None:
        self.trace = trace
        self.number = trace.new_stream()
        """Which stream of the graph it is."""
        path = () if parent is None else (*parent.context.path, self.number)
        self.context: Any = _Context(trace.name, path)
        self.stream: Any = None
        self.message: OpenMessage | None = parent.message if parent is not None else None
        self.open_forks = 0
        self.group: ForkBlock | None = None
        self.error: BaseException | None = None
        self.broken = False
        self.parent: Any = parent
        self.base = base
        self._latest: dict[str, Operation] = dict(parent._latest) if parent is not None else {}
        """For each variable the op that sets it."""
        self._reached = -1
        """All that was submitted up to this place is done."""
        self._at_snapshots: dict[Operation, dict[str, Operation]] = {}
        """What `_latest` was at each mark."""

    # --- what is not known

    def executor(self, what: str) -> NoReturn:
        if what in _NEEDS_A_RUN:
            self.trace.symbols.refuse(_NEEDS_A_RUN[what])
        self._unknown()

    def cancel(self, op: Operation, why: str = "") -> NoReturn:
        self._unknown()

    def cancel_all(self, why: str) -> NoReturn:
        self._unknown()

    close = cancel_all

    def interrupt(self, error: Exception) -> NoReturn:
        self._unknown()

    def progressed(self) -> NoReturn:
        self._unknown()

    def _unknown(self) -> NoReturn:
        self.trace.symbols.refuse(
            "what a stream says, and how its ops end, is not known while the program is traced: "
            "use the values of ops, `await s.gen(...)`, and of variables, or run the program "
            "directly"
        )

    @property
    def text(self) -> NoReturn:
        self._unknown()

    token_ids = messages = variables = engine = origins = text

    def info(self, name: str) -> NoReturn:
        self._unknown()

    def owned(self) -> AbstractContextManager[None]:
        return nullcontext()

    # --- submitting

    def check_loop(self) -> None:
        """A trace belongs to no event loop."""

    def check_accepts(self, *, grows: bool) -> None:
        if grows:
            check_not_forked(self)

    def submit(self, spec: Spec, *, grows: bool = True) -> Operation:
        check_op(self, spec)
        self.check_accepts(grows=grows)
        if isinstance(spec, Calls):
            self.trace.symbols.refuse(
                "calls of tools that were made before have no place in a graph: append them to the "
                "stream, and run the graph on that"
            )
        return self.enqueue(spec)

    def make(
        self, make: Callable[..., Spec], name: str | None, options: Mapping[str, Any]
    ) -> Operation:
        symbols = self.trace.symbols
        if not symbols.uses(options):
            return self.submit(make(name, **options))
        # the options as they are now: the program may go on with its lists
        return self.submit(Call(make, name, symbols.filled(dict(options), symbols.symbol)))

    def enqueue(self, spec: Spec) -> Operation:
        op = Operation(spec, self, message=self.message)
        self.trace.record(self, op)
        for name in op.names:
            self._latest[name] = op
        if isinstance(spec, TakeSnapshot):
            self._at_snapshots[op] = dict(self._latest)
        elif isinstance(spec, Rewind):
            self._latest = dict(self._at_snapshots[spec.snapshot])
        return op

    def children(self, n: int, seed: int | None = None) -> Sequence[TracedQueue]:
        self.check_accepts(grows=False)
        first = self.trace.streams
        base = self.enqueue(Fork(tuple(range(first, first + n))))
        return [TracedQueue(self.trace, self, base) for _ in range(n)]

    def fork(self, n: int, on_error: OnError) -> TracedFork:
        if on_error != "cancel":
            self.trace.symbols.refuse(
                "what is done after a failure is not part of a graph: use on_error='cancel'"
            )
        return TracedFork(self, n)

    def join(self, branches: Sequence[OpQueue]) -> None:
        self.check_accepts(grows=True)
        ends = [(branch.base, branch.enqueue(TakeSnapshot())) for branch in branches]
        self.submit(Join(tuple((base, end) for base, end in ends if base is not None)))

    async def sample(self, name: str | None, n: int, options: Mapping[str, Any]) -> list[Any]:
        if options.get("seed") is not None:
            self.trace.symbols.refuse(
                "s.sample with a seed cannot be compiled: give the seed to the Runtime, or fork"
            )
        branches = self.children(n)
        values = [await branch.handle(branch.make(gen, name, options)) for branch in branches]
        if name is not None:
            self.submit(SetVariable(name, values), grows=False)
        return values

    # --- values

    def handle(self, op: Operation) -> TracedHandle:
        return TracedHandle(op)

    def variable(self, name: str) -> Any:
        op = self._latest.get(name)
        if op is None:
            known = ", ".join(map(repr, sorted(self._latest))) or "none"
            raise VariableError(
                f"there is no variable {name!r} (those there are: {known})",
                stream=self.stream,
                name=name,
            )
        if isinstance(op.spec, SetVariable):
            return op.spec.value
        queue, place = self.trace.where[op]
        if place > queue._reached:
            self.trace.symbols.refuse(
                f"the variable {name!r} may not be finished here: await its op, or "
                f"s.get({name!r}), first"
            )
        return self.value_of(op, name if isinstance(op.spec, Role) else None)

    def value_of(self, op: Operation, name: str | None = None) -> Any:
        """A symbol for the op's value, or that of a variable that it sets; None if it has none."""
        valued = isinstance(op.spec, Gen | Select | Role | Call)
        return self.trace.symbols.symbol(Use(op, name=name)) if valued else None

    def text_of(self, op: Operation) -> Any:
        """A symbol for the text that the op appends."""
        if not isinstance(op.spec, Gen | Select | Role | Call):
            self.trace.symbols.refuse(
                "only what a gen, a select or a message says is a text that a graph can use again: "
                "use what was appended itself, or append the handle to another stream"
            )
        if self._reached < self.trace.where[op][1]:
            self.trace.symbols.refuse(
                "the text of an op is not there before it was awaited: await the handle first"
            )
        return self.trace.symbols.symbol(Use(op, "text"))

    def reach(self, op: Operation | None = None) -> None:
        """The program has waited for the op; or for all that was submitted."""
        place = self.trace.where[op][1] if op is not None else len(self.trace.nodes)
        self._reached = max(self._reached, place)
        if self.parent is not None:
            self.parent.reach(self.base)

    async def get(self, name: str) -> Any:
        if (op := self._latest.get(name)) is not None:
            self.trace.where[op][0].reach(op)
        return self.variable(name)

    async def sync(self) -> None:
        self.reach()


def _refuse(symbols: Symbols, name: str) -> NoReturn:
    symbols.refuse(
        f"how an op goes and ends, `.{name}`, is not known while the program is traced, and "
        "stopping one is not part of a graph: leave it out, or run the program directly"
    )


class TracedHandle(SelectHandle):
    """Its value is there at once, as a symbol."""

    __slots__ = ()

    def __getattribute__(self, name: str) -> Any:
        if name in _HOW_IT_GOES:
            _refuse(object.__getattribute__(self, "_op").owner.trace.symbols, name)
        return object.__getattribute__(self, name)

    def __aiter__(self) -> NoReturn:
        queue: Any = self._op.owner
        _refuse(queue.trace.symbols, "__aiter__")

    async def _result(self) -> Any:
        queue: Any = self._op.owner
        queue.reach(self._op)
        return queue.value_of(self._op)


_HOW_IT_GOES = frozenset(name for name in dir(SelectHandle) if not name.startswith("_")) - {
    "as_ops",
    "text",
}


class TracedTask(TaskHandle[Any]):
    """A task of a fork block. It runs as a whole when it is awaited, or when the block is left."""

    __slots__ = ("_call", "_symbols")

    def __init__(self, symbols: Symbols, call: Callable[[], Awaitable[Any]]) -> None:
        super().__init__(Outcome(), self.cancel)
        self._symbols, self._call = symbols, call

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._run().__await__()

    async def _run(self) -> Any:
        if not self._outcome.settled:
            self._outcome.settle(await self._call())
        return self._outcome.value

    def done(self) -> NoReturn:
        _refuse(self._symbols, "done")

    def cancel(self) -> NoReturn:
        _refuse(self._symbols, "cancel")


class TracedFork:
    """The `ForkBlock` of a trace. There is no task group: nothing runs side by side."""

    def __init__(self, parent: TracedQueue, n: int) -> None:
        self._parent = parent
        self._n = n
        self._branches: Sequence[TracedQueue] = ()
        self._tasks: list[TracedTask] = []

    async def open(self) -> Sequence[TracedQueue]:
        if self._branches:
            raise ConfigError("a fork block can be entered once: fork again")
        self._branches = self._parent.children(self._n)
        self._parent.open_forks += 1
        for branch in self._branches:
            branch.group = self
        return self._branches

    async def close(self, error: BaseException | None) -> None:
        if error is None:
            for task in self._tasks:
                await task
            for branch in self._branches:
                await branch.sync()
        self._parent.open_forks -= 1
        for branch in self._branches:
            branch.group = None

    def start(self, queue: TracedQueue, call: Callable[[], Awaitable[Any]]) -> TracedTask:
        task = TracedTask(queue.trace.symbols, call)
        self._tasks.append(task)
        return task
