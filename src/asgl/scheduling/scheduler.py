"""The scheduler: which tokens each step computes. Pure: no tensors, no event loop, no clock; a plan
is data.

Three calls make a step. `plan` orders and admits waiting requests and lays out the rows; the runner
computes them; `commit` takes what was sampled, ends what is finished, and gives computed prefixes
to the radix cache. In between the plan is *in flight*: a request that is cancelled then keeps its
slots until the commit, for the step still writes them.

With `steps_in_flight` of 2 a step may be planned while another is in flight. What that one samples
is then pending: rows that go on with it name it by its place, on the guess that no request ends by
it. Those that do end leave a row behind: what it samples is dropped, and the last token is cached
with the others once its step has returned.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from asgl.errors import CapacityError, InternalError, QueueFullError, RequestError
from asgl.plan import SampledToken, StepPlan, StepResult
from asgl.scheduling.admission import Admission
from asgl.scheduling.counters import Counters
from asgl.scheduling.flight import Flight
from asgl.scheduling.generation import Generation
from asgl.scheduling.layout import extend, next_row
from asgl.scheduling.pace import Pace
from asgl.scheduling.plan_builder import Row, build_plan
from asgl.scheduling.policy import PATIENCE
from asgl.scheduling.radix_cache import RadixCache
from asgl.scheduling.request import Request, Update
from asgl.types import FinishReason


class Scheduler:
    """Continuous batching over a radix cache of `capacity` slots.

    max_running: requests that run at once. max_batch_tokens: new tokens a step computes at most;
    longer prompts are computed in chunks. max_waiting: requests that may wait; None for no limit.
    policy: one of `policy.POLICIES`. share_in_batch: prompts are cached as they are computed, and
    shared before that by those of one step (see `sharing`); else at their requests' end. patience:
    for aged-lpm, the age in computed tokens past which requests are admitted by age alone.
    jump_forward: tokens that a grammar forces are appended at once, and computed together; else one
    is sampled after the other. step_seconds: about how long a step may take while requests decode,
    judged by earlier ones; None for no bound. steps_in_flight: how many steps may be planned and
    not committed, 1 or 2. cache: the class of the prefix cache; another one serves to measure what
    the radix tree is worth.

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
        cache: type[RadixCache[Request]] = RadixCache,
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
        self.ledger = self.admission.ledger
        self.running: list[Request] = []
        self.counters = Counters()
        self._pace = Pace(max_batch_tokens, step_seconds)
        self.steps_in_flight = steps_in_flight
        self._flights: deque[Flight] = deque()
        """The oldest first."""
        self._updates: list[Update] = []
        self._generation = Generation(self.counters, self._updates)

    @property
    def capacity(self) -> int:
        return self.ledger.capacity

    @property
    def waiting(self) -> int:
        return self.admission.waiting

    @property
    def spare(self) -> int:
        """How many free slots can be filled from elsewhere."""
        return self.admission.spare(self.running)

    # --- coming and going -------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Queues the request. CapacityError if it could never run, QueueFullError if too many wait,
        RequestError if its prompt is empty."""
        if not request.prompt:
            raise RequestError(
                "the prompt has no tokens, and the model has no token to begin with",
                request_id=request.id,
            )
        if request.need > self.capacity:
            raise CapacityError(
                f"the request needs {request.need} slots of KV cache ({len(request.prompt)} for "
                "its prompt), and the cache "
                f"has {self.capacity}: shorten the prompt, lower max_tokens, or raise "
                "kv_cache_tokens",
                needed=request.need,
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
        self.admission.arrive(request, self.counters.computed_tokens)
        last, reason = self._generation.begin(request, jump=self.jump_forward)
        if reason is not None:  # the grammar left no choice: nothing is to be computed
            request.state = "ended"
        else:
            self.admission.wait(request)
        if last is not None or reason is not None:
            self._updates.append(Update(request, last, reason, ended=reason is not None))

    def cancel(self, request: Request) -> None:
        """Ends the request now. What it has computed stays cached. A request that has ended is left
        alone."""
        if request.state == "ended":
            return
        was_running = request.state == "running"
        request.state = "ended"
        if not was_running:
            self.admission.withdraw(request)
        else:
            self._leave(request)

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
            next_row(self.ledger, request, 1) for request in self.running if request.unplanned == 1
        ]
        budget = self._pace.budget(len(rows)) - len(rows)
        for request in self.running:
            if request.unplanned > 1 or request.branches is not None:
                budget -= extend(self.ledger, request, budget, rows)
        self._admit(budget, rows)
        if not rows:
            return self.plan() if not self._flights and self._make_any_room() else None
        plan, rows = build_plan(
            self.counters.steps, rows, self._flights[-1].places if self._flights else {}
        )
        self._flights.append(Flight(plan, rows))
        self.counters.steps += 1
        self.counters.computed_tokens += plan.tokens
        return plan

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

    def _take_result(self, flight: Flight, result: StepResult) -> None:
        self._pace.saw(len(flight.slots), flight.decodes, result.seconds)
        samples, scores = flight.land(result.samples), iter(result.scores)
        rows = [
            row
            for row in flight.rows
            if not row.continues or row.position < len(row.request.tokens)
        ]  # else it was ended before the row's token
        for row in rows:
            if row.edge is None:
                row.request.computed += len(row.tokens)
        for row in rows:
            self.ledger.settle(row.request)
        for row in rows:
            request = row.request
            if (
                self._share_in_batch
                and row.position < len(request.prompt)
                and request.state == "running"
            ):
                self.ledger.cache_computed(request)
            if row.edge is not None or (request.branches is not None and not request.remaining):
                _record_scores(row, scores)
            elif request.state == "running" and request.id in samples:
                self._append(request, samples[request.id])
        self._cache_edges(flight)
        for request in {row.request: None for row in flight.rows}:
            if request.state == "running" and _is_complete(request):
                self._end(request)

    def abandon(self) -> None:
        """A step in flight failed, and none is any more: what they were to write is not used, and
        their requests can be planned again."""
        while self._flights:
            flight = self._flights.pop()  # the newest first: it goes on where the one before ends
            flight.land(())
            for row in flight.rows:
                if row.edge is None:
                    self.ledger.forget(row.request)
                else:
                    self.ledger.pool.give(row.edge.slots[row.edge_offset :])
                    del row.edge.slots[row.edge_offset :]
            self._release_leaving(flight)

    def _release_leaving(self, flight: Flight) -> None:
        for request in flight.leaving:
            self.ledger.release(request)

    # --- parts of a plan --------------------------------------------------------------------------

    def _can_plan_ahead(self) -> bool:
        """Whether all that run can go on without what the step in flight samples, and have room to:
        if one cannot, it would fall behind the others, or be retracted for want of what the step in
        flight is about to free."""
        if any(request.needs_its_token for request in self.running):
            return False
        return sum(request.unplanned == 1 for request in self.running) <= self.ledger.available

    def _admit(self, budget: int, rows: list[Row]) -> None:
        fitting = self.admission.fitting(
            self.running, self.counters.computed_tokens, alone=not self._flights
        )
        while (
            budget > 0
            and len(self.running) < self.max_running
            and (request := next(fitting, None)) is not None
        ):
            self._start(request)
            if not request.remaining and request.branches is None:
                self._end(request)  # all of a prefetch was cached
                continue
            if request.unplanned == 1:
                rows.append(next_row(self.ledger, request, 1))
                budget -= 1
            budget -= extend(self.ledger, request, budget, rows)

    def _start(self, request: Request) -> None:
        request.state = "running"
        request.admissions += 1
        if request.admissions == 1:
            request.cached_tokens = min(len(request.slots), len(request.prompt))
            self.counters.admitted(request)
        self.running.append(request)
        self._updates.append(Update(request, event="admitted"))

    def _make_room_for_decodes(self) -> None:
        while sum(request.unplanned == 1 for request in self.running) > self.ledger.available:
            if not self.ledger.drop_pin():
                self._retract(self._victim())

    def _make_any_room(self) -> bool:
        """Running requests hold all slots and none can go on: whether one of them, or a pin, gave
        way."""
        if not self.running:
            return False
        while self.ledger.drop_pin():
            if self.ledger.available:
                return True
        if len(self.running) == 1:
            return False
        self._retract(self._victim())
        return True

    def _victim(self) -> Request:
        """Who must give way: of those that were never retracted, if there are such, and of the
        lowest priority among them, the one admitted last."""
        candidates = [request for request in self.running if not request.retracted] or self.running
        return min(reversed(candidates), key=lambda request: request.priority)

    def _retract(self, request: Request) -> None:
        """Puts a running request back in the queue. Its tokens stay, its keys and values become
        evictable."""
        self.counters.retractions += 1
        self.admission.reserve_more()
        self.running.remove(request)
        self.ledger.release(request)
        request.retracted = True
        self._updates.append(Update(request, event="retracted"))
        self.admission.wait(request)

    # --- parts of a commit ------------------------------------------------------------------------

    def _append(self, request: Request, token: SampledToken) -> None:
        last, reason = self._generation.grow(request, token, jump=self.jump_forward)
        if reason is None:
            self._updates.append(Update(request, last))
        else:
            self._end(request, last, reason)

    def _cache_edges(self, flight: Flight) -> None:
        """Caches the edges of selects that are computed now, those above before those below."""
        computed = [
            (row.edge.index, row.request, row.edge)
            for row in flight.rows
            if row.edge is not None
            and row.edge_offset + len(row.tokens) == len(row.edge.tokens)
            and row.request.state == "running"
        ]
        for _, request, edge in sorted(computed, key=lambda entry: entry[0]):
            self.ledger.cache_edge(request, edge)

    def _end(
        self,
        request: Request,
        token: SampledToken | None = None,
        reason: FinishReason | None = None,
    ) -> None:
        request.state = "ended"
        self._leave(request)
        self._updates.append(Update(request, token, reason, ended=True))

    def _leave(self, request: Request) -> None:
        """A running request has ended. What steps in flight write of it is freed when they have
        returned."""
        self.running.remove(request)
        if self._flights and request.is_written:
            self.ledger.cache_computed(request)  # what comes next may go on with it
            self._flights[-1].leaving.append(request)
        else:
            self.ledger.release(request)

    # --- checks -----------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises InternalError if an invariant is broken. O(capacity)."""
        self.ledger.check(
            [*self.running, *(request for flight in self._flights for request in flight.leaving)]
        )
        for request in self.running:
            if not self._flights and (len(request.slots) != request.computed or request.pending):
                raise InternalError(
                    f"{request!r} has {len(request.slots)} slots and {request.pending} tokens "
                    "pending with no "
                    "step in flight"
                )
        written = [slot for flight in self._flights for slot in flight.slots]
        if len({*written, *self.ledger.pool.snapshot()}) != len(written) + self.ledger.pool.free:
            raise InternalError(
                "a slot is free, or written twice, while a step in flight writes it"
            )


def _record_scores(row: Row, scores: Iterator[tuple[float, ...]]) -> None:
    branches = row.request.branches
    assert branches is not None
    if row.edge is None:
        branches.record(0, next(scores))
        return
    for offset in range(len(row.tokens)):
        branches.record(row.edge.nodes[row.edge_offset + offset], next(scores))


def _is_complete(request: Request) -> bool:
    """Whether a request that generates nothing has all that it wants."""
    if request.max_tokens > 0 or request.remaining:
        return False
    return request.branches is None or not request.branches.unfinished
