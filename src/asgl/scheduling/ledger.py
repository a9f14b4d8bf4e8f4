"""The books of the KV cache: which slots are free, cached or owned, and who has locked what.

free + cached + owned by running requests == capacity, and each slot is in exactly one of the three
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable

from asgl.errors import InternalError
from asgl.plan import INT
from asgl.scheduling.branches import Edge
from asgl.scheduling.radix_cache import Node, RadixCache
from asgl.scheduling.request import Request
from asgl.scheduling.slots import SlotPool


class Ledger:
    """Slots come and go here only: by admission, allocation, caching and release of requests, and
    by pins.

    A pin is a lock on a prefix without a request. It yields to need: see `drop_pin`.
    """

    def __init__(
        self,
        capacity: int,
        on_move: Callable[[Request], None],
        cache: type[RadixCache[Request]] = RadixCache,
    ) -> None:
        self.pool = SlotPool(capacity)
        self.cache = cache(on_move)
        self._pins: dict[int, Node] = {}
        self._pin_number = 0
        self._reserved: set[int] = set()
        """Slots that are being filled from elsewhere."""

    @property
    def capacity(self) -> int:
        return self.pool.capacity

    @property
    def available(self) -> int:
        """Slots that are free or can be made free."""
        return self.pool.free + self.cache.evictable

    # --- of a request -----------------------------------------------------------------------------

    def match(self, request: Request) -> None:
        """Locks the longest cached prefix of the request, of which it leaves at least one token to
        be computed if logits are wanted."""
        limit = len(request.tokens) - 1 if request.wants_logits else len(request.tokens)
        node, slots = self.cache.match(request.tokens, request.namespace, limit)
        self.cache.lock(node)
        request.node, request.slots = node, slots
        request.computed = request.covered = len(slots)

    def unmatch(self, request: Request) -> None:
        """Undoes `match`, and `borrow`."""
        assert request.node is not None
        self.cache.unlock(request.node)
        request.node = None
        self._end_loan(request)
        del request.slots[:]
        request.computed = request.covered = 0

    def borrow(self, request: Request, lender: Request, end: int) -> None:
        """The request goes on after the slots in which a step in flight, or in planning, computes
        the first `end` tokens of the lender's sequence and its own; of what the lender has not
        planned nothing is borrowed. `settle` makes them its own."""
        slots = lender.slots[request.covered : end]
        if slots:
            request.slots.extend(slots)
            request.lender, request.borrowed = lender, len(slots)
            lender.borrowers.append(request)

    def settle(self, lender: Request) -> None:
        """Those that borrow computed slots of the lender get them from the cache instead, and those
        that borrow of them too.

        A loan over two steps is settled in two parts: where the cache had the first part already,
        the lender's slots of it are free now.
        """
        lenders = [lender]
        for one in (
            lenders
        ):  # grows: no recursion, for a chain of loans is as long as there are running requests
            if not one.borrowers:
                continue
            if not one.borrowed:
                self.cache_computed(one)
            for borrower in [each for each in one.borrowers if each.covered < one.covered]:
                self._settle_one(borrower, one.covered)
                lenders.append(borrower)

    def _settle_one(self, borrower: Request, cached: int) -> None:
        """Of the lender's sequence so many tokens are cached."""
        end = min(cached, borrower.covered + borrower.borrowed)
        node, slots = self.cache.match(borrower.tokens, borrower.namespace, end)
        self.cache.lock(node)
        assert borrower.node is not None
        self.cache.unlock(borrower.node)
        borrower.slots[:end] = slots
        borrower.computed += end - borrower.covered
        borrower.borrowed -= end - borrower.covered
        borrower.node, borrower.covered = node, end
        if not borrower.borrowed:
            self._end_loan(borrower)

    def forget(self, request: Request) -> None:
        """Lets go of the slots in which nothing is computed."""
        self.pool.give(request.slots[request.computed + request.borrowed :])
        del request.slots[request.computed :]
        self._end_loan(request)

    def _end_loan(self, request: Request) -> None:
        if request.lender is not None:
            request.lender.borrowers.remove(request)
            request.lender, request.borrowed = None, 0

    def allocate(self, count: int) -> array[int]:
        """Takes slots, evicting cached prefixes if too few are free. At most `available`."""
        if count > self.pool.free:
            self.pool.give(self.cache.evict(count - self.pool.free))
        return self.pool.take(count)

    def cache_computed(self, request: Request) -> None:
        """Gives the cache the computed part of the request's sequence, and moves the request's lock
        to its end.

        Where the cache has tokens already, the request goes on with the cache's slots, and its own
        are freed.
        """
        tokens, slots = request.tokens[: request.computed], request.slots[: request.computed]
        node, existing, tree_slots = self.cache.insert(tokens, slots, request.namespace)
        self.cache.lock(node)
        if request.node is not None:
            self.cache.unlock(request.node)
        duplicates = slots[request.covered : existing]
        request.slots[: request.computed] = tree_slots
        request.node, request.covered = node, request.computed
        self.pool.give(duplicates)

    def release(self, request: Request) -> None:
        """Caches what the request has computed, and lets go of its slots and locks."""
        self.cache_computed(request)
        self.forget(request)
        self._release_branches(request)
        self.unmatch(request)

    def cache_edge(self, request: Request, edge: Edge) -> None:
        """Gives the cache an edge that is computed, and holds it there by a lock, until all below
        it is computed too.

        The edges above it must be in the cache.
        """
        branches = request.branches
        assert branches is not None
        if request.covered < request.computed:
            self.cache_computed(request)
        tokens, slots = request.tokens[:], request.slots[:]
        for above in edge.path():
            tokens.extend(above.tokens)
            slots.extend(above.slots)
        edge.node, existing, tree_slots = self.cache.insert(tokens, slots, request.namespace)
        self.cache.lock(edge.node)
        start = len(request.tokens) + edge.start
        self.pool.give(slots[start:existing])
        edge.slots = tree_slots[start:]
        for done in branches.finish(edge):
            assert done.node is not None
            self.cache.unlock(done.node)
            done.node, done.slots = None, array(INT)

    def _release_branches(self, request: Request) -> None:
        """Lets go of what a select holds that did not run to its end. What it has computed stays
        cached."""
        branches = request.branches
        if branches is None:
            return
        for edge in branches.holding:
            if edge.node is not None:
                self.cache.unlock(edge.node)
            else:
                self.pool.give(edge.slots)
        branches.reset()

    # --- of the whole cache -----------------------------------------------------------------------

    def flush(self) -> int:
        """Frees everything that nobody has locked; how many slots that was."""
        slots = self.cache.clear()
        self.pool.give(slots)
        return len(slots)

    def reserve(self, count: int) -> array[int]:
        """Takes `count` of the free slots, to be filled from elsewhere and then given to `adopt` or
        `give_back`."""
        slots = self.pool.take(count)
        self._reserved.update(slots)
        return slots

    def give_back(self, slots: array[int]) -> None:
        """Frees reserved slots."""
        self._reserved.difference_update(slots)
        self.pool.give(slots)

    def adopt(self, tokens: array[int], slots: array[int], namespace: str | None) -> int:
        """Caches the last `len(slots)` tokens of a prefix in reserved slots; how many of them the
        cache did not have.

        None, if what is before them is not cached any more. Slots that are not needed are freed.
        """
        start = len(tokens) - len(slots)
        above = self.cache.match(tokens, namespace, start).slots
        if len(above) < start:
            self.give_back(slots)
            return 0
        existing = self.cache.insert(tokens, above + slots, namespace).existing
        self._reserved.difference_update(slots)
        duplicates = slots[: existing - start]
        self.pool.give(duplicates)
        return len(slots) - len(duplicates)

    def pin(self, tokens: array[int], namespace: str | None) -> tuple[int, int]:
        """Keeps what is cached of `tokens` from eviction; a number to `unpin` it by, and how many
        tokens are kept."""
        node, slots = self.cache.match(tokens, namespace, len(tokens))
        self.cache.lock(node)
        self._pin_number += 1
        self._pins[self._pin_number] = node
        return self._pin_number, len(slots)

    def unpin(self, number: int) -> None:
        """Ends a pin; nothing happens if it has ended."""
        node = self._pins.pop(number, None)
        if node is not None:
            self.cache.unlock(node)

    def drop_pin(self) -> bool:
        """Ends the oldest pin, because its slots are needed; False if there is none."""
        if not self._pins:
            return False
        self.unpin(next(iter(self._pins)))
        return True

    def check(self, holders: Iterable[Request]) -> None:
        """Raises InternalError if the books do not balance. `holders`: the requests that own slots.
        O(capacity)."""
        self.cache.check()
        owned: list[int] = list(self._reserved)
        locks: dict[Node, int] = {}
        locked = list(self._pins.values())
        for request in holders:
            owned.extend(request.slots[request.covered + request.borrowed :])
            for other in request.borrowers:
                loan = slice(other.covered, other.covered + other.borrowed)
                if (
                    other.lender is not request
                    or not loan.start < loan.stop
                    or other.slots[loan] != request.slots[loan]
                ):
                    raise InternalError(
                        f"{other!r} borrows {other.borrowed} slots of {request!r}, and they are "
                        "not the same"
                    )
            if request.borrowed and (
                request.lender is None or request not in request.lender.borrowers
            ):
                raise InternalError(f"{request!r} borrows {request.borrowed} slots of nobody")
            if request.branches is not None:
                for edge in request.branches.edges:
                    if edge.node is None:
                        owned.extend(edge.slots)
                    else:
                        locked.append(edge.node)
                        if edge.node.depth != len(request.tokens) + edge.end:
                            raise InternalError(f"an edge of {request!r} has locked {edge.node!r}")
            if request.node is not None:
                locked.append(request.node)
                if request.node.depth != request.covered:
                    raise InternalError(f"{request!r} has locked {request.node!r}")
        for bottom in locked:
            for node in bottom.path():
                locks[node] = locks.get(node, 0) + 1
        cached = [slot for node in self.cache.nodes() for slot in node.slots]
        if sorted([*self.pool.snapshot(), *cached, *owned]) != list(range(self.capacity)):
            raise InternalError(
                f"{self.pool.free} free, {len(cached)} cached and {len(owned)} owned slots are not "
                "each of "
                f"{self.capacity} once"
            )
        for node in self.cache.nodes():
            if node.locks != locks.get(node, 0):
                raise InternalError(f"{node!r} should have {locks.get(node, 0)} locks")
