"""Admission: which waiting sequence is next, whether the cache has room for it, and whose slots it
may share.

    waiting  --- queue, by policy --- first of it --- fits? ---> running

In-batch sharing: of several requests that share a prefix which nobody has computed yet, one
computes it for all. What a running request has planned of its prompt, this step included, others
may read at once: a waiting request that shares it is admitted, and *borrows* the slots. Their keys
and values are there before anything reads them, for each layer of a step stores those of all its
tokens first, and steps run one after the other. When the lender's step has returned the prefix is
cached, and the borrower has it from the cache like any other.

    lender    p p p p p p p a b       a prompt of 9 tokens, all new: 9 are computed
    borrower  - - - - - - - c         another of 8, with 7 in the lender's slots: 1 is computed

What the lender has yet to plan, since its prompt is too long for one step, needs no care: it takes
all of the step, and comes before those that wait in the next one. With two steps in flight a loan
may be of both: then it is settled in two parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import ceil

from asgl.scheduling.kv_cache import KVCache
from asgl.scheduling.queue import WaitingRequests, make_queue
from asgl.scheduling.radix_cache import RadixCache, common_prefix
from asgl.scheduling.sequence import SequenceState

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
        cache: type[RadixCache[SequenceState]],
    ) -> None:
        make_queue(policy)  # a wrong name is told now
        self.kv_cache = KVCache(capacity, self._moved, cache)
        self.reserve_share = _RESERVE_START
        """The share of the tokens it may still generate that is reserved for a request that was
        never retracted."""
        self.queue = WaitingRequests(
            lambda: make_queue(policy), patience if policy == "aged-lpm" else None
        )
        self._share_in_batch = share_in_batch

    @property
    def waiting(self) -> int:
        return len(self.queue)

    def wait(self, sequence: SequenceState) -> None:
        """Queues the sequence, when it is new or was retracted."""
        self.kv_cache.cache.watch(sequence)
        self.queue.push(sequence)
        self.queue.arrived(sequence)

    def withdraw(self, sequence: SequenceState) -> None:
        """Takes a waiting request out."""
        self.queue.remove(sequence)
        self.kv_cache.cache.unwatch(sequence)

    def _moved(self, sequence: SequenceState) -> None:
        """Moves a waiting request whose match has changed."""
        if sequence in self.queue:
            self.queue.push(sequence)

    # --- who is next ------------------------------------------------------------------------------

    def fitting(
        self, running: list[SequenceState], now: int, *, alone: bool
    ) -> Iterator[SequenceState]:
        """Takes out the requests to admit, one after the other, each with its cached prefix locked.

        running: the caller's list, to which it appends each of them. now: in computed tokens.
        alone: no step is in flight, whose end could free slots.
        """
        outstanding = sum(map(self.expected, running))
        while (sequence := self._next(now)) is not None:
            lender, shared = _find_lender(sequence, running if self._share_in_batch else ())
            self.kv_cache.match(sequence)  # before the check: locking shrinks what is evictable
            if lender is not None:
                self.kv_cache.borrow(sequence, lender, shared)
            wanted = self.expected(sequence)
            while (
                wanted + outstanding > self.kv_cache.available
                and alone
                and not running
                and self.kv_cache.drop_pin()
            ):
                pass
            if wanted + outstanding > self.kv_cache.available:
                self.kv_cache.unmatch(sequence)
                self.queue.push(sequence)
                return
            self.kv_cache.cache.unwatch(sequence)
            self.queue.charge(
                sequence,
                len(sequence.tokens)
                - len(sequence.slots)
                + sequence.request.max_tokens
                - sequence.generated,
            )
            yield sequence
            if sequence.state == "running":
                outstanding += self.expected(sequence)  # beyond what it has by now

    def _next(self, now: int) -> SequenceState | None:
        """The oldest request if it is overdue, else the first of the queue; None if none waits."""
        overdue = self.queue.overdue(now)
        if overdue is None:
            return self.queue.pop()
        self.queue.remove(overdue)
        return overdue

    # --- what is reserved -------------------------------------------------------------------------

    def expected(self, sequence: SequenceState) -> int:
        """Slots that the sequence is expected to take beyond those it has.

        A request that was retracted counts in full, others with a share of what they may generate:
        the share falls while all goes well and rises with each retraction. Requests that count in
        full always fit together, so that only the others are ever retracted, and none of them
        twice.
        """
        more = sequence.request.max_tokens - sequence.generated - sequence.pending - 1
        if more > 0 and not sequence.retracted:
            more = ceil(more * self.reserve_share)
        tree = sequence.tree
        return (
            len(sequence.tokens)
            + sequence.pending
            - len(sequence.slots)
            + max(more, 0)
            + (tree.reserve if tree is not None else 0)
        )

    def spare(self, running: Iterable[SequenceState]) -> int:
        """How many free slots can be filled from a file, without taking any that is reserved for
        what runs."""
        return max(
            0,
            min(
                self.kv_cache.pool.free, self.kv_cache.available - sum(map(self.expected, running))
            ),
        )

    def reserve_less(self) -> None:
        """A step went well."""
        self.reserve_share = max(_RESERVE_LEAST, self.reserve_share * _RESERVE_DECAY)

    def reserve_more(self) -> None:
        """A request had to be retracted."""
        self.reserve_share = min(1.0, self.reserve_share + _RESERVE_RAISE)


def _find_lender(
    sequence: SequenceState, running: Iterable[SequenceState]
) -> tuple[SequenceState | None, int]:
    """The running request that has planned most of a waiting one's tokens, and how many; None if
    none has more than the cache. At least one token is left for the waiting request itself."""
    lender, most = None, sequence.matched
    last = len(sequence.tokens) - 1
    for other in running:
        if most >= last:
            break  # nobody has more: of many equal prompts each is compared with one
        # a quick look at the first token that counts, before the whole comparison
        if (
            other.lends
            and len(other.slots) > most
            and other.namespace == sequence.namespace
            and other.tokens[most : most + 1] == sequence.tokens[most : most + 1]
        ):
            shared = min(common_prefix(other.tokens, sequence.tokens), len(other.slots), last)
            if shared > most:
                lender, most = other, shared
    return lender, most
