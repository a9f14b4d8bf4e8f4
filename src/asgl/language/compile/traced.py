"""The streams of a program that is traced: they write down what is submitted to them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar, cast
from weakref import ref

from asgl.errors import ConfigError, VariableError
from asgl.language import ops
from asgl.language.budgets import Allowance
from asgl.language.compile.nodes import Call, Fork, Traced
from asgl.language.compile.symbols import Use
from asgl.language.core import Core
from asgl.language.fork import Branches, OnError, TaskHandle
from asgl.language.handle import SelectHandle
from asgl.language.item import Item, Point, Rewind, SetVariable, Work
from asgl.language.ops import Gen, Op, Role, Select, SelectMethod
from asgl.language.outcome import Outcome
from asgl.language.stream import PromptStream, _count

if TYPE_CHECKING:
    from asgl.language.compile.tracer import Trace

T = TypeVar("T")
ItemT = TypeVar("ItemT")


class TracedCore(Core):
    """Keeps what is submitted, and which of it is surely done at this point of the program."""

    def __init__(
        self, trace: Trace, parent: TracedCore | None = None, base: Item | None = None
    ) -> None:
        # Core's own constructor needs an engine. What it sets and this does not, a trace does not
        # know: see __getattr__
        self.trace = trace
        self.session = cast(Any, _Anywhere())
        self.name, self.id, self.root = trace.name, trace.streams, 0
        self.path, self.budgets = () if parent is None else (*parent.path, 0, self.id), ()
        self.block = parent.block if parent is not None else None
        self.failure = self.closed = self.wait = self.group = self.facade = None
        self.forks = 0
        self.parent = ref(parent) if parent is not None else None
        self.base = base
        self.latest: dict[str, Item] = dict(parent.latest) if parent is not None else {}
        """For each variable the item that sets it."""
        self.reached = -1
        """All that was submitted up to this place is done."""
        self._at_points: dict[Item, dict[str, Item]] = {}
        """What `latest` was at each mark."""
        trace.streams += 1

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        self.trace.symbols.refuse(
            "what a stream says, and how its ops end, is not known while the program is traced: "
            "use the "
            "values of ops, `await s.gen(...)`, and of variables, or run the program directly"
        )

    # --- what cores do

    def enqueue(
        self, work: Work, *, numbered: bool = False, bound: Allowance | None = None
    ) -> Item:
        return self.add(work)

    def children(self, n: int) -> list[Core]:
        self.check_accepts(grows=False)
        first = self.trace.streams
        base = self.add(Fork(tuple(range(first, first + n))))
        return [TracedCore(self.trace, self, base) for _ in range(n)]

    def variable(self, name: str) -> Any:
        item = self.latest.get(name)
        if item is None:
            known = ", ".join(map(repr, sorted(self.latest))) or "none"
            raise VariableError(
                f"there is no variable {name!r} (those there are: {known})",
                stream=self.stream,
                name=name,
            )
        if isinstance(item.work, SetVariable):
            return item.work.value
        core, place = self.trace.where[item]
        if place > core.reached:
            self.trace.symbols.refuse(
                f"the variable {name!r} may not be finished here: await its op, or "
                f"s.get({name!r}), first"
            )
        return self.value_of(item, name if isinstance(item.work, Role) else None)

    def emit_stream(self, kind: object, parent: object = None) -> None:
        """Nobody hears of a trace."""

    def _resolve(self, op: Op) -> Op:
        return op

    # --- what they do here

    def add(self, work: Traced, names: tuple[str, ...] = ()) -> Item:
        item = Item(cast(Any, work), number=None, block=None)
        item.names = item.names or names
        self.trace.record(self, work, item, self.block)
        for name in item.names:
            self.latest[name] = item
        if isinstance(work, Point):
            self._at_points[item] = dict(self.latest)
        elif isinstance(work, Rewind):
            self.latest = dict(self._at_points[work.point])
        return item

    def reach(self, item: Item | None = None) -> None:
        """The program has waited for the item; or for all that was submitted."""
        self.reached = max(
            self.reached, self.trace.where[item][1] if item is not None else len(self.trace.nodes)
        )
        if (
            self.parent is not None
            and (parent := self.parent()) is not None
            and self.base is not None
        ):
            cast(TracedCore, parent).reach(self.base)

    def value_of(self, item: Item, name: str | None = None) -> Any:
        """A symbol for the op's value, or that of a variable that it sets; None if it has none."""
        valued = isinstance(item.work, Gen | Select | Role | Call)
        return self.trace.symbols.symbol(Use(item, name=name)) if valued else None


class _Anywhere:
    """The part of a Session that submitting needs: a trace belongs to no event loop."""

    def check_loop(self) -> None: ...


class TracedStream(PromptStream):
    """Writes down what is submitted."""

    __slots__ = ()

    @property
    def _traced(self) -> TracedCore:
        return cast(TracedCore, self._core)

    def refuse(self, message: str) -> NoReturn:
        """Raises CompileError at the line of the program."""
        self._traced.trace.symbols.refuse(message)

    def _submit(self, op: Op) -> TracedHandle:
        return TracedHandle(self._core, self._core.submit(op))

    def gen(self, name: str | None = None, **options: Any) -> Any:
        return self._call(ops.gen, name, options) or super().gen(name, **options)

    def select(
        self,
        name: str | None,
        choices: Sequence[str],
        *,
        method: SelectMethod = "token_length_normalized",
        token_healing: bool = False,
    ) -> SelectHandle:
        options = {"choices": choices, "method": method, "token_healing": token_healing}
        return self._call(ops.select, name, options) or super().select(
            name, choices, method=method, token_healing=token_healing
        )

    def _call(
        self, make: Callable[..., Gen | Select], name: str | None, options: dict[str, Any]
    ) -> TracedHandle | None:
        """Submits the op if parameters of it are open: it cannot be made yet."""
        core, symbols = self._traced, self._traced.trace.symbols
        if not symbols.uses(options):
            return None
        options = symbols.filled(
            options, symbols.symbol
        )  # as it is now: the program may go on with its lists
        core.check_accepts(grows=True)
        return TracedHandle(
            core, core.add(Call(make, name, options), () if name is None else (name,))
        )

    async def sample(self, name: str | None = None, *, n: int, **options: Any) -> list[Any]:
        if options.get("seed") is not None:
            self.refuse(
                "s.sample with a seed cannot be compiled: give the seed to the Runtime, or fork"
            )
        branches = [TracedStream(child) for child in self._core.children(_count(n))]
        values = [await branch.gen(name, **options) for branch in branches]
        if name is not None:
            self._core.submit(SetVariable(name, values), grows=False)
        return values

    def fork(self, n: int, *, on_error: OnError = "cancel") -> Branches:
        if on_error != "cancel":
            self.refuse(
                "what is done after a failure is not part of a graph: use on_error='cancel'"
            )
        return TracedBranches(self, _count(n))

    def copy(self) -> PromptStream:
        return TracedStream(self._core.children(1)[0])

    async def map(
        self,
        fn: Callable[[PromptStream, ItemT], Awaitable[T]],
        items: Iterable[ItemT],
        *,
        on_error: OnError = "cancel",
    ) -> list[Any]:
        work = list(items)
        if not work:
            return []
        tasks: list[TaskHandle[T]] = []
        async with self.fork(len(work), on_error=on_error) as branches:
            tasks = [
                branch.start_soon(fn, item) for branch, item in zip(branches, work, strict=True)
            ]
        return [await task for task in tasks]

    async def get(self, name: str) -> Any:
        if (item := self._traced.latest.get(name)) is not None:
            self._traced.trace.where[item][0].reach(item)
        return self._core.variable(name)

    async def sync(self) -> None:
        self._traced.reach()

    async def call_tools(self, *_: Any, **__: Any) -> NoReturn:
        self.refuse(
            "a tool runs on what the model says, which a graph has no place for: run the program "
            "directly"
        )


class TracedHandle(SelectHandle):
    """Its value is there at once, as a symbol."""

    __slots__ = ()

    async def _result(self) -> Any:
        core = cast(TracedCore, self.core)
        core.reach(self.item)
        return core.value_of(self.item)

    @property
    def text(self) -> str:
        core = cast(TracedCore, self.core)
        if not isinstance(self.item.work, Gen | Select | Role | Call):
            core.trace.symbols.refuse(
                "only what a gen, a select or a message says is a text that a graph can use again: "
                "use "
                "what was appended itself, or append the handle to another stream"
            )
        if core.reached < core.trace.where[self.item][1]:
            core.trace.symbols.refuse(
                "the text of an op is not there before it was awaited: await the handle first"
            )
        return core.trace.symbols.symbol(Use(self.item, "text"))


def _unknown(name: str) -> Any:
    def refuse(self: TracedHandle | TracedTask, *_: Any, **__: Any) -> NoReturn:
        trace = cast(TracedCore, self.core).trace
        trace.symbols.refuse(
            f"how an op goes and ends, `.{name}`, is not known while the program is traced, and "
            "stopping one is "
            "not part of a graph: leave it out, or run the program directly"
        )

    return refuse


for _name in ("done", "cancel", "stop", "__aiter__"):
    setattr(TracedHandle, _name, _unknown(_name))
for _name in (
    "token_ids",
    "finish_reason",
    "matched_stop",
    "logprobs",
    "prompt_tokens",
    "cached_tokens",
    "time_to_first_token",
    "elapsed",
    "index",
    "scores",
    "token_logprobs",
):
    setattr(TracedHandle, _name, property(_unknown(_name)))


class TracedTask(TaskHandle[Any]):
    """A task of a fork block. It runs as a whole when it is awaited, or when the block is left."""

    __slots__ = ("call", "core")

    def __init__(self, core: Core, call: Callable[[], Awaitable[Any]]) -> None:
        self.core, self.call = core, call
        self.outcome = Outcome()

    async def _result(self) -> Any:
        if not self.outcome.settled:
            self.outcome.settle(await self.call())
        return self.outcome.value


for _name in ("done", "cancel"):
    setattr(TracedTask, _name, _unknown(_name))


class TracedBranches(Branches):
    """The branches of a fork block. There is no task group: nothing runs side by side while a
    program is traced."""

    def __init__(self, parent: TracedStream, n: int) -> None:
        self._parent = parent
        self._n = n
        self._branches: list[PromptStream] = []
        self._pending: list[TracedTask] = []

    async def __aenter__(self) -> Branches:
        if self._branches:
            raise ConfigError("a fork block can be entered once: fork again")
        for child in self._parent._core.children(self._n):
            child.group = self
            self._branches.append(TracedStream(child))
        self._parent._core.forks += 1
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> Literal[False]:
        if error is None:
            for task in self._pending:
                await task
            for branch in self._branches:
                await branch.sync()
        self._parent._core.forks -= 1
        for branch in self._branches:
            branch._core.group = None
        return False

    def start(self, branch: PromptStream, call: Callable[[], Awaitable[T]]) -> TaskHandle[T]:
        task = TracedTask(branch._core, call)
        self._pending.append(task)
        return task
