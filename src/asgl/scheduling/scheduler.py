"""The scheduler: which tokens each step computes. Pure: no tensors, no event loop, no clock; a plan is data.

Three calls make a step. `plan` orders and admits waiting requests and lays out the rows; the runner computes them;
`commit` takes what was sampled, ends what is finished, and gives computed prefixes to the radix cache. In between the plan
is *in flight*: a request that is cancelled then keeps its slots until the commit, for the step still writes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import ceil
from typing import Literal, NamedTuple

from asgl.errors import CapacityError, InternalError, QueueFullError, RequestError
from asgl.plan import SampledToken, StepPlan, StepResult
from asgl.scheduling.ledger import Ledger
from asgl.scheduling.pace import Pace
from asgl.scheduling.plan_builder import Row, build_plan
from asgl.scheduling.policy import PATIENCE, make_queue
from asgl.scheduling.radix_cache import RadixCache
from asgl.scheduling.request import Request
from asgl.scheduling.sharing import SHARE_THRESHOLD, Leaders
from asgl.scheduling.waiting import Waiting
from asgl.types import FinishReason

_MOST_NAMESPACES = 1024
"""Of how many namespaces counts are kept, those that came first being dropped."""
_RESERVE_START, _RESERVE_LEAST, _RESERVE_DECAY = 0.7, 0.1, 0.995


class Update(NamedTuple):
    """News of a request: a token was sampled, or it ended, or both; or it was admitted or retracted."""

    request: Request
    token: SampledToken | None = None
    reason: FinishReason | None = None
    ended: bool = False
    event: Literal["admitted", "retracted"] | None = None


@dataclass(slots=True)
class NamespaceCounters:
    """What the scheduler counts for each namespace, since its start."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0


@dataclass(slots=True)
class Counters(NamespaceCounters):
    """What the scheduler counts, since its start."""

    steps: int = 0
    forced_tokens: int = 0
    computed_tokens: int = 0
    """New tokens of all steps: the scheduler's measure of time."""
    retractions: int = 0
    namespaces: dict[str | None, NamespaceCounters] = field(default_factory=dict)


class Scheduler:
    """Continuous batching over a radix cache of `capacity` slots.

    max_running: requests that run at once. max_batch_tokens: new tokens a step computes at most; longer prompts are computed
    in chunks. max_waiting: requests that may wait; None for no limit. policy: one of `policy.POLICIES`. share_threshold: a
    waiting request is held back if a running one is about to compute at least so many more tokens of its prompt than the
    cache has. patience: for aged-lpm, the age in computed tokens past which requests are admitted by age alone. jump_forward:
    tokens that a grammar forces are appended at once, and computed together; else one is sampled after the other.
    step_seconds: about how long a step may take while requests decode, judged by earlier ones; None for no bound.
    cache: the class of the prefix cache; another one serves to measure what the radix tree is worth.

    With aged-lpm the wait is bounded, whatever arrives later: past its patience a request is only behind older ones, so it is
    admitted before more tokens are computed than

        patience + what running requests and those that arrived before it still need + one step

    for nothing younger is admitted meanwhile, running requests come to their ends, and with none running any fits.
    """

    def __init__(
        self,
        *,
        capacity: int,
        max_running: int = 64,
        max_batch_tokens: int = 512,
        max_waiting: int | None = None,
        policy: str = "lpm",
        share_threshold: int = SHARE_THRESHOLD,
        patience: int = PATIENCE,
        jump_forward: bool = True,
        step_seconds: float | None = None,
        cache: type[RadixCache[Request]] = RadixCache,
    ) -> None:
        self.max_running = min(max_running, max_batch_tokens)
        self.max_batch_tokens = max_batch_tokens
        self.max_waiting = max_waiting
        self.jump_forward = jump_forward
        self.step_seconds = step_seconds
        self.ledger = Ledger(capacity, self._on_move, cache)
        self.running: list[Request] = []
        self.counters = Counters()
        self._queue = Waiting(lambda: make_queue(policy), patience if policy == "aged-lpm" else None)
        make_queue(policy)  # a wrong name is told now
        self._leaders = Leaders(share_threshold)
        self._pace = Pace(max_batch_tokens, step_seconds)
        self._arrivals = 0
        self._reserve_share = _RESERVE_START
        """The share of the tokens it may still generate that is reserved for a request that was never retracted."""
        self._flight: list[Row] | None = None
        self._leaving: list[Request] = []
        self._updates: list[Update] = []

    @property
    def capacity(self) -> int:
        return self.ledger.capacity

    @property
    def waiting(self) -> int:
        return len(self._queue) + self._leaders.held

    # --- coming and going -------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Queues the request. CapacityError if it could never run, QueueFullError if too many wait, RequestError if its
        prompt is empty."""
        if not request.prompt:
            raise RequestError("the prompt has no tokens, and the model has no token to begin with", request_id=request.id)
        if request.need > self.capacity:
            raise CapacityError(
                f"the request needs {request.need} slots of KV cache ({len(request.prompt)} for its prompt), and the cache "
                f"has {self.capacity}: shorten the prompt, lower max_tokens, or raise kv_cache_tokens",
                needed=request.need, capacity=self.capacity, request_id=request.id,
            )
        if self.max_waiting is not None and self.waiting >= self.max_waiting:
            raise QueueFullError(
                f"{self.waiting} requests wait already, and max_waiting is {self.max_waiting}: submit fewer at once, or later",
                waiting=self.waiting, limit=self.max_waiting, request_id=request.id,
            )
        self._arrivals += 1
        request.arrival, request.arrived_at = self._arrivals, self.counters.computed_tokens
        last, reason = self._jump(request, None, None)
        if reason is not None:  # the grammar left no choice: nothing is to be computed
            request.state = "ended"
        else:
            self._wait(request)
        if last is not None or reason is not None:
            self._updates.append(Update(request, last, reason, ended=reason is not None))

    def cancel(self, request: Request) -> None:
        """Ends the request now. What it has computed stays cached. A request that has ended is left alone."""
        if request.state == "ended":
            return
        was_running = request.state == "running"
        request.state = "ended"
        if not was_running:
            self._queue.remove(request)
            self._leaders.release(request)
            self.ledger.cache.unwatch(request)
        else:
            self.running.remove(request)
            self._retire_leader(request)
            if self._flight is not None:
                self._leaving.append(request)
            else:
                self.ledger.release(request)

    def take_updates(self) -> list[Update]:
        """What happened since the last call."""
        updates, self._updates = self._updates, []
        return updates

    # --- the step ---------------------------------------------------------------------------------------------------

    def plan(self) -> StepPlan | None:
        """The next step; None if there is nothing to compute. Call `commit` or `abandon` before the next `plan`."""
        if self._flight is not None:
            raise InternalError("a step was planned while another is in flight")
        rows: list[Row] = []
        self._make_room_for_decodes()
        for request in self.running:
            if request.remaining == 1:
                rows.append(self._row(request, 1))
        budget = self._pace.budget(len(rows)) - len(rows)
        for request in self.running:
            if request.remaining > 1 or request.branches is not None:
                budget -= self._extend(request, budget, rows)
        self._admit(budget, rows)
        if not rows:
            return self.plan() if self._make_any_room() else None
        plan, self._flight = build_plan(self.counters.steps, rows)
        self.counters.steps += 1
        self.counters.computed_tokens += plan.tokens
        return plan

    def commit(self, result: StepResult) -> None:
        """Takes the result of the step in flight."""
        flight = self._end_flight()
        self._pace.saw(sum(len(row.tokens) for row in flight), result.seconds)
        samples, scores = iter(result.samples), iter(result.scores)
        for row in flight:
            request, count = row.request, len(row.tokens)
            if row.edge is None:
                request.computed += count
            if request.state == "running" and row.edge is None and self._leaders.is_leader(request):
                self._share_progress(request)
            if row.edge is not None or (request.branches is not None and not request.remaining):
                self._record_scores(row, scores)
            elif request.max_tokens > 0 and not request.remaining:
                self._append(request, next(samples))
        self._cache_edges(flight)
        for request in {row.request: None for row in flight}:
            if request.state == "running" and self._is_complete(request):
                self._end(request)
        self._release_leaving()
        self._reserve_share = max(_RESERVE_LEAST, self._reserve_share * _RESERVE_DECAY)

    def abandon(self) -> None:
        """The step in flight failed: what it was to write is not used, and its requests can be planned again."""
        for row in self._end_flight():
            if row.edge is None:
                unwritten = row.request.slots[row.request.computed :]
                del row.request.slots[row.request.computed :]
            else:
                unwritten = row.edge.slots[row.edge_offset :]
                del row.edge.slots[row.edge_offset :]
            self.ledger.pool.give(unwritten)
        self._release_leaving()

    # --- laying out rows --------------------------------------------------------------------------------------------

    def _row(self, request: Request, count: int) -> Row:
        """The next `count` tokens of the request's sequence."""
        start = request.computed
        request.slots.extend(self.ledger.allocate(count))
        return Row(request, request.tokens[start : start + count], start, request.slots)

    def _extend(self, request: Request, budget: int, rows: list[Row]) -> int:
        """Lays out what fits of the request's sequence, and of its branches; returns how many tokens that is."""
        used = 0
        if request.remaining > 1:
            used = min(request.remaining, budget, self.ledger.available)
            if used > 0:
                rows.append(self._row(request, used))
        if request.branches is not None and len(request.slots) == len(request.tokens):
            for edge, offset in request.branches.pending():
                count = min(len(edge.tokens) - offset, budget - used, self.ledger.available)
                if count <= 0:
                    break
                request.branches.take(edge, self.ledger.allocate(count))
                context = request.slots[:]
                for above in edge.path():
                    context.extend(above.slots)
                rows.append(Row(request, edge.tokens[offset : offset + count],
                                len(request.tokens) + edge.start + offset, context, edge, offset))
                used += count
                if offset + count < len(edge.tokens):
                    break  # an edge below this one needs all of it
        return used

    # --- admission --------------------------------------------------------------------------------------------------

    def _admit(self, budget: int, rows: list[Row]) -> None:
        outstanding = sum(map(self._outstanding, self.running))
        while budget > 0 and len(self.running) < self.max_running and (request := self._next()) is not None:
            if self._leaders.hold(request):
                continue
            self.ledger.match(request)  # before the check: locking shrinks what is evictable
            wanted = self._outstanding(request)
            while wanted + outstanding > self.ledger.available and not self.running and self.ledger.drop_pin():
                pass
            if wanted + outstanding > self.ledger.available:
                self.ledger.unmatch(request)
                self._queue.push(request)
                return
            self._start(request)
            if not request.remaining and request.branches is None:
                self._end(request)  # all of a prefetch was cached
                continue
            outstanding += wanted
            if request.remaining == 1:
                rows.append(self._row(request, 1))
                budget -= 1
            budget -= self._extend(request, budget, rows)

    def _next(self) -> Request | None:
        """Whom to admit next: whoever is overdue, else the first of the queue. None if there is nobody now."""
        overdue = self._queue.overdue(self.counters.computed_tokens)
        if overdue is None:
            return self._queue.pop()
        if overdue.leader is not None:
            return None  # a running request computes its prefix; nothing younger gets in between
        self._queue.remove(overdue)
        return overdue

    def _start(self, request: Request) -> None:
        self.ledger.cache.unwatch(request)
        request.state = "running"
        request.admissions += 1
        self._queue.charge(request, len(request.tokens) - request.covered + request.max_tokens - request.generated)
        if request.admissions == 1:
            request.cached_tokens = min(request.covered, len(request.prompt))
            for counters in (self.counters, self._counters_of(request)):
                counters.cached_tokens += request.cached_tokens
                counters.prompt_tokens += len(request.prompt)
        self.running.append(request)
        self._updates.append(Update(request, event="admitted"))
        if request.remaining > 1:
            self._leaders.add(request)

    def _counters_of(self, request: Request) -> NamespaceCounters:
        counters = self.counters.namespaces
        if request.namespace not in counters and len(counters) >= _MOST_NAMESPACES:
            del counters[next(iter(counters))]
        return counters.setdefault(request.namespace, NamespaceCounters())

    def _outstanding(self, request: Request) -> int:
        """Slots that the request is expected to take beyond those it has.

        A request that was retracted counts in full, others with a share of what they may generate: the share falls while all
        goes well and rises with each retraction. Requests that count in full always fit together, so that only the others
        are ever retracted, and none of them twice.
        """
        more = request.max_tokens - request.generated - 1
        if more > 0 and not request.retracted:
            more = ceil(more * self._reserve_share)
        branches = request.branches
        return (len(request.tokens) - len(request.slots) + max(more, 0)
                + (branches.reserve if branches is not None else 0))

    def _wait(self, request: Request) -> None:
        request.state = "waiting"
        self.ledger.cache.watch(request)
        self._queue.push(request)
        self._queue.arrived(request)

    def _on_move(self, request: Request) -> None:
        if request in self._queue:
            self._queue.push(request)

    # --- retraction -------------------------------------------------------------------------------------------------

    def _make_room_for_decodes(self) -> None:
        while sum(request.remaining == 1 for request in self.running) > self.ledger.available:
            if not self.ledger.drop_pin():
                self._retract(self._victim())

    def _make_any_room(self) -> bool:
        """Running requests hold all slots and none can go on: whether one of them, or a pin, gave way."""
        if not self.running:
            return False
        if self.ledger.drop_pin():
            return True
        if len(self.running) == 1:
            return False
        self._retract(self._victim())
        return True

    def _victim(self) -> Request:
        """Who must give way: the one admitted last, of those that were never retracted if there is one."""
        return next((request for request in reversed(self.running) if not request.retracted), self.running[-1])

    def _retract(self, request: Request) -> None:
        """Puts a running request back in the queue. Its tokens stay, its keys and values become evictable."""
        self.counters.retractions += 1
        self._reserve_share = min(1.0, self._reserve_share + 0.2)
        self.running.remove(request)
        self._retire_leader(request)
        self.ledger.release(request)
        request.retracted = True
        self._updates.append(Update(request, event="retracted"))
        self._wait(request)

    # --- progress and ends ------------------------------------------------------------------------------------------

    def _end_flight(self) -> list[Row]:
        if self._flight is None:
            raise InternalError("no step is in flight")
        flight, self._flight = self._flight, None
        return flight

    def _append(self, request: Request, token: SampledToken) -> None:
        if request.state != "running":
            return  # cancelled while the step ran
        last, reason = self._jump(request, token, self._take(request, token))
        if reason is None:
            self._updates.append(Update(request, last))
        else:
            self._end(request, last, reason)

    def _take(self, request: Request, token: SampledToken) -> FinishReason | None:
        """Appends a token; the reason if the generation ends with it."""
        request.tokens.append(token.token_id)
        self.counters.generated_tokens += 1
        self._counters_of(request).generated_tokens += 1
        grammar = request.grammar
        if grammar is not None and grammar.ends(token.token_id):
            return "grammar"
        reason = request.output.push(token.token_id) if request.output is not None else None
        if reason is None and grammar is not None:
            grammar.push(token.token_id)
        return reason

    def _jump(
        self, request: Request, last: SampledToken | None, reason: FinishReason | None
    ) -> tuple[SampledToken | None, FinishReason | None]:
        """Appends the tokens that the grammar forces after the token `last`, which ended the generation with `reason` or did not.

        Gives the news of all tokens but the last; returns that one, and the reason if the generation ends with it. What was
        appended has no keys and values yet: the next step computes all of it at once. Where log-probabilities are asked for,
        nothing is appended that was not sampled.
        """
        grammar = request.grammar
        jumps = grammar is not None and self.jump_forward and request.spec.logprobs is None
        while grammar is not None and jumps and reason is None and (forced := grammar.forced()):
            room = request.max_tokens - request.generated
            if room <= 0:
                break
            for token_id in forced[:room]:
                if last is not None:
                    self._updates.append(Update(request, last))
                last = SampledToken(token_id)
                self.counters.forced_tokens += 1
                reason = self._take(request, last)
                if reason is not None:
                    break
        if reason is None and grammar is not None and grammar.complete:
            reason = "grammar"
        if reason is None and 0 < request.max_tokens <= request.generated:
            reason = "length"
        return last, reason

    def _record_scores(self, row: Row, scores: Iterator[tuple[float, ...]]) -> None:
        branches = row.request.branches
        assert branches is not None
        if row.edge is None:
            branches.record(0, next(scores))
            return
        for offset in range(len(row.tokens)):
            branches.record(row.edge.nodes[row.edge_offset + offset], next(scores))

    def _cache_edges(self, flight: list[Row]) -> None:
        """Caches the edges of selects that are computed now, those above before those below."""
        computed = [(row.edge.index, row.request, row.edge) for row in flight
                    if row.edge is not None and row.edge.complete and row.request.state == "running"]
        for _, request, edge in sorted(computed, key=lambda entry: entry[0]):
            self.ledger.cache_edge(request, edge)

    def _is_complete(self, request: Request) -> bool:
        """Whether a request that generates nothing has all that it wants."""
        if request.max_tokens > 0 or request.remaining:
            return False
        return request.branches is None or not request.branches.unfinished

    def _end(self, request: Request, token: SampledToken | None = None, reason: FinishReason | None = None) -> None:
        request.state = "ended"
        self.running.remove(request)
        self._retire_leader(request)
        self.ledger.release(request)
        self._updates.append(Update(request, token, reason, ended=True))

    def _share_progress(self, request: Request) -> None:
        """Caches what a leader has computed so far, and lets those go who waited for it."""
        self.ledger.cache_computed(request)
        if request.remaining <= 1:
            self._retire_leader(request)
        else:
            for follower in self._leaders.reached(request):
                self._queue.push(follower)

    def _retire_leader(self, request: Request) -> None:
        for follower in self._leaders.retire(request):
            self._queue.push(follower)

    def _release_leaving(self) -> None:
        leaving, self._leaving = self._leaving, []
        for request in leaving:
            self.ledger.release(request)

    # --- checks -----------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises InternalError if an invariant is broken. O(capacity)."""
        self.ledger.check([*self.running, *self._leaving])
        for request in self.running:
            if self._flight is None and len(request.slots) != request.computed:
                raise InternalError(f"{request!r} has {len(request.slots)} slots with no step in flight")
        self._leaders.check(self.running)
