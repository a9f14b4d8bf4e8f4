"""In which order waiting requests are admitted. A policy is a function from a request to a sort key: least goes first.

Keys are static but for the matched length, so that the queue is a heap, and only requests whose match changed are moved.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import TypeAlias

from asgl.errors import ConfigError
from asgl.scheduling.request import Request

Policy: TypeAlias = Callable[[Request], tuple[float, ...]]


def lpm(request: Request) -> tuple[float, ...]:
    """Longest prefix match first: what shares most with the cache now is served before it is evicted (arXiv 2312.07104)."""
    return (-request.priority, -request.matched, request.arrival)


def fcfs(request: Request) -> tuple[float, ...]:
    """First come, first served."""
    return (-request.priority, request.arrival)


POLICIES: dict[str, Policy] = {"lpm": lpm, "fcfs": fcfs}


def policy_named(name: str) -> Policy:
    if name not in POLICIES:
        raise ConfigError(f"there is no scheduling policy {name!r}; there are {', '.join(sorted(POLICIES))}")
    return POLICIES[name]


class WaitingQueue:
    """Waiting requests by policy. O(log n) to add, move and pop; entries that a move or removal left are skipped."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._heap: list[tuple[tuple[float, ...], int, Request]] = []
        self._entries: dict[Request, int] = {}
        self._serial = 0

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, request: Request) -> bool:
        return request in self._entries

    def push(self, request: Request) -> None:
        """Adds the request, or moves it to where its key now says."""
        self._serial += 1
        self._entries[request] = self._serial
        heappush(self._heap, (self._policy(request), self._serial, request))

    def remove(self, request: Request) -> None:
        self._entries.pop(request, None)

    def pop(self) -> Request | None:
        """Takes the first request out; None if there is none."""
        while self._heap:
            _, serial, request = heappop(self._heap)
            if self._entries.get(request) == serial:
                del self._entries[request]
                return request
        return None
