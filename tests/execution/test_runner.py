"""The same tokens give the same results, however the steps that compute them are cut."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from steps import GREEDY, TINY, MemoryCheckpoint, Row, step

from asgl.errors import ConfigError, EngineClosedError, InternalError
from asgl.execution.serial_runner import SerialRunner
from asgl.kernels.reference import ReferenceKernels
from asgl.plan import SharedSpan
from asgl.sampling import SamplingSpec

CAPACITY = 400
ALL = tuple(range(TINY.vocabulary))
SPEC = SamplingSpec(seed=5, logprobs=4)


def tokens(count: int, seed: int) -> list[int]:
    return torch.randint(
        0, TINY.vocabulary, (count,), generator=torch.Generator().manual_seed(seed)
    ).tolist()


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def runner(request: pytest.FixtureRequest) -> SerialRunner:
    return SerialRunner(MemoryCheckpoint(), ReferenceKernels("cpu", request.param), CAPACITY)


def tolerance(runner: SerialRunner) -> float:
    return 1e-4 if runner.info.dtype == "float32" else 0.1


def close(runner: SerialRunner, found: object, expected: object) -> None:
    torch.testing.assert_close(
        torch.tensor(found), torch.tensor(expected), rtol=0, atol=tolerance(runner)
    )


def after(runner: SerialRunner, prompt: list[int]) -> tuple[float, ...]:
    """The log-probabilities after a prompt that is computed alone, in one step."""
    return runner.run(
        step([Row(prompt, range(len(prompt)), score=[(len(prompt) - 1, ALL)])])
    ).scores[0]


def test_batched(runner: SerialRunner) -> None:
    prompts = [tokens(n, seed=n) for n in (1, 1, 2, 30, 61)]
    expected = [after(runner, prompt) for prompt in prompts]
    free = iter(range(CAPACITY - 1, 0, -3))
    rows = [Row(p, [next(free) for _ in p], score=[(len(p) - 1, ALL)]) for p in prompts]
    close(runner, runner.run(step(rows)).scores, expected)


@pytest.mark.parametrize("cuts", [(1,), (29,), (10, 11, 12), tuple(range(1, 30))], ids=str)
def test_chunked_and_decoded(runner: SerialRunner, cuts: tuple[int, ...]) -> None:
    prompt = tokens(30, seed=1)
    slots = [(7 * i + 3) % CAPACITY for i in range(30)]
    edges = [0, *cuts, 30]
    for begin, end in itertools.pairwise(edges):
        row = Row(
            prompt[begin:end],
            slots[begin:end],
            before=slots[:begin],
            score=[(end - begin - 1, ALL)],
        )
        result = runner.run(step([row]))
        close(runner, result.scores[0], after_in(runner, prompt[:end]))


def after_in(runner: SerialRunner, prompt: list[int]) -> tuple[float, ...]:
    """As `after`, in slots that the tests of chunks do not use."""
    taken = {(7 * i + 3) % CAPACITY for i in range(30)}
    slots = [slot for slot in range(CAPACITY) if slot not in taken][: len(prompt)]
    return runner.run(step([Row(prompt, slots, score=[(len(prompt) - 1, ALL)])])).scores[0]


def test_warm_prefix_shared_by_a_mixed_step(runner: SerialRunner) -> None:
    prefix, tails = tokens(50, seed=2), [tokens(1, 3), tokens(1, 4), tokens(9, 5)]
    expected = [after(runner, prefix + tail) for tail in tails]
    slots = list(range(200, 250))
    runner.run(step([Row(prefix, slots)]))
    own = iter(range(300, 350))
    rows = [Row(t, [next(own) for _ in t], before=slots, score=[(len(t) - 1, ALL)]) for t in tails]
    for shared in ((), (SharedSpan(0, 50, (0, 1, 2)),)):
        close(runner, runner.run(step(rows, shared=shared)).scores, expected)


def test_branches_that_read_each_other_in_one_step(runner: SerialRunner) -> None:
    prefix, stem, left, right = tokens(20, 6), tokens(3, 7), tokens(2, 8), tokens(1, 9)
    expected = [after(runner, prefix + stem + tail) for tail in (right, [], left)]
    slots, stem_slots = list(range(100, 120)), [300, 7, 301]
    runner.run(step([Row(prefix, slots)]))
    rows = [
        Row(right, [399], before=slots + stem_slots, score=[(0, ALL)]),
        Row(stem, stem_slots, before=slots, score=[(2, ALL)]),
        Row(left, [0, 398], before=slots + stem_slots, score=[(1, ALL)]),
    ]
    close(runner, runner.run(step(rows)).scores, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_deterministic_logits_are_the_same_bits(dtype: torch.dtype) -> None:
    """Alone = batched = chunked = decoded = with a warm prefix."""
    config = replace(
        TINY, hidden_size=192, intermediate_size=1536, heads=3, kv_heads=1, head_dim=64
    )
    runner = SerialRunner(
        MemoryCheckpoint(config), ReferenceKernels("cpu", dtype, deterministic=True), 1200
    )
    prompt, crowd = tokens(150, 1), [tokens(n, 40 + n) for n in (1, 1, 64, 65, 200)]
    everything = [(i, ALL) for i in range(150)]
    alone = runner.run(step([Row(prompt, range(150), score=everything)])).scores

    free = iter(range(1199, 150, -1))
    rows = [Row(p, [next(free) for _ in p]) for p in crowd] + [
        Row(prompt, range(150), score=everything)
    ]
    assert runner.run(step(rows)).scores == alone

    for cuts in ([1, 2, 65, 100], [64, 128], list(range(130, 150))):
        for begin, end in itertools.pairwise([0, *cuts, 150]):
            row = Row(
                prompt[begin:end],
                range(begin, end),
                before=range(begin),
                score=everything[: end - begin],
            )
            others = rows[: 2 * (end - begin == 1)]  # decode steps ride with others
            assert runner.run(step([*others, row])).scores == alone[begin:end]


def test_samples_do_not_depend_on_the_batch() -> None:
    runner = SerialRunner(MemoryCheckpoint(), ReferenceKernels(), CAPACITY)
    prompts = [tokens(n, seed=20 + n) for n in (1, 5, 17, 40)]
    specs = [SPEC, GREEDY, SPEC._replace(temperature=2.0), SPEC._replace(top_p=0.8)]
    alone = [
        runner.run(step([Row(p, range(len(p)), sample=spec, draw=9)])).samples[0]
        for p, spec in zip(prompts, specs, strict=True)
    ]
    free = iter(range(CAPACITY))
    rows = [
        Row(p, [next(free) for _ in p], sample=spec, draw=9)
        for p, spec in zip(prompts, specs, strict=True)
    ]
    together = runner.run(step(rows)).samples
    assert [s.token_id for s in together] == [s.token_id for s in alone]
    for one, other in zip(together, alone, strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert [t for t, _ in one.top] == [t for t, _ in other.top]


def test_samples_and_scores_come_in_the_order_of_the_plan(runner: SerialRunner) -> None:
    """More of them than are computed at once."""
    prompt = tokens(150, seed=30)
    row = Row(
        prompt,
        range(150),
        sample=GREEDY._replace(logprobs=0),
        score=[(i, (i,)) for i in range(149, -1, -1)],
    )
    result = runner.run(step([row]))
    every = runner.run(step([Row(prompt, range(150), score=[(i, ALL) for i in range(150)])])).scores
    close(runner, [score[0] for score in result.scores], [every[i][i] for i in range(149, -1, -1)])
    (sampled,) = result.samples
    assert sampled.logprob == pytest.approx(max(every[149]), abs=tolerance(runner))


def test_slots_that_a_step_does_not_name_are_not_written(runner: SerialRunner) -> None:
    before = [(k.clone(), v.clone()) for k, v in runner.model.pool.layers]
    named = [5, CAPACITY - 1, 77]
    runner.run(step([Row(tokens(3, 1), named, sample=GREEDY)]))
    others = [slot for slot in range(CAPACITY + 1) if slot not in named]
    for old, new in zip(before, runner.model.pool.layers, strict=True):
        for was, now in zip(old, new, strict=True):
            assert torch.equal(was[others], now[others])


def test_warm_up_at_any_capacity() -> None:
    for capacity in (1, 2, 50):
        runner = SerialRunner(MemoryCheckpoint(), ReferenceKernels(), capacity)
        runner.warm_up()
        assert runner.run(step([Row([3], [0], sample=GREEDY)])).samples


def test_seconds_are_the_clocks() -> None:
    times = iter([10.0, 12.5])
    runner = SerialRunner(MemoryCheckpoint(), ReferenceKernels(), 20, clock=lambda: next(times))
    assert runner.run(step([Row([3], [0])])).seconds == 2.5


def test_info(runner: SerialRunner) -> None:
    info = runner.info
    assert (info.name, info.architecture, info.vocabulary, info.context_length) == (
        "tiny",
        "llama",
        211,
        256,
    )
    assert (info.kernels, info.device, info.weights) == ("reference", "cpu", "dense")
    assert info.dtype in ("float32", "bfloat16")


def test_an_unsound_plan_changes_nothing(runner: SerialRunner) -> None:
    prompt = tokens(10, 1)
    before = after(runner, prompt)
    sound = step([Row([1], [CAPACITY - 1], before=range(10), sample=GREEDY)])
    with pytest.raises(InternalError):
        runner.run(replace(sound, slots=sound.slots * 2))
    assert runner.run(step([Row(prompt[9:], [11], before=range(9), score=[(0, ALL)])])).scores[
        0
    ] == pytest.approx(before, abs=tolerance(runner))


def test_close() -> None:
    runner = SerialRunner(MemoryCheckpoint(), ReferenceKernels(), 20)
    runner.close()
    runner.close()
    with pytest.raises(EngineClosedError):
        runner.run(step([Row([3], [0])]))


def test_capacity() -> None:
    with pytest.raises(ConfigError):
        SerialRunner(MemoryCheckpoint(), ReferenceKernels(), 0)
