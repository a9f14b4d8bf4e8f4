"""Two steps in flight on a torch.cuda that is not one: whole requests, planned ahead, say what they
say one step at a time."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from fake_cuda import FakeCuda
from scheduler_harness import StopAt
from steps import GREEDY, MemoryCheckpoint, Row, step
from test_cuda_runner import Kernels, make, out_of_memory

from asgl.errors import EngineError
from asgl.execution.cuda_runner import CudaRunner
from asgl.execution.runner import Runner
from asgl.execution.serial_runner import SerialRunner
from asgl.kernels.reference import ReferenceKernels
from asgl.plan import SampledToken
from asgl.sampling import SamplingSpec
from asgl.scheduling.request import Request
from asgl.scheduling.scheduler import Scheduler

CAPACITY = 200


def requests(seed: int) -> Iterator[Request]:
    """Greedy, seeded, filtered, penalised, with log-probabilities, with stops, and scores of
    options."""
    draw = random.Random(seed)
    prefix = [draw.randrange(200) for _ in range(20)]
    for number in range(12):
        prompt = [
            *prefix[: draw.randint(1, 20)],
            *(draw.randrange(200) for _ in range(draw.randint(1, 20))),
        ]
        if number % 6 == 5:
            yield Request(number, prompt, options=[[1, 2, 3], [1, 4], [5]])
            continue
        spec = SamplingSpec(
            temperature=draw.choice([0.0, 1.0]),
            top_p=draw.choice([0.8, 1.0]),
            seed=number,
            logprobs=draw.choice([None, 2]),
            presence_penalty=float(draw.random() < 0.1),
        )
        output = StopAt(draw.randrange(200)) if draw.random() < 0.5 else None
        yield Request(
            number,
            prompt,
            max_tokens=draw.randint(1, 25),
            spec=spec,
            output=output,
            min_tokens=draw.randint(0, 4),
            banned=(3, 4),
        )


def run_all(
    runner: Runner, seed: int
) -> tuple[dict[int, list[SampledToken]], dict[int, list[list[float]]], int]:
    """What each request generated or scored, and how many steps were planned ahead."""
    scheduler = Scheduler(
        capacity=CAPACITY, max_batch_tokens=32, steps_in_flight=runner.steps_in_flight
    )
    asked = [scheduler.submit(request) for request in requests(seed)]
    said: dict[int, list[SampledToken]] = {sequence.id: [] for sequence in asked}
    in_flight = ahead = 0
    while True:
        plan = scheduler.plan()
        if plan is not None:
            runner.launch(plan)
            in_flight += 1
            ahead += bool(plan.continued)
            if in_flight < runner.steps_in_flight:
                continue
        if not in_flight:
            break
        scheduler.commit(runner.collect())
        in_flight -= 1
        scheduler.check()
        for update in scheduler.take_updates():
            if update.token is not None:
                said[update.sequence.id].append(update.token)
    assert all(sequence.state == "ended" for sequence in asked)
    scored = {each.id: each.tree.results() for each in asked if each.tree is not None}
    return said, scored, ahead


@pytest.mark.parametrize("seed", range(6))
def test_whole_requests(seed: int) -> None:
    said, scored, none = run_all(
        SerialRunner(MemoryCheckpoint(), ReferenceKernels(), CAPACITY), seed
    )
    cuda = FakeCuda()
    same, scored_same, ahead = run_all(make(cuda), seed)
    assert none == 0
    assert ahead > 2
    for number, tokens in said.items():
        assert [token.token_id for token in tokens] == [token.token_id for token in same[number]]
        for one, other in zip(tokens, same[number], strict=True):
            assert (one.logprob is None) == (other.logprob is None)
            assert one.logprob is None or one.logprob == pytest.approx(other.logprob, abs=1e-4)
    for number, scores in scored.items():
        for one, other in zip(scores, scored_same[number], strict=True):
            assert one == pytest.approx(other, abs=1e-4)


def test_a_launch_that_fails_leaves_the_one_in_flight_its_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next is launched in the lane of the one that failed, not in that of the one whose results
    are still to be read."""
    runner = make()
    plans = [
        step([Row([3 + number, 4, 5], range(3 * number, 3 * number + 3), sample=GREEDY)])
        for number in range(3)
    ]
    expected = [make().run(plan).samples for plan in plans]
    runner.launch(plans[0])
    with monkeypatch.context() as broken:
        out_of_memory(2, broken, runner)
        with pytest.raises(EngineError, match="ran out of memory"):
            runner.launch(plans[1])
    runner.launch(plans[2])
    assert [runner.collect().samples, runner.collect().samples] == [expected[0], expected[2]]


def test_the_seconds_of_a_step_are_those_that_no_other_step_ran() -> None:
    """Of two in flight, the second begins on the device when the first ends."""
    times = iter([10.0, 10.5, 13.0, 17.0])  # launched, launched, collected, collected
    runner = CudaRunner(
        MemoryCheckpoint(),
        Kernels(),
        CAPACITY,
        buckets=(),
        cuda=FakeCuda(),
        clock=lambda: next(times),
    )
    scheduler = Scheduler(capacity=CAPACITY, steps_in_flight=2)
    scheduler.submit(Request(0, [1, 2, 3], max_tokens=2))
    for _ in range(2):
        plan = scheduler.plan()
        assert plan is not None
        runner.launch(plan)
    assert [runner.collect().seconds, runner.collect().seconds] == [3.0, 4.0]
