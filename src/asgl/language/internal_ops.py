"""Ops that streams submit by themselves, between those of the program."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from asgl.language.operation import OpenMessage, Operation
from asgl.language.transcript import Snapshot
from asgl.types import Message


class Internal:
    """Sets no variable, unless it says so."""

    __slots__ = ()

    @property
    def names(self) -> tuple[str, ...]:
        return ()


@dataclass(frozen=True)
class TakeSnapshot(Internal):
    """Seals the run; its value is a `Snapshot`. Branches, copies, marks and joins start from it."""

    kind: ClassVar[str] = "snapshot"


@dataclass(frozen=True)
class StartFrom(Internal):
    """Makes the transcript that of another stream's snapshot: the first op of a branch."""

    kind: ClassVar[str] = "start"
    snapshot: Operation


@dataclass(frozen=True)
class StartFromFile(Internal):
    """Makes the transcript what was saved: the first op of a prompt that was loaded. `kv`: the file
    of its keys and values, if it has them."""

    kind: ClassVar[str] = "load"
    snapshot: Snapshot
    kv: Path | None


@dataclass(frozen=True)
class Rewind(Internal):
    """Goes back to a snapshot of this stream."""

    kind: ClassVar[str] = "rewind"
    snapshot: Operation


@dataclass(frozen=True)
class SetVariable(Internal):
    """Sets a variable to a value; if that is an `ops.Computed`, to what it gives."""

    kind: ClassVar[str] = "set"
    name: str
    value: Any

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)


@dataclass(frozen=True)
class CloseMessage(Internal):
    """Ends the message of a role block. One that is empty because of an exception leaves no
    trace."""

    kind: ClassVar[str] = "close"
    message: OpenMessage
    by_exception: bool


@dataclass(frozen=True)
class Join(Internal):
    """Appends what branches said after the snapshots that they started from: pairs of snapshots,
    (start, end)."""

    kind: ClassVar[str] = "join"
    branches: tuple[tuple[Operation, Operation], ...]


class TurnText(NamedTuple):
    """A piece of a turn. Only in text of the template are control tokens meant."""

    text: str
    of_template: bool


@dataclass(frozen=True)
class AppendTurn(Internal):
    """Appends text that is laid out already, and adds the messages that it is made of. `roles`:
    of those that are written as the template writes them. `opens`: what follows is the content of a
    message of the assistant, which the next such op ends, with `suffix` if the model may end it
    itself."""

    kind: ClassVar[str] = "turn"
    pieces: tuple[TurnText, ...]
    messages: tuple[Message, ...] = ()
    roles: tuple[str, ...] = ()
    opens: bool = False
    suffix: str = ""


FIRST_OPS = ("start", "load")
"""The kinds of op that a stream begins with, before which it has no text."""
