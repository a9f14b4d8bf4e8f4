"""In which order waiting requests are admitted.

    lpm          longest matched prefix first            O(log n) a request
    fcfs         first come, first served                O(log n)
    random       at random, by the request's number      O(log n)
    aged-lpm     lpm, but waiting raises priority, and   O(log n)
                 past an age nothing overtakes
    dfs-weight   the radix tree in depth-first order,    O(nodes with waiting requests x depth) a step,
                 busiest subtree first                   O(1) a request

Most policies are a sort key that is static but for the matched length, so that the queue is a heap
in which only requests whose match changed are moved. Why lpm visits the tree like a depth-first
search: docs/scheduling.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from typing import Any, Protocol, TypeAlias

from asgl.errors import ConfigError
from asgl.scheduling.radix_cache import Node
from asgl.scheduling.request import Request

Key: TypeAlias = Callable[[Request], tuple[float, ...]]

AGING = 0.01
"""How many matched tokens the wait while one token is computed is worth, to aged-lpm."""
PATIENCE = 32_768
"""The age, in tokens computed meanwhile, past which aged-lpm admits nothing before the oldest
request."""


def lpm(request: Request) -> tuple[float, ...]:
    """Longest prefix match first: what shares most with the cache now is served before it is
    evicted (arXiv 2312.07104)."""
    return (-request.priority, -request.matched, request.arrival)


def fcfs(request: Request) -> tuple[float, ...]:
    return (-request.priority, request.arrival)


def random(request: Request) -> tuple[float, ...]:
    """An order without reason, but reproducible: the splitmix64 hash of the request's place of
    arrival."""
    mixed = (request.arrival * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    return (-request.priority, float(mixed >> 11))


def aged_lpm(request: Request) -> tuple[float, ...]:
    """Matched length plus age: since all ages grow alike, the order of two requests only changes
    with their matches."""
    return (-request.priority, AGING * request.arrived_at - request.matched, request.arrival)


KEYS: dict[str, Key] = {"lpm": lpm, "fcfs": fcfs, "random": random, "aged-lpm": aged_lpm}
POLICIES = (*KEYS, "dfs-weight")


class Queue(Protocol):
    """Waiting requests, in the order of a policy."""

    def __len__(self) -> int: ...

    def __contains__(self, request: Request, /) -> bool: ...

    def push(self, request: Request, /) -> None:
        """Adds the request, or moves it to where it belongs now."""

    def remove(self, request: Request, /) -> None:
        """Takes the request out, if it is in."""

    def pop(self) -> Request | None:
        """Takes the first request out; None if there is none."""
        ...


SMALL_HEAP = 64


def drop_stale(heap: list[Any], limit: int, is_alive: Callable[[Any], bool]) -> int:
    """Takes out what says nothing any more of a heap that has more than `limit` entries; the next
    limit: twice what is left.

    Entries that are only skipped when they come up would be kept for ever where something always
    comes before them. O(1) a push, on average.
    """
    if len(heap) <= limit:
        return limit
    heap[:] = filter(is_alive, heap)
    heapify(heap)
    return max(SMALL_HEAP, 2 * len(heap))


def make_queue(policy: str) -> Queue:
    """ConfigError for a policy that there is not."""
    if policy == "dfs-weight":
        return DepthFirstQueue()
    if policy not in KEYS:
        raise ConfigError(
            f"there is no scheduling policy {policy!r}; there are {', '.join(POLICIES)}"
        )
    return KeyedQueue(KEYS[policy])


class KeyedQueue:
    """A heap by sort key. Entries that a move or removal left behind are skipped when they come
    up."""

    def __init__(self, key: Key) -> None:
        self._key = key
        self._heap: list[tuple[tuple[float, ...], int, Request]] = []
        self._entries: dict[Request, int] = {}
        self._serial = 0
        self._limit = SMALL_HEAP

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, request: Request) -> bool:
        return request in self._entries

    def push(self, request: Request) -> None:
        self._serial += 1
        self._entries[request] = self._serial
        heappush(self._heap, (self._key(request), self._serial, request))
        self._limit = drop_stale(
            self._heap, self._limit, lambda entry: self._entries.get(entry[2]) == entry[1]
        )

    def remove(self, request: Request) -> None:
        self._entries.pop(request, None)

    def pop(self) -> Request | None:
        while self._heap:
            _, serial, request = heappop(self._heap)
            if self._entries.get(request) == serial:
                del self._entries[request]
                return request
        return None


class DepthFirstQueue:
    """The radix tree in depth-first order: of a node's children first the one that was used last,
    so that a subtree is served to its end before the next one is begun; then the one with most
    waiting requests below.

    Requests wait at the node where their match ends (`Request.watched_at`); those at a node itself
    come after its children. Higher priorities come first, each with a visit of its own.
    """

    def __init__(self) -> None:
        self._at: dict[int, dict[Node, dict[Request, None]]] = {}
        self._where: dict[Request, tuple[int, Node]] = {}
        self._visit: Iterator[Request] | None = None

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, request: Request) -> bool:
        return request in self._where

    def push(self, request: Request) -> None:
        self.remove(request)
        node = request.watched_at
        assert node is not None
        self._where[request] = (-request.priority, node)
        self._at.setdefault(-request.priority, {}).setdefault(node, {})[request] = None
        self._visit = None

    def remove(self, request: Request) -> None:
        where = self._where.pop(request, None)
        if where is None:
            return
        order, node = where
        waiting = self._at[order][node]
        del waiting[request]
        if not waiting:
            del self._at[order][node]
            if not self._at[order]:
                del self._at[order]

    def pop(self) -> Request | None:
        if not self._where:
            return None
        if self._visit is None:
            self._visit = self._depth_first(self._at[min(self._at)])
        request = next((request for request in self._visit if request in self._where), None)
        if request is None:  # this priority is done
            self._visit = None
            return self.pop()
        self.remove(request)
        return request

    @staticmethod
    def _depth_first(at: dict[Node, dict[Request, None]]) -> Iterator[Request]:
        weights: dict[Node, int] = {}
        children: dict[Node, dict[Node, None]] = {}
        roots: dict[Node, None] = {}
        for node, waiting in at.items():
            weight, above = len(waiting), node
            weights[above] = weights.get(above, 0) + weight
            while above.parent is not None:
                children.setdefault(above.parent, {})[above] = None
                above = above.parent
                weights[above] = weights.get(above, 0) + weight
            roots[above] = None
        stack: list[tuple[Node, bool]] = [
            (root, False) for root in sorted(roots, key=lambda node: weights[node])
        ]
        while stack:
            node, below_done = stack.pop()
            if below_done:
                # those whose match ends inside the node's edge are below each other, too
                yield from sorted(
                    at.get(node, ()), key=lambda request: (-request.matched, request.arrival)
                )
            else:
                stack.append((node, True))
                # what is pushed last is visited first; of equal ones the one that came first
                below = [
                    (child.last_used == node.last_used, weights[child], -order, child)
                    for order, child in enumerate(children.get(node, ()))
                ]
                stack.extend((child, False) for *_, child in sorted(below))
