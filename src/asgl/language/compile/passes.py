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

from asgl.language.compile.nodes import Call, Fork, Node, parts_of
from asgl.language.compile.symbols import Symbols
from asgl.language.item import Block, CloseTurn, Item, Point, SetVariable
from asgl.language.ops import Extend, FromHandle, Gen, Role, Select, Text, handles_of

Prefix: TypeAlias = list[tuple[Block | None, Text | Role | Extend | Point | CloseTurn]]
"""Ops, each with the role block that it stands in."""


def prefix(nodes: Iterable[Node], symbols: Symbols) -> Prefix:
    """The ops that all runs begin with. The last may be the beginning of one."""
    found: Prefix = []
    for node in (node for node in nodes if node.stream == 0):
        work = node.work
        if isinstance(work, SetVariable):
            continue
        if not isinstance(work, Text | Role | Extend | Point | CloseTurn):
            break
        parts = parts_of(work)
        if not node.uses and all(isinstance(part, Text | Point | CloseTurn) for part in parts):
            found.append((node.block, work))
            continue
        if parts and isinstance(parts[0], Text) and not (isinstance(work, Role) and work.tools):
            first = symbols.pieces(parts[0].text)[:1]
            block = Block(work.role) if isinstance(work, Role) else node.block
            found += [(block, Text(piece)) for piece in first if isinstance(piece, str)]
        break
    return found


def prefix_text(nodes: Iterable[Node], symbols: Symbols) -> str:
    """The text of the prefix, without what a chat template writes around messages."""
    parts = [part for _, work in prefix(nodes, symbols) for part in parts_of(work)]
    return "".join(part.text for part in parts if isinstance(part, Text))


def reordered(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """The nodes after code movement."""
    referred = {handle.item for node in nodes for handle in handles_of(node.work)}
    moved = list(nodes)
    parted: set[int] = set()
    """The streams that are not the same in all runs from their beginning on."""
    for stream in dict.fromkeys(node.stream for node in nodes):
        for places in _groups(nodes, stream, referred):
            first, rest = nodes[places[0]], places[-1] + 1
            if stream not in parted and isinstance(first.work, Text | FromHandle):
                ends = next((node for node in nodes[rest:] if node.stream == stream), None)
                sorted_places = (
                    places[:-1]
                    if ends is not None and isinstance(ends.work, Gen | Select | Call | Fork)
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
            if isinstance(first.work, Fork) and stream in parted:
                parted.update(first.work.streams)
    return tuple(moved)


def _groups(nodes: Sequence[Node], stream: int, referred: set[Item]) -> Iterator[list[int]]:
    """The places of the stream's nodes, those of texts next to each other together."""
    group: list[int] = []
    for place, node in enumerate(nodes):
        if node.stream != stream:
            continue
        movable = isinstance(node.work, Text | FromHandle) and node.item not in referred
        if group and not (movable and node.block is nodes[group[-1]].block):
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
        isinstance(part, Text | Point | CloseTurn | Fork | SetVariable)
        for part in parts_of(node.work)
    )
