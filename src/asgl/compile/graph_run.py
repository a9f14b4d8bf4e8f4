"""Running a graph: all of its ops are submitted to real streams at once, and each waits in its
stream's queue for its turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from asgl.compile.nodes import Call, Fork, Node
from asgl.compile.passes import Prefix
from asgl.compile.symbols import Fill, Symbols, Use
from asgl.errors import ConfigError, OpCancelledError
from asgl.language.executor import Executor
from asgl.language.failures import Failure, unseen_errors
from asgl.language.internal_ops import CloseMessage, Join, Rewind, SetVariable, TakeSnapshot
from asgl.language.operation import OpenMessage, Operation
from asgl.language.ops import Computed, Extend, Role, Text, TextOf
from asgl.language.stream import PromptStream


class GraphRun:
    """One run of a graph on a stream. ConfigError here for arguments of a wrong type or range, and
    for messages inside a message. What only the stream and its engine can tell, a token that the
    model does not have, say, is raised as the op is submitted, and what was submitted before it is
    cancelled."""

    def __init__(
        self,
        nodes: Sequence[Node],
        symbols: Symbols,
        arguments: Mapping[str, Any],
        executor: Executor,
    ) -> None:
        outside = executor.message
        if outside is not None and any(
            node.message is not None or isinstance(node.spec, Role | CloseMessage) for node in nodes
        ):
            raise ConfigError(
                f"the graph has messages of its own, and was run inside a {outside.role!r} "
                "message: leave that block first"
            )
        self._symbols, self._arguments = symbols, arguments
        self._executors: dict[int, Executor] = {0: executor}
        self._ops: dict[Operation, Operation] = {}
        """By the ops of the trace those of the run. For a fork, the snapshot that its branches
        start from."""
        self._messages = _Messages(outside)
        self._stopped = self._ended = False
        self._specs: list[tuple[Node, Any]] = [
            (node, self._with_arguments(node))
            if node.uses or isinstance(node.spec, SetVariable)
            else (node, node.spec)
            for node in nodes
        ]

    async def run(self, returned: Any) -> Any:
        """Submits the ops and waits for all of them; what the program returned, with its values."""
        try:
            self._submit()
            await self._finish()
            return self._symbols.filled(returned, self._fill(self._ops))
        except BaseException:
            self._stop()
            raise
        finally:
            self._ended = True
            for child in self._children:
                child.on_failure = None
            self._ops.clear()  # they refer to specs that refer to this, and to all streams

    # --- submitting

    def _submit(self) -> None:
        root = self._executors[0]
        outside = root.message
        try:
            for node, spec in self._specs:
                executor = self._executors[node.stream]
                executor.message = self._messages.of(node.message)
                op = self._submit_one(executor, node, spec)
                if op is not None and op.error is not None:
                    # at once: the stream would refuse what follows, and with another error
                    return
        finally:
            if root.message is not None and root.message is not outside:
                # the message that an op failed in at once
                root.enqueue(CloseMessage(root.message, by_exception=True))
            root.message = outside

    def _submit_one(self, executor: Executor, node: Node, spec: Any) -> Operation | None:
        if isinstance(spec, Fork):
            children = executor.children(len(spec.streams))
            for stream, child in zip(spec.streams, children, strict=True):
                assert child.base is not None
                self._executors[stream], child.on_failure = child, self._stop_all
                self._ops[node.op] = child.base
            return None
        assert not isinstance(spec, Call)
        real = self._real(spec, node.generated)
        op = (
            executor.enqueue(real)
            if isinstance(real, CloseMessage)
            else executor.submit(real, grows=not isinstance(real, TakeSnapshot))
        )
        self._ops[node.op] = op
        if isinstance(real, Join):
            for _, end in real.branches:
                branch: Any = end.owner
                branch.context.emit_stream("joined", executor.context.id)
        return op

    def _with_arguments(self, node: Node) -> Any:
        """The spec with the values of arguments; if generated values go into it too it is only
        checked, and comes as it is."""
        filled = self._symbols.filled(
            node.spec, lambda use: "x" if isinstance(use.source, Operation) else self._argument(use)
        )
        if isinstance(filled, Call):
            return filled.make(filled.name, **filled.options)
        return node.spec if node.generated else filled

    def _real(self, spec: Any, generated: bool) -> Any:
        """The spec with the ops and messages of this run in it. `generated`: as it was traced,
        since generated values go into it; only then may it be searched for symbols."""
        if isinstance(spec, Text | TextOf):
            return self._real_part(spec, generated)
        if isinstance(spec, Role | Extend):
            content = tuple(self._real_part(part, generated) for part in spec.content)
            return replace(spec, content=content)
        if isinstance(spec, SetVariable) and generated:
            value = self._computed(spec.value, lambda fill: self._symbols.filled(spec.value, fill))
            return SetVariable(self._symbols.filled(spec.name, self._argument), value)
        if isinstance(spec, Rewind):
            return Rewind(self._ops[spec.snapshot])
        if isinstance(spec, CloseMessage):
            message = self._messages.of(spec.message)
            assert message is not None
            return replace(spec, message=message)
        if isinstance(spec, Join):
            return Join(tuple((self._ops[start], self._ops[end]) for start, end in spec.branches))
        return spec

    def _real_part(self, part: Any, generated: bool) -> Any:
        if isinstance(part, TextOf):
            return TextOf(self._ops[part.source])
        if generated and isinstance(part, Text):
            return self._computed(part.text, lambda fill: self._symbols.text(part.text, fill))
        return self._symbols.filled(part, self._argument) if generated else part

    def _computed(self, value: Any, make: Callable[[Fill], Any]) -> Computed:
        """What `make` gives once the ops whose values go into `value` are done."""
        sources = (use.source for use in self._symbols.uses(value))
        ops = list(dict.fromkeys(op for op in sources if isinstance(op, Operation)))
        real = tuple(self._ops[op] for op in ops)
        return Computed(real, lambda done: make(self._fill(dict(zip(ops, done, strict=True)))))

    def _fill(self, done: Mapping[Operation, Operation]) -> Fill:
        """Gives values of arguments, and of ops of the trace by their ops here."""

        def fill(use: Use) -> Any:  # does not refer to itself, which would keep what is done
            if isinstance(use.source, str):
                return self._argument(use)
            op = done[use.source]
            if use.form == "text":
                return op.text
            return use.of(
                op.value
                if use.name is None
                else op.values[self._symbols.text(use.name, self._fill(done))]
            )

        return fill

    def _argument(self, use: Use) -> Any:
        assert isinstance(use.source, str)
        return use.of(self._arguments[use.source])

    # --- waiting

    @property
    def _children(self) -> list[Executor]:
        return [executor for stream, executor in self._executors.items() if stream != 0]

    @property
    def _own(self) -> list[Operation]:
        """What was submitted to the stream that the graph runs on."""
        return [op for op in self._ops.values() if op.owner is self._executors[0]]

    async def _finish(self) -> None:
        own, root = self._own, self._executors[0]
        if own:
            await root.ended(own[-1])
            if own[-1].error is not None:
                self._stop()
        else:
            await asyncio.sleep(0)
        for child in self._children:
            await child.idle()
        self._raise_failures()

    def _stop_all(self, queue: object, failure: Failure) -> None:
        """An op of a branch failed: all stops, in the engine too."""
        if not self._ended:
            self._stop()

    def _stop(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        why = f"the graph that runs on {self._executors[0].context.describe()} was stopped"
        for child in self._children:
            child.cancel_all(why)
        for op in self._own:
            if not op.settled:
                self._executors[0].cancel(op, why)

    def _raise_failures(self) -> None:
        """The stream's own failure as it is, what failed in branches as a group; each once, with
        its branch."""
        broken = next((op for op in self._own if op.error is not None), None)
        own = [broken.failure] if broken is not None and broken.failure is not None else []
        branches = [(child.failure, child) for child in self._children if child.failure is not None]
        errors = unseen_errors([*own, *(failure for failure, _ in branches)])
        if (
            broken is not None
            and broken.error is not None
            and all(isinstance(error, OpCancelledError) for error in errors)
        ):
            raise broken.error  # somebody cancelled it, and the branches with it
        if len(errors) == 1 and own and errors[0] is own[0].error:
            raise errors[0]
        for failure, child in branches:
            if failure.root is None and any(failure.error is error for error in errors):
                failure.error.add_note(f"in {child.context.describe()}")
        if errors:
            name = self._executors[0].context.describe()
            raise BaseExceptionGroup(f"{len(errors)} failure(s) in branches of {name}", errors)


class _Messages:
    """Role blocks of a run, by those of the trace."""

    def __init__(self, outside: OpenMessage | None) -> None:
        self._outside = outside
        self._known: dict[OpenMessage, OpenMessage] = {}

    def of(self, message: OpenMessage | None) -> OpenMessage | None:
        """The block here; outside of all, the one that was open when the run began."""
        if message is None:
            return self._outside
        return self._known.setdefault(message, OpenMessage(message.role))


async def compute_prefix(prefix: Prefix, stream: PromptStream) -> None:
    """Computes the keys and values of a prefix, on a stream that is then closed. Its failures are
    those of the runs, and are left to them."""
    executor, messages = stream._queue.executor("graph"), _Messages(None)
    try:
        for message, spec in prefix:
            executor.message = messages.of(message)
            if isinstance(spec, CloseMessage):
                closed = messages.of(spec.message)
                assert closed is not None
                spec = CloseMessage(closed, by_exception=False)
            op = executor.enqueue(spec)
            if op.error is not None:
                op.see()
                return
        await stream.extend("")
    except Exception:
        return
    finally:
        executor.close("it was there for its prefix only")
