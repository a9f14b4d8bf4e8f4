"""After warming up, no step compiles a kernel: whatever its sizes, and whatever is asked of its
samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from fake_cuda import FakeCuda
from steps import GREEDY, TINY, MemoryCheckpoint, Row, step
from tests.kernels.triton_compile.fake_driver import fake_driver

from asgl.execution.cuda_runner import CudaRunner
from asgl.kernels.triton.kernels import TritonKernels
from asgl.plan import SharedSpan, StepPlan
from asgl.sampling import SamplingSpec

pytestmark = [pytest.mark.compile, pytest.mark.timeout(600)]
DRIVER = fake_driver("sm_90")
MASK = b"\x05" + bytes(26)
FILTERED = SamplingSpec(seed=1, top_k=5, repetition_penalty=1.5, frequency_penalty=0.5)


class Kernels(TritonKernels):
    """Nothing is computed here: what is sampled is 0, so that it can be reported."""

    def __init__(self) -> None:
        super().__init__("cpu", torch.bfloat16, target=DRIVER.target)

    def sample(self, logits: torch.Tensor, how: Any) -> torch.Tensor:
        return super().sample(logits, how).zero_()


def compiled() -> set[str]:
    """What the launches since the last call needed."""
    found = {launch.metadata.hash for launch in DRIVER.launches}
    DRIVER.launches.clear()
    return found


def decode(rows: int, context: int, spec: SamplingSpec = GREEDY, *, shared: int = 0) -> StepPlan:
    spans = (SharedSpan(0, shared, tuple(range(rows))),) if shared else ()
    before = range(100, 100 + context)
    return step(
        [Row([3], [row], before=before, sample=spec, history=[1, 2]) for row in range(rows)],
        shared=spans,
    )


def extend(
    lengths: Sequence[int], decoding: int = 0, spec: SamplingSpec = GREEDY, before: int = 0
) -> StepPlan:
    first = [Row([3], [row], before=range(100, 120), sample=spec) for row in range(decoding)]
    starts = [200 + sum(lengths[:place]) for place in range(len(lengths))]
    rows = [
        Row(
            [5] * length,
            range(start, start + length),
            before=range(100, 100 + before),
            sample=spec,
            score=[(0, (1, 2))],
        )
        for length, start in zip(lengths, starts, strict=True)
    ]
    return step(first + rows)


PLANS = {
    "decode": [
        decode(rows, context)
        for rows in (1, 2, 3, 16, 17, 33, 64, 65, 128)
        for context in (1, 15, 16, 700)
    ],
    "shared": [
        decode(rows, 700, shared=shared) for rows in (2, 3, 40, 100) for shared in (1, 16, 600)
    ],
    "sampled": [
        decode(rows, 5, spec)
        for rows in (1, 16, 40)
        for spec in (FILTERED, SamplingSpec(seed=1, logprobs=3))
    ],
    "extend": [
        extend(lengths, before=before)
        for lengths in ([2], [16], [17, 3], [256], [2] * 16, [2] * 70)
        for before in (0, 33)
    ],
    "mixed": [
        extend([40, 2], decoding, spec)
        for decoding in (1, 2, 16, 70)
        for spec in (GREEDY, FILTERED)
    ],
}


@pytest.fixture(scope="module")
def warm() -> tuple[CudaRunner, set[str]]:
    DRIVER.activate()
    compiled()
    checkpoint = MemoryCheckpoint(replace(TINY, context_length=4096))
    runner = CudaRunner(checkpoint, Kernels(), 3000, cuda=FakeCuda())
    runner.warm_up()
    return runner, compiled()


@pytest.mark.parametrize("kind", PLANS)
def test_no_step_compiles(warm: tuple[CudaRunner, set[str]], kind: str) -> None:
    runner, known = warm
    for plan in PLANS[kind]:
        runner.run(plan)
        masked = replace(plan, samples=tuple(replace(row, mask=MASK) for row in plan.samples))
        runner.run(masked)
    needed = compiled()
    assert needed
    assert needed <= known


def test_a_size_that_was_not_seen_would_be_noticed(warm: tuple[CudaRunner, set[str]]) -> None:
    """Another width of a row is another kernel."""
    _, known = warm
    Kernels().add_rms_norm(torch.empty(2, 72), None, torch.empty(72), 1e-5)
    assert not compiled() <= known
