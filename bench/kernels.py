"""Times of the CPU kernels beside the limits of the machine they ran on, measured in the same run.

    python bench/kernels.py [--threads N] [--seconds S]
                            [--part linear attention elementwise sampling steps phases]

For each kernel at the shapes of SmolLM2-135M: the time of one call (the least, and the median),
what it must read and compute, and the share of the limit that it reaches: the larger of bytes /
bandwidth and operations / peak, over the time. Weights, keys and values are cycled through 30
layers, so that they come from memory as in a step. Run it on a quiet machine: a busy one shows in
the first line.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asgl.kernels.api import Attending, Batch, Rotation, SamplingBatch
from asgl.kernels.cpu.kernels import CpuKernels
from asgl.kernels.forward import Verbs
from asgl.kernels.memory import large_pages
from asgl.kernels.quantized import QuantizedTensor

sys.path.insert(0, str(Path(__file__).parents[1]))  # for those who run this file itself

from bench.phases import phases

LAYERS, D, F, HEADS, KV_HEADS, HEAD_DIM, VOCABULARY = 30, 576, 1536, 9, 3, 64, 49152
KV_BYTES = 2 * KV_HEADS * HEAD_DIM * 2


@dataclass(frozen=True)
class Limits:
    """Of this machine, now: bytes and operations a second."""

    read: float
    bfloat16: float
    float32: float

    @property
    def peak(self) -> float:
        """Of the faster products: where a processor has none of bfloat16, torch's are slow."""
        return max(self.bfloat16, self.float32)


def times(call: Callable[[], object], seconds: float) -> tuple[float, float]:
    """The least and the median time of a call, in seconds, after one that does not count."""
    call()
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(taken) < 5:
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    taken.sort()
    return taken[0], taken[len(taken) // 2]


def limits(seconds: float) -> Limits:
    """By torch: the sum of 256 MB, and square matrix products of 1024."""
    memory = large_pages(2**28).view(torch.float32).fill_(1.0)
    read = memory.nbytes / times(memory.sum, seconds)[0]
    rates = []
    for dtype in (torch.bfloat16, torch.float32):
        a, b = (torch.randn(1024, 1024).to(dtype) for _ in range(2))
        rates.append(2 * 1024**3 / times(lambda a=a, b=b: torch.mm(a, b), seconds)[0])
    return Limits(read, *rates)


class Report:
    """Prints a line for each kernel."""

    def __init__(self, limit: Limits, seconds: float) -> None:
        self.limit, self.seconds = limit, seconds
        print(f"\n{'kernel':42}{'least us':>10}{'median':>10}{'MB':>9}{'GFLOP':>9}{'of limit':>10}")

    def line(self, name: str, call: Callable[[], object], moved: int, operations: int = 0) -> None:
        least, median = times(call, self.seconds)
        bound = max(moved / self.limit.read, operations / self.limit.peak)
        print(
            f"{name:42}{least * 1e6:10.0f}{median * 1e6:10.0f}{moved / 1e6:9.2f}"
            f"{operations / 1e9:9.3f}{bound / least:10.0%}",
            flush=True,
        )


def cycle(calls: Sequence[Callable[[], object]]) -> Callable[[], object]:
    """Calls them in turn."""
    state = {"next": 0}

    def call() -> object:
        state["next"] = (state["next"] + 1) % len(calls)
        return calls[state["next"]]()

    return call


def quantized(n: int, k: int, bits: int) -> QuantizedTensor:
    quants = torch.randint(0, 2**bits, (n, k), dtype=torch.uint8)
    scale = torch.rand(n, k // 32) / 2**bits
    return QuantizedTensor(quants, scale, -scale * 2 ** (bits - 1), 4 if bits == 4 else 8, 32)


def cache_of(*shape: int) -> Tensor:
    """Random keys and values [*shape, kv_heads, head_dim]."""
    shape = (*shape, KV_HEADS, HEAD_DIM)
    return large_pages(2 * math.prod(shape)).view(torch.bfloat16).view(shape).normal_()


def ints(values: Sequence[int]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.int32)


def batch_of(contexts: Sequence[Sequence[int]], new: Sequence[int], prefix: int = 0) -> Batch:
    """Rows with these slots, the last `new` of them new; the first `prefix` positions are shared by
    all."""
    qo, kv = [0], [0]
    for context, count in zip(contexts, new, strict=True):
        qo.append(qo[-1] + count)
        kv.append(kv[-1] + len(context))
    return Batch(
        input_ids=ints([0] * qo[-1]),
        positions=ints(
            [len(c) - n + i for c, n in zip(contexts, new, strict=True) for i in range(n)]
        ),
        slots=ints([slot for c, n in zip(contexts, new, strict=True) for slot in c[len(c) - n :]]),
        qo_indptr=ints(qo),
        kv_indptr=ints(kv),
        kv_indices=ints([slot for context in contexts for slot in context]),
        decode_rows=sum(n == 1 for n in new),
        max_kv=max(map(len, contexts)),
        shared=((0, prefix, tuple(range(len(new)))),) if prefix else (),
    )


def linear_layers(kernels: CpuKernels, report: Report) -> None:
    for n, k, bits, layers in (
        (3072, 576, 4, LAYERS),
        (576, 1536, 4, LAYERS),
        (VOCABULARY, D, 8, 2),
    ):
        weights = [kernels.pack_linear(quantized(n, k, bits)) for _ in range(layers)]
        for rows in (1, 4, 8, 16, 32, 64, 256):
            x = torch.randn(rows, k).to(
                kernels.add_rms_norm(torch.ones(1, k), None, torch.ones(k), 1e-5).dtype
            )
            calls = [lambda w=w, x=x: kernels.linear(x, w) for w in weights]
            report.line(
                f"linear {rows} x {k} -> {n}, {bits} bits",
                cycle(calls),
                weights[0].parts[0].memory.nbytes,
                2 * rows * n * k,
            )


def attention(kernels: CpuKernels, report: Report) -> None:
    own = [list(range(1000 + 64 * row, 1032 + 64 * row)) for row in range(32)]
    shapes = {
        "1 row of 256": batch_of([range(256)], [1]),
        "1 row of 4000": batch_of([range(4000)], [1]),
        "32 rows of 256": batch_of(
            [range(256 * row, 256 * row + 256) for row in range(32)], [1] * 32
        ),
        "64 rows of 300": batch_of(
            [range(300 * row, 300 * row + 300) for row in range(64)], [1] * 64
        ),
        "32 rows, prefix of 1000 shared": batch_of(
            [[*range(1000), *tail] for tail in own], [1] * 32, 1000
        ),
        "the same, nothing shared": batch_of([[*range(1000), *tail] for tail in own], [1] * 32),
        "prompt of 256": batch_of([range(256)], [256]),
        "512 more after 1500": batch_of([range(2012)], [512]),
    }
    for name, batch in shapes.items():
        slots = int(batch.kv_indices.max()) + 1
        memory = cache_of(2, LAYERS, slots)
        qo, kv = batch.qo_indptr.tolist(), batch.kv_indptr.tolist()
        seen = sum(
            kv[r + 1] - kv[r] - i for r in range(batch.rows) for i in range(qo[r + 1] - qo[r])
        )
        q = torch.randn(qo[-1], HEADS, HEAD_DIM)
        calls = [
            lambda q=q, k=k, v=v, batch=batch: kernels.attention(
                q, k, v, batch, Attending(HEAD_DIM**-0.5)
            )
            for k, v in zip(*memory, strict=True)
        ]
        moved = len(set(batch.kv_indices.tolist())) * KV_BYTES
        report.line(f"attention, {name}", cycle(calls), moved, 4 * seen * HEADS * HEAD_DIM)


def elementwise(kernels: CpuKernels, report: Report) -> None:
    for rows in (1, 32, 256):
        hidden, delta, weight = torch.randn(rows, D), torch.randn(rows, D), torch.ones(D)
        report.line(
            f"add and norm, {rows} rows",
            lambda h=hidden, d=delta, w=weight: kernels.add_rms_norm(h, d, w, 1e-5),
            rows * D * 14,
        )
        gate_up = torch.randn(rows, 2 * F)
        report.line(
            f"silu and multiply, {rows} rows",
            lambda g=gate_up: kernels.gate(g, "silu"),
            rows * F * 10,
        )
        batch = batch_of([[row] for row in range(rows)], [1] * rows)
        qkv, rope = torch.randn(rows, (HEADS + 2 * KV_HEADS) * HEAD_DIM), torch.randn(16, HEAD_DIM)
        keys, values = (
            torch.zeros(rows, KV_HEADS, HEAD_DIM, dtype=torch.bfloat16) for _ in range(2)
        )
        report.line(
            f"rotate and store, {rows} rows",
            lambda qkv=qkv, batch=batch, rope=rope, k=keys, v=values: kernels.rotate_and_store(
                qkv, batch, Rotation(KV_HEADS, HEAD_DIM, rope), k, v
            ),
            rows * (HEADS + 2 * KV_HEADS) * HEAD_DIM * 6,
        )


def sampling(kernels: CpuKernels, report: Report) -> None:
    for rows in (1, 32):
        logits = torch.randn(rows, VOCABULARY) * 3
        ones, zeros = torch.ones(rows), torch.zeros(rows)
        key = torch.arange(rows) * 0x1E3779B97F4A7C15
        ways = {
            "greedy": SamplingBatch(
                zeros, ones, zeros.int(), zeros, key, all_greedy=True, unfiltered=True
            ),
            "temperature 1": SamplingBatch(ones, ones, zeros.int(), zeros, key, unfiltered=True),
            "min_p 0.05": SamplingBatch(ones, ones, zeros.int(), zeros + 0.05, key),
            "top_p 0.9": SamplingBatch(ones, ones * 0.9, zeros.int(), zeros, key),
            "top_p 0.9, top_k 50": SamplingBatch(ones, ones * 0.9, zeros.int() + 50, zeros, key),
        }
        for name, how in ways.items():
            work = torch.empty_like(logits)
            report.line(
                f"copy and sample {rows} rows, {name}",
                lambda w=work, x=logits, h=how: kernels.sample(w.copy_(x), h),
                3 * logits.nbytes,
            )
        report.line(
            f"log_softmax, {rows} rows", lambda x=logits: kernels.log_softmax(x), 2 * logits.nbytes
        )


STEPS: dict[str, tuple[list[range], int]] = {
    "decode, 1 row of 256": ([range(256)], 1),
    "decode, 8 rows of 256": ([range(300 * row, 300 * row + 256) for row in range(8)], 1),
    "decode, 32 rows of 256": ([range(300 * row, 300 * row + 256) for row in range(32)], 1),
    "decode, 64 rows of 256": ([range(300 * row, 300 * row + 256) for row in range(64)], 1),
    "extend, 4 tokens after 200": ([range(204)], 4),
    "extend, 10 tokens after 200": ([range(210)], 10),
    "extend, 96 tokens after 160": ([range(256)], 96),
    "prompt of 256": ([range(256)], 256),
    "2 prompts of 256": ([range(256), range(300, 556)], 256),
}
"""Steps: the slots of the rows, and how many of the last are new."""


def steps(kernels: CpuKernels, report: Report) -> None:
    """Whole steps: 30 layers in one call, the head, greedy sampling."""
    layers = [
        (
            kernels.pack_linear(quantized((HEADS + 2 * KV_HEADS) * HEAD_DIM, D, 4)),
            kernels.pack_linear(quantized(D, HEADS * HEAD_DIM, 4)),
            kernels.pack_linear(quantized(2 * F, D, 4)),
            kernels.pack_linear(quantized(D, F, 4)),
        )
        for _ in range(LAYERS)
    ]
    head = kernels.pack_head(quantized(VOCABULARY, D, 8))
    ones, rotation = torch.ones(D), Rotation(KV_HEADS, HEAD_DIM, torch.randn(8192, HEAD_DIM))

    def forward(verbs: Verbs) -> Any:
        for i, (qkv, o, gate_up, down) in enumerate(layers):
            verbs.start_layer(i)
            q = verbs.rotate_and_store(verbs.linear(verbs.norm(ones), qkv), rotation)
            attended = verbs.attention(q, Attending(HEAD_DIM**-0.5))
            if i == LAYERS - 1:
                attended = verbs.keep_wanted(attended)
            verbs.add(attended, o)
            verbs.add(verbs.gated(verbs.norm(ones), gate_up, "silu"), down)
        return verbs.norm(ones)

    recorded = kernels.record(forward, D, 1e-5)
    slots = 64 * 300
    memory = cache_of(LAYERS, 2, slots)
    caches = [(keys, values) for keys, values in memory]
    linear_bytes = sum(part.memory.nbytes for own in layers for w in own for part in w.parts)
    weights = LAYERS * D * ((2 * HEADS + 2 * KV_HEADS) * HEAD_DIM + 3 * F)
    for name, (contexts, new) in STEPS.items():
        batch = batch_of(contexts, [new] * len(contexts))
        tokens, rows = new * len(contexts), len(contexts)
        last = torch.arange(rows) * new + new - 1
        hidden = torch.randn(tokens, D)
        how = SamplingBatch(
            torch.zeros(rows),
            torch.ones(rows),
            torch.zeros(rows, dtype=torch.int32),
            torch.zeros(rows),
            torch.arange(rows),
            all_greedy=True,
            unfiltered=True,
        )

        def step(
            batch: Batch = batch,
            last: Tensor = last,
            hidden: Tensor = hidden,
            how: SamplingBatch = how,
        ) -> None:
            states = kernels.run(recorded, hidden.clone(), batch, caches, last)
            assert states is not None
            kernels.sample(kernels.head(states, head), how)

        seen = sum(len(context) - i for context in contexts for i in range(new))
        moved = (
            linear_bytes + head.parts[0].memory.nbytes + LAYERS * KV_BYTES * sum(map(len, contexts))
        )
        operations = (
            2 * tokens * weights + 2 * rows * VOCABULARY * D + 4 * LAYERS * seen * HEADS * HEAD_DIM
        )
        report.line(f"step, {name}", step, moved, operations)


def decode_phases(kernels: CpuKernels, report: Report) -> None:
    phases(
        kernels,
        lambda call: times(call, report.seconds)[0],
        report.limit.read,
        quantized,
        lambda n: batch_of([range(300 * row, 300 * row + 256) for row in range(n)], [1] * n),
    )


PARTS = {
    "linear": linear_layers,
    "attention": attention,
    "elementwise": elementwise,
    "sampling": sampling,
    "steps": steps,
    "phases": decode_phases,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--threads",
        type=int,
        default=None,
        help="threads of the kernels and of the limits (default: all cores)",
    )
    parser.add_argument("--seconds", type=float, default=0.3, help="how long to repeat each call")
    parser.add_argument("--part", nargs="+", choices=list(PARTS), help="which lines (default: all)")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with torch.inference_mode():
        kernels = CpuKernels(weights="auto", threads=arguments.threads)
        limit = limits(arguments.seconds)
        print(
            f"{kernels.threads} threads: read {limit.read / 1e9:.1f} GB/s, bfloat16 "
            f"{limit.bfloat16 / 1e9:.0f} GFLOP/s, "
            f"float32 {limit.float32 / 1e9:.0f} GFLOP/s"
        )
        report = Report(limit, arguments.seconds)
        for name in arguments.part or PARTS:
            PARTS[name](kernels, report)


if __name__ == "__main__":
    main()
