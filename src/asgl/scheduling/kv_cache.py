"""The books of the KV cache: which slots are free, cached or owned, and who has locked what.

    free + cached + owned by running requests == capacity

Each slot is in exactly one of the three.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable

from asgl.errors import InternalError
from asgl.plan import INT
from asgl.scheduling.radix_cache import Node, RadixCache
from asgl.scheduling.select_tree import Edge
from asgl.scheduling.sequence import SequenceState


class SlotPool:
    """A stack of free slots. Slots freed last are given first; those given together ascend where
    they can."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._free = array(INT, range(capacity - 1, -1, -1))

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> array[int]:
        """`count` slots. The caller has made sure that there are so many."""
        if count > len(self._free):
            raise InternalError(f"{count} slots were taken of {len(self._free)} free ones")
        if count == 0:
            return array(INT)
        taken = self._free[-count:]
        del self._free[-count:]
        taken.reverse()
        return taken

    def give(self, slots: array[int]) -> None:
        """Frees the slots. They become free in reverse order, so that a run of them is given out as
        a run again."""
        self._free.extend(slots[::-1])

    def snapshot(self) -> array[int]:
        """The free slots, for checks."""
        return self._free[:]


class KVCache:
    """Slots come and go here only: by admission, allocation, caching and release of requests, and
    by pins.

    A pin is a lock on a prefix without a sequence. It yields to need: see `drop_pin`.
    """

    def __init__(
        self,
        capacity: int,
        on_move: Callable[[SequenceState], None],
        cache: type[RadixCache[SequenceState]] = RadixCache,
    ) -> None:
        self.pool = SlotPool(capacity)
        self.cache = cache(on_move)
        self._pins: dict[int, Node] = {}
        self._pin_number = 0
        self._reserved: set[int] = set()

    @property
    def capacity(self) -> int:
        return self.pool.capacity

    @property
    def reserved(self) -> int:
        """Slots that are being filled from elsewhere."""
        return len(self._reserved)

    @property
    def available(self) -> int:
        """Slots that are free or can be made free."""
        return self.pool.free + self.cache.evictable

    # --- of a request -----------------------------------------------------------------------------

    def match(self, sequence: SequenceState) -> None:
        """Locks the longest cached prefix of the request, of which it leaves at least one token to
        be computed if logits are wanted.

        A prefetch wants them unless all is cached by others that have ended well: while others run
        it is not known whether what they cached are numbers.
        """
        tokens, namespace = sequence.tokens, sequence.namespace
        limit = len(tokens) - 1 if sequence.wants_logits else len(tokens)
        node, slots = self.cache.match(tokens, namespace, limit)
        if len(slots) == len(tokens) and node.locks:
            node, slots = self.cache.match(tokens, namespace, len(tokens) - 1)
        self.cache.lock(node)
        sequence.node, sequence.slots = node, slots
        sequence.computed = sequence.covered = len(slots)

    def unmatch(self, sequence: SequenceState) -> None:
        """Undoes `match`, and `borrow`."""
        assert sequence.node is not None
        self.cache.unlock(sequence.node)
        sequence.node = None
        self._end_loan(sequence)
        del sequence.slots[:]
        sequence.computed = sequence.covered = 0

    def borrow(self, sequence: SequenceState, lender: SequenceState, end: int) -> None:
        """Continues the request after the slots in which a step in flight, or in planning, computes
        the first `end` tokens, which it shares with the lender. What the lender has not planned yet
        is not borrowed. `settle` makes the slots the request's own."""
        slots = lender.slots[sequence.covered : end]
        if slots:
            sequence.slots.extend(slots)
            sequence.lender, sequence.borrowed = lender, len(slots)
            lender.borrowers.append(sequence)

    def settle(self, lender: SequenceState) -> None:
        """Gives those that borrow computed slots of the lender the slots of the cache instead, and
        those that borrow of them too.

        A loan over two steps is settled in two parts: where the cache had the first part already,
        the lender's slots of it are free now.
        """
        # a list that grows, and no recursion: a chain of loans may be as long as there are requests
        lenders = [lender]
        for one in lenders:
            if not one.borrowers:
                continue
            if not one.borrowed:
                self.cache_computed(one)
            for borrower in [each for each in one.borrowers if each.covered < one.covered]:
                self._settle_one(borrower, one.covered)
                lenders.append(borrower)

    def _settle_one(self, borrower: SequenceState, cached: int) -> None:
        """Settles the part of a loan that is among the first `cached` tokens."""
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

    def forget(self, sequence: SequenceState) -> None:
        """Lets go of the slots in which nothing is computed."""
        self.pool.give(sequence.slots[sequence.computed + sequence.borrowed :])
        del sequence.slots[sequence.computed :]
        self._end_loan(sequence)

    def _end_loan(self, sequence: SequenceState) -> None:
        if sequence.lender is not None:
            sequence.lender.borrowers.remove(sequence)
            sequence.lender, sequence.borrowed = None, 0

    def grow(self, sequence: SequenceState, count: int) -> None:
        """Gives the request slots for its next `count` tokens. At most `available`."""
        sequence.slots.extend(self.allocate(count))

    def advance(self, sequence: SequenceState, count: int) -> None:
        """Notes that the next `count` tokens of the request are computed, in slots that it has."""
        sequence.computed += count

    def allocate(self, count: int) -> array[int]:
        """Takes slots, evicting cached prefixes if too few are free. At most `available`."""
        if count > self.pool.free:
            self.pool.give(self.cache.evict(count - self.pool.free))
        return self.pool.take(count)

    def cache_computed(self, sequence: SequenceState) -> None:
        """Gives the cache the computed part of the request's sequence, and moves the request's lock
        to its end.

        Where the cache has tokens already, the request goes on with the cache's slots, and its own
        are freed.
        """
        tokens, slots = sequence.tokens[: sequence.computed], sequence.slots[: sequence.computed]
        node, existing, tree_slots = self.cache.insert(tokens, slots, sequence.namespace)
        self.cache.lock(node)
        if sequence.node is not None:
            self.cache.unlock(sequence.node)
        duplicates = slots[sequence.covered : existing]
        sequence.slots[: sequence.computed] = tree_slots
        sequence.node, sequence.covered = node, sequence.computed
        self.pool.give(duplicates)

    def release(self, sequence: SequenceState) -> None:
        """Caches what the request has computed, and lets go of its slots and locks.

        A poisoned request leaves nothing behind: what it has computed is freed, and what is cached
        of it is evicted up to where another request needs it, or a longer prefix is cached. Who
        asks the same again computes all of it again.
        """
        if not sequence.poisoned:
            self.cache_computed(sequence)
        else:
            self.pool.give(sequence.slots[sequence.covered : sequence.computed])
        self.forget(sequence)
        bottoms = [*self._release_tree(sequence), sequence.node]
        self.unmatch(sequence)
        for node in bottoms if sequence.poisoned else ():
            if node is not None:
                self.pool.give(self.cache.evict_path(node))

    def cache_edge(self, sequence: SequenceState, edge: Edge) -> None:
        """Gives the cache an edge that is computed, and locks it there until all below it is
        computed too.

        The edges above it must be in the cache.
        """
        tree = sequence.tree
        assert tree is not None
        if sequence.covered < sequence.computed:
            self.cache_computed(sequence)
        tokens, slots = sequence.tokens[:], sequence.slots[:]
        for above in edge.path():
            tokens.extend(above.tokens)
            slots.extend(above.slots)
        edge.node, existing, tree_slots = self.cache.insert(tokens, slots, sequence.namespace)
        self.cache.lock(edge.node)
        start = len(sequence.tokens) + edge.start
        self.pool.give(slots[start:existing])
        edge.slots = tree_slots[start:]
        for done in tree.finish(edge):
            assert done.node is not None
            self.cache.unlock(done.node)
            done.node, done.slots = None, array(INT)

    def _release_tree(self, sequence: SequenceState) -> list[Node]:
        """Lets go of what a select holds that did not run to its end: what is cached of it stays
        so. Returns the nodes where that ends."""
        tree = sequence.tree
        if tree is None:
            return []
        nodes: list[Node] = []
        for edge in tree.holding:
            if edge.node is not None:
                self.cache.unlock(edge.node)
                nodes.append(edge.node)
            else:
                self.pool.give(edge.slots)
        tree.reset()
        return nodes

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
        """Caches the last `len(slots)` tokens of a prefix, whose keys and values are in reserved
        slots. Returns how many of them the cache did not have; 0 if what is before them is not
        cached any more. Slots that are not needed are freed.
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

    # --- checks -----------------------------------------------------------------------------------

    def check(self, holders: Iterable[SequenceState]) -> None:
        """Raises InternalError if the books do not balance. `holders`: the requests that own slots.
        O(capacity)."""
        self.cache.check()
        owned: list[int] = list(self._reserved)
        locked = list(self._pins.values())
        for sequence in holders:
            _check_loans(sequence)
            owned.extend(sequence.slots[sequence.covered + sequence.borrowed :])
            if sequence.node is not None:
                locked.append(sequence.node)
                if sequence.node.depth != sequence.covered:
                    raise InternalError(f"{sequence!r} has locked {sequence.node!r}")
            for edge in sequence.tree.edges if sequence.tree is not None else ():
                if edge.node is None:
                    owned.extend(edge.slots)
                    continue
                locked.append(edge.node)
                if edge.node.depth != len(sequence.tokens) + edge.end:
                    raise InternalError(f"an edge of {sequence!r} has locked {edge.node!r}")
        cached = [slot for node in self.cache.nodes() for slot in node.slots]
        if sorted([*self.pool.snapshot(), *cached, *owned]) != list(range(self.capacity)):
            raise InternalError(
                f"{self.pool.free} free, {len(cached)} cached and {len(owned)} owned slots are not "
                f"each of {self.capacity} once"
            )
        locks = Counter(node for bottom in locked for node in bottom.path())
        for node in self.cache.nodes():
            if node.locks != locks[node]:
                raise InternalError(f"{node!r} should have {locks[node]} locks")


def _check_loans(sequence: SequenceState) -> None:
    for other in sequence.borrowers:
        loan = slice(other.covered, other.covered + other.borrowed)
        if (
            other.lender is not sequence
            or not loan.start < loan.stop
            or other.slots[loan] != sequence.slots[loan]
        ):
            raise InternalError(
                f"{other!r} borrows {other.borrowed} slots of {sequence!r}, and they are not the "
                "same"
            )
    lender = sequence.lender
    if sequence.borrowed and (lender is None or sequence not in lender.borrowers):
        raise InternalError(f"{sequence!r} borrows {sequence.borrowed} slots of nobody")
