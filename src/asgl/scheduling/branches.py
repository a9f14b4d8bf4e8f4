"""The branches of a select: a trie of the options' tokens, whose log-probabilities are scored after one shared prompt.

    options  "a b c", "a b d", "a e"        prompt -- a -- b -- c
                                                       \\    \\- d
                                                        \\- e

The log-probability of a token comes from its parent's logits, so only tokens that have children are computed (here a and
b), each once however many options share it. Chains of them are the *edges*, each a row of a step that reads the slots of
the prompt and of the edges above.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from asgl.plan import INT


class Edge:
    """A chain of tokens to be computed. `nodes` are its trie nodes, `slots` those taken so far."""

    __slots__ = ("nodes", "parent", "slots", "start", "tokens")

    def __init__(self, parent: Edge | None) -> None:
        self.parent = parent
        self.nodes: list[int] = []
        self.tokens = array(INT)
        self.slots = array(INT)
        self.start: int = parent.start + len(parent.tokens) if parent is not None else 0
        """How many tokens stand between the prompt and this edge."""

    def path(self) -> list[Edge]:
        """The edges from the prompt down to this one."""
        path: list[Edge] = []
        edge: Edge | None = self
        while edge is not None:
            path.append(edge)
            edge = edge.parent
        return path[::-1]


class Branches:
    """The trie, and how far it is computed. Options may repeat, be prefixes of one another, or be empty (scored [])."""

    def __init__(self, options: Sequence[Sequence[int]]) -> None:
        self._tokens: list[int] = [-1]
        self._children: list[dict[int, int]] = [{}]
        self._scores: list[float] = [0.0]
        self._paths = [self._add(option) for option in options]
        self.edges: list[Edge] = []
        self._build_edges()
        self.size = sum(len(edge.tokens) for edge in self.edges)
        """How many tokens are computed, beyond the prompt."""

    @property
    def missing(self) -> int:
        """How many of them have no slots yet."""
        return self.size - sum(len(edge.slots) for edge in self.edges)

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
        """Edges in depth-first order, so that a parent always comes before its children. No recursion: options are long."""
        starts: list[tuple[int, Edge | None]] = [(child, None) for child in reversed(self._inner_children(0))]
        while starts:
            node, parent = starts.pop()
            edge = Edge(parent)
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

    def pending(self) -> list[tuple[Edge, int]]:
        """The edges that are not computed whole, and the offset from which each is to be."""
        return [(edge, len(edge.slots)) for edge in self.edges if len(edge.slots) < len(edge.tokens)]

    def reset(self) -> array[int]:
        """Forgets the slots, which the caller frees. What was recorded is overwritten when it is computed again."""
        freed = array(INT)
        for edge in self.edges:
            freed.extend(edge.slots)
            edge.slots = array(INT)
        return freed

    def results(self) -> list[list[float]]:
        """For each option the log-probabilities of its tokens."""
        return [[self._scores[node] for node in path] for path in self._paths]
