"""The order of what a step asks of a GPU, and that replays of captured graphs give what the
reference gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from fake_cuda import CudaMisuse, FakeCuda
from steps import GREEDY, TINY, MemoryCheckpoint, Row, step

import asgl.kernels.triton.kernels as backend
from asgl.errors import InternalError
from asgl.execution.cuda_runner import CudaRunner
from asgl.execution.serial_runner import SerialRunner
from asgl.kernels.reference import ReferenceKernels
from asgl.kernels.triton.kernels import TritonKernels
from asgl.plan import Continued, SharedSpan, StepPlan, StepResult
from asgl.sampling import SamplingSpec

pytestmark = [pytest.mark.interpret, pytest.mark.timeout(300)]

CAPACITY = 300
ALL = tuple(range(TINY.vocabulary))


def tokens(count: int, seed: int) -> list[int]:
    return torch.randint(
        0, TINY.vocabulary, (count,), generator=torch.Generator().manual_seed(seed)
    ).tolist()


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    fake = FakeCuda(watch=True)
    real: Callable[..., None] = backend._run

    def run(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
        fake.launched(kernel, grid, lambda: real(kernel, grid, *arguments, **constants))

    monkeypatch.setattr(backend, "_run", run)
    return fake


def make(cuda: FakeCuda, buckets: tuple[int, ...] = (1, 4)) -> CudaRunner:
    runner = CudaRunner(
        MemoryCheckpoint(),
        TritonKernels("cpu", torch.float32),
        CAPACITY,
        buckets=buckets,
        cuda=cuda,
    )
    cuda.know(*runner.pinned)
    return runner


def compare(found: StepResult, expected: StepResult) -> None:
    assert [sample.token_id for sample in found.samples] == [
        sample.token_id for sample in expected.samples
    ]
    assert len(found.scores) == len(expected.scores)
    for one, other in zip(found.scores, expected.scores, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def order(log: list[str]) -> list[str]:
    """The log with each run of the same kind once; launches are all alike."""
    kinds = [line.split(" ")[0] if line.startswith("launch") else line for line in log]
    return [kind for place, kind in enumerate(kinds) if not place or kinds[place - 1] != kind]


SPEC = SamplingSpec(seed=5, top_p=0.9)


def decode_plan(prefix: list[int], number: int, *, shared: bool, last: int = 0) -> StepPlan:
    """`number` rows that read the prefix in slots 0..., each with a token of its own."""
    rows = [
        Row(
            [7 + row + last],
            [200 + row + 10 * last],
            before=range(len(prefix)),
            sample=SPEC if row else GREEDY,
            draw=row,
            score=[(0, ALL)],
        )
        for row in range(number)
    ]
    spans = (SharedSpan(0, len(prefix), tuple(range(number))),) if shared and number > 1 else ()
    return step(rows, shared=spans)


def test_decode_steps_are_replays_of_graphs(cuda: FakeCuda) -> None:
    """Of the bucket's size and smaller, with shared spans and without, again and again with other
    tokens and slots."""
    runner, reference = make(cuda), SerialRunner(MemoryCheckpoint(), ReferenceKernels(), CAPACITY)
    prefix = tokens(40, 1)
    for each in (runner, reference):
        each.run(step([Row(prefix, range(40))]))
    kinds = [(1, False), (3, False), (4, True), (2, True), (4, False), (1, True), (3, True)]
    plans = [
        decode_plan(prefix, number, shared=shared, last=last)
        for last, (number, shared) in enumerate(kinds)
    ]
    for plan in plans:
        cuda.log.clear()
        compare(runner.run(plan), reference.run(plan))
        assert cuda.log.count("replay") == 1
    assert set(runner.graphs) == {(1, False), (4, False), (4, True)}


def test_a_replay_writes_the_named_slots_only(cuda: FakeCuda) -> None:
    """Padding rows write nowhere: not even the scratch slot."""
    runner = make(cuda)
    prefix = tokens(20, 2)
    runner.run(step([Row(prefix, range(20))]))
    runner.run(decode_plan(prefix, 3, shared=False))
    with torch.inference_mode():
        # other values than the padding of the first replay could have written
        for k, v in runner.model.pool.layers:
            k.normal_(generator=torch.Generator().manual_seed(1))
            v.normal_(generator=torch.Generator().manual_seed(2))
    before = [(k.clone(), v.clone()) for k, v in runner.model.pool.layers]
    runner.run(decode_plan(prefix, 2, shared=False, last=3))
    named = [230, 231]
    others = [slot for slot in range(CAPACITY + 1) if slot not in named]
    for old, new in zip(before, runner.model.pool.layers, strict=True):
        for was, now in zip(old, new, strict=True):
            assert torch.equal(was[others], now[others])
            assert not torch.equal(was[named], now[named])


def test_the_order_of_a_step(cuda: FakeCuda) -> None:
    runner = make(cuda)
    cuda.log.clear()
    runner.run(
        step([Row(tokens(5, 1), range(5), sample=SPEC._replace(logprobs=3), score=[(2, (1, 2))])])
    )
    assert order(cuda.log) == [
        "stream",
        "copy in",
        "launch",
        "copy out",
        "launch",
        "copy out",
        "record",
        "wait",
    ]
    assert cuda.log.count("copy in") == cuda.log.count("record") == cuda.log.count("wait") == 1


def test_the_order_of_a_replay(cuda: FakeCuda) -> None:
    runner = make(cuda)
    prefix = tokens(5, 1)
    runner.run(step([Row(prefix, range(5))]))
    plan = step([Row([3], [9], before=range(5), sample=GREEDY)])
    cuda.log.clear()
    runner.run(plan)  # the first one captures, after a run that compiles
    assert order(cuda.log) == [
        "stream",
        "copy in",
        "launch",
        "record",
        "wait",
        "capture",
        "launch",
        "copy in",
        "replay",
        "launch",
        "copy out",
        "record",
        "wait",
    ]
    cuda.log.clear()
    runner.run(plan)
    # one launch for logits and one to sample, beside the graph
    assert cuda.log == [
        "stream",
        "copy in",
        "copy in",
        "replay",
        "launch head_kernel",
        "launch sample_kernel",
        "copy out",
        "record",
        "wait",
    ]


@pytest.mark.parametrize("buckets", [(1, 4), ()], ids=["replays", "launches"])
def test_two_steps_in_flight(cuda: FakeCuda, buckets: tuple[int, ...]) -> None:
    """Each step goes on with what the one before samples, launched before that is known; and gives
    what one after the other gives."""
    runner, reference = (
        make(cuda, buckets),
        SerialRunner(MemoryCheckpoint(), ReferenceKernels(), CAPACITY),
    )
    prefix = tokens(20, 4)

    def plan(last: int, ids: list[int], *, ahead: bool) -> StepPlan:
        """Three rows, each with the token that it samples in the step before."""
        before = [
            [*range(20), *(20 + 3 * number + row for number in range(last))] for row in range(3)
        ]
        made = step(
            [
                Row(
                    [0 if ahead else ids[row]],
                    [20 + 3 * last + row],
                    before=before[row],
                    sample=SPEC if row else GREEDY,
                    draw=last,
                )
                for row in range(3)
            ]
        )
        return (
            replace(made, continued=tuple(Continued(row, row) for row in range(3)))
            if ahead
            else made
        )

    for each in (runner, reference):
        each.run(step([Row(prefix, range(20))]))
    runner.run(plan(0, [1, 2, 3], ahead=False))  # captures
    expected, ids = [], [1, 2, 3]
    for last in range(4):
        expected.append(reference.run(plan(last, ids, ahead=False)))
        ids = [sample.token_id for sample in expected[-1].samples]
    cuda.log.clear()
    runner.launch(plan(0, [1, 2, 3], ahead=False))
    for last in range(1, 4):
        runner.launch(plan(last, [], ahead=True))
        compare(runner.collect(), expected[last - 1])
    compare(runner.collect(), expected[3])
    waits = [line for line in cuda.log if line in ("record", "wait")]
    assert waits == ["record", "record", "wait", "record", "wait", "record", "wait", "wait"]
    assert cuda.log.count("replay") == (4 if buckets else 0)


def test_going_on_with_a_step_that_sampled_nothing(cuda: FakeCuda) -> None:
    runner = make(cuda, ())
    runner.run(step([Row([1, 2], [0, 1])]))
    with pytest.raises(InternalError, match="there was none"):
        runner.launch(
            replace(
                step([Row([0], [2], before=[0, 1], sample=GREEDY)]), continued=(Continued(0, 0),)
            )
        )


def test_warm_up_captures_every_bucket(cuda: FakeCuda) -> None:
    runner = make(cuda, (1, 2))
    runner.warm_up()
    assert set(runner.graphs) == {(1, False), (2, False), (2, True)}
    assert {"launch edit_kernel", "launch mask_kernel", "launch span_kernel"} <= set(cuda.log)
    cuda.log.clear()
    runner.run(step([Row([3], [0], sample=GREEDY), Row([4], [1], sample=GREEDY)]))
    assert "capture" not in cuda.log
    assert cuda.log.count("replay") == 1


def test_what_no_graph_can_run_is_launched(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """More rows than the largest bucket, rows of several tokens, more spans than there is room for,
    nothing to sample."""
    runner, reference = (
        make(cuda, (2,)),
        SerialRunner(MemoryCheckpoint(), ReferenceKernels(), CAPACITY),
    )
    prefix = tokens(30, 3)
    plans = [
        step([Row(prefix, range(30))]),
        decode_plan(prefix, 3, shared=True),
        step(
            [
                Row([1], [100], before=range(30), sample=GREEDY),
                Row([1, 2], [101, 102], before=range(30), sample=GREEDY),
            ]
        ),
        step([Row([1], [103], before=range(30))]),
    ]
    for plan in plans:
        compare(runner.run(plan), reference.run(plan))
    monkeypatch.setattr("asgl.execution.cuda_runner.PARTIALS", 1)
    plan = decode_plan(prefix, 2, shared=True, last=4)
    compare(runner.run(plan), reference.run(plan))
    assert "replay" not in cuda.log


def test_the_fake_sees_misuse(cuda: FakeCuda) -> None:
    """What the tests above would not be worth without."""
    runner = make(cuda)
    device = runner.device
    with device.on_stream():
        ones = torch.ones(3)
        with pytest.raises(CudaMisuse, match="waits for the device"):
            bool(ones.sum() > 1)
        with pytest.raises(CudaMisuse, match="waits for the device"):
            ones.nonzero()
        device.upload([ones])
        with pytest.raises(CudaMisuse, match="packed while a copy"):
            device.upload([ones])
        device.finish()
        device.upload([ones])
        early = device.download(ones)
        assert str(early.tolist()) == "[nan, nan, nan]"
        device.finish()
        assert early.tolist() == [1.0, 1.0, 1.0]
        with pytest.raises(CudaMisuse, match="not pinned"):
            ones.copy_(torch.zeros(3), non_blocking=True)
        device.finish()
    with pytest.raises(CudaMisuse, match="default stream"):
        TritonKernels("cpu", torch.float32).gate(torch.ones(1, 4), "silu")
    with pytest.raises(CudaMisuse, match="whole device"):
        cuda.synchronize()
