"""The nodes of a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from asgl.compile.symbols import Use
from asgl.language.internal_ops import Internal
from asgl.language.operation import OpenMessage, Operation, Spec
from asgl.language.ops import Extend, Role


@dataclass(frozen=True)
class Fork(Internal):
    """Makes streams that start from here."""

    kind: ClassVar[str] = "fork"
    streams: tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """A gen or select some of whose parameters are open: it is made when they are known."""

    kind: ClassVar[str] = "call"
    make: Callable[..., Spec]
    name: str | None
    options: Mapping[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        return () if self.name is None else (self.name,)


def parts_of(spec: Spec) -> tuple[Spec, ...]:
    """What it appends, one after the other: of a message or extend the content, else the op
    itself."""
    return spec.content if isinstance(spec, Role | Extend) else (spec,)


@dataclass(frozen=True, eq=False)
class Node:
    """One thing that the program submits. Texts in it have markers where values go."""

    stream: int
    """Which stream it is submitted to; 0 is that of the program."""
    spec: Any
    """What the op is to do: a `Spec`."""
    op: Operation
    """The op of the trace, which other specs refer to."""
    message: OpenMessage | None
    """The role block that is open there."""
    line: str
    """Where in the program: "file:line, in function"."""
    uses: tuple[Use, ...]
    """The open values that go into it."""

    @property
    def generated(self) -> bool:
        """Whether what the model says goes into it."""
        return any(isinstance(use.source, Operation) for use in self.uses)
