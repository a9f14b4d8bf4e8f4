"""Running a graph: all of its ops are submitted to real streams at once, and each waits in its
stream's queue for its turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from asgl.errors import ConfigError, OpCancelledError
from asgl.language.compile.nodes import Call, Fork, Node
from asgl.language.compile.passes import Prefix
from asgl.language.compile.symbols import Fill, Symbols, Use
from asgl.language.core import Core
from asgl.language.handle import Handle
from asgl.language.item import Block, CloseTurn, Item, Join, Point, Rewind, SetVariable, Work
from asgl.language.ops import Computed, Extend, FromHandle, Role, Text
from asgl.language.outcome import Failure, unseen_errors
from asgl.language.stream import PromptStream


class Execution:
    """One run of a graph on a stream. ConfigError here for arguments of a wrong type or range, and
    for messages inside a message. What only the stream and its engine can tell, a token that the
    model does not have, say, is raised as the op is submitted, and what was submitted before it is
    cancelled."""

    def __init__(
        self,
        nodes: Sequence[Node],
        symbols: Symbols,
        arguments: Mapping[str, Any],
        stream: PromptStream,
    ) -> None:
        outside = stream._core.block
        if outside is not None and any(
            node.block is not None or isinstance(node.work, Role | CloseTurn) for node in nodes
        ):
            raise ConfigError(
                f"the graph has messages of its own, and was run inside a {outside.role!r} "
                "message: leave that "
                "block first"
            )
        self._symbols, self._arguments = symbols, arguments
        self._cores: dict[int, Core] = {0: stream._core}
        self._handles: dict[Item, Handle[Any]] = {}
        """By what was given to the traced program for an op the handle of the op here."""
        self._bases: dict[Item, Item] = {}
        """By what was kept of a fork the point that its branches begin from here."""
        self._blocks = _Blocks(outside)
        self._stopped = self._ended = False
        self._work = [
            (
                node,
                self._with_arguments(node)
                if node.uses or isinstance(node.work, SetVariable)
                else node.work,
            )
            for node in nodes
        ]

    async def run(self, returned: Any) -> Any:
        """Submits the ops and waits for all of them; what the program returned, with its values."""
        try:
            self._submit()
            await self._finish()
            return self._symbols.filled(
                returned, self._fill({item: handle.item for item, handle in self._handles.items()})
            )
        except BaseException:
            self._stop()
            raise
        finally:
            self._ended = True
            for child in self._children:
                child.group = None
            self._handles.clear()  # they refer to works that refer to this, and to all streams

    # --- submitting

    def _submit(self) -> None:
        root = self._cores[0]
        outside = root.block
        try:
            for node, traced in self._work:
                core = self._cores[node.stream]
                core.block = self._blocks.of(node.block)
                if isinstance(traced, Fork):
                    children = core.children(len(traced.streams))
                    for stream, child in zip(traced.streams, children, strict=True):
                        self._cores[stream], child.group = child, self
                        assert child.base is not None
                        self._bases[node.item] = child.base
                else:
                    assert not isinstance(traced, Call)
                    work = self._real(traced, node.generated)
                    item = (
                        core.enqueue(work)
                        if isinstance(work, CloseTurn)
                        else core.submit(work, grows=not isinstance(work, Point))
                    )
                    self._handles[node.item] = Handle(core, item)
                    if isinstance(work, Join):
                        for _, end in work.spans:
                            end.core.emit_stream("joined", core)
                    if item.error is not None:
                        # at once: the stream would refuse what follows, and with another error
                        return
        finally:
            if (
                root.block is not None and root.block is not outside
            ):  # the block that an op failed in at once
                root.enqueue(CloseTurn(root.block, by_exception=True))
            root.block = outside

    def _with_arguments(self, node: Node) -> Work | Fork | Call:
        """The work with the values of arguments; if generated values go into it too it is only
        checked, and comes as it is."""
        filled = self._symbols.filled(
            node.work, lambda use: "x" if isinstance(use.source, Item) else self._argument(use)
        )
        if isinstance(filled, Call):
            return filled.make(filled.name, **filled.options)
        return node.work if node.generated else filled

    def _real(self, work: Work, generated: bool) -> Work:
        """The work with what it refers to here. `generated`: as it was traced, since generated
        values go into it; only then may it be searched for symbols."""
        if isinstance(work, Text | FromHandle):
            return self._real_part(work, generated)
        if isinstance(work, Role | Extend):
            return replace(
                work, content=tuple(self._real_part(part, generated) for part in work.content)
            )
        if isinstance(work, SetVariable) and generated:
            value = self._computed(work.value, lambda fill: self._symbols.filled(work.value, fill))
            return SetVariable(self._symbols.filled(work.name, self._argument), value)
        if isinstance(work, Rewind):
            return Rewind(self._handles[work.point].item)
        if isinstance(work, CloseTurn):
            block = self._blocks.of(work.block)
            assert block is not None
            return replace(work, block=block)
        if isinstance(work, Join):
            return Join(
                tuple((self._bases[begin], self._handles[end.item]) for begin, end in work.spans)
            )
        return work

    def _real_part(self, part: Any, generated: bool) -> Any:
        if isinstance(part, FromHandle):
            return FromHandle(self._handles[part.handle.item])
        if generated and isinstance(part, Text):
            return self._computed(part.text, lambda fill: self._symbols.text(part.text, fill))
        return self._symbols.filled(part, self._argument) if generated else part

    def _computed(self, value: Any, make: Callable[[Fill], Any]) -> Computed:
        """What `make` gives once the ops whose values go into `value` are done."""
        items = list(
            dict.fromkeys(
                use.source for use in self._symbols.uses(value) if isinstance(use.source, Item)
            )
        )
        handles = tuple(self._handles[item] for item in items)
        return Computed(handles, lambda done: make(self._fill(dict(zip(items, done, strict=True)))))

    def _fill(self, done: Mapping[Item, Item]) -> Fill:
        """Gives values of arguments, and of ops by their items here."""

        def fill(use: Use) -> Any:  # does not refer to itself, which would keep what is done
            if isinstance(use.source, str):
                return self._argument(use)
            item = done[use.source]
            if use.form == "text":
                return item.text
            return use.of(
                item.value
                if use.name is None
                else item.values[self._symbols.text(use.name, self._fill(done))]
            )

        return fill

    def _argument(self, use: Use) -> Any:
        assert isinstance(use.source, str)
        return use.of(self._arguments[use.source])

    # --- waiting

    @property
    def _children(self) -> list[Core]:
        return [core for stream, core in self._cores.items() if stream != 0]

    @property
    def _own(self) -> list[Item]:
        """What was submitted to the stream that the graph runs on."""
        return [handle.item for handle in self._handles.values() if handle.core is self._cores[0]]

    async def _finish(self) -> None:
        own, root = self._own, self._cores[0]
        if own:
            await root.settled(own[-1])
            if own[-1].error is not None:
                self._stop()
        else:
            await asyncio.sleep(0)
        for child in self._children:
            await child.idle()
        self._raise_failures()

    def notice(self, core: Core, failure: Failure) -> None:
        """An op of a branch failed: all stops, in the engine too."""
        if not self._ended:
            self._stop()

    def _stop(self) -> None:
        if self._stopped:
            return
        self._stopped = True
        why = f"the graph that runs on {self._cores[0].describe()} was stopped"
        for child in self._children:
            child.cancel_all(why)
        for item in self._own:
            if not item.settled:
                self._cores[0].cancel(item, why)

    def _raise_failures(self) -> None:
        """The stream's own failure as it is, what failed in branches as a group; each once, with
        its branch."""
        broken = next((item for item in self._own if item.error is not None), None)
        own = [broken.failure] if broken is not None and broken.failure is not None else []
        branches = [(core.failure, core) for core in self._children if core.failure is not None]
        errors = unseen_errors([*own, *(failure for failure, _ in branches)])
        if (
            broken is not None
            and broken.error is not None
            and all(isinstance(error, OpCancelledError) for error in errors)
        ):
            raise broken.error  # somebody cancelled it, and the branches with it
        if len(errors) == 1 and own and errors[0] is own[0].error:
            raise errors[0]
        for failure, core in branches:
            if failure.root is None and any(failure.error is error for error in errors):
                failure.error.add_note(f"in {core.describe()}")
        if errors:
            raise BaseExceptionGroup(
                f"{len(errors)} failure(s) in branches of {self._cores[0].describe()}", errors
            )


class _Blocks:
    """Role blocks of a run, by those of the trace."""

    def __init__(self, outside: Block | None) -> None:
        self._outside = outside
        self._known: dict[Block, Block] = {}

    def of(self, block: Block | None) -> Block | None:
        """The block here; outside of all, the one that was open when the run began."""
        if block is None:
            return self._outside
        if block not in self._known:
            self._known[block] = Block(block.role)
        return self._known[block]


async def compute_prefix(prefix: Prefix, stream: PromptStream) -> None:
    """Computes the keys and values of a prefix, on a stream that is then closed. Its failures are
    those of the runs, and are left to them."""
    core, blocks = stream._core, _Blocks(None)
    try:
        for block, work in prefix:
            core.block = blocks.of(block)
            closed = blocks.of(work.block) if isinstance(work, CloseTurn) else None
            item = core.enqueue(work if closed is None else CloseTurn(closed, by_exception=False))
            if item.error is not None:
                item.see()
                return
        await stream.extend("")
    except Exception:
        return
    finally:
        core.close("it was there for its prefix only")
