"""The nodes of a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from asgl.language.compile.symbols import Use
from asgl.language.item import Block, Item, Work
from asgl.language.ops import Extend, Gen, Role, Select


@dataclass(frozen=True)
class Fork:
    """Makes streams that begin from here."""

    streams: tuple[int, ...]


@dataclass(frozen=True)
class Call:
    """A gen or select some of whose parameters are open: it is made when they are known."""

    make: Callable[..., Gen | Select]
    name: str | None
    options: Mapping[str, Any]


Traced: TypeAlias = Work | Fork | Call


def parts_of(work: Traced) -> tuple[Traced, ...]:
    """What it appends, one after the other: of a message or extend the content, else the work
    itself."""
    return work.content if isinstance(work, Role | Extend) else (work,)


@dataclass(frozen=True, eq=False)
class Node:
    """One thing that the program submits. Texts in it have markers where values go."""

    stream: int
    """Which stream it is submitted to; 0 is that of the program."""
    work: Traced
    item: Item
    """What was given to the program for it: other works refer to the node by it."""
    block: Block | None
    """The role block that is open there."""
    line: str
    """Where in the program: "file:line, in function"."""
    uses: tuple[Use, ...]
    """The open values that go into it."""

    @property
    def generated(self) -> bool:
        """Whether what the model says goes into it."""
        return any(isinstance(use.source, Item) for use in self.uses)
