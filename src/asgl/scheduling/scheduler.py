"""The scheduler: which tokens each step computes. Pure: no tensors, no event loop, no clock; a plan
is data.

Three calls make a step. `plan` orders and admits waiting requests and lays out the rows; the runner
computes them; `commit` takes what was sampled, ends what is finished, and gives computed prefixes
to the radix cache. In between the plan is *in flight*: a request that is cancelled then keeps its
slots until the commit, for the step still writes them.

With `steps_in_flight` of 2 a step may be planned while another is in flight. What that one samples
is then pending: rows that continue it name it by its place, on the guess that no request ends by
it. Those that do end leave a row behind: what it samples is dropped, and the last token is cached
with the others once its step has returned.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from asgl.errors import (
    CapacityError,
    InternalError,
    NumericalError,
    QueueFullError,
    RequestError,
)
from asgl.plan import SampledToken, StepPlan, StepResult
from asgl.scheduling.admission import Admission
from asgl.scheduling.counters import Counters
from asgl.scheduling.generation import Generation
from asgl.scheduling.queue import PATIENCE
from asgl.scheduling.radix_cache import RadixCache
from asgl.scheduling.request import Request
from asgl.scheduling.sequence import SequenceState, Update
from asgl.scheduling.step_budget import StepBudget
from asgl.scheduling.step_builder import Row, StepInFlight, build_step, extend, next_row
from asgl.types import FinishReason


class Scheduler:
    """Continuous batching over a radix cache of `capacity` slots.

    max_running: requests that run at once. max_batch_tokens: new tokens a step computes at most;
    longer prompts are computed in chunks. max_waiting: requests that may wait; None for no limit.
    policy: one of `queue.POLICIES`. share_in_batch: prompts are cached as they are computed, and
    shared before that by those of one step (see `admission`); else at their requests' end.
    patience: for aged-lpm, the age in computed tokens past which requests are admitted by age
    alone. jump_forward: tokens that a grammar forces are appended at once, and computed together;
    else one is sampled after the other. step_seconds: about how long a step may take while requests
    decode, judged by earlier ones; None for no bound. steps_in_flight: how many steps may be
    planned and not committed, 1 or 2. cache: the class of the prefix cache; another one serves to
    measure what the radix tree is worth.

    With aged-lpm the wait is bounded, whatever arrives later: past its patience a request is only
    behind older ones, so it is admitted before more tokens are computed than

        patience + what running requests and those that arrived before it still need + one step

    for nothing younger is admitted meanwhile, running requests come to their ends, and with none
    running any fits.
    """

    def __init__(
        self,
        *,
        capacity: int,
        max_running: int = 64,
        max_batch_tokens: int = 512,
        max_waiting: int | None = None,
        policy: str = "lpm",
        share_in_batch: bool = True,
        patience: int = PATIENCE,
        jump_forward: bool = True,
        step_seconds: float | None = None,
        steps_in_flight: int = 1,
        cache: type[RadixCache[SequenceState]] = RadixCache,
    ) -> None:
        self.max_running = min(max_running, max_batch_tokens)
        self.max_batch_tokens = max_batch_tokens
        self.max_waiting = max_waiting
        self.step_seconds = step_seconds
        self.jump_forward = jump_forward
        self._share_in_batch = share_in_batch
        self.admission = Admission(
            capacity, policy=policy, patience=patience, share_in_batch=share_in_batch, cache=cache
        )
        self.kv_cache = self.admission.kv_cache
        self.running: list[SequenceState] = []
        self.counters = Counters()
        self._budget = StepBudget(max_batch_tokens, step_seconds)
        self.steps_in_flight = steps_in_flight
        self._flights: deque[StepInFlight] = deque()
        """The oldest first."""
        self._arrivals = 0
        self._updates: list[Update] = []
        self._generation = Generation(self.counters, self._updates, jump_forward=jump_forward)

    @property
    def capacity(self) -> int:
        return self.kv_cache.capacity

    @property
    def waiting(self) -> int:
        return self.admission.waiting

    @property
    def spare(self) -> int:
        """How many free slots can be filled from elsewhere."""
        return self.admission.spare(self.running)

    # --- coming and going -------------------------------------------------------------------------

    def submit(self, request: Request) -> SequenceState:
        """Queues the request. CapacityError if it could never run, QueueFullError if too many wait,
        RequestError if its prompt is empty."""
        sequence = SequenceState(
            request, arrival=self._arrivals + 1, arrived_at=self.counters.computed_tokens
        )
        self._check_acceptable(sequence)
        self._arrivals += 1
        last, reason = self._generation.begin(sequence)
        if reason is not None:  # the grammar left no choice: nothing is to be computed
            sequence.state = "ended"
        else:
            self.admission.wait(sequence)
        if last is not None or reason is not None:
            self._updates.append(Update(sequence, last, reason, ended=reason is not None))
        return sequence

    def _check_acceptable(self, sequence: SequenceState) -> None:
        request, need = sequence.request, sequence.need
        if not request.prompt:
            raise RequestError(
                "the prompt has no tokens, and the model has no token to begin with",
                request_id=request.id,
            )
        if need > self.capacity:
            raise CapacityError(
                f"the request needs {need} slots of KV cache ({len(request.prompt)} for its "
                f"prompt), and the cache has {self.capacity}: shorten the prompt, lower "
                "max_tokens, or raise kv_cache_tokens",
                needed=need,
                capacity=self.capacity,
                request_id=request.id,
            )
        if self.max_waiting is not None and self.waiting >= self.max_waiting:
            raise QueueFullError(
                f"{self.waiting} requests wait already, and max_waiting is {self.max_waiting}: "
                "submit fewer at once, or later",
                waiting=self.waiting,
                limit=self.max_waiting,
                request_id=request.id,
            )

    def cancel(self, sequence: SequenceState) -> None:
        """Ends the request now. What it has computed stays cached. One that has ended is left
        alone."""
        if sequence.state == "ended":
            return
        was_running = sequence.state == "running"
        sequence.state = "ended"
        if was_running:
            self._leave(sequence)
        else:
            self.admission.withdraw(sequence)

    def rows_in_flight(self) -> tuple[tuple[int, int], ...]:
        """The requests of the oldest step in flight, each with how many of its tokens that step
        computes."""
        counts: dict[int, int] = {}
        for row in self._flights[0].rows if self._flights else ():
            counts[row.sequence.id] = counts.get(row.sequence.id, 0) + len(row.tokens)
        return tuple(counts.items())

    def take_updates(self) -> list[Update]:
        """What happened since the last call."""
        updates = self._updates[:]
        self._updates.clear()
        return updates

    # --- the step ---------------------------------------------------------------------------------

    def plan(self) -> StepPlan | None:
        """The next step; None if there is nothing to compute, or not before the step in flight is
        committed."""
        if len(self._flights) == self.steps_in_flight:
            raise InternalError(f"a step was planned while {len(self._flights)} are in flight")
        if not self._flights:
            self._make_room_for_decodes()
        elif not self._can_plan_ahead():
            return None
        rows = [
            next_row(self.kv_cache, sequence, 1)
            for sequence in self.running
            if sequence.unplanned == 1
        ]
        budget = self._budget.tokens(len(rows)) - len(rows)
        for sequence in self.running:
            if sequence.unplanned > 1 or sequence.tree is not None:
                budget -= extend(self.kv_cache, sequence, budget, rows)
        self._admit(budget, rows)
        if not rows:
            return self.plan() if not self._flights and self._make_any_room() else None
        before = self._flights[-1] if self._flights else None
        flight = build_step(self.counters.steps, rows, before)
        self._flights.append(flight)
        self.counters.steps += 1
        self.counters.computed_tokens += flight.plan.tokens
        return flight.plan

    def commit(self, result: StepResult) -> None:
        """Takes the result of the step in flight, of two the older one."""
        if not self._flights:
            raise InternalError("no step is in flight")
        flight = self._flights.popleft()
        try:
            self._take_result(flight, result)
        finally:  # also if a grammar raises: nothing else will release what left meanwhile
            self._release_leaving(flight)
        self.admission.reserve_less()

    def _take_result(self, flight: StepInFlight, result: StepResult) -> None:
        plan = flight.plan
        self._budget.learn(plan.tokens, plan.decode_rows, result.seconds)
        samples, scores = flight.land(result.samples), iter(result.scores)
        # what continues a token that was not sampled after all, since its request ended, is dropped
        rows = [
            row
            for row in flight.rows
            if not row.continues or row.position < len(row.sequence.tokens)
        ]
        for row in rows:
            if row.edge is None:
                self.kv_cache.advance(row.sequence, len(row.tokens))
        # first all that is computed, then those who borrow it: a borrower's row may come earlier
        for row in rows:
            self.kv_cache.settle(row.sequence)
        for row in rows:
            sequence = row.sequence
            sound, token = True, None
            if sequence.request.max_tokens > 0:
                token = samples.get(sequence.id)
                sound = token is not None or sequence.id not in samples
            elif row.edge is not None or row.ends_prompt:
                sound = _record_scores(row, scores)
            if sequence.state != "running":
                continue
            if not sound:
                self._fail(sequence)
                continue
            if self._share_in_batch and row.position < len(sequence.prompt):
                self.kv_cache.cache_computed(sequence)
            if token is not None:
                self._append(sequence, token)
        self._cache_edges(flight)
        for sequence in {row.sequence: None for row in flight.rows}:
            if sequence.state == "running" and sequence.is_complete:
                self._end(sequence)

    def abandon(self) -> None:
        """Forgets the steps in flight, which failed: what they were to write is not used, and their
        requests can be planned again."""
        while self._flights:
            flight = self._flights.pop()  # the newest first: it goes on where the one before ends
            flight.land()
            for row in flight.rows:
                if row.edge is None:
                    self.kv_cache.forget(row.sequence)
                else:
                    self.kv_cache.pool.give(row.edge.slots[row.edge_offset :])
                    del row.edge.slots[row.edge_offset :]
            self._release_leaving(flight)

    def _release_leaving(self, flight: StepInFlight) -> None:
        for sequence in flight.leaving:
            self.kv_cache.release(sequence)

    # --- parts of a plan --------------------------------------------------------------------------

    def _can_plan_ahead(self) -> bool:
        """Whether all that run can go on without what the step in flight samples, and have room to:
        if one cannot, it would fall behind the others, or be retracted for want of what the step in
        flight is about to free."""
        if any(sequence.needs_its_token for sequence in self.running):
            return False
        return self._decodes_wanted() <= self.kv_cache.available

    def _decodes_wanted(self) -> int:
        return sum(sequence.unplanned == 1 for sequence in self.running)

    def _admit(self, budget: int, rows: list[Row]) -> None:
        fitting = self.admission.fitting(
            self.running, self.counters.computed_tokens, alone=not self._flights
        )
        while (
            budget > 0
            and len(self.running) < self.max_running
            and (sequence := next(fitting, None)) is not None
        ):
            self._start(sequence)
            if not sequence.remaining and sequence.tree is None:
                self._end(sequence)  # all of a prefetch was cached
                continue
            if sequence.unplanned == 1:
                rows.append(next_row(self.kv_cache, sequence, 1))
                budget -= 1
            budget -= extend(self.kv_cache, sequence, budget, rows)

    def _start(self, sequence: SequenceState) -> None:
        sequence.state = "running"
        sequence.admissions += 1
        if sequence.admissions == 1:
            sequence.cached_tokens = min(len(sequence.slots), len(sequence.prompt))
            self.counters.admitted(sequence)
        self.running.append(sequence)
        self._updates.append(Update(sequence, event="admitted"))

    def _make_room_for_decodes(self) -> None:
        while self._decodes_wanted() > self.kv_cache.available:
            if not self.kv_cache.drop_pin():
                self.retract(
                    self._victim(),
                    f"{self._decodes_wanted()} running requests need a slot for their next token, "
                    f"and {self.kv_cache.available} are free or can be made free",
                )

    def _make_any_room(self) -> bool:
        """Makes a pin, or one of the running requests, give way, which hold all slots so that none
        can go on; whether any slot came free."""
        if not self.running:
            return False
        while self.kv_cache.drop_pin():
            if self.kv_cache.available:
                return True
        if len(self.running) == 1:
            return False
        self.retract(
            self._victim(),
            f"the {len(self.running)} running requests hold all slots, and none could go on",
        )
        return True

    def _victim(self) -> SequenceState:
        """Who must give way: of those that were never retracted, if there are such, and of the
        lowest priority among them, the one admitted last."""
        candidates = [each for each in self.running if not each.retracted] or self.running
        return min(reversed(candidates), key=lambda sequence: sequence.request.priority)

    def retract(self, sequence: SequenceState, cause: str = "") -> None:
        """Puts a running request back in the queue. Its tokens stay, its keys and values become
        evictable. cause: is told with the news of it."""
        self.counters.retractions += 1
        self.admission.reserve_more()
        self.running.remove(sequence)
        self.kv_cache.release(sequence)
        sequence.retracted = True
        sequence.state = "waiting"
        self._updates.append(Update(sequence, event="retracted", cause=cause))
        self.admission.wait(sequence)

    # --- parts of a commit ------------------------------------------------------------------------

    def _append(self, sequence: SequenceState, token: SampledToken) -> None:
        last, reason = self._generation.grow(sequence, token)
        if reason is None:
            self._updates.append(Update(sequence, last))
        else:
            self._end(sequence, last, reason)

    def _cache_edges(self, flight: StepInFlight) -> None:
        """Caches the edges of selects that are computed now, those above before those below."""
        computed = [
            (row.edge.index, row.sequence, row.edge)
            for row in flight.rows
            if row.edge is not None
            and row.edge_offset + len(row.tokens) == len(row.edge.tokens)
            and row.sequence.state == "running"
        ]
        for _, sequence, edge in sorted(computed, key=lambda entry: entry[0]):
            self.kv_cache.cache_edge(sequence, edge)

    def _fail(self, sequence: SequenceState) -> None:
        """Ends a running request whose logits are no numbers: no token can be drawn from them."""
        sequence.poisoned = True
        sequence.state = "ended"
        self._leave(sequence)
        error = NumericalError(
            f"the model computed NaN or infinity for this request, after "
            f"{len(sequence.prompt)} tokens of prompt and {sequence.generated} generated "
            "ones: other requests go on. Some weight of the model is NaN or infinite, or its "
            "numbers do not fit the dtype: check the model's files, or open it with "
            "dtype='float32'",
            request_id=sequence.id,
        )
        self._updates.append(Update(sequence, ended=True, error=error))

    def _end(
        self,
        sequence: SequenceState,
        token: SampledToken | None = None,
        reason: FinishReason | None = None,
    ) -> None:
        sequence.state = "ended"
        self._leave(sequence)
        self._updates.append(Update(sequence, token, reason, ended=True))

    def _leave(self, sequence: SequenceState) -> None:
        """Lets go of a running request that has ended. What steps in flight write of it is freed
        when they have returned."""
        self.running.remove(sequence)
        if not self._flights or not sequence.is_written:
            self.kv_cache.release(sequence)
            return
        if not sequence.poisoned:
            self.kv_cache.cache_computed(sequence)  # what comes next may go on with it
        self._flights[-1].leaving.append(sequence)

    # --- checks -----------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises InternalError if an invariant is broken. O(capacity)."""
        leaving = [sequence for flight in self._flights for sequence in flight.leaving]
        self.kv_cache.check([*self.running, *leaving])
        for sequence in self.running:
            if not self._flights and (len(sequence.slots) != sequence.computed or sequence.pending):
                raise InternalError(
                    f"{sequence!r} has {len(sequence.slots)} slots and {sequence.pending} tokens "
                    "pending with no step in flight"
                )
        pool = self.kv_cache.pool
        written = [slot for flight in self._flights for slot in flight.plan.slots]
        if len({*written, *pool.snapshot()}) != len(written) + pool.free:
            raise InternalError(
                "a slot is free, or written twice, while a step in flight writes it"
            )


def _record_scores(row: Row, scores: Iterator[tuple[float, ...] | None]) -> bool:
    """Takes the scores of the row's tokens; False if some are no numbers. Of a prefetch nothing
    else is wanted."""
    tree = row.sequence.tree
    if tree is None:
        return next(scores) is not None
    nodes = [0] if row.edge is None else row.edge.nodes[row.edge_offset :][: len(row.tokens)]
    sound = True
    for node in nodes:
        values = next(scores)
        if values is None:
            sound = False
        else:
            tree.record(node, values)
    return sound
