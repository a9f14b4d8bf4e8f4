"""The Triton back end and the CUDA runner on a real device, against the reference on the CPU."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from steps import GREEDY, TINY, MemoryCheckpoint, Row, step

import asgl
from asgl.execution.cuda_runner import CudaRunner
from asgl.execution.serial_runner import SerialRunner
from asgl.kernels.reference import ReferenceKernels
from asgl.kernels.triton.kernels import TritonKernels
from asgl.plan import SharedSpan
from asgl.sampling import SamplingSpec
from tiny import tiny_directory

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]
DEVICE = os.environ.get("ASGL_TEST_GPU", "cuda")
ALL = tuple(range(TINY.vocabulary))


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-3), (torch.float16, 0.05), (torch.bfloat16, 0.15)],
    ids=str,
)
def test_steps_agree_with_the_reference(dtype: torch.dtype, tolerance: float) -> None:
    """Extend, decode through graphs of several sizes, with shared spans and without."""
    runner = CudaRunner(MemoryCheckpoint(), TritonKernels(DEVICE, dtype), 400, buckets=(1, 4, 8))
    reference = SerialRunner(MemoryCheckpoint(), ReferenceKernels(), 400)
    runner.warm_up()
    prompt = torch.randint(
        0, TINY.vocabulary, (90,), generator=torch.Generator().manual_seed(1)
    ).tolist()
    plans = [step([Row(prompt, range(90), score=[(89, ALL)])])]
    for rows in (1, 3, 4, 7, 9):
        spans = (SharedSpan(0, 90, tuple(range(rows))),)
        decode = [
            Row(
                [5 + row],
                [100 + 10 * rows + row],
                before=range(90),
                sample=GREEDY,
                score=[(0, ALL)],
            )
            for row in range(rows)
        ]
        plans += [step(decode), step(decode, shared=spans if rows > 1 else ())]
    for plan in plans:
        found, expected = runner.run(plan), reference.run(plan)
        for one, other in zip(found.scores, expected.scores, strict=True):
            assert one == pytest.approx(other, abs=tolerance)
    assert len(runner._graphs) > 3
    runner.close()


def test_samples_agree_with_the_reference() -> None:
    runner = CudaRunner(MemoryCheckpoint(), TritonKernels(DEVICE, torch.float32), 400, buckets=(8,))
    reference = SerialRunner(MemoryCheckpoint(), ReferenceKernels(), 400)
    specs = [
        GREEDY,
        SamplingSpec(seed=1),
        SamplingSpec(seed=2, top_p=0.7),
        SamplingSpec(seed=3, top_k=5, min_p=0.02),
        SamplingSpec(seed=4, temperature=1.7, repetition_penalty=1.3, logprobs=3),
    ]
    for draw in range(20):
        plan = step(
            [
                Row([9 + i, 3], [2 * i, 2 * i + 1], sample=spec, draw=draw, history=[9 + i, 3])
                for i, spec in enumerate(specs)
            ]
        )
        found, expected = runner.run(plan), reference.run(plan)
        assert [s.token_id for s in found.samples] == [s.token_id for s in expected.samples]
    runner.close()


async def test_the_runtime(tmp_path: Path) -> None:
    texts = []
    model = tiny_directory(tmp_path / "tiny")
    for kernels, device in (("triton", DEVICE), ("reference", "cpu")):
        async with asgl.Runtime(
            model, kernels=kernels, device=device, dtype="float32", kv_cache_tokens=2000
        ) as rt:
            s = rt.prompt("The cat and the dog in the rain. " * 4)
            first = await s.gen("first", max_tokens=20, temperature=0)
            async with s.fork(5) as branches:
                for number, branch in enumerate(branches):
                    branch += f" {number}:"
                    branch.gen("text", max_tokens=10, temperature=0.7, seed=number)
            texts.append(
                [
                    first,
                    *(branch["text"] for branch in branches),
                    await s.select("choice", ["yes", "no", "maybe"]),
                ]
            )
    assert texts[0] == texts[1]


def test_memory_is_sized_and_given_back() -> None:
    before = torch.cuda.mem_get_info(DEVICE)[0]
    runner = CudaRunner(MemoryCheckpoint(), TritonKernels(DEVICE, torch.float16), buckets=())
    taken = before - torch.cuda.mem_get_info(DEVICE)[0]
    assert 0.5 * before < taken < before
    runner.close()
    assert torch.cuda.mem_get_info(DEVICE)[0] > before - 2**29
