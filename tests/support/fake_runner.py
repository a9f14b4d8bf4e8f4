"""A runner without tensors that knows what every slot must hold.

The "keys and values" of a token are a hash of the sequence up to it, as real ones depend on all
tokens before. A step first stores them for all rows, then checks that each row reads exactly its
own prefix, and samples a token from the hash of the whole sequence: so the output of a request is a
function of its prompt alone, however it was batched, cached, chunked, forked or retracted, or else
a slot was mixed up.

Tokens that a step goes on with before they are known are looked up among the samples of the step
before, as a device does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from asgl.plan import SampledToken, StepPlan, StepResult

VOCABULARY = 50
POISON = 1000
"""A token for which the model computes NaN, and for everything after it."""
POISONED = -1


def extend_hash(state: int, token: int) -> int:
    if state == POISONED or token == POISON:
        return POISONED
    return (state * 1_000_003 + token + 1) % (2**61 - 1)


def sequence_hash(tokens: Sequence[int]) -> int:
    state = 7
    for token in tokens:
        state = extend_hash(state, token)
    return state


def next_token(state: int) -> int:
    return (state * 2_654_435_761 >> 11) % VOCABULARY


def log_probability(state: int, token: int) -> float:
    return -(1 + (state ^ token * 7919) % 1000) / 100


def expected_output(prompt: Sequence[int], count: int) -> list[int]:
    state, output = sequence_hash(prompt), list[int]()
    for _ in range(count):
        output.append(next_token(state))
        state = extend_hash(state, output[-1])
    return output


def expected_scores(prompt: Sequence[int], option: Sequence[int]) -> list[float]:
    state, scores = sequence_hash(prompt), list[float]()
    for token in option:
        scores.append(log_probability(state, token))
        state = extend_hash(state, token)
    return scores


class FakeRunner:
    """Runs plans; `before_step(plan)` is called first, and may raise to fail the step;
    `before_collect(plan)` likewise."""

    def __init__(
        self,
        capacity: int,
        before_step: Callable[[StepPlan], None] | None = None,
        steps_in_flight: int = 1,
        before_collect: Callable[[StepPlan], None] | None = None,
    ) -> None:
        self.capacity = capacity
        self.steps_in_flight = steps_in_flight
        self.before_collect = before_collect
        self.in_flight: deque[tuple[StepPlan, StepResult]] = deque()
        self._sampled: tuple[SampledToken, ...] = ()
        self.memory = [(0, 0)] * capacity
        """For each slot the hash of the sequence up to its token, and that up to the token
        before."""
        self.before_step = before_step
        self.steps: list[StepPlan] = []
        self.computed_tokens = 0
        self.closed = False

    def close(self) -> None:
        self.closed = True

    def launch(self, plan: StepPlan) -> None:
        assert len(self.in_flight) < self.steps_in_flight
        self.in_flight.append((plan, self._compute(plan)))

    def collect(self) -> StepResult:
        plan, result = self.in_flight.popleft()
        if self.before_collect is not None:
            self.before_collect(plan)
        return result

    def lose(self) -> None:
        """The steps in flight fail: who reads a slot that they wrote is found out."""
        while self.in_flight:
            for slot in self.in_flight.pop()[0].slots:
                self.memory[slot] = (-1, -1)

    def run(self, plan: StepPlan) -> StepResult:
        self.launch(plan)
        return self.collect()

    def _compute(self, plan: StepPlan) -> StepResult:
        self.steps.append(plan)
        if self.before_step is not None:
            self.before_step(plan)
        assert plan.tokens > 0
        assert len(set(plan.slots)) == plan.tokens, "two new tokens share a slot"
        self._tokens = plan.input_ids[:]
        for index, sample in plan.continued:
            assert self.in_flight, "a step goes on with what no step in flight samples"
            assert plan.input_ids[index] == 0
            self._tokens[index] = self._sampled[sample].token_id
        states = self._store(plan)
        self.computed_tokens += plan.tokens
        self._check_shared(plan)
        self._sampled = tuple(
            SampledToken(next_token(states[sample.index])) for sample in plan.samples
        )
        return StepResult(
            samples=tuple(
                None if states[sample.index] == POISONED else token
                for sample, token in zip(plan.samples, self._sampled, strict=True)
            ),
            scores=tuple(
                None
                if states[score.index] == POISONED
                else tuple(log_probability(states[score.index], target) for target in score.targets)
                for score in plan.scores
            ),
            seconds=0.001 * plan.tokens,
        )

    def _store(self, plan: StepPlan) -> list[int]:
        """Stores the hashes of all new tokens. A row may read what another row of the step writes,
        so this takes rounds."""
        states = [0] * plan.tokens
        written: set[int] = set()
        new_slots = set(plan.slots)
        open_rows = list(range(plan.rows))
        while open_rows:
            progress = False
            for row in list(open_rows):
                first, last = plan.qo_indptr[row], plan.qo_indptr[row + 1]
                context = plan.kv_indices[plan.kv_indptr[row] : plan.kv_indptr[row + 1]]
                count = last - first
                assert list(context[-count:]) == list(plan.slots[first:last])
                before = context[:-count]
                if any(slot in new_slots and slot not in written for slot in before):
                    continue
                assert plan.positions[first] == len(before)
                state = self.memory[before[-1]][0] if before else 7
                self._check_prefix(before, state)
                for token in range(first, last):
                    assert plan.positions[token] == len(before) + token - first
                    previous, state = state, extend_hash(state, self._tokens[token])
                    self.memory[plan.slots[token]] = (state, previous)
                    states[token] = state
                    written.add(plan.slots[token])
                open_rows.remove(row)
                progress = True
            assert progress, "rows wait for each other"
        return states

    def _check_prefix(self, slots: Sequence[int], state: int) -> None:
        """The slots must hold a chain of hashes: each token's hash was made from that of the token
        before."""
        previous = 7
        for slot in slots:
            here, before = self.memory[slot]
            assert before == previous, "a foreign slot"
            previous = here
        assert previous == state

    def _check_shared(self, plan: StepPlan) -> None:
        covered: dict[int, int] = {}
        for start, end, rows in plan.shared:
            assert len(rows) > 1
            assert start < end
            spans = [
                plan.kv_indices[plan.kv_indptr[r] + start : plan.kv_indptr[r] + end] for r in rows
            ]
            assert all(len(span) == end - start and span == spans[0] for span in spans)
            for row in rows:
                assert covered.get(row, 0) <= start, "the spans of a row overlap"
                covered[row] = end
