"""Graphs: what a program submits, written down, with places for the arguments that are open."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Any, TypeVar, overload

from asgl.compile import passes
from asgl.compile.graph_run import GraphRun, compute_prefix
from asgl.compile.listing import listing, shortened
from asgl.compile.nodes import Node
from asgl.compile.symbols import Symbols
from asgl.errors import ConfigError
from asgl.language.program import Program, Source
from asgl.language.run import ProgramStream, Run
from asgl.language.stream import PromptStream

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, eq=False, repr=False)
class Graph(Program[T_co]):
    """A compiled program: made by `Function.graph`. It never changes, and can run any number of
    times, on any Runtime.

    `print(graph)` lists its nodes.
    """

    name: str
    """Of the program."""
    signature: inspect.Signature
    """Of a run: the stream, and the arguments that are open."""
    nodes: tuple[Node, ...]
    """What the program submits, in order."""
    symbols: Symbols
    """What stands for the open arguments and for generated values in its texts."""
    returned: Any
    """What the program returns, with symbols for values."""

    @overload
    async def __call__(self, where: PromptStream, /, *args: Any, **kwargs: Any) -> T_co: ...
    @overload
    async def __call__(
        self, where: Source, /, *args: Any, **kwargs: Any
    ) -> ProgramStream[T_co]: ...
    async def __call__(
        self, where: PromptStream | Source, /, *args: Any, **kwargs: Any
    ) -> T_co | ProgramStream[T_co]:
        """Runs the graph as the program itself would run, with the same options: see
        `Function.__call__`.

        The open arguments are given by position, in the program's order, or by name; ConfigError if
        they do not fit: before anything is submitted, unless only the engine can tell. If an op
        fails, all that was submitted is cancelled; a failure in branches is raised as an
        ExceptionGroup.
        """
        return await self._run_on(where, args, kwargs)

    def start(self, rt: Source, /, *args: Any, **kwargs: Any) -> Run[T_co]:
        """Starts the graph as the program itself would be started: see `Function.start`."""
        return self._start(rt, args, kwargs)

    @property
    def prefix(self) -> str:
        """The constant text that all runs begin with, without what a chat template writes around
        messages."""
        return passes.prefix_text(self.nodes, self.symbols)

    def reordered(self) -> Graph[T_co]:
        """The graph after code movement: constant texts before those that values go into, where the
        runs part, so that they have more in common. This changes the prompt.
        `asgl.compile.passes` has the rule."""
        return replace(self, nodes=passes.reordered(self.nodes))

    def __repr__(self) -> str:
        return f"<Graph of {self.name}({', '.join(self._opened)}): {len(self.nodes)} ops>"

    def __str__(self) -> str:
        streams = len({node.stream for node in self.nodes}) or 1
        common = f"; all runs begin with {shortened(self.prefix)!r}" if self.prefix else ""
        head = (
            f"graph of {self.name}({', '.join(self._opened)}): {len(self.nodes)} ops on {streams} "
            f"stream{'s' if streams > 1 else ''}{common}"
        )
        return "\n".join([head, *listing(self.nodes, self.symbols)])

    @property
    def _opened(self) -> list[str]:
        return list(self.signature.parameters)[1:]

    # --- as a program

    @property
    def _name(self) -> str:
        return self.name

    @property
    def _signature(self) -> inspect.Signature:
        return self.signature

    async def _body(self, stream: PromptStream, /, *args: Any, **kwargs: Any) -> T_co:
        executor = stream._queue.executor("graph")
        try:
            bound = self.signature.bind(stream, *args, **kwargs)
        except TypeError as error:
            raise ConfigError(
                f"the arguments do not fit the graph of {self.name}{self.signature}: {error}"
            ) from None
        bound.apply_defaults()
        return await GraphRun(self.nodes, self.symbols, bound.arguments, executor).run(
            self.returned
        )

    async def _prepare(self, rt: Source, runs: int, /) -> None:
        prefix = passes.prefix(self.nodes, self.symbols)
        if prefix and runs > 1:
            await compute_prefix(prefix, rt.prompt(name=self.name))
