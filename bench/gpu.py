"""Measures the Triton kernels and decode steps on the GPU of this machine, beside the bounds of
roofline.py.

    make gpu        tests on the device first, then this; writes docs/gpu-measured.md

Each kernel is timed by events over repeated launches with a cold L2 cache (triton.testing.do_bench,
the median). Decode steps are timed from outside, a plan to its tokens, with graphs and without, on
random weights of SmolLM2-135M's shape.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(Path(__file__).parent))

from asgl.kernels.api import Attending, Batch, Rotation, SamplingBatch  # noqa: E402
from kernel_work import (  # noqa: E402
    ALONE,
    DECODE,
    EXTEND,
    LOGITS,
    MODELS,
    PREFIXED,
    SHARED,
    TOKENS,
    Model,
    Rows,
    work,
)

RESULT = ROOT / "docs" / "gpu-measured.md"
Timer = Callable[[Callable[[], Any]], float]
"""Runs a function again and again; milliseconds of one run."""


def batch_of(rows: Rows, device: torch.device) -> Batch:
    """Contexts in scattered slots, the shared part in the same slots for all."""
    own = rows.context - rows.shared
    order = torch.randperm(
        rows.shared + rows.rows * own, generator=torch.Generator().manual_seed(0)
    ).to(torch.int32)
    starts = range(rows.shared, rows.shared + rows.rows * own, own)
    contexts = [torch.cat((order[: rows.shared], order[start : start + own])) for start in starts]
    slots = torch.cat([context[-rows.new :] for context in contexts])
    positions = torch.arange(rows.context - rows.new, rows.context, dtype=torch.int32).repeat(
        rows.rows
    )
    spans = ((0, rows.shared, tuple(range(rows.rows))),) if rows.shared else ()
    tensors = (
        torch.zeros_like(slots),
        positions,
        slots,
        torch.arange(0, rows.rows * rows.new + 1, rows.new, dtype=torch.int32),
        torch.arange(0, rows.rows * rows.context + 1, rows.context, dtype=torch.int32),
        torch.cat(contexts),
    )
    return Batch(
        *(tensor.to(device) for tensor in tensors),
        decode_rows=rows.rows if rows.new == 1 else 0,
        max_kv=rows.context,
        shared=spans,
    )


def calls(kernels: Any, model: Model) -> list[Callable[[], Any]]:
    """What to time, in the order of `kernel_work.work`."""
    device, dtype = kernels.device, kernels.kv_dtype

    def random(*shape: int, kind: torch.dtype = dtype) -> torch.Tensor:
        return torch.randn(*shape, device=device).to(kind)

    def attend(rows: Rows) -> Callable[[], Any]:
        batch = batch_of(rows, device)
        used = int(batch.kv_indices.max()) + 1
        k, v = (random(used, model.kv_heads, model.head_dim) for _ in range(2))
        q = random(rows.rows * rows.new, model.heads, model.head_dim)
        return lambda: kernels.attention(q, k, v, batch, Attending(model.head_dim**-0.5))

    hidden, delta = random(TOKENS, model.width, kind=torch.float32), random(TOKENS, model.width)
    weight = torch.ones(model.width, device=device)
    extend = batch_of(Rows(1, TOKENS, TOKENS), device)
    qkv = random(TOKENS, (model.heads + 2 * model.kv_heads) * model.head_dim)
    rope = random(TOKENS, model.head_dim, kind=torch.float32)
    k, v = (random(TOKENS, model.kv_heads, model.head_dim) for _ in range(2))
    gate_up = random(TOKENS, 2 * model.gated)
    x, head = random(LOGITS, model.width), random(model.vocabulary, model.width)
    logits = random(LOGITS, model.vocabulary, kind=torch.float32)
    return [
        lambda: kernels.add_rms_norm(hidden, delta, weight, 1e-5),
        lambda: kernels.rotate_and_store(
            qkv, extend, Rotation(model.kv_heads, model.head_dim, rope), k, v
        ),
        attend(EXTEND),
        attend(PREFIXED),
        attend(DECODE),
        attend(ALONE),
        attend(SHARED),
        lambda: kernels.gate(gate_up, "silu"),
        lambda: kernels.head(x, head),
        lambda: kernels.sample(logits, sampling(LOGITS, device, greedy=True)),
        lambda: kernels.sample(logits, sampling(LOGITS, device, greedy=False)),
    ]


def sampling(m: int, device: torch.device, *, greedy: bool) -> SamplingBatch:
    def column(value: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.full((m,), value, dtype=dtype, device=device)

    return SamplingBatch(
        column(0.0 if greedy else 0.8),
        column(0.9),
        column(50, torch.int32),
        column(0.01),
        torch.arange(m, device=device),
        all_greedy=greedy,
        unfiltered=False,
    )


def kernel_table(kernels: Any, name: str, timer: Timer) -> list[str]:
    """A table in Markdown: what was measured, of one model."""
    model = MODELS[name]
    lines = [f"### {name}", "", "| kernel | at | us | GB/s | TFLOP/s |", "|---|---|---|---|---|"]
    for it, call in zip(work(model), calls(kernels, model), strict=True):
        seconds = timer(call) * 1e-3
        rates = f"{it.moved / seconds / 1e9:.0f} | {it.operations / seconds / 1e12:.2f}"
        lines.append(f"| {it.case} | {it.at} | {seconds * 1e6:.1f} | {rates} |")
    return lines


def step_table(device: str, steps: int = 50) -> list[str]:
    """A table in Markdown: decode steps of a model of SmolLM2-135M's shape with random weights."""
    from asgl.execution.cuda_runner import CudaRunner
    from asgl.kernels.triton.kernels import TritonKernels

    context = 512
    lines = [
        "### Decode steps",
        "",
        f"Context {context}; greedy; median of {steps} steps, from the plan to the tokens.",
        "",
        "| rows | graphs, ms | no graphs, ms | tokens/s with graphs |",
        "|---|---|---|---|",
    ]
    runners = [
        CudaRunner(
            random_checkpoint(),
            TritonKernels(device, torch.bfloat16),
            64 * (context + 1),
            buckets=buckets,
        )
        for buckets in ((1, 4, 16, 64), ())
    ]
    for rows in (1, 4, 16, 64):
        plan = decode_plan(rows, context)
        times = []
        for runner in runners:
            for _ in range(5):
                runner.run(plan)
            times.append(statistics.median(runner.run(plan).seconds for _ in range(steps)))
        lines.append(
            f"| {rows} | {times[0] * 1e3:.2f} | {times[1] * 1e3:.2f} | {rows / times[0]:.0f} |"
        )
    for runner in runners:
        runner.close()
    return lines


def random_checkpoint() -> Any:
    """Random weights in the shape of SmolLM2-135M."""
    from asgl.models.config import ModelConfig, Rope
    from asgl.models.layout import expected_shapes

    config = ModelConfig(
        architecture="llama",
        layers=30,
        hidden_size=576,
        intermediate_size=1536,
        heads=9,
        kv_heads=3,
        head_dim=64,
        vocabulary=49152,
        context_length=8192,
        rope=Rope(1e5, 64),
        norm_eps=1e-5,
        tied_head=True,
    )
    shapes = expected_shapes(config)
    return SimpleNamespace(
        config=config,
        name="random, SmolLM2-135M's shape",
        tokenizer=None,
        chat_template=None,
        tensor=lambda name: torch.randn(shapes[name]) * shapes[name][-1] ** -0.5,
        close=lambda: None,
    )


def decode_plan(rows: int, context: int) -> Any:
    """A step of rows with one new token each, in slots of their own."""
    from asgl.plan import INT, SampleRow, StepPlan
    from asgl.sampling import SamplingSpec

    each = context + 1
    return StepPlan(
        1,
        rows,
        array(INT, [7] * rows),
        array(INT, [context] * rows),
        array(INT, [row * each + context for row in range(rows)]),
        array(INT, range(rows + 1)),
        array(INT, range(0, rows * each + 1, each)),
        array(INT, range(rows * each)),
        samples=tuple(SampleRow(row, row, SamplingSpec(temperature=0.0), 0) for row in range(rows)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit(f"torch {torch.__version__} sees no GPU: this measures nothing without one")
    import triton
    from triton.testing import do_bench

    from asgl.kernels.triton.kernels import TritonKernels

    kernels = TritonKernels(options.device, torch.bfloat16)
    properties = torch.cuda.get_device_properties(options.device)
    text = [
        "# Measured on a GPU",
        "",
        f"Written by `make gpu` on {time.strftime('%Y-%m-%d')}: {properties.name}, "
        f"{properties.multi_processor_count} "
        f"multiprocessors, torch {torch.__version__}, triton {triton.__version__}; bfloat16. Bytes "
        "and operations are those of "
        "bench/kernel_work.py.",
        "",
    ]
    for name in MODELS:
        text += [
            *kernel_table(kernels, name, lambda call: do_bench(call, return_mode="median")),
            "",
        ]
    text += step_table(options.device)
    RESULT.write_text("\n".join(text) + "\n")
    print(RESULT.read_text())


if __name__ == "__main__":
    main()
