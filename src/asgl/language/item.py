"""What stands in a stream's queue: ops, and the stream's own errands between them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias
from weakref import WeakSet

from asgl.language.backend import Engine, Ticket
from asgl.language.budgets import Allowance
from asgl.language.ops import Gen, Op, Select, names_of
from asgl.language.outcome import Outcome
from asgl.language.state import Snapshot
from asgl.types import Message

if TYPE_CHECKING:
    from asgl.language.handle import Handle


class Block:
    """A role block: `with s.role(...)`. Its header is written with the first content that is
    submitted inside."""

    __slots__ = ("__weakref__", "role")

    def __init__(self, role: str) -> None:
        self.role = role


@dataclass(frozen=True)
class Point:
    """Seals the run and takes a snapshot, the errand's value. Branches, copies, marks and joins are
    made of it."""


@dataclass(frozen=True)
class Begin:
    """Makes the state that of another stream's point: the first errand of a branch."""

    point: Handle[Any]


@dataclass(frozen=True)
class SetVariable:
    name: str
    value: Any


@dataclass(frozen=True)
class Rewind:
    """Back to the state of a point of this stream."""

    point: Item


@dataclass(frozen=True)
class CloseTurn:
    """Ends the message of a block. An empty one that an exception left is as if it had never been
    begun."""

    block: Block
    by_exception: bool


@dataclass(frozen=True)
class Join:
    """Appends what streams said after the points that they began from: pairs of (begin, end)."""

    spans: tuple[tuple[Item, Handle[Any]], ...]


@dataclass(frozen=True)
class Restore:
    """Makes the state what was saved: the first errand of a prompt that was loaded. `path`: of its
    keys and values."""

    snapshot: Snapshot
    path: Path | None


Piece: TypeAlias = tuple[str, bool]
"""Text, and whether it is the chat template's: only then are control tokens in it meant."""


@dataclass(frozen=True)
class Write:
    """Appends text, and puts whole messages that it is among those of the stream."""

    pieces: tuple[Piece, ...]
    messages: tuple[Message, ...] = ()


Work: TypeAlias = Op | Point | Begin | Restore | Write | SetVariable | Rewind | CloseTurn | Join


class Place(NamedTuple):
    """Where the ops of a stream run."""

    engine: Engine
    namespace: str | None
    priority: int
    deadline: float | None = None
    """Seconds that each request may take."""


class Item(Outcome):
    """A piece of work in a stream's queue, and what became of it. It does not know its stream,
    which may go before it."""

    __slots__ = (
        "allowance",
        "block",
        "index",
        "iterators",
        "live",
        "names",
        "number",
        "part",
        "scores",
        "start",
        "text",
        "ticket",
        "token_ids",
        "token_logprobs",
        "values",
        "work",
    )

    def __init__(
        self,
        work: Work,
        *,
        number: int | None,
        block: Block | None,
        allowance: Allowance | None = None,
    ) -> None:
        super().__init__()
        self.work = work
        self.number = number
        """The op's place among the ops of its stream; None for an errand."""
        self.block = block
        self.allowance = allowance
        """What it may spend; None if no budget bounds it."""
        self.names = (work.name,) if isinstance(work, SetVariable) else names_of(work)
        self.values: dict[str, Any] = {}
        """The variables that it sets, once it is done."""
        self.start = 0
        """Where its content begins in the stream's text."""
        self.text = ""
        """What it appended, once it is done: of a message the content."""
        self.token_ids: list[int] = []
        """What it generated or selected, once it is done."""
        self.live: Ticket | None = None
        """The generation that runs for it now."""
        self.ticket: Ticket | None = None
        """The last request that was made for it."""
        self.part: Gen | Select | None = None
        """What of the op asks the model now."""
        self.index: int | None = None
        self.scores: list[float] | None = None
        self.token_logprobs: list[list[float]] | None = None
        """Of a select: which option, all scores, and the log-probabilities that they come from."""
        self.iterators: WeakSet[Any] = WeakSet()
        """Those who iterate over its text."""

    @property
    def kind(self) -> str:
        return "gen" if isinstance(self.work, Gen) else type(self.work).__name__.lower()
