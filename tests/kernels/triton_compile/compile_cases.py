"""Every kernel, launched by the back end's own code at the shapes of two models, on a device that
is not there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tests.kernels.triton_compile.fake_driver import Launch, fake_driver

from asgl.kernels.api import Attending, Batch, Rotation, SamplingBatch
from asgl.kernels.triton.kernels import TritonKernels


@dataclass(frozen=True)
class Shape:
    """heads, kv_heads and head_dim of attention; width of the model, of its gated layer, of its
    vocabulary."""

    heads: int
    kv_heads: int
    head_dim: int
    width: int
    gated: int
    vocabulary: int


SHAPES = {
    "smollm2-135m": Shape(9, 3, 64, 576, 1536, 49152),
    "llama-3-8b": Shape(32, 8, 128, 4096, 14336, 128256),
}
DECODE_ROWS, CONTEXT, SHARED = 4, 2048, 1024
EXTEND_ROWS, NEW = 2, 512
SLOTS = 65536


@dataclass(frozen=True)
class Case:
    """A kernel by the name of its case, and its launch."""

    name: str
    launch: Launch


def cases(arch: str, shape: Shape, dtype: torch.dtype = torch.bfloat16) -> list[Case]:
    """Launches all kernels. Tensors are never touched: they are there for their addresses."""
    driver = fake_driver(arch)
    driver.activate()
    driver.launches.clear()
    kernels = TritonKernels("cpu", dtype, target=driver.target)
    found: list[Case] = []

    def take(*names: str) -> None:
        assert len(driver.launches) == len(names), [launch.name for launch in driver.launches]
        found.extend(
            Case(name, launch) for name, launch in zip(names, driver.launches, strict=True)
        )
        driver.launches.clear()

    n = EXTEND_ROWS * NEW
    hidden = torch.empty(n, shape.width)
    kernels.add_rms_norm(
        hidden, torch.empty(n, shape.width, dtype=dtype), torch.empty(shape.width), 1e-5
    )
    take("add_rms_norm")
    caches = [torch.empty(SLOTS, shape.kv_heads, shape.head_dim, dtype=dtype) for _ in range(2)]
    extend = _batch(EXTEND_ROWS, NEW)
    q = kernels.rotate_and_store(
        torch.empty(n, (shape.heads + 2 * shape.kv_heads) * shape.head_dim, dtype=dtype),
        extend,
        Rotation(shape.kv_heads, shape.head_dim, torch.empty(8192, shape.head_dim)),
        caches[0],
        caches[1],
    )
    take("rope_and_store")
    kernels.attention(q, caches[0], caches[1], extend, Attending(0.1))
    take("extend")
    kernels.attention(q[:DECODE_ROWS], caches[0], caches[1], _batch(DECODE_ROWS, 1), Attending(0.1))
    take("decode", "merge")
    shared = ((0, SHARED, tuple(range(DECODE_ROWS))),)
    kernels.attention(
        q[:DECODE_ROWS], caches[0], caches[1], _batch(DECODE_ROWS, 1, shared), Attending(0.1)
    )
    take("decode, spans", "span", "merge, spans")
    kernels.gate(torch.empty(n, 2 * shape.gated, dtype=dtype), "silu")
    take("silu_and_mul")
    weight = torch.empty(shape.vocabulary, shape.width, dtype=dtype)
    logits = kernels.head(torch.empty(DECODE_ROWS, shape.width, dtype=dtype), weight)
    take("head")
    kernels.sample(logits, _sampling(DECODE_ROWS, greedy=True))
    take("sample, greedy")
    kernels.sample(logits, _sampling(DECODE_ROWS, greedy=False))
    take("repetition", "edits", "sample, filtered")
    kernels.mask_logits(logits, torch.empty(DECODE_ROWS, shape.vocabulary // 32, dtype=torch.int32))
    take("mask")
    return found


def attention_cases(
    arch: str, heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype
) -> list[Case]:
    """Launches the attention kernels alone, for heads of any size."""
    driver = fake_driver(arch)
    driver.activate()
    driver.launches.clear()
    kernels = TritonKernels("cpu", dtype, target=driver.target)
    caches = [torch.empty(SLOTS, kv_heads, head_dim, dtype=dtype) for _ in range(2)]
    q = torch.empty(EXTEND_ROWS * NEW, heads, head_dim, dtype=dtype)
    kernels.attention(q, caches[0], caches[1], _batch(EXTEND_ROWS, NEW), Attending(0.1))
    shared = ((0, SHARED, tuple(range(DECODE_ROWS))),)
    kernels.attention(
        q[:DECODE_ROWS], caches[0], caches[1], _batch(DECODE_ROWS, 1, shared), Attending(0.1)
    )
    return [Case(launch.name.removesuffix("_kernel"), launch) for launch in driver.launches]


def _batch(rows: int, new: int, shared: tuple[tuple[int, int, tuple[int, ...]], ...] = ()) -> Batch:
    def ints(count: int) -> torch.Tensor:
        return torch.zeros(count, dtype=torch.int32)

    return Batch(
        ints(rows * new),
        ints(rows * new),
        ints(rows * new),
        ints(rows + 1),
        ints(rows + 1),
        ints(rows * CONTEXT),
        decode_rows=rows if new == 1 else 0,
        max_kv=CONTEXT,
        shared=shared,
    )


def _sampling(m: int, *, greedy: bool) -> SamplingBatch:
    triple = (torch.zeros(5, dtype=torch.int64), torch.zeros(5, dtype=torch.int64), torch.ones(5))
    edits = None if greedy else triple
    return SamplingBatch(
        torch.ones(m),
        torch.ones(m),
        torch.ones(m, dtype=torch.int32),
        torch.ones(m),
        torch.ones(m, dtype=torch.int64),
        edits=edits,
        repetition=edits,
        all_greedy=greedy,
    )
