"""The scheduler with a runner that knows what every slot must hold, under random submissions,
cancels and failures."""

from __future__ import annotations

import random
from array import array
from contextlib import suppress

import pytest
from fake_runner import POISON, VOCABULARY, expected_output
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scheduler_harness import Harness, StopAt, tokens

from asgl.errors import CapacityError, InternalError, QueueFullError, RequestError
from asgl.plan import INT, StepResult
from asgl.sampling import SamplingSpec
from asgl.scheduling import admission
from asgl.scheduling.queue import POLICIES
from asgl.scheduling.radix_cache import common_prefix
from asgl.scheduling.request import Request
from asgl.scheduling.scheduler import Scheduler
from asgl.scheduling.sequence import SequenceState

TOKENS = st.lists(st.integers(0, 3), min_size=1, max_size=24)


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        capacity=st.integers(30, 120),
        max_batch_tokens=st.integers(4, 40),
        max_running=st.integers(1, 6),
        policy=st.sampled_from(POLICIES),
        patience=st.integers(10, 200),
        share_in_batch=st.sampled_from([True, True, False]),
        steps_in_flight=st.integers(1, 2),
    )
    def start(self, capacity, **options):
        self.harness = Harness(capacity, **options)
        self.pins: list[int] = []
        self.loads: list[array[int]] = []

    @rule(
        prompt=TOKENS,
        max_tokens=st.integers(0, 12),
        namespace=st.sampled_from([None, "salt"]),
        priority=st.integers(0, 1),
    )
    def submit(self, prompt, max_tokens, namespace, priority):
        with suppress(CapacityError):
            self.harness.submit(
                prompt, max_tokens=max_tokens, namespace=namespace, priority=priority
            )

    @rule(prompt=TOKENS, max_tokens=st.integers(1, 12), stop=st.integers(0, VOCABULARY - 1))
    def submit_with_a_stop(self, prompt, max_tokens, stop):
        with suppress(CapacityError):
            self.harness.submit(prompt, max_tokens=max_tokens, output=StopAt(stop))

    @rule(prompt=TOKENS, max_tokens=st.integers(1, 8))
    def submit_penalised(self, prompt, max_tokens):
        with suppress(CapacityError):
            self.harness.submit(
                prompt, max_tokens=max_tokens, spec=SamplingSpec(repetition_penalty=1.2)
            )

    @rule(prompt=TOKENS, tail=TOKENS, forks=st.integers(2, 5), max_tokens=st.integers(1, 8))
    def fork(self, prompt, tail, forks, max_tokens):
        for branch in range(forks):
            self.submit([*prompt, branch % 3, *tail], max_tokens, None, 0)

    @rule(
        prompt=TOKENS,
        options=st.lists(st.lists(st.integers(0, 3), max_size=5), min_size=1, max_size=5),
    )
    def score(self, prompt, options):
        with suppress(CapacityError):
            self.harness.submit(prompt, options=options)

    @rule(
        prompt=TOKENS,
        options=st.lists(st.lists(st.integers(0, 5), max_size=12), min_size=8, max_size=40),
    )
    def score_many(self, prompt, options):
        self.score(prompt, options)

    @rule(prompt=TOKENS, tail=TOKENS, max_tokens=st.integers(0, 8), select=st.booleans())
    def submit_poisoned(self, prompt, tail, max_tokens, select):
        with suppress(CapacityError):
            self.harness.submit(
                [*prompt, POISON, *tail],
                max_tokens=0 if select else max_tokens,
                options=[tail, prompt] if select else None,
            )

    @rule(prompt=TOKENS)
    def pin(self, prompt):
        self.pins.append(self.harness.scheduler.kv_cache.pin(array(INT, prompt), None)[0])

    @rule(data=st.data())
    def unpin(self, data):
        if self.pins:
            self.harness.scheduler.kv_cache.unpin(data.draw(st.sampled_from(self.pins)))

    @rule()
    def flush(self):
        self.harness.scheduler.kv_cache.flush()

    @rule(data=st.data())
    def load(self, data):
        """Slots are filled from a file, and in the end the file was bad."""
        kv_cache = self.harness.scheduler.kv_cache
        count = data.draw(st.integers(0, self.harness.scheduler.spare))
        self.loads.append(kv_cache.reserve(count))

    @rule()
    def end_load(self):
        for slots in self.loads:
            self.harness.scheduler.kv_cache.give_back(slots)
        self.loads.clear()

    @precondition(lambda self: not self.harness.full)
    @rule()
    def begin(self):
        self.harness.begin()

    @precondition(lambda self: self.harness.in_flight)
    @rule()
    def finish(self):
        self.harness.finish()

    @rule(steps=st.integers(1, 6))
    def steps(self, steps):
        for _ in range(steps):
            self.harness.step()

    @precondition(lambda self: self.harness.in_flight)
    @rule()
    def fail(self):
        self.harness.abandon()

    @rule(data=st.data())
    def cancel(self, data):
        alive = [request for request in self.harness.requests.values() if request.state != "ended"]
        if alive:
            self.harness.scheduler.cancel(data.draw(st.sampled_from(alive)))

    @invariant()
    def balanced(self):
        if hasattr(self, "harness"):
            self.harness.scheduler.check()

    def teardown(self):
        if hasattr(self, "harness"):
            self.end_load()
            self.harness.run()
            self.harness.verify_ended()
            assert all(request.admissions <= 2 for request in self.harness.requests.values()), (
                "one was retracted twice"
            )
            for number in self.pins:
                self.harness.scheduler.kv_cache.unpin(number)
            self.harness.verify_idle()
            assert all(request.state == "ended" for request in self.harness.requests.values())


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(
    max_examples=2 * settings.default.max_examples, stateful_step_count=40
)


def test_a_request_alone():
    harness = Harness(100)
    harness.submit([1, 2, 3], max_tokens=5)
    harness.run()
    assert harness.ended == {0: "length"}
    assert harness.outputs[0] == expected_output([1, 2, 3], 5)
    assert len(harness.runner.steps) == 5
    harness.verify_idle()


def test_forks_submitted_together_compute_the_prefix_once():
    harness = Harness(4000, max_batch_tokens=256)
    prefix = tokens(1000)
    for branch in range(16):
        harness.submit([*prefix, branch], max_tokens=4)
    harness.run()
    harness.verify_ended()
    assert harness.runner.computed_tokens == 1000 + 16 + 16 * 3
    assert harness.scheduler.counters.cached_tokens == 15 * 1000
    harness.verify_idle()


def test_a_deep_tree_of_forks_computes_each_token_once():
    harness = Harness(10_000, max_batch_tokens=256)
    root = tokens(200)
    middles = [[*root, branch, *tokens(50, branch + 1)] for branch in range(3)]
    for middle in middles:
        for leaf in range(4):
            harness.submit([*middle, leaf], max_tokens=1)
    harness.run()
    assert harness.runner.computed_tokens == 200 + 3 * 51 + 12


def test_shared_prefixes_are_named_to_the_runner():
    harness = Harness(4000)
    prefix = tokens(100)
    for branch in range(4):
        harness.submit([*prefix, branch], max_tokens=4)
    harness.run()
    decode = harness.runner.steps[-2]  # in the last one the leader is done
    assert decode.shared == ((0, 100, (0, 1, 2, 3)),)


def submit_branches(
    harness: Harness, count: int, *, prefix: int = 100, **options
) -> list[SequenceState]:
    """Prompts that differ in their last token."""
    return [
        harness.submit([*tokens(prefix), branch], max_tokens=2, **options)
        for branch in range(count)
    ]


def test_prompts_of_one_step_share_what_it_computes():
    harness = Harness(1000)
    requests = submit_branches(harness, 3)
    stranger = harness.submit([*tokens(100), 7], max_tokens=2, namespace="another")
    harness.begin()
    assert harness.runner.steps[0].tokens == 101 + 1 + 1 + 101
    assert [request.borrowed for request in requests] == [0, 100, 100]
    assert [request.cached_tokens for request in [*requests, stranger]] == [0, 100, 100, 0]
    harness.run()
    assert harness.runner.computed_tokens == 101 + 1 + 1 + 101 + 4
    assert not any(request.borrowed or request.borrowers for request in requests)
    harness.verify_ended()
    harness.verify_idle()


def test_who_borrows_lends_too():
    """The third request shares with the second what that does not share with the first."""
    harness = Harness(1000)
    root, more = tokens(50), tokens(30, 1)
    first, second, third = (
        harness.submit(prompt, max_tokens=2)
        for prompt in ([*root, 1, 2], [*root, *more, 3], [*root, *more, 4])
    )
    harness.begin()
    assert (second.lender, third.lender) == (first, second)
    assert (second.borrowed, third.borrowed) == (50, 80)
    harness.finish()
    assert (second.covered, third.covered) == (81, 81)
    harness.run()
    harness.verify_ended()
    harness.verify_idle()


def test_a_chain_of_loans_may_be_long() -> None:
    """Each prompt goes on where the one before ends: each borrows of that one."""
    count = 1500
    harness = Harness(10_000, max_running=count, max_batch_tokens=4000)
    prompt = tokens(count + 1)
    requests = [harness.submit(prompt[: 2 + number], max_tokens=1) for number in range(count)]
    harness.begin()
    assert sum(request.borrowed > 0 for request in requests) == count - 1
    harness.run()
    assert harness.runner.computed_tokens == count + 1
    harness.verify_ended()
    harness.verify_idle()


def test_of_many_equal_prompts_each_is_compared_with_one(monkeypatch) -> None:
    """Not with all that run: a plan that admits many would take time by their square."""
    compared: list[int] = []

    def counted(a: array[int], b: array[int]) -> int:
        compared.append(len(b))
        return common_prefix(a, b)

    monkeypatch.setattr(admission, "common_prefix", counted)
    harness = Harness(1000, max_running=200)
    requests = [harness.submit(tokens(100), max_tokens=2) for _ in range(200)]
    harness.begin()
    assert [request.borrowed for request in requests] == [0] + [99] * 199
    assert len(compared) == 199
    harness.run()
    harness.verify_ended()
    harness.verify_idle()


@pytest.mark.parametrize("steps_in_flight", [1, 2])
@pytest.mark.parametrize("cancelled", [0, 1])
def test_a_loan_outlives_either_side(cancelled, steps_in_flight):
    """The lender is cancelled in the step that computes what it lent, or the borrower is."""
    harness = Harness(1000, steps_in_flight=steps_in_flight)
    requests = submit_branches(harness, 3)
    while not harness.full and harness.begin():
        pass
    assert requests[1].lender is requests[0]
    harness.scheduler.cancel(requests[cancelled])
    harness.run()
    assert harness.scheduler.kv_cache.cache.peek(array(INT, tokens(100)), None) == 100
    harness.verify_ended()
    harness.verify_idle()


@pytest.mark.parametrize("retracted", [0, 1])
def test_a_failed_step_ends_its_loans(retracted):
    harness = Harness(1000, max_batch_tokens=128)
    requests = submit_branches(harness, 2)
    harness.begin()
    harness.abandon()
    assert [len(request.slots) for request in requests] == [0, 0]
    harness.scheduler.retract(requests[retracted])
    harness.run()
    assert (
        harness.runner.computed_tokens == 102 + 102 + 2
    )  # what failed once more, and each token once
    harness.verify_ended()
    harness.verify_idle()


def test_a_second_step_borrows_of_the_one_in_flight():
    harness = Harness(1000, max_batch_tokens=128, steps_in_flight=2)
    lender = harness.submit([*tokens(100), 1], max_tokens=8)
    harness.begin()
    borrower = harness.submit([*tokens(100), 2], max_tokens=8)
    harness.begin()
    assert (borrower.lender, borrower.borrowed, borrower.computed) == (lender, 100, 0)
    harness.finish()
    assert (borrower.lender, borrower.covered, borrower.computed) == (None, 100, 100)
    harness.run()
    harness.verify_ended()
    harness.verify_idle()


def test_a_loan_over_two_steps_follows_the_lender_to_the_slots_of_the_cache():
    """What the first of them computed another request had generated. That ends meanwhile, so that
    the cache keeps its slots and the lender's are free again: the borrower must not go on with
    those."""
    harness = Harness(1000, max_batch_tokens=64, steps_in_flight=2)
    beginning = tokens(40)
    generation = harness.submit(beginning, max_tokens=60)
    while len(generation.tokens) < 75:
        harness.step()
    prompt = [*beginning, *expected_output(beginning, 30), *tokens(60, 1)]
    if harness.in_flight:
        harness.finish()
    lender = harness.submit([*prompt, 1], max_tokens=8)
    harness.begin()
    assert lender.covered == 40
    assert 70 < len(lender.slots) < len(prompt)
    borrower = harness.submit([*prompt, 2], max_tokens=8)
    harness.begin()
    assert (borrower.lender, borrower.covered, borrower.borrowed) == (lender, 40, len(prompt) - 40)
    harness.scheduler.cancel(generation)
    harness.finish()
    assert lender.covered == borrower.covered == lender.computed
    assert borrower.slots[: len(prompt)] == lender.slots[: len(prompt)]
    assert borrower.lender is lender
    harness.run()
    harness.verify_ended()
    harness.verify_idle()


def test_a_loan_that_does_not_fit_is_no_loan():
    """Room for the lender and what it may generate, and for nobody else until it has ended."""
    harness = Harness(130)
    lender = harness.submit([*tokens(100), 1], max_tokens=30)
    other = harness.submit([*tokens(100), 2], max_tokens=30)
    harness.begin()
    assert (other.state, other.lender, other.borrowed, lender.borrowers) == ("waiting", None, 0, [])
    harness.run()
    assert other.cached_tokens == 100
    harness.verify_ended()
    harness.verify_idle()


def test_what_a_step_has_taken_is_reserved_no_more():
    """Two prompts and two branches of one fill the cache in one step: the room of each counts
    once."""
    harness = Harness(262)
    strangers = [harness.submit(tokens(80, number), max_tokens=1) for number in range(2)]
    branches = submit_branches(harness, 2)
    harness.begin()
    assert [request.state for request in (*strangers, *branches)] == ["running"] * 4
    assert branches[1].borrowed == 100
    harness.run()
    harness.verify_ended()
    harness.verify_idle()


def test_who_waits_counts():
    harness = Harness(1000, max_running=1, max_waiting=3)
    submit_branches(harness, 1)
    harness.begin()
    submit_branches(harness, 3)
    with pytest.raises(QueueFullError):
        submit_branches(harness, 1)
    harness.finish()
    harness.run()
    assert set(harness.ended) == set(range(4))
    harness.verify_idle()


def test_lpm_admits_what_is_cached_first_and_fcfs_does_not():
    orders = {}
    for policy in ("lpm", "fcfs"):
        harness = Harness(400, max_running=1, policy=policy)
        cached = tokens(40, 1)
        harness.submit(cached, max_tokens=1)
        harness.run()
        stranger = harness.submit(tokens(40, 2), max_tokens=1)
        relative = harness.submit([*cached, 1], max_tokens=1)
        harness.run()
        orders[policy] = [
            number for number in harness.ended if number in (stranger.id, relative.id)
        ]
    assert orders == {"lpm": [2, 1], "fcfs": [1, 2]}


def test_long_prompts_are_computed_beside_running_decodes():
    harness = Harness(1000, max_batch_tokens=32)
    harness.submit([1, 2, 3], max_tokens=20)
    harness.step()
    harness.submit(tokens(300), max_tokens=1)
    harness.run()
    mixed = [
        plan for plan in harness.runner.steps if plan.decode_rows and plan.rows > plan.decode_rows
    ]
    assert len(mixed) >= 9
    assert all(plan.tokens <= 32 for plan in harness.runner.steps)
    harness.verify_ended()


def test_a_cache_too_small_for_all_retracts_and_ends_them_all():
    harness = Harness(64)
    generator = random.Random(0)
    for _ in range(50):
        harness.submit(
            [generator.randrange(4) for _ in range(generator.randint(1, 30))],
            max_tokens=generator.randint(1, 30),
        )
    harness.run()
    assert len(harness.ended) == 50
    counters, requests = harness.scheduler.counters, harness.requests.values()
    assert counters.retractions > 0
    # a prompt counts once, however often its request is admitted
    assert counters.prompt_tokens == sum(len(request.prompt) for request in requests)
    assert counters.cached_tokens == sum(request.cached_tokens for request in requests)
    harness.verify_ended()
    harness.verify_idle()


def test_no_request_is_retracted_twice():
    harness = Harness(100)
    generator = random.Random(1)
    for _ in range(100):
        harness.submit([generator.randrange(50) for _ in range(10)], max_tokens=60)
    harness.run()
    assert 0 < harness.scheduler.counters.retractions <= 100
    assert all(request.admissions <= 2 for request in harness.requests.values())
    harness.verify_ended()


def test_who_was_retracted_is_admitted_only_where_all_of_it_fits():
    """However little is reserved for others: else it would be retracted again."""
    harness = Harness(100)
    for number in range(60):
        harness.submit(tokens(10, number), max_tokens=60)
    more = True
    while more:
        harness.scheduler.admission.reserve_share = 0.1
        more = harness.step()
    assert harness.scheduler.counters.retractions > 20
    assert all(request.admissions <= 2 for request in harness.requests.values())
    harness.verify_ended()
    harness.verify_idle()


@pytest.mark.parametrize(("before", "victim"), [((), 2), ((2,), 1), ((2, 1), 0), ((2, 1, 0), 2)])
def test_of_equal_priority_the_one_admitted_last_gives_way_and_none_that_did_before(before, victim):
    harness = Harness(100)
    requests = [harness.submit(tokens(8, number), max_tokens=60) for number in range(3)]
    harness.scheduler.admission.reserve_share = 0.1
    harness.step()
    for number in before:
        requests[number].retracted = True
    while not harness.scheduler.counters.retractions:
        share = harness.scheduler.admission.reserve_share
        assert all(request.state == "running" for request in requests)
        harness.step()
    assert [request.state for request in requests].index("waiting") == victim
    assert harness.scheduler.admission.reserve_share > 1.5 * share  # more is set aside from now on
    harness.run()
    harness.verify_ended()
    harness.verify_idle()


def test_a_prefetch_caches_its_prompt_and_a_second_one_computes_nothing():
    harness = Harness(100)
    prompt = tokens(30)
    harness.submit(prompt)
    harness.run()
    computed = harness.runner.computed_tokens
    harness.submit(prompt)
    harness.run()
    assert harness.runner.computed_tokens == computed == 30
    assert set(harness.ended) == {0, 1}
    generation = harness.submit(prompt, max_tokens=1)
    harness.run()
    assert generation.cached_tokens == 29
    assert harness.runner.computed_tokens == 31


@pytest.mark.parametrize("budget", [4, 512])
def test_options_are_scored_with_common_prefixes_once(budget):
    harness = Harness(200, max_batch_tokens=budget)
    prompt, options = (
        tokens(20),
        [[1, 2, 3], [1, 2, 4], [1, 2], [9], [1, 2, 3], [], [1, 2, 3, 5, 6]],
    )
    harness.submit(prompt, options=options)
    harness.run()
    harness.verify_ended()
    assert (
        harness.runner.computed_tokens == 20 + 4
    )  # 1, 2, 3, 5: those that have a token after them
    follow = harness.submit([*prompt, 1, 2, 3, 5, 7], max_tokens=1)
    harness.run()
    assert follow.cached_tokens == 24
    harness.verify_idle()


@pytest.mark.parametrize("budget", [7, 64])
def test_a_trie_larger_than_the_cache_is_worked_off(budget):
    generator = random.Random(2)
    options = [[generator.randrange(6) for _ in range(generator.randint(1, 9))] for _ in range(200)]
    harness = Harness(40, max_batch_tokens=budget)
    request = harness.submit(tokens(20), options=options)
    assert request.tree.size > 10 * 40
    assert request.need == 20 + 8
    for other in range(1, 4):  # beside generations that need the cache as well
        harness.submit(tokens(10, other), max_tokens=12)
    harness.run()
    harness.verify_ended()
    harness.verify_idle()
    assert len(harness.ended) == 4
    # each token once, but for what a retraction may lose: a prompt and the way to the next edge
    least = 20 + request.tree.size + 3 * (10 + 11)
    assert (
        least
        <= harness.runner.computed_tokens
        <= least + harness.scheduler.counters.retractions * request.need
    )


def test_a_select_that_is_retracted_goes_on_where_it_was():
    harness = Harness(40, max_batch_tokens=8)
    options = [[first, second, 1] for first in range(8) for second in range(8)]
    request = harness.submit(tokens(8), options=options)
    for _ in range(4):
        harness.step()
    left = request.tree.unfinished
    assert 0 < left < len(request.tree.edges)
    harness.scheduler.retract(request)
    harness.run()
    harness.verify_ended()
    assert request.admissions == 2
    # what was done is not computed again: at most the way to the next edge, and the prompt's last
    # token
    assert harness.runner.computed_tokens <= 8 + request.tree.size + 1 + request.tree.depth
    harness.verify_idle()


def test_a_request_that_can_never_fit_is_refused():
    scheduler = Scheduler(capacity=10)
    with pytest.raises(CapacityError, match="needs 11 slots") as caught:
        scheduler.submit(Request(0, [1] * 8, max_tokens=4))
    assert (caught.value.needed, caught.value.capacity) == (11, 10)
    scheduler.submit(Request(1, [1] * 8, max_tokens=3))


def test_an_empty_prompt_is_refused():
    with pytest.raises(RequestError, match="no tokens"):
        Scheduler(capacity=10).submit(Request(0, []))


def test_planning_twice_is_a_bug():
    scheduler = Scheduler(capacity=10)
    scheduler.submit(Request(0, [1], max_tokens=1))
    assert scheduler.plan() is not None
    with pytest.raises(InternalError):
        scheduler.plan()
    scheduler.abandon()
    with pytest.raises(InternalError):
        scheduler.commit(StepResult())


def test_cancel_is_idempotent_and_keeps_what_was_computed():
    harness = Harness(100, max_batch_tokens=16)
    request = harness.submit(tokens(40), max_tokens=4)
    harness.begin()
    harness.scheduler.cancel(request)
    harness.scheduler.cancel(request)
    harness.finish()
    assert harness.scheduler.kv_cache.cache.evictable == 16
    assert not harness.step()
    harness.verify_idle()


def test_duplicates_are_freed_once_and_all_go_on_with_the_cached_slots():
    """Strangers compute the same prompt in one step: the first to be cached keeps its slots, the
    others give theirs back."""
    harness = Harness(200, share_in_batch=False)
    for _ in range(3):
        harness.submit(tokens(20), max_tokens=3)
    harness.step()
    assert harness.runner.computed_tokens == 60
    harness.run()
    assert harness.scheduler.kv_cache.cache.evictable == 22
    harness.verify_ended()
    harness.verify_idle()


def test_a_prefix_that_is_evicted_while_its_request_waits_is_not_believed_in():
    """What a request had matched when it came, or before it was retracted, is matched anew when it
    is admitted."""
    harness = Harness(60, max_running=1, policy="fcfs")
    prefix = tokens(30)
    harness.submit(prefix)
    harness.run()
    harness.submit(tokens(40, 1), max_tokens=10)
    waits = harness.submit([*prefix, 1, 2], max_tokens=5)
    assert waits.matched == 30
    while waits.admissions == 0:
        harness.step()
    assert waits.cached_tokens < 30
    harness.run()
    harness.verify_ended()
    harness.verify_idle()


def test_locking_its_prefix_takes_room_from_the_request_itself():
    """Eight slots are free and ten evictable, but the ten are the request's own prefix: it waits,
    and they are not evicted."""
    harness = Harness(30)
    prefix = tokens(10)
    harness.submit(prefix)
    harness.run()
    harness.submit(tokens(11, 1), max_tokens=3)
    harness.step()
    waits = harness.submit([*prefix, *tokens(12, 2)], max_tokens=1)
    harness.begin()
    assert harness.scheduler.kv_cache.available == 18
    assert waits.state == "waiting"
    assert waits.matched == 10
    harness.run()
    assert waits.cached_tokens == 10
    harness.verify_ended()
    harness.verify_idle()


def test_the_lowest_priority_gives_way_first():
    harness = Harness(64)
    harness.scheduler.admission.reserve_share = 0.1
    low, *high = [
        harness.submit(tokens(8, number), max_tokens=30, priority=number > 0) for number in range(4)
    ]
    while not harness.scheduler.counters.retractions:
        harness.step()
    assert low.retracted
    assert not any(request.retracted for request in high)
    harness.run()
    harness.verify_ended()
    harness.verify_idle()


@pytest.mark.parametrize("steps_in_flight", [1, 2])
def test_a_request_without_logits_fails_alone_and_leaves_nothing_in_the_cache(steps_in_flight):
    harness = Harness(1000, max_batch_tokens=64, steps_in_flight=steps_in_flight)
    prefix = tokens(100)
    poisoned = [
        harness.submit([*prefix, POISON, *tokens(30, 1)], max_tokens=9),
        harness.submit([*prefix, POISON], options=[[1, 2], [1, 3]]),
    ]
    sound = harness.submit([*prefix, 1], max_tokens=9)
    harness.run()
    assert set(harness.failed) == {request.id for request in poisoned}
    assert all(error.request_id == number for number, error in harness.failed.items())
    harness.verify_ended()
    harness.verify_idle()
    assert harness.scheduler.kv_cache.cache.size == len(sound.tokens) - 1


@pytest.mark.parametrize("steps_in_flight", [1, 2])
def test_a_prefetch_without_logits_fails_whoever_computes_it(steps_in_flight):
    """Also one whose tokens another one computes, in the same step or before it has failed."""
    harness = Harness(1000, max_batch_tokens=16, steps_in_flight=steps_in_flight)
    poisoned = [*tokens(10), POISON]
    requests = [harness.submit(poisoned), harness.submit(poisoned)]
    requests.append(harness.submit([*poisoned, *tokens(40, 1)]))
    harness.step()
    requests.append(harness.submit(poisoned))
    sound = harness.submit(tokens(10))
    harness.run()
    assert set(harness.failed) == {request.id for request in requests}
    assert sound.id in harness.ended
    harness.verify_ended()
    harness.verify_idle()


def test_a_select_without_logits_leaves_the_scores_of_others_as_they_are():
    """Where it has failed by the row of an option, of one token, before that of its prompt."""
    harness = Harness(1000)
    first = harness.submit([*tokens(10), POISON], options=[[1, 2], [1]])
    second = harness.submit(tokens(12, 1), options=[[4, 5], [4, 6], [7]])
    harness.run()
    assert set(harness.failed) == {first.id}
    assert second.id in harness.ended
    harness.verify_ended()
    harness.verify_idle()
