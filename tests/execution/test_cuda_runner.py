"""Memory and failures of the runner on GPUs, with a torch.cuda that is not one. Graphs:
tests/execution/cuda_graphs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from fake_cuda import FakeCuda
from steps import GREEDY, TINY, MemoryCheckpoint, Row, step

from asgl.errors import ConfigError, EngineClosedError, EngineError
from asgl.execution import cuda_runner
from asgl.execution.cuda_device import CudaDevice
from asgl.execution.cuda_runner import CudaRunner
from asgl.execution.kv_pool import slot_bytes
from asgl.execution.runner import make_runner
from asgl.execution.serial_runner import SerialRunner
from asgl.kernels.reference import ReferenceKernels
from asgl.kernels.triton.target import INTERPRETER
from asgl.models.architectures import ARCHITECTURES
from asgl.sampling import SamplingSpec

EACH = slot_bytes(TINY, torch.float32)
CPU = torch.device("cpu")


class Kernels(ReferenceKernels):
    """The reference, with what the runner asks of a back end whose launches are captured."""

    target = INTERPRETER

    def rows_of_span_tile(self, heads: int, kv_heads: int, head_dim: int) -> int:
        return 8

    def mask_logits(self, logits: torch.Tensor, allowed: torch.Tensor) -> None:
        tokens = torch.arange(logits.shape[1])
        logits.masked_fill_(((allowed[:, tokens // 32] >> (tokens % 32)) & 1) == 0, -torch.inf)


def make(cuda: FakeCuda | None = None, capacity: int | None = 200) -> CudaRunner:
    return CudaRunner(MemoryCheckpoint(), Kernels(), capacity, buckets=(), cuda=cuda or FakeCuda())


class Refusals:
    """A KVPool that is refused the memory for more than `most` tokens."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
        self.asked: list[int] = []
        real = cuda_runner.KVPool

        def pool(config: Any, capacity: int, *rest: Any) -> Any:
            self.asked.append(capacity)
            if capacity > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return real(config, capacity, *rest)

        monkeypatch.setattr(cuda_runner, "KVPool", pool)


def test_the_pool_takes_what_the_weights_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Refusals(monkeypatch, 10**6)
    free = 512 * 2**20 + 5000 * EACH  # half a GiB is kept for activations
    assert make(FakeCuda(free), None).capacity == 4999
    assert asked.asked == [4999]


def test_a_refusal_becomes_a_smaller_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Refusals(monkeypatch, 3000)
    cuda = FakeCuda(512 * 2**20 + 5000 * EACH)
    assert make(cuda, None).capacity == 2811
    assert asked.asked == [4999, 3749, 2811]
    assert cuda.log.count("empty_cache") == 4  # before the weights, after them, and twice refused


def test_no_memory_for_a_cache_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ConfigError,
        match=r"has 512 MiB free beside the weights: not enough for a KV cache of 256 tokens",
    ):
        make(FakeCuda(512 * 2**20 + 100 * EACH), None)
    Refusals(monkeypatch, 100)
    with pytest.raises(ConfigError, match="not enough"):
        make(FakeCuda(512 * 2**20 + 5000 * EACH), None)


def test_a_capacity_that_was_asked_for_is_never_made_smaller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = Refusals(monkeypatch, 100)
    with pytest.raises(
        ConfigError, match=r"a KV cache for 200 tokens .* choose a smaller kv_cache_tokens"
    ) as caught:
        make(capacity=200)
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)
    assert asked.asked == [200]


def test_weights_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    refusing = ARCHITECTURES["llama"]._replace(model=refuse)  # type: ignore[arg-type]
    monkeypatch.setitem(ARCHITECTURES, "llama", refusing)
    with pytest.raises(ConfigError, match=r"the weights of tiny do not fit cpu: .*20 GiB"):
        make()


def out_of_memory(times: int, monkeypatch: pytest.MonkeyPatch, runner: CudaRunner) -> None:
    """The next `times` forward passes run out of memory."""
    weights = runner.model.weights
    real, left = weights.forward, [times]

    def forward(*args: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*args)

    monkeypatch.setattr(weights, "forward", forward)


def test_a_step_that_runs_out_of_memory_is_tried_again_with_empty_caches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = FakeCuda()
    runner = make(cuda)
    plan = step([Row([3, 4, 5], [0, 1, 2], sample=GREEDY)])
    expected = runner.run(plan).samples
    out_of_memory(1, monkeypatch, runner)
    cuda.log.clear()
    assert runner.run(plan).samples == expected
    assert cuda.log.count("empty_cache") == 1


def test_a_step_that_runs_out_of_memory_twice_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner = make()
    out_of_memory(2, monkeypatch, runner)
    with pytest.raises(
        EngineError, match=r"in a step of 3 tokens.*fewer kv_cache_tokens \(now 200\)"
    ):
        runner.run(step([Row([3, 4, 5], [0, 1, 2], sample=GREEDY)]))


def test_no_memory_for_a_graph_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    real = CudaDevice.capture
    buckets: list[int] = []

    def capture(device: CudaDevice, launch: Callable[[], torch.Tensor]) -> Any:
        graph, hidden = real(device, launch)
        buckets.append(len(hidden))
        if buckets.count(2) == 2:  # the first is that with shared spans
            raise torch.OutOfMemoryError("CUDA out of memory")
        return graph, hidden

    runner = CudaRunner(MemoryCheckpoint(), Kernels(), 200, buckets=(1, 2, 64), cuda=FakeCuda())
    monkeypatch.setattr(CudaDevice, "capture", capture)
    with pytest.raises(
        ConfigError, match=r"for the graph of 2 decode rows; .* fewer kv_cache_tokens \(now 200\)"
    ) as caught:
        runner.warm_up()
    assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


def test_results_are_the_runners() -> None:
    """Samples with log-probabilities and edits, and scores: more of them than are computed at
    once."""
    rows = [
        Row(
            [5, 6, 7],
            [0, 1, 2],
            sample=SamplingSpec(seed=3, logprobs=4),
            score=[(i, (1, 2, 3)) for i in range(3)],
        ),
        Row(
            list(range(40, 140)),
            range(3, 103),
            sample=GREEDY._replace(logprobs=0),
            score=[(i, (i,)) for i in range(100)],
        ),
        Row(
            [9, 9],
            [110, 111],
            sample=SamplingSpec(top_p=0.5, seed=1, repetition_penalty=2.0),
            history=[9, 9],
            banned=(3,),
        ),
    ]
    plan = step(rows)
    found, expected = (
        make().run(plan),
        SerialRunner(MemoryCheckpoint(), ReferenceKernels(), 200).run(plan),
    )
    assert [s.token_id for s in found.samples] == [s.token_id for s in expected.samples]
    for one, other in zip(found.samples, expected.samples, strict=True):
        assert (one.logprob is None) == (other.logprob is None)
        assert one.logprob is None or one.logprob == pytest.approx(other.logprob, abs=1e-5)
        assert [token for token, _ in one.top] == [token for token, _ in other.top]
    for mine, reference in zip(found.scores, expected.scores, strict=True):
        assert mine == pytest.approx(reference, abs=1e-5)


def test_masks() -> None:
    plan = step(
        [Row([5, 6], [0, 1], sample=GREEDY), Row([7, 8], [2, 3], sample=SamplingSpec(seed=2))]
    )
    free = make().run(plan).samples
    mask = bytearray(27)
    mask[3] = 0b100  # token 26 alone
    masked = replace(plan, samples=(plan.samples[0], replace(plan.samples[1], mask=bytes(mask))))
    samples = make().run(masked).samples
    assert [s.token_id for s in samples] == [free[0].token_id, 26]


def test_close_frees_and_ends() -> None:
    cuda = FakeCuda()
    runner = make(cuda)
    runner.close()
    runner.close()
    assert cuda.log[-1] == "empty_cache"
    with pytest.raises(EngineClosedError):
        runner.run(step([Row([3], [0])]))


def test_keys_and_values_are_read_and_written_on_the_stream() -> None:
    cuda = FakeCuda()
    runner = make(cuda)
    runner.run(step([Row([3, 4, 5], [0, 1, 2])]))
    cuda.log.clear()
    values = runner.read_kv([0, 2])
    runner.write_kv([7, 9], values)
    assert torch.equal(runner.read_kv([9, 7]), runner.read_kv([2, 0]))
    assert cuda.log == ["stream"] * 4


def test_make_runner_takes_the_plain_one_on_cpus_and_imports_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [name for name in sys.modules if name.startswith("asgl.execution.cuda")]:
        monkeypatch.delitem(sys.modules, name)
    runner = make_runner(MemoryCheckpoint(), ReferenceKernels(), 20)
    assert type(runner) is SerialRunner
    assert not [name for name in sys.modules if name.startswith("asgl.execution.cuda")]


def test_make_runner_takes_the_one_with_graphs_on_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = Kernels()
    kernels.name, kernels.device = "triton", torch.device("cuda", 1)
    monkeypatch.setattr(cuda_runner, "CudaRunner", lambda *given: given)
    checkpoint = MemoryCheckpoint()
    assert make_runner(checkpoint, kernels, 20) == (checkpoint, kernels, 20)


# The staging memory


def test_uploads_are_one_copy_and_keep_shapes_and_types() -> None:
    cuda = FakeCuda(watch=True)
    device = CudaDevice(CPU, cuda)
    cuda.know(*device.pinned)
    given = [
        torch.arange(3, dtype=torch.int32),
        torch.empty(0, dtype=torch.int64),
        torch.tensor([[0.5], [1e300]], dtype=torch.float64),
    ]
    with device.on_stream():
        sent = device.upload(given)
    assert cuda.log == ["stream", "copy in"]
    for one, other in zip(sent, given, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
        assert one.data_ptr() % 16 == 0 or not one.numel()


def test_staging_grows_and_what_was_handed_out_stays() -> None:
    device = CudaDevice(CPU, FakeCuda())
    big = torch.arange(400_000)
    (sent,) = device.upload([big])
    first, second = device.download(sent), device.download(sent + 1)
    assert torch.equal(first, big)
    assert torch.equal(second, big + 1)
