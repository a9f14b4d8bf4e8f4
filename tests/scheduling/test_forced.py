"""Forced tokens: appended at once, computed together, whatever else happens to the request
meanwhile."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import pytest
from fake_runner import VOCABULARY, extend_hash, next_token, sequence_hash
from scheduler_harness import Harness, StopAt, tokens

from asgl.plan import StepPlan
from asgl.sampling import SamplingSpec

EVERYTHING = (1 << VOCABULARY).to_bytes(8, "little")


class Script:
    """A grammar of fixed stretches: a gap of n is n tokens of any kind, a list is tokens that must
    come."""

    def __init__(self, parts: Sequence[int | list[int]], end: int | None = None) -> None:
        self.left: list[int | None] = [
            token for part in parts for token in (part if isinstance(part, list) else [None] * part)
        ]
        self.end = end
        self.error = None
        self.accepting = False
        self.masks: list[tuple[int, ...]] = []

    @property
    def complete(self) -> bool:
        return not self.left

    @property
    def free(self) -> bool:
        return False

    def ends(self, token_id: int, /) -> bool:
        return token_id == self.end

    def forced(self) -> list[int]:
        count = next(
            (place for place, token in enumerate(self.left) if token is None), len(self.left)
        )
        return [token for token in self.left[:count] if token is not None]

    def mask(self, banned: Iterable[int], /) -> bytes:
        self.masks.append(tuple(banned))
        return EVERYTHING

    def push(self, token_id: int, /) -> None:
        expected = self.left.pop(0)
        assert expected in (None, token_id)


def expected(
    prompt: Sequence[int], parts: Sequence[int | list[int]], most: int = 1000
) -> list[int]:
    """What a request generates: in the gaps what the runner samples."""
    state, found = sequence_hash(prompt), list[int]()
    for part in parts:
        for place in range(part if isinstance(part, int) else len(part)):
            found.append(next_token(state) if isinstance(part, int) else part[place])
            state = extend_hash(state, found[-1])
    return found[:most]


PARTS: list[int | list[int]] = [
    [1, 2, 3, 4],
    2,
    [5, 6, 7, 8, 9, 10],
    1,
    [11, 12, 13, 14, 15],
    3,
    [16],
]


def test_forced_tokens_are_computed_in_one_row_of_the_next_step():
    harness = Harness(200)
    grammar = Script(PARTS)
    harness.submit(tokens(5), max_tokens=100, grammar=grammar)
    harness.run()
    assert harness.outputs[0] == expected(tokens(5), PARTS)
    assert harness.ended[0] == "grammar"
    lengths = [plan.tokens for plan in harness.runner.steps]
    assert lengths == [
        9,
        1,
        7,
        6,
        1,
        1,
    ]  # the prompt and four; then gaps one by one, each row with what was forced before
    assert harness.scheduler.counters.forced_tokens == 16
    assert harness.scheduler.counters.generated_tokens == 22
    assert len(grammar.masks) == 6
    harness.verify_idle()


def test_without_jumps_the_same_tokens_are_asked_for_one_by_one():
    harness = Harness(200, jump_forward=False)
    request = harness.submit(tokens(5), max_tokens=100, grammar=Script([3]))
    harness.run()
    assert [plan.tokens for plan in harness.runner.steps] == [5, 1, 1]
    assert all(plan.samples[0].mask == EVERYTHING for plan in harness.runner.steps)
    assert harness.outputs[0] == expected(tokens(5), [3])
    assert request.cached_tokens == 0


def test_with_log_probabilities_nothing_is_appended_that_was_not_sampled():
    harness = Harness(200)
    harness.submit(
        tokens(5), max_tokens=100, grammar=Script([[1, 2], 1]), spec=SamplingSpec(logprobs=2)
    )
    with pytest.raises(
        AssertionError
    ):  # the runner, which knows no masks, samples another token than the forced one
        harness.run()
    assert harness.scheduler.counters.forced_tokens == 0


def test_a_sentence_that_is_all_forced_needs_no_step():
    harness = Harness(200)
    harness.submit(tokens(5), max_tokens=100, grammar=Script([[7, 8, 9]]))
    harness.take()
    assert (harness.outputs[0], harness.ended[0]) == ([7, 8, 9], "grammar")
    harness.submit(tokens(5), max_tokens=2, grammar=Script([[7, 8, 9]]))
    harness.submit(tokens(5), max_tokens=2, grammar=Script([]))
    harness.run()
    assert (harness.outputs[1], harness.ended[1]) == ([7, 8], "length")
    assert (harness.outputs[2], harness.ended[2]) == ([], "grammar")
    assert harness.runner.steps == []
    harness.verify_idle()


@pytest.mark.parametrize("most", range(1, 23))
def test_max_tokens_ends_forced_tokens_too(most):
    harness = Harness(200)
    harness.submit(tokens(5), max_tokens=most, grammar=Script(PARTS))
    harness.run()
    assert harness.outputs[0] == expected(tokens(5), PARTS, most)
    assert harness.ended[0] == ("length" if most < 22 else "grammar")
    harness.verify_idle()


def test_a_stop_inside_of_forced_tokens():
    harness = Harness(200)
    harness.submit(
        tokens(5), max_tokens=100, grammar=Script([1, [60, 61, 62, 63], 1]), output=StopAt(62)
    )
    harness.run()
    assert harness.outputs[0] == [*expected(tokens(5), [1]), 60, 61, 62]
    assert harness.ended[0] == "stop"
    harness.verify_idle()


def test_a_token_that_only_ends_the_text():
    prompt = tokens(5)
    end = expected(prompt, [3])[2]
    harness = Harness(200)
    grammar = Script([10], end=end)
    harness.submit(prompt, max_tokens=100, grammar=grammar, output=StopAt(end))
    harness.run()
    assert harness.ended[0] == "grammar"
    assert len(grammar.left) == 8
    harness.verify_idle()


def test_tokens_banned_for_now_are_the_grammar_s_to_judge():
    harness = Harness(200)
    grammar = Script([4])
    harness.submit(tokens(5), max_tokens=100, min_tokens=2, banned=(3, 4), grammar=grammar)
    harness.run()
    assert grammar.masks == [(3, 4), (3, 4), (), ()]
    assert all(plan.samples[0].banned == () for plan in harness.runner.steps)


def random_parts(generator: random.Random) -> list[int | list[int]]:
    return [
        generator.randint(1, 4)
        if generator.random() < 0.5
        else [generator.randrange(VOCABULARY) for _ in range(generator.randint(1, 12))]
        for _ in range(generator.randint(1, 7))
    ]


@pytest.mark.parametrize("seed", range(40))
def test_any_mixture_chunked_retracted_cancelled_and_failed(seed):
    generator = random.Random(seed)
    harness = Harness(
        generator.randint(90, 200),
        max_batch_tokens=generator.choice([3, 8, 64]),
        max_running=generator.choice([2, 8]),
        steps_in_flight=1 + seed % 2,
    )
    wanted: dict[int, list[int]] = {}
    for _ in range(25):
        prompt = tokens(generator.randint(1, 20), seed=generator.randrange(3))
        parts = random_parts(generator) if generator.random() < 0.7 else [generator.randint(1, 30)]
        most = generator.randint(1, 60)
        request = harness.submit(prompt, max_tokens=most, grammar=Script(parts))
        wanted[request.id] = expected(prompt, parts, most)
        for _ in range(generator.randrange(4)):
            if harness.full or not harness.begin() or generator.random() < 0.5:
                continue
            if generator.random() < 0.1:
                harness.abandon()
            else:
                harness.finish()
        if generator.random() < 0.15:
            victim = generator.choice(list(harness.requests.values()))
            harness.scheduler.cancel(victim)
            wanted.pop(victim.id, None)
    harness.run()
    for number, output in wanted.items():
        assert harness.outputs[number] == output
    assert harness.runner.steps
    harness.verify_idle()


def test_forced_tokens_outgrow_the_cache_and_the_request_goes_on_later():
    harness = Harness(64)
    harness.submit(tokens(8, seed=9), max_tokens=50)
    harness.run()
    harness.scheduler.admission.reserve_share = (
        0.1  # as after a long time without a retraction: many are admitted at once
    )
    parts: list[int | list[int]] = [1, list(range(20)), 3, list(range(10))]
    for number in range(6):
        harness.submit(tokens(8, seed=number), max_tokens=40, grammar=Script(parts))
    harness.run()
    for number in range(6):
        assert harness.outputs[number + 1] == expected(tokens(8, seed=number), parts)
    assert harness.scheduler.counters.retractions > 0
    harness.verify_idle()


def test_rows_of_forced_tokens_share_a_step_with_decodes():
    harness = Harness(200)
    harness.submit(tokens(5), max_tokens=100, grammar=Script([1, [1, 2, 3], 2]))
    harness.submit(tokens(5, seed=1), max_tokens=6)
    harness.run()
    mixed = [
        plan
        for plan in harness.runner.steps
        if isinstance(plan, StepPlan) and plan.decode_rows == 1 and plan.rows == 2
    ]
    assert [plan.tokens for plan in mixed] == [5]
    assert len(harness.runner.steps) == 6
