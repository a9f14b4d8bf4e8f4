"""The options of a select as a trie of their tokens, whose log-probabilities are scored after one
shared prompt.

    options  "a b c", "a b d", "a e"        prompt -- a -- b -- c
                                                       \\    \\- d
                                                        \\- e

The log-probability of a token comes from its parent's logits, so only tokens that have children are
computed (here a and b), each once however many options share it. Chains of them are the *edges*,
each a row of a step that reads the slots of the prompt and of the edges above.

The trie may be larger than the cache: it is worked off depth first. An edge that is computed is
cached and locked, and let go once nothing below it is left, so that between two steps only the
edges on the way to the next one are held.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence

from asgl.plan import INT
from asgl.scheduling.radix_cache import Node


class Edge:
    """A chain of tokens to be computed. `nodes` are its trie nodes, `slots` those taken so far."""

    __slots__ = ("below", "done", "index", "node", "nodes", "parent", "slots", "start", "tokens")

    def __init__(self, parent: Edge | None, index: int) -> None:
        self.parent = parent
        self.index = index
        """Its place in depth-first order."""
        self.nodes: list[int] = []
        self.tokens = array(INT)
        self.slots = array(INT)
        self.start: int = parent.start + len(parent.tokens) if parent is not None else 0
        """How many tokens stand between the prompt and this edge."""
        self.node: Node | None = None
        """The locked node of the cache that the edge ends at, once it is computed. Before that its
        slots are its own."""
        self.below = 0
        """How many of the edges right below it are not done."""
        self.done = False
        """It and all that is below it is computed: it holds nothing any more."""
        if parent is not None:
            parent.below += 1

    @property
    def end(self) -> int:
        """How many tokens there are from the prompt to the end of this edge."""
        return self.start + len(self.tokens)

    @property
    def complete(self) -> bool:
        """Whether it has slots for all its tokens."""
        return len(self.slots) == len(self.tokens)

    def path(self) -> list[Edge]:
        """The edges from the prompt down to this one."""
        path: list[Edge] = []
        edge: Edge | None = self
        while edge is not None:
            path.append(edge)
            edge = edge.parent
        return path[::-1]


class SelectTree:
    """The trie, and how far it is computed. Options may repeat, be prefixes of one another, or be
    empty (scored [])."""

    def __init__(self, options: Sequence[Sequence[int]]) -> None:
        self._tokens: list[int] = [-1]
        self._children: list[dict[int, int]] = [{}]
        self._scores: list[float] = [0.0]
        self._paths = [self._add(option) for option in options]
        self.edges: list[Edge] = []
        """In depth-first order: what is above comes first."""
        self._build_edges()
        self.size = sum(len(edge.tokens) for edge in self.edges)
        """How many tokens are computed, beyond the prompt."""
        self.depth = max((edge.end for edge in self.edges), default=0)
        """The most slots that have to be held at once, beyond the prompt's."""
        self.unfinished = len(self.edges)
        """How many edges are not done."""
        self._first = 0
        self._holding: dict[Edge, None] = {}

    def _add(self, option: Sequence[int]) -> list[int]:
        node = 0
        path: list[int] = []
        for token in option:
            child = self._children[node].get(token)
            if child is None:
                child = self._children[node][token] = len(self._tokens)
                self._tokens.append(token)
                self._children.append({})
                self._scores.append(0.0)
            path.append(child)
            node = child
        return path

    def _build_edges(self) -> None:
        """Edges in depth-first order, so that a parent always comes before its children. No
        recursion: options are long."""
        starts: list[tuple[int, Edge | None]] = [
            (child, None) for child in reversed(self._inner_children(0))
        ]
        while starts:
            node, parent = starts.pop()
            edge = Edge(parent, len(self.edges))
            while True:
                edge.nodes.append(node)
                edge.tokens.append(self._tokens[node])
                following = self._inner_children(node)
                if len(following) != 1:
                    break
                node = following[0]
            self.edges.append(edge)
            starts.extend((child, edge) for child in reversed(following))

    def _inner_children(self, node: int) -> list[int]:
        return [child for child in self._children[node].values() if self._children[child]]

    def targets(self, node: int = 0) -> tuple[int, ...]:
        """The tokens to score after a trie node (0 is the prompt's last token)."""
        return tuple(self._children[node])

    def record(self, node: int, values: Sequence[float]) -> None:
        """Takes the log-probabilities of `targets(node)`."""
        for child, value in zip(self._children[node].values(), values, strict=True):
            self._scores[child] = value

    # --- slots ------------------------------------------------------------------------------------

    @property
    def holding(self) -> list[Edge]:
        """The edges that hold slots, of their own or locked in the cache."""
        return list(self._holding)

    @property
    def reserve(self) -> int:
        """How many slots more it may have to hold at once."""
        return (
            max(0, self.depth - sum(len(edge.slots) for edge in self._holding))
            if self.unfinished
            else 0
        )

    def pending(self) -> Iterator[tuple[Edge, int]]:
        """The edges that have no slots for all their tokens, in depth-first order, each with how
        many it has."""
        while self._first < len(self.edges) and self.edges[self._first].done:
            self._first += 1
        for index in range(self._first, len(self.edges)):
            edge = self.edges[index]
            if not edge.done and not edge.complete:
                yield edge, len(edge.slots)

    def take(self, edge: Edge, slots: array[int]) -> None:
        """The edge's next tokens are to be computed into these slots."""
        edge.slots.extend(slots)
        self._holding[edge] = None

    def finish(self, edge: Edge) -> list[Edge]:
        """The edge is computed. Returns the edges that are done by that, which the caller lets go
        of: it and those above."""
        done: list[Edge] = []
        above: Edge | None = edge
        while above is not None and not above.below:
            above.done = True
            self.unfinished -= 1
            del self._holding[above]
            done.append(above)
            above = above.parent
            if above is not None:
                above.below -= 1
        return done

    def reset(self) -> None:
        """Forgets the slots, which the caller has freed. What is not done is computed again, what
        is done is not."""
        for edge in self._holding:
            edge.slots, edge.node = array(INT), None
        self._holding.clear()
        self._first = 0

    def results(self) -> list[list[float]]:
        """For each option the log-probabilities of its tokens."""
        return [[self._scores[node] for node in path] for path in self._paths]
