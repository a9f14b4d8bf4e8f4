"""Planning a step while another is in flight: what is pending, what is waited for, and what becomes
of a wrong guess."""

from __future__ import annotations

import random

import pytest
from fake_runner import expected_output
from scheduler_harness import Harness, StopAt, tokens
from test_forced import Script

from asgl.errors import InternalError
from asgl.plan import Continued
from asgl.sampling import SamplingSpec
from asgl.scheduling.sequence import SequenceState


def ahead(capacity: int = 200, **options) -> Harness:
    return Harness(capacity, steps_in_flight=2, **options)


def test_a_row_goes_on_with_what_the_step_in_flight_samples():
    harness = ahead()
    first = harness.submit([1, 2, 3], max_tokens=5, min_tokens=2, banned=(7,))
    second = harness.submit([4, 5], max_tokens=5)
    assert harness.begin()
    assert harness.begin()
    one, two = harness.runner.steps
    assert one.continued == ()
    assert two.continued == (Continued(0, 0), Continued(1, 1))
    assert list(two.input_ids) == [0, 0]
    assert list(two.positions) == [3, 2]
    assert [(row.request_id, row.draw, row.banned) for row in two.samples] == [
        (first.id, 1, (7,)),
        (second.id, 1, ()),
    ]
    with pytest.raises(InternalError, match="while 2 are in flight"):
        harness.scheduler.plan()
    harness.run()
    harness.verify_ended()
    harness.verify_idle()


def test_the_last_token_needs_no_step_more():
    """How many tokens there will be at most is known, so the guess is wrong only for stops."""
    steps = []
    for harness in (Harness(200), ahead()):
        for number in range(3):
            harness.submit(tokens(5, number), max_tokens=4 + number)
        harness.run()
        harness.verify_ended()
        steps.append((len(harness.runner.steps), harness.runner.computed_tokens))
    assert steps[0] == steps[1] == (6, 15 + 3 + 4 + 5)


def test_a_stop_leaves_a_row_behind_whose_token_is_cached_when_its_step_has_returned():
    prompt = tokens(5)
    harness = ahead()
    stop = expected_output(prompt, 3)[2]
    assert stop not in expected_output(prompt, 2)
    request = harness.submit(prompt, max_tokens=50, output=StopAt(stop))
    for _ in range(2):
        harness.begin()
        harness.begin() if not harness.full else None
        harness.finish()
    assert harness.begin()
    harness.finish()
    assert harness.ended == {0: "stop"}
    assert harness.in_flight == 1
    kv_cache = harness.scheduler.kv_cache
    assert kv_cache.cache.pinned == 7  # what was computed can be used by others already
    assert kv_cache.pool.free == 200 - 8
    assert kv_cache.cache.peek(request.tokens, None) == 7
    harness.finish()
    assert (kv_cache.pool.free, kv_cache.cache.evictable) == (200 - 8, 8)
    assert kv_cache.cache.peek(request.tokens, None) == 8
    assert harness.scheduler.counters.generated_tokens == 3
    harness.verify_ended()
    harness.verify_idle()


@pytest.mark.parametrize(
    "options",
    [{"spec": SamplingSpec(presence_penalty=1.0)}, {"grammar": Script([8])}],
    ids=["penalty", "grammar"],
)
def test_what_must_know_the_token_is_waited_for(options):
    """By all: else one of them would have every other step only."""
    harness = ahead()
    harness.submit(tokens(5), max_tokens=8, **options)
    harness.submit(tokens(5, 1), max_tokens=8)
    harness.submit(tokens(5, 2), max_tokens=20)
    for _ in range(7):
        assert harness.begin()
        assert not harness.begin()
        harness.finish()
    assert harness.begin()  # samples the last token of both: nothing has to be known any more
    assert harness.begin()
    harness.run()
    assert [bool(plan.continued) for plan in harness.runner.steps] == [False] * 8 + [True] * 12
    harness.verify_ended()
    harness.verify_idle()


class Beginning(Script):
    """A grammar that asks for something in the first tokens only."""

    @property
    def complete(self) -> bool:
        return False

    @property
    def free(self) -> bool:
        return not self.left


def test_a_grammar_that_asks_for_nothing_more_is_waited_for_no_longer():
    harness = ahead()
    request = harness.submit(tokens(5), max_tokens=8, grammar=Beginning([2]))
    harness.submit(tokens(5, 1), max_tokens=8)
    for _ in range(2):
        assert harness.begin()
        assert not harness.begin()
        harness.finish()
    assert request.grammar is None
    harness.run()
    assert [bool(plan.continued) for plan in harness.runner.steps] == [False] * 3 + [True] * 5
    harness.verify_ended()
    harness.verify_idle()


def test_chunks_of_a_prompt_and_branches_are_planned_ahead():
    harness = ahead(max_batch_tokens=16)
    harness.submit(tokens(60), max_tokens=3)
    harness.submit(tokens(40, 1), options=[[1, 2, 3, 4], [1, 2, 5, 6], [7, 8]])
    alone = []
    while harness.begin():
        alone.append(harness.begin())
        harness.finish()
        if harness.in_flight:
            harness.finish()
    assert all(alone[:-1])
    harness.run()
    harness.verify_ended()
    harness.verify_idle()


def test_nobody_is_retracted_for_want_of_what_the_step_in_flight_may_free():
    harness = ahead(24)
    harness.scheduler.admission.reserve_share = 0.1
    for number in range(2):
        harness.submit(tokens(9, number), max_tokens=10)
    while harness.scheduler.kv_cache.available >= 2:
        assert harness.begin()
        harness.finish() if harness.full else None
    assert harness.in_flight
    assert not harness.full
    assert not harness.begin()
    assert harness.scheduler.counters.retractions == 0
    harness.finish()
    assert not harness.in_flight
    assert harness.begin()
    assert harness.scheduler.counters.retractions == 1
    harness.run()
    harness.verify_ended()
    harness.verify_idle()


def test_a_pin_does_not_yield_while_a_step_in_flight_may_free_slots():
    harness = ahead(30)
    prompt = tokens(8)
    harness.submit(prompt)
    harness.run()
    harness.scheduler.kv_cache.pin(harness.requests[0].tokens, None)
    running = harness.submit(tokens(15, 1), max_tokens=3)
    harness.begin()
    harness.scheduler.cancel(running)  # its step is in flight, and holds the slots
    harness.submit(tokens(20, 2), max_tokens=2)
    assert not harness.begin()
    assert harness.scheduler.kv_cache.cache.peek(harness.requests[0].tokens, None) == 8
    harness.run()
    assert harness.scheduler.kv_cache.cache.peek(harness.requests[0].tokens, None) == 8
    assert harness.ended[2] == "length"


@pytest.mark.parametrize("steps_in_flight", [1, 2])
def test_thousands_of_pins_yield_to_who_could_not_go_on(steps_in_flight):
    harness = Harness(30, steps_in_flight=steps_in_flight, max_batch_tokens=8)
    harness.submit(tokens(20))
    harness.run()
    running = harness.submit(tokens(25, 1), max_tokens=2)
    assert harness.begin()
    for _ in range(2000):
        harness.scheduler.kv_cache.pin(harness.requests[0].tokens, None)
    harness.run()
    assert harness.ended[running.id] == "length"
    harness.verify_ended()
    harness.verify_idle()


def test_what_a_cancelled_request_computes_of_tokens_that_are_known_is_cached():
    """The first of the two in flight goes on with a token that was committed since, the second with
    one that nobody will know."""
    harness = ahead()
    request = harness.submit(tokens(5), max_tokens=50)
    harness.begin()
    harness.begin()
    harness.finish()
    harness.begin()
    harness.scheduler.cancel(request)
    harness.run()
    assert len(request.tokens) == 6
    assert harness.scheduler.kv_cache.cache.evictable == 6
    again = harness.submit(tokens(5), max_tokens=9)
    harness.run()
    assert again.cached_tokens == 4
    assert harness.outputs[again.id] == expected_output(tokens(5), 9)
    harness.verify_idle()


@pytest.mark.parametrize("seed", range(20))
def test_the_same_tokens_as_one_step_at_a_time(seed):
    """Under pressure, with stops, penalties, and cancels at the same numbers of committed steps."""
    outputs = []
    for steps_in_flight in (1, 2):
        generator = random.Random(seed)
        harness = Harness(90, max_batch_tokens=24, max_running=6, steps_in_flight=steps_in_flight)
        for number in range(20):
            output = StopAt(generator.randrange(50)) if generator.random() < 0.5 else None
            spec = SamplingSpec(frequency_penalty=float(generator.random() < 0.1))
            harness.submit(
                tokens(generator.randint(1, 30), number % 5),
                max_tokens=generator.randint(1, 40),
                output=output,
                spec=spec,
            )
        harness.run()
        harness.verify_ended()
        harness.verify_idle()
        outputs.append(harness.outputs)
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("both", [False, True])
def test_what_is_in_flight_fails_and_is_planned_again(both):
    harness = ahead(max_batch_tokens=16)
    harness.submit(tokens(40), max_tokens=4)
    harness.submit(tokens(5, 1), max_tokens=4)
    leaver: SequenceState = harness.submit(tokens(5, 2), max_tokens=9)
    for _ in range(3):
        harness.step()
    harness.begin() if both and not harness.full else None
    harness.scheduler.cancel(leaver)
    harness.abandon()
    harness.scheduler.check()
    assert not any(request.pending for request in harness.requests.values())
    harness.run()
    assert set(harness.ended) == {0, 1}
    harness.verify_ended()
    harness.verify_idle()


class Broken(StopAt):
    """An output with a defect."""

    def push(self, token_id: int, /) -> str | None:
        raise ZeroDivisionError


@pytest.mark.parametrize("both", [False, True])
def test_a_commit_that_raises_releases_what_left_meanwhile(both):
    harness = ahead()
    leaver = harness.submit(tokens(5), max_tokens=9)
    broken = harness.submit(tokens(5, 1), max_tokens=9, output=Broken(0))
    assert harness.begin()
    harness.scheduler.cancel(leaver)
    assert not both or harness.begin()
    with pytest.raises(ZeroDivisionError):
        harness.finish()
    harness.abandon()
    harness.scheduler.cancel(broken)
    harness.verify_idle()
