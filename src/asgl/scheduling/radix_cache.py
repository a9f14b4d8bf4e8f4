"""The prefix cache: a radix tree from token sequences to slots of the KV cache (RadixAttention,
arXiv 2312.07104).

    root --[1 2 3 4]-- A --[5 6]-- B      each edge has `key`, its tokens, and `slots`, where their
                        \\--[7]---- C      keys and values are; C is the prefix 1 2 3 4 7

Locks say which prefixes running requests read: a lock on a node counts on its whole path to the
root, so `locks` never grows from parent to child, and the unlocked nodes form whole subtrees.
Eviction takes unlocked leaves, least recently used first, by a logical clock that ticks once for
each match and insertion: it is deterministic.

Namespaces are separate roots: no match crosses them.

Waiting requests are *watched*: the cache keeps the matched length of each up to date as nodes come
and go, so that nobody has to match a long queue again at every step. A watcher sits where its match
ends:

    at the end of a node's edge   in `node.watchers[next token]`: only a new child that starts with
                                  this token matters
    inside an edge                in `node.inside`: only a split of this edge matters
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from asgl.errors import InternalError
from asgl.plan import INT


class Node:
    """A node and the edge that leads to it. `depth` counts the tokens from the root to the end of
    the edge."""

    __slots__ = (
        "children",
        "depth",
        "inside",
        "key",
        "last_used",
        "locks",
        "namespace",
        "parent",
        "queued",
        "slots",
        "watchers",
    )

    def __init__(
        self, parent: Node | None, key: array[int], slots: array[int], namespace: str | None
    ) -> None:
        self.parent = parent
        self.key = key
        self.slots = slots
        self.namespace = namespace
        self.depth: int = (parent.depth if parent is not None else 0) + len(key)
        self.children: dict[int, Node] = {}
        self.locks = 0
        self.last_used = 0
        self.queued = False
        """Whether the eviction heap has an entry for this node."""
        self.watchers: dict[int, dict[Any, None]] = {}
        self.inside: dict[Any, None] = {}

    @property
    def start(self) -> int:
        """The depth at which the node's edge begins."""
        return self.depth - len(self.key)

    def path(self) -> Iterator[Node]:
        """This node and those above it, without the root."""
        node: Node = self
        while node.parent is not None:
            yield node
            node = node.parent

    def __repr__(self) -> str:
        return (
            f"<Node {self.start}:{self.depth} locks={self.locks} used={self.last_used} "
            f"children={len(self.children)}>"
        )


class Watched(Protocol):
    """A waiting request, as the cache sees it. `matched` and `watched_at` are the cache's to
    write."""

    tokens: array[int]
    matched: int
    watched_at: Node | None

    @property
    def namespace(self) -> str | None: ...

    def __hash__(self) -> int: ...


Watcher = TypeVar("Watcher", bound=Watched)


class Match(NamedTuple):
    node: Node
    """The node at which the match ends (the root, if nothing matched)."""
    slots: array[int]
    """The slots of the matched tokens."""


class Insertion(NamedTuple):
    node: Node
    """The node at which the inserted sequence ends."""
    existing: int
    """How many of its tokens were in the tree before; for these the tree kept its own slots."""
    slots: array[int]
    """The tree's slots for the whole sequence."""


def common_prefix(a: array[int], b: array[int], at: int = 0) -> int:
    """How many tokens of `a` stand in `b` from position `at` on. O(length), by comparing ever
    smaller slices."""
    length = min(len(a), len(b) - at)
    if a[:length] == b[at : at + length]:
        return length
    low, high = 0, length  # a[:low] is common, a[:high] is not
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] == b[at + low : at + middle]:
            low = middle
        else:
            high = middle
    return low


def _following(watcher: Watched) -> int:
    """The watcher's first token that is not matched; -1 if all are."""
    return watcher.tokens[watcher.matched] if watcher.matched < len(watcher.tokens) else -1


class RadixCache(Generic[Watcher]):
    """The tree. It owns the slots in it; those of evicted nodes come back from `evict`, to be freed
    by the caller.

    on_move: called with each watcher whose match, or the node where it ends, has changed.
    """

    def __init__(self, on_move: Callable[[Watcher], None] | None = None) -> None:
        self._roots: dict[str | None, Node] = {}
        self._clock = 0
        self._leaves: list[tuple[int, int, Node]] = []
        self._serial = 0
        self._on_move = on_move or (lambda watcher: None)
        self.evictable = 0
        """Slots in unlocked nodes."""
        self.pinned = 0
        """Slots in locked nodes."""
        self.evicted = 0
        """Slots evicted since the start."""

    @property
    def size(self) -> int:
        return self.evictable + self.pinned

    @property
    def namespaces(self) -> list[str | None]:
        """The namespaces that have a root."""
        return list(self._roots)

    # --- matching and insertion -------------------------------------------------------------------

    def match(self, tokens: array[int], namespace: str | None, limit: int) -> Match:
        """The longest cached prefix of `tokens[:limit]`.

        Marks the path as just used, and splits a node if the match ends inside its edge; slots and
        locks stay as they are. O(length of the match).
        """
        self._clock += 1
        limit = min(limit, len(tokens))
        node = self._roots.get(namespace) or Node(
            None, array(INT), array(INT), namespace
        )  # looking leaves no root behind
        node.last_used = self._clock
        slots = array(INT)
        while len(slots) < limit and (child := node.children.get(tokens[len(slots)])) is not None:
            common = min(common_prefix(child.key, tokens, len(slots)), limit - len(slots))
            if common < len(child.key):
                child = self._split(child, common)
            child.last_used = self._clock
            slots.extend(child.slots)
            node = child
        return Match(node, slots)

    def insert(self, tokens: array[int], slots: array[int], namespace: str | None) -> Insertion:
        """Makes `tokens` a prefix of the tree. The tree takes `slots[existing:]`; the first
        `existing` stay the caller's.

        Marks the path as just used. O(length).
        """
        if len(tokens) != len(slots):
            raise InternalError(f"{len(tokens)} tokens were inserted with {len(slots)} slots")
        if tokens:
            self._root(namespace)
        node, found = self.match(tokens, namespace, len(tokens))
        existing = len(found)
        if existing < len(tokens):
            leaf = Node(node, tokens[existing:], slots[existing:], namespace)
            leaf.last_used = self._clock
            node.children[leaf.key[0]] = leaf
            self.evictable += len(leaf.key)
            self._queue(leaf)
            found.extend(leaf.slots)
            for watcher in node.watchers.pop(leaf.key[0], {}):
                self._settle_watcher(watcher, node)
                self._on_move(watcher)
            node = leaf
        return Insertion(node, existing, found)

    def peek(self, tokens: array[int], namespace: str | None) -> int:
        """How many tokens `match` would find. Changes nothing."""
        node, matched = self._roots.get(namespace), 0
        while node is not None and matched < len(tokens):
            node = node.children.get(tokens[matched])
            if node is not None:
                common = common_prefix(node.key, tokens, matched)
                matched += common
                if common < len(node.key):
                    break
        return matched

    # --- locks and eviction -----------------------------------------------------------------------

    def lock(self, node: Node) -> None:
        """Keeps the prefix that ends at `node` from eviction, until `unlock`. O(depth of the
        tree)."""
        for above in node.path():
            if above.locks == 0:
                self.evictable -= len(above.key)
                self.pinned += len(above.key)
            above.locks += 1

    def unlock(self, node: Node) -> None:
        """Undoes one `lock`."""
        for above in node.path():
            if above.locks == 0:
                raise InternalError(f"{above!r} was unlocked more often than locked")
            above.locks -= 1
            if above.locks == 0:
                self.pinned -= len(above.key)
                self.evictable += len(above.key)
                self._queue(above)

    def evict(self, count: int) -> array[int]:
        """Evicts least recently used unlocked leaves until `count` slots are free, or none is left.
        Returns the slots.

        A leaf that has more tokens than are wanted loses its last ones only.
        """
        freed = array(INT)
        while len(freed) < count and self._leaves:
            last_used, _, node = heappop(self._leaves)
            node.queued = False
            if node.parent is None or node.children or node.locks:
                continue  # it is no evictable leaf any more; it is queued again when it becomes one
            if node.last_used != last_used:
                self._queue(node)
                continue
            surplus = len(node.key) - (count - len(freed))
            if surplus > 0:
                self._split(node, surplus)
            freed.extend(node.slots)
            self._remove(node)
        self.evicted += len(freed)
        return freed

    def evict_path(self, node: Node) -> array[int]:
        """Evicts `node` and the nodes above it, up to the first that is locked or has other
        children. Returns the slots."""
        freed = array(INT)
        while (parent := node.parent) is not None and not node.children and not node.locks:
            freed.extend(node.slots)
            self._remove(node)
            node = parent
        self.evicted += len(freed)
        return freed

    def _remove(self, leaf: Node) -> None:
        parent = leaf.parent
        assert parent is not None
        self.evictable -= len(leaf.key)
        del parent.children[leaf.key[0]]
        leaf.parent = None
        moved = list(leaf.inside) + [
            watcher for group in leaf.watchers.values() for watcher in group
        ]
        for watcher in moved:
            watcher.matched = parent.depth
            self._attach(watcher, parent, inside=False)
            self._on_move(watcher)
        if parent.parent is not None:
            self._queue(parent)
        elif not parent.children and not parent.watchers:
            del self._roots[parent.namespace]

    def _queue(self, node: Node) -> None:
        """Puts a node in the eviction heap if it is an evictable leaf. At most one entry a node."""
        if node.queued or node.children or node.locks or node.parent is None:
            return
        self._serial += 1
        node.queued = True
        heappush(self._leaves, (node.last_used, self._serial, node))

    # --- watching ---------------------------------------------------------------------------------

    def watch(self, watcher: Watcher) -> None:
        """Sets `watcher.matched`, and keeps it what `peek` would return until `unwatch`."""
        watcher.matched = 0
        self._settle_watcher(watcher, self._root(watcher.namespace))

    def unwatch(self, watcher: Watcher) -> None:
        node = watcher.watched_at
        if node is None:
            return
        watcher.watched_at = None
        if watcher in node.inside:
            del node.inside[watcher]
        else:
            group = node.watchers[_following(watcher)]
            del group[watcher]
            if not group:
                del node.watchers[_following(watcher)]
        if node.parent is None and not node.children and not node.watchers:
            self._roots.pop(node.namespace, None)

    def _settle_watcher(self, watcher: Watcher, node: Node) -> None:
        """Walks down from `node`, which the watcher's tokens reach, and attaches the watcher where
        its match ends."""
        tokens, matched = watcher.tokens, node.depth
        while matched < len(tokens) and (child := node.children.get(tokens[matched])) is not None:
            common = common_prefix(child.key, tokens, matched)
            matched += common
            node = child
            if common < len(child.key):
                watcher.matched = matched
                self._attach(watcher, child, inside=True)
                return
        watcher.matched = matched
        self._attach(watcher, node, inside=False)

    def _attach(self, watcher: Watcher, node: Node, *, inside: bool) -> None:
        watcher.watched_at = node
        if inside:
            node.inside[watcher] = None
        else:
            node.watchers.setdefault(_following(watcher), {})[watcher] = None

    # --- structure --------------------------------------------------------------------------------

    def _root(self, namespace: str | None) -> Node:
        root = self._roots.get(namespace)
        if root is None:
            root = self._roots[namespace] = Node(None, array(INT), array(INT), namespace)
        return root

    def _split(self, node: Node, at: int) -> Node:
        """Puts a new node above `node`, with the first `at` tokens of its edge; returns it.

            parent --[a b c d]-- node     becomes     parent --[a b]-- upper --[c d]-- node

        `node` stays the same object, so that who has locked it keeps a lock on the whole path.
        """
        parent = node.parent
        assert parent is not None
        upper = Node(parent, node.key[:at], node.slots[:at], node.namespace)
        upper.locks, upper.last_used = node.locks, node.last_used
        upper.children[node.key[at]] = node
        parent.children[upper.key[0]] = upper
        node.parent, node.key, node.slots = upper, node.key[at:], node.slots[at:]
        for watcher in [watcher for watcher in node.inside if watcher.matched <= upper.depth]:
            del node.inside[watcher]
            self._attach(watcher, upper, inside=watcher.matched < upper.depth)
            self._on_move(watcher)
        return upper

    def clear(self) -> array[int]:
        """Evicts everything that is not locked. Returns the slots."""
        return self.evict(self.evictable)

    def nodes(self) -> Iterator[Node]:
        """All nodes but the roots, for checks and pictures."""
        stack = [child for root in self._roots.values() for child in root.children.values()]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())

    def check(self) -> None:
        """Raises InternalError if an invariant of the tree is broken. O(size of the tree)."""
        evictable = pinned = 0
        seen: set[int] = set()
        queued = {id(node) for _, _, node in self._leaves}
        for node in self.nodes():
            parent = node.parent
            problem = None
            if parent is None or parent.children.get(node.key[0]) is not node:
                problem = "is not its parent's child"
            elif (
                not node.key
                or len(node.key) != len(node.slots)
                or node.depth != parent.depth + len(node.key)
            ):
                problem = "has a key, slots and depth that do not agree"
            elif node.locks < 0 or (
                parent.parent is not None
                and parent.locks < sum(c.locks for c in parent.children.values())
            ):
                problem = "is locked more often than its parent"
            elif parent.parent is not None and parent.last_used < node.last_used:
                problem = "was used later than its parent"
            elif node.namespace != parent.namespace:
                problem = "is in another namespace than its parent"
            elif not node.children and not node.locks and id(node) not in queued:
                problem = "is an evictable leaf that eviction does not know"
            elif seen.intersection(node.slots) or len(set(node.slots)) != len(node.slots):
                problem = "has a slot that stands in the tree twice"
            if problem:
                raise InternalError(f"radix cache: {node!r} {problem}")
            seen.update(node.slots)
            if node.locks:
                pinned += len(node.key)
            else:
                evictable += len(node.key)
        if (evictable, pinned) != (self.evictable, self.pinned):
            raise InternalError(
                f"radix cache: counted {evictable} evictable and {pinned} pinned slots, "
                f"not {self.evictable} and {self.pinned}"
            )
