"""All waiting requests: a queue by policy for each namespace, served fairly, and what is overdue
before everything else.

Fairness is start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996) over the tokens that
requests need: each namespace has a virtual time that advances by what its admitted requests cost,
and the namespace that is furthest behind is next. One that was idle starts at the time of the busy
ones: it neither saves up turns nor is made to pay for the past. That time advances by a namespace's
share of all that is served, so that an endless stream of new namespaces does not stay ahead of an
old one. O(log n) a request for n namespaces.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush

from asgl.scheduling.policy import SMALL_HEAP, Queue, drop_stale
from asgl.scheduling.request import Request


class Waiting:
    """make_queue: makes the queue of a namespace. patience: the age past which requests are
    admitted by age alone, in the unit of the caller's `now`; None for never."""

    def __init__(self, make_queue: Callable[[], Queue], patience: int | None = None) -> None:
        self._make_queue = make_queue
        self._patience = patience
        self._queues: dict[str | None, Queue] = {}
        self._count = 0
        self._times: dict[str | None, float] = {}
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
        self._by_age: list[tuple[int, Request]] = []
        self._turns_limit = self._ages_limit = SMALL_HEAP

    def __len__(self) -> int:
        return self._count

    def __contains__(self, request: Request) -> bool:
        queue = self._queues.get(request.namespace)
        return queue is not None and request in queue

    def push(self, request: Request) -> None:
        """Adds the request, or moves it to where it belongs now."""
        queue = self._queues.get(request.namespace)
        if queue is None:
            queue = self._queues[request.namespace] = self._make_queue()
            self._set_time(
                request.namespace, max(self._clock, self._times.get(request.namespace, 0.0))
            )
        self._count += request not in queue
        queue.push(request)

    def arrived(self, request: Request) -> None:
        """The request waits from now on, or again."""
        if self._patience is not None:
            heappush(self._by_age, (request.arrival, request))
            self._ages_limit = drop_stale(
                self._by_age, self._ages_limit, lambda entry: entry[1].state == "waiting"
            )

    def remove(self, request: Request) -> None:
        queue = self._queues.get(request.namespace)
        if queue is not None and request in queue:
            self._count -= 1
            queue.remove(request)
            self._forget_if_empty(request.namespace)

    def overdue(self, now: int) -> Request | None:
        """The request that arrived first of those that wait, if it waits longer than the
        patience."""
        while self._by_age and self._by_age[0][1].state != "waiting":
            heappop(self._by_age)
        if not self._by_age or self._patience is None:
            return None
        oldest = self._by_age[0][1]
        return oldest if now - oldest.arrived_at > self._patience else None

    def pop(self) -> Request | None:
        """Takes out the first request of the namespace that is furthest behind; None if nothing
        waits."""
        while self._turns:
            _, serial, namespace = self._turns[0]
            if self._turn.get(namespace) != serial:
                heappop(self._turns)
                continue
            request = self._queues[namespace].pop()
            self._forget_if_empty(namespace)
            if request is not None:
                self._count -= 1
                return request
        return None

    def charge(self, request: Request, tokens: int) -> None:
        """The request was admitted, and costs so many tokens."""
        time = self._times.get(request.namespace, self._clock)
        active = len(self._queues) + (request.namespace not in self._queues)
        self._latest = max(self._latest, time + tokens)
        self._clock = min(max(self._clock, time) + tokens / active, self._latest)
        self._set_time(request.namespace, time + tokens)
        if (
            len(self._times) > 2 * len(self._queues) + 64
        ):  # times that the clock has passed say nothing any more
            self._times = {
                name: at
                for name, at in self._times.items()
                if name in self._queues or at > self._clock
            }

    def _set_time(self, namespace: str | None, time: float) -> None:
        self._times[namespace] = time
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
