"""Admission: who waits, who of them is next, and whether the cache has room for what is expected of
all that run.

waiting  --- queue, by policy --- first of it --- fits? ---> running
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import ceil

from asgl.scheduling.ledger import Ledger
from asgl.scheduling.policy import make_queue
from asgl.scheduling.radix_cache import RadixCache
from asgl.scheduling.request import Request
from asgl.scheduling.sharing import find_lender
from asgl.scheduling.waiting import Waiting

_RESERVE_START, _RESERVE_LEAST, _RESERVE_DECAY, _RESERVE_RAISE = 0.7, 0.1, 0.995, 0.2


class Admission:
    """The requests that wait.

    policy, patience, share_in_batch, cache: see `Scheduler`.
    """

    def __init__(
        self,
        capacity: int,
        *,
        policy: str,
        patience: int,
        share_in_batch: bool,
        cache: type[RadixCache[Request]],
    ) -> None:
        make_queue(policy)  # a wrong name is told now
        self.ledger = Ledger(capacity, self._moved, cache)
        self.reserve_share = _RESERVE_START
        """The share of the tokens it may still generate that is reserved for a request that was
        never retracted."""
        self._queue = Waiting(
            lambda: make_queue(policy), patience if policy == "aged-lpm" else None
        )
        self._share_in_batch = share_in_batch
        self._arrivals = 0

    @property
    def waiting(self) -> int:
        return len(self._queue)

    def arrive(self, request: Request, now: int) -> None:
        """The request is new. now: in computed tokens."""
        self._arrivals += 1
        request.arrival, request.arrived_at = self._arrivals, now

    def wait(self, request: Request) -> None:
        """The request waits from now on, or again."""
        request.state = "waiting"
        self.ledger.cache.watch(request)
        self._queue.push(request)
        self._queue.arrived(request)

    def withdraw(self, request: Request) -> None:
        """A waiting request waits no more."""
        self._queue.remove(request)
        self.ledger.cache.unwatch(request)

    def _moved(self, request: Request) -> None:
        """The match of a waiting request has changed."""
        if request in self._queue:
            self._queue.push(request)

    # --- who is next ------------------------------------------------------------------------------

    def fitting(self, running: list[Request], now: int, *, alone: bool) -> Iterator[Request]:
        """Takes out the requests to be admitted, one after the other, each with its cached prefix
        locked.

        `running` is the caller's list, to which it appends each of them. alone: no step is in
        flight, whose end could free slots.
        """
        outstanding = sum(map(self.expected, running))
        while (request := self._next(now)) is not None:
            lender, shared = find_lender(request, running if self._share_in_batch else ())
            self.ledger.match(request)  # before the check: locking shrinks what is evictable
            if lender is not None:
                self.ledger.borrow(request, lender, shared)
            wanted = self.expected(request)
            while (
                wanted + outstanding > self.ledger.available
                and alone
                and not running
                and self.ledger.drop_pin()
            ):
                pass
            if wanted + outstanding > self.ledger.available:
                self.ledger.unmatch(request)
                self._queue.push(request)
                return
            self.ledger.cache.unwatch(request)
            self._queue.charge(
                request,
                len(request.tokens) - len(request.slots) + request.max_tokens - request.generated,
            )
            yield request
            if request.state == "running":
                outstanding += self.expected(request)  # beyond what it has by now

    def _next(self, now: int) -> Request | None:
        """Whom to admit next: whoever is overdue, else the first of the queue. None if there is
        nobody now."""
        overdue = self._queue.overdue(now)
        if overdue is None:
            return self._queue.pop()
        self._queue.remove(overdue)
        return overdue

    # --- what is reserved -------------------------------------------------------------------------

    def expected(self, request: Request) -> int:
        """Slots that the request is expected to take beyond those it has.

        A request that was retracted counts in full, others with a share of what they may generate:
        the share falls while all goes well and rises with each retraction. Requests that count in
        full always fit together, so that only the others are ever retracted, and none of them
        twice.
        """
        more = request.max_tokens - request.generated - request.pending - 1
        if more > 0 and not request.retracted:
            more = ceil(more * self.reserve_share)
        branches = request.branches
        return (
            len(request.tokens)
            + request.pending
            - len(request.slots)
            + max(more, 0)
            + (branches.reserve if branches is not None else 0)
        )

    def spare(self, running: Iterable[Request]) -> int:
        """How many free slots can be filled from elsewhere, without taking any that is reserved for
        what runs."""
        return max(
            0, min(self.ledger.pool.free, self.ledger.available - sum(map(self.expected, running)))
        )

    def reserve_less(self) -> None:
        """A step went well."""
        self.reserve_share = max(_RESERVE_LEAST, self.reserve_share * _RESERVE_DECAY)

    def reserve_more(self) -> None:
        """A request had to be retracted."""
        self.reserve_share = min(1.0, self.reserve_share + _RESERVE_RAISE)
