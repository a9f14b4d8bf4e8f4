"""In-batch sharing: of several requests that share a prefix which nobody has computed yet, one leads and the others wait.

A leader is a running request whose prompt is being computed. A follower is a waiting request that is held back because a
leader will soon have cached more of the follower's prompt than the cache has now. When the leader has come so far, or
leaves for any reason, the follower goes back to the queue, finds the prefix cached or becomes the next leader.
"""

from __future__ import annotations

from collections.abc import Iterable

from asgl.errors import InternalError
from asgl.scheduling.radix_cache import common_prefix
from asgl.scheduling.request import Request

SHARE_THRESHOLD = 16
"""A hold costs the follower a step's delay, so that less than this is rather computed twice."""


class Leaders:
    """Who leads, and who is held for whom. Leaders are found by the first tokens of their prompts."""

    def __init__(self, threshold: int) -> None:
        self._threshold = threshold
        self._by_start: dict[tuple[str | None, bytes], dict[Request, None]] = {}
        self._followers: dict[Request, dict[Request, int]] = {}

    @property
    def held(self) -> int:
        return sum(map(len, self._followers.values()))

    def _start(self, request: Request) -> tuple[str | None, bytes]:
        return (request.namespace, request.tokens[: self._threshold].tobytes())

    def is_leader(self, request: Request) -> bool:
        return request in self._followers

    def add(self, leader: Request) -> None:
        """The request computes its prompt from now on. One too short to be worth a hold is no leader."""
        if len(leader.tokens) <= self._threshold:
            return
        self._followers[leader] = {}
        self._by_start.setdefault(self._start(leader), {})[leader] = None

    def hold(self, request: Request) -> bool:
        """Holds the request for the leader that will compute most of its prompt, if that is worth the wait."""
        most, best = request.matched + self._threshold, None
        for leader in self._by_start.get(self._start(request), ()):
            # a quick look at the first tokens that count, before the whole comparison
            at = request.matched
            if leader.tokens[at : at + self._threshold] == request.tokens[at : at + self._threshold]:
                shared = min(common_prefix(leader.tokens, request.tokens), len(request.tokens) - 1)
                if shared >= most and (best is None or shared > most):
                    most, best = shared, leader
        if best is None:
            return False
        request.leader = best
        self._followers[best][request] = most
        return True

    def release(self, follower: Request) -> None:
        """The follower waits no more (it was cancelled)."""
        if follower.leader is not None:
            del self._followers[follower.leader][follower]
            follower.leader = None

    def reached(self, leader: Request) -> list[Request]:
        """The followers whose shared prefix the leader has computed; they are held no more."""
        followers = [follower for follower, target in self._followers[leader].items() if leader.computed >= target]
        for follower in followers:
            self.release(follower)
        return followers

    def retire(self, request: Request) -> list[Request]:
        """The request leads no more, if it did; returns those that were held for it."""
        followers = self._followers.pop(request, None)
        if followers is None:
            return []
        start = self._start(request)
        group = self._by_start[start]
        del group[request]
        if not group:
            del self._by_start[start]
        for follower in followers:
            follower.leader = None
        return list(followers)

    def check(self, running: Iterable[Request]) -> None:
        alive = set(running)
        for leader, followers in self._followers.items():
            if leader not in alive or leader.remaining == 0:
                raise InternalError(f"{leader!r} leads, but does not compute a prompt")
            for follower in followers:
                if follower.leader is not leader or follower.state != "waiting":
                    raise InternalError(f"{follower!r} is held for {leader!r}, but does not wait for it")
