"""Waiting requests: in which order they are admitted, and how namespaces take turns.

    lpm          longest matched prefix first            O(log n) a request
    fcfs         first come, first served                O(log n)
    random       at random, by the request's number      O(log n)
    aged-lpm     lpm, but waiting raises priority, and   O(log n)
                 past an age nothing overtakes
    dfs-weight   the radix tree in depth-first order,    O(1) a request; a step O(depth x nodes with
                 busiest subtree first                   waiting requests)

Most policies are a sort key that is static but for the matched length, so that the queue is a heap
in which only requests whose match changed are moved. Why lpm visits the tree like a depth-first
search: docs/scheduling.md.

Each namespace has a queue of its own. Fairness between them is start-time fair queueing (Goyal, Vin
and Cheng, SIGCOMM 1996) over the tokens that requests need: each namespace has a virtual time that
advances by what its admitted requests cost, and the namespace that is furthest behind is next. One
that was idle starts at the time of the busy ones: it neither saves up turns nor is made to pay for
the past. That time advances by a namespace's share of all that is served, so that an endless stream
of new namespaces does not stay ahead of an old one. O(log n) a request for n namespaces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from typing import Any, Protocol, TypeAlias

from asgl.errors import ConfigError
from asgl.scheduling.radix_cache import Node
from asgl.scheduling.sequence import SequenceState

Key: TypeAlias = Callable[[SequenceState], tuple[float, ...]]

AGING = 0.01
"""How many matched tokens the wait while one token is computed is worth, to aged-lpm."""
PATIENCE = 32_768
"""The age, in tokens computed meanwhile, past which aged-lpm admits nothing before the oldest
sequence."""


def lpm(sequence: SequenceState) -> tuple[float, ...]:
    """Longest prefix match first: what shares most with the cache now is served before it is
    evicted (arXiv 2312.07104)."""
    return (-sequence.request.priority, -sequence.matched, sequence.arrival)


def fcfs(sequence: SequenceState) -> tuple[float, ...]:
    return (-sequence.request.priority, sequence.arrival)


def random(sequence: SequenceState) -> tuple[float, ...]:
    """Random but reproducible: the splitmix64 hash of the request's place of arrival."""
    mixed = (sequence.arrival * 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    return (-sequence.request.priority, float(mixed >> 11))


def aged_lpm(sequence: SequenceState) -> tuple[float, ...]:
    """Matched length plus age: since all ages grow alike, the order of two requests only changes
    with their matches."""
    return (
        -sequence.request.priority,
        AGING * sequence.arrived_at - sequence.matched,
        sequence.arrival,
    )


KEYS: dict[str, Key] = {"lpm": lpm, "fcfs": fcfs, "random": random, "aged-lpm": aged_lpm}
POLICIES = (*KEYS, "dfs-weight")


class Queue(Protocol):
    """Waiting requests, in the order of a policy."""

    def __len__(self) -> int: ...

    @property
    def entries(self) -> int:
        """How many entries it keeps, dead ones included."""
        ...

    def __contains__(self, sequence: SequenceState, /) -> bool: ...

    def push(self, sequence: SequenceState, /) -> None:
        """Adds the sequence, or moves it to where it belongs now."""

    def remove(self, sequence: SequenceState, /) -> None:
        """Takes the request out, if it is in."""

    def pop(self) -> SequenceState | None:
        """Takes the first request out; None if there is none."""
        ...


SMALL_HEAP = 64
"""A heap of fewer entries is not searched for dead ones."""


def drop_stale(heap: list[Any], limit: int, is_alive: Callable[[Any], bool]) -> int:
    """Removes the dead entries of a heap that has more than `limit` entries; returns the next
    limit, twice what is left.

    Dead entries are skipped when they come up, but where something always comes before them they
    would be kept for ever. O(1) a push, on average.
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
        self._heap: list[tuple[tuple[float, ...], int, SequenceState]] = []
        self._entries: dict[SequenceState, int] = {}
        self._serial = 0
        self._limit = SMALL_HEAP

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def entries(self) -> int:
        return len(self._heap)

    def __contains__(self, sequence: SequenceState) -> bool:
        return sequence in self._entries

    def push(self, sequence: SequenceState) -> None:
        self._serial += 1
        self._entries[sequence] = self._serial
        heappush(self._heap, (self._key(sequence), self._serial, sequence))
        self._limit = drop_stale(
            self._heap, self._limit, lambda entry: self._entries.get(entry[2]) == entry[1]
        )

    def remove(self, sequence: SequenceState) -> None:
        self._entries.pop(sequence, None)

    def pop(self) -> SequenceState | None:
        while self._heap:
            _, serial, sequence = heappop(self._heap)
            if self._entries.get(sequence) == serial:
                del self._entries[sequence]
                return sequence
        return None


class DepthFirstQueue:
    """Visits the radix tree in depth-first order: of a node's children first the one that was used
    last, so that a subtree is served to its end before the next one is begun; then the one with
    most waiting requests below.

    Requests wait at the node where their match ends (`SequenceState.watched_at`); those at a node
    itself come after its children. Higher priorities come first, each with a visit of its own.
    """

    def __init__(self) -> None:
        self._at: dict[int, dict[Node, dict[SequenceState, None]]] = {}
        self._where: dict[SequenceState, tuple[int, Node]] = {}
        self._visit: Iterator[SequenceState] | None = None

    def __len__(self) -> int:
        return len(self._where)

    @property
    def entries(self) -> int:
        return len(self._where)

    def __contains__(self, sequence: SequenceState) -> bool:
        return sequence in self._where

    def push(self, sequence: SequenceState) -> None:
        self.remove(sequence)
        node = sequence.watched_at
        assert node is not None
        self._where[sequence] = (-sequence.request.priority, node)
        self._at.setdefault(-sequence.request.priority, {}).setdefault(node, {})[sequence] = None
        self._visit = None

    def remove(self, sequence: SequenceState) -> None:
        where = self._where.pop(sequence, None)
        if where is None:
            return
        order, node = where
        waiting = self._at[order][node]
        del waiting[sequence]
        if not waiting:
            del self._at[order][node]
            if not self._at[order]:
                del self._at[order]

    def pop(self) -> SequenceState | None:
        if not self._where:
            return None
        if self._visit is None:
            self._visit = self._depth_first(self._at[min(self._at)])
        sequence = next((each for each in self._visit if each in self._where), None)
        if sequence is None:  # this priority is done
            self._visit = None
            return self.pop()
        self.remove(sequence)
        return sequence

    @staticmethod
    def _depth_first(at: dict[Node, dict[SequenceState, None]]) -> Iterator[SequenceState]:
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
                    at.get(node, ()), key=lambda sequence: (-sequence.matched, sequence.arrival)
                )
            else:
                stack.append((node, True))
                # what is pushed last is visited first; of equal ones the one that came first
                below = [
                    (child.last_used == node.last_used, weights[child], -order, child)
                    for order, child in enumerate(children.get(node, ()))
                ]
                stack.extend((child, False) for *_, child in sorted(below))


class WaitingRequests:
    """The requests that wait, in all namespaces, and first of all those that are overdue.

    make_queue: makes the queue of a namespace. patience: the age past which requests are admitted
    by age alone, in the unit of the caller's `now`; None for never."""

    def __init__(self, make_queue: Callable[[], Queue], patience: int | None = None) -> None:
        self._make_queue = make_queue
        self._patience = patience
        self._queues: dict[str | None, Queue] = {}
        self._count = 0
        self.times: dict[str | None, float] = {}
        """The virtual times of namespaces; of those in which nothing waits, while they are ahead of
        the clock."""
        self._turns: list[tuple[float, int, str | None]] = []
        """A heap of namespaces by time; entries that a later one has replaced are skipped when they
        come up."""
        self._turn: dict[str | None, int] = {}
        """Which entry is that of a namespace in which requests wait."""
        self._serial = 0
        self._clock = 0.0
        """The virtual time at which a namespace begins: that of the one served last, and what each
        has had since."""
        self._latest = 0.0
        """The largest virtual time of a namespace so far."""
        self._by_age: list[tuple[int, SequenceState]] = []
        self._turns_limit = self._ages_limit = SMALL_HEAP

    def __len__(self) -> int:
        return self._count

    @property
    def entries(self) -> int:
        """How many entries all heaps and tables have, dead ones included: for checks."""
        queued = sum(queue.entries for queue in self._queues.values())
        return queued + len(self.times) + len(self._turns) + len(self._by_age)

    def __contains__(self, sequence: SequenceState) -> bool:
        queue = self._queues.get(sequence.namespace)
        return queue is not None and sequence in queue

    def push(self, sequence: SequenceState) -> None:
        """Adds the sequence, or moves it to where it belongs now."""
        queue = self._queues.get(sequence.namespace)
        if queue is None:
            queue = self._queues[sequence.namespace] = self._make_queue()
            self._set_time(
                sequence.namespace, max(self._clock, self.times.get(sequence.namespace, 0.0))
            )
        self._count += sequence not in queue
        queue.push(sequence)

    def arrived(self, sequence: SequenceState) -> None:
        """The request waits from now on, or again."""
        if self._patience is not None:
            heappush(self._by_age, (sequence.arrival, sequence))
            self._ages_limit = drop_stale(
                self._by_age, self._ages_limit, lambda entry: entry[1].state == "waiting"
            )

    def remove(self, sequence: SequenceState) -> None:
        queue = self._queues.get(sequence.namespace)
        if queue is not None and sequence in queue:
            self._count -= 1
            queue.remove(sequence)
            self._forget_if_empty(sequence.namespace)

    def overdue(self, now: int) -> SequenceState | None:
        """The request that arrived first of those that wait, if it waits longer than the
        patience."""
        while self._by_age and self._by_age[0][1].state != "waiting":
            heappop(self._by_age)
        if not self._by_age or self._patience is None:
            return None
        oldest = self._by_age[0][1]
        return oldest if now - oldest.arrived_at > self._patience else None

    def pop(self) -> SequenceState | None:
        """Takes out the first request of the namespace that is furthest behind; None if nothing
        waits."""
        while self._turns:
            _, serial, namespace = self._turns[0]
            if self._turn.get(namespace) != serial:
                heappop(self._turns)
                continue
            sequence = self._queues[namespace].pop()
            self._forget_if_empty(namespace)
            if sequence is not None:
                self._count -= 1
                return sequence
        return None

    def charge(self, sequence: SequenceState, tokens: int) -> None:
        """The request was admitted, and costs so many tokens."""
        time = self.times.get(sequence.namespace, self._clock)
        active = len(self._queues) + (sequence.namespace not in self._queues)
        self._latest = max(self._latest, time + tokens)
        self._clock = min(max(self._clock, time) + tokens / active, self._latest)
        self._set_time(sequence.namespace, time + tokens)
        if (
            len(self.times) > 2 * len(self._queues) + 64
        ):  # times that the clock has passed say nothing any more
            self.times = {
                name: at
                for name, at in self.times.items()
                if name in self._queues or at > self._clock
            }

    def _set_time(self, namespace: str | None, time: float) -> None:
        self.times[namespace] = time
        if namespace in self._queues:
            self._serial += 1
            self._turn[namespace] = self._serial
            heappush(self._turns, (time, self._serial, namespace))
            self._turns_limit = drop_stale(
                self._turns, self._turns_limit, lambda entry: self._turn.get(entry[2]) == entry[1]
            )

    def _forget_if_empty(self, namespace: str | None) -> None:
        if not len(self._queues[namespace]):
            del self._queues[namespace]
            del self._turn[namespace]
