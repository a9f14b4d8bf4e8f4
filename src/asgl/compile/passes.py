"""What can be said of a graph, and done to it, before it runs.

    prefix       the ops, constant in all runs, that the program's stream begins with
    reordered    code movement: constant texts before those that values go into

Code movement, by the rule of docs/how-to/compiling.md. A *group* is some texts of one stream with
nothing else between them, in one message. On each stream the group in which the runs of a graph
part is sorted, constant texts first, and no other:

    text {mail} | text GUIDE | text "Team:" | gen        the last is the cue of the gen, and stays
          \\___________/
    text GUIDE | text {mail} | text "Team:" | gen

Constant texts depend on nothing, so they can go before anything in the group; a text with values
only ever moves back, away from what it depends on. A text that another op refers to does not move.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeAlias

from asgl.compile.nodes import Call, Fork, Node, parts_of
from asgl.compile.symbols import Symbols
from asgl.language.internal_ops import CloseMessage, SetVariable, TakeSnapshot
from asgl.language.operation import OpenMessage, Operation
from asgl.language.ops import Extend, Gen, Role, Select, Text, TextOf

Prefix: TypeAlias = list[
    tuple[OpenMessage | None, Text | Role | Extend | TakeSnapshot | CloseMessage]
]
"""Ops, each with the role block that it stands in."""


def prefix(nodes: Iterable[Node], symbols: Symbols) -> Prefix:
    """The ops that all runs begin with. The last may be the beginning of one."""
    found: Prefix = []
    for node in (node for node in nodes if node.stream == 0):
        spec = node.spec
        if isinstance(spec, SetVariable):
            continue
        if not isinstance(spec, Text | Role | Extend | TakeSnapshot | CloseMessage):
            break
        parts = parts_of(spec)
        if not node.uses and all(
            isinstance(part, Text | TakeSnapshot | CloseMessage) for part in parts
        ):
            found.append((node.message, spec))
            continue
        if parts and isinstance(parts[0], Text) and not (isinstance(spec, Role) and spec.tools):
            first = symbols.pieces(parts[0].text)[:1]
            message = OpenMessage(spec.role) if isinstance(spec, Role) else node.message
            found += [(message, Text(piece)) for piece in first if isinstance(piece, str)]
        break
    return found


def prefix_text(nodes: Iterable[Node], symbols: Symbols) -> str:
    """The text of the prefix, without what a chat template writes around messages."""
    parts = [part for _, spec in prefix(nodes, symbols) for part in parts_of(spec)]
    return "".join(part.text for part in parts if isinstance(part, Text))


def reordered(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """The nodes after code movement."""
    referred = {
        source
        for node in nodes
        if isinstance(node.spec, TextOf | Extend | Role)
        for source in node.spec.sources
    }
    moved = list(nodes)
    parted: set[int] = set()
    """The streams that are not the same in all runs from their beginning on."""
    for stream in dict.fromkeys(node.stream for node in nodes):
        for places in _groups(nodes, stream, referred):
            first, rest = nodes[places[0]], places[-1] + 1
            if stream not in parted and isinstance(first.spec, Text | TextOf):
                ends = next((node for node in nodes[rest:] if node.stream == stream), None)
                sorted_places = (
                    places[:-1]
                    if ends is not None and isinstance(ends.spec, Gen | Select | Call | Fork)
                    else places
                )
                group = sorted(
                    (nodes[place] for place in sorted_places),
                    key=lambda node: not _is_constant(node),
                )
                for place, node in zip(sorted_places, group, strict=True):
                    moved[place] = node
            if not all(_is_constant(nodes[place]) for place in places):
                parted.add(stream)
            if isinstance(first.spec, Fork) and stream in parted:
                parted.update(first.spec.streams)
    return tuple(moved)


def _groups(nodes: Sequence[Node], stream: int, referred: set[Operation]) -> Iterator[list[int]]:
    """The places of the stream's nodes, those of texts next to each other together."""
    group: list[int] = []
    for place, node in enumerate(nodes):
        if node.stream != stream:
            continue
        movable = isinstance(node.spec, Text | TextOf) and node.op not in referred
        if group and not (movable and node.message is nodes[group[-1]].message):
            yield group
            group = []
        group.append(place)
        if not movable:
            yield group
            group = []
    if group:
        yield group


def _is_constant(node: Node) -> bool:
    """Whether it is the same in all runs, and says the same."""
    return not node.uses and all(
        isinstance(part, Text | TakeSnapshot | CloseMessage | Fork | SetVariable)
        for part in parts_of(node.spec)
    )
