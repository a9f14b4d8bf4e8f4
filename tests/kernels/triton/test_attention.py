"""Attention in the interpreter: what it touches, how much, and that wrong kernels are caught."""

from __future__ import annotations

import importlib.util
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from tests.kernels.batches import attention_oracle, batch_of, caches, generator, make_batch
from tests.kernels.triton.access import AccessError, Monitor
from tests.kernels.triton_bfloat16 import repair
from torch import Tensor
from triton.runtime.errors import InterpreterError

import asgl.kernels.triton.kernels as backend
from asgl.kernels.api import Attending, Batch
from asgl.kernels.triton import attention
from asgl.kernels.triton.kernels import TritonKernels

pytestmark = [pytest.mark.interpret, pytest.mark.timeout(300)]
repair()

# rows as (prefix, new tokens): short and longer than a tile of queries, and a block of positions
EXTEND = [(0, 1 + 4), (33, 70), (64, 2)]
DECODE = [(5, 1), (200, 1), (63, 1)]
SHAPES = [(4, 2, 32), (3, 3, 64), (6, 2, 16), (2, 1, 80)]  # heads, kv_heads, head_dim


def run(
    kernels: TritonKernels, batch: Batch, shape: tuple[int, int, int], seed: int = 1
) -> tuple[Tensor, Tensor]:
    """What the kernels give, and what they should."""
    heads, kv_heads, head_dim = shape
    k_cache, v_cache = caches(kernels, batch, kv_heads, head_dim, seed)
    at = batch.slots.long()
    k_cache[at] = torch.randn(len(at), kv_heads, head_dim, generator=generator(seed + 5)).to(
        kernels.kv_dtype
    )
    v_cache[at] = torch.randn(len(at), kv_heads, head_dim, generator=generator(seed + 6)).to(
        kernels.kv_dtype
    )
    q = torch.randn(len(at), heads, head_dim, generator=generator(seed + 7)).to(kernels.kv_dtype)
    scale = head_dim**-0.5
    return kernels.attention(q, k_cache, v_cache, batch, Attending(scale)), attention_oracle(
        q, k_cache, v_cache, batch, scale
    )


def shared_batch(
    kernels: TritonKernels, rows: int = 5, prefix: int = 150, branch: int = 70
) -> Batch:
    """Decode rows below a prefix, all but the first also below a branch."""
    slots = iter(torch.randperm(1400, generator=generator(3)).tolist())
    stem, arm = ([next(slots) for _ in range(count)] for count in (prefix, branch))
    contexts = [
        stem + (arm if row else []) + [next(slots) for _ in range(3 * row + 1)]
        for row in range(rows)
    ]
    everybody = tuple(range(rows))
    return batch_of(
        contexts,
        [1] * rows,
        ((0, prefix, everybody), (prefix, prefix + branch, everybody[1:])),
    )


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_access_is_in_bounds_and_alone(
    monitor: Monitor, poisoned: None, shape, dtype: torch.dtype
) -> None:
    """Outputs start as NaN, as does every slot outside the batch."""
    kernels = TritonKernels("cpu", dtype)
    for batch in (make_batch(kernels, DECODE + EXTEND), shared_batch(kernels)):
        found, expected = run(kernels, batch, shape)
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    assert [launch.kernel for launch in monitor.launches].count("span_kernel") == 1


@pytest.mark.parametrize("seed", range(6))
def test_random_batches(monitor: Monitor, poisoned: None, seed: int) -> None:
    kernels = TritonKernels("cpu", torch.float32)
    pick = torch.Generator().manual_seed(seed)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=pick))

    decode = [(number(0, 150), 1) for _ in range(number(0, 4))]
    extend = [(number(0, 100), number(2, 60)) for _ in range(number(0 if decode else 1, 4))]
    shape = SHAPES[number(0, len(SHAPES))]
    found, expected = run(kernels, make_batch(kernels, decode + extend, seed), shape, seed)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


# Traffic


def test_extend_reads_each_position_once_for_each_tile(monitor: Monitor) -> None:
    """The tile's query heads share their keys: the ideal is one read for each tile of queries and
    KV head."""
    kernels = TritonKernels("cpu", torch.float32)
    heads, kv_heads, head_dim = shape = (4, 2, 32)
    batch = make_batch(kernels, EXTEND)
    run(kernels, batch, shape)
    (launch,) = monitor.launches
    ideal = key_bytes(kernels, heads, kv_heads, head_dim)
    assert launch.read["k_cache"] == launch.read["v_cache"] == ideal
    assert (
        launch.read["q"]
        == launch.written["out"]
        == sum(new for _, new in EXTEND) * heads * head_dim * 4
    )
    # slots are read by the programs of both KV heads
    assert launch.read["kv_indices"] == ideal // head_dim


def test_decode_reads_each_position_once(monitor: Monitor) -> None:
    kernels = TritonKernels("cpu", torch.float32)
    _heads, kv_heads, head_dim = shape = (4, 2, 32)
    run(kernels, make_batch(kernels, DECODE), shape)
    decode = monitor.launches[0]
    assert (
        decode.read["k_cache"]
        == decode.read["v_cache"]
        == sum(prefix + 1 for prefix, _ in DECODE) * kv_heads * head_dim * 4
    )
    assert decode.read["kv_indices"] == sum(prefix + 1 for prefix, _ in DECODE) * kv_heads * 4


def test_a_shared_prefix_is_read_once_for_all_rows(monitor: Monitor) -> None:
    kernels = TritonKernels("cpu", torch.float32)
    _heads, kv_heads, head_dim = shape = (4, 2, 32)
    batch = shared_batch(kernels, rows=5, prefix=150, branch=70)
    run(kernels, batch, shape)
    by_name = {launch.kernel: launch for launch in monitor.launches}
    each = kv_heads * head_dim * 4
    assert (
        by_name["span_kernel"].read["k_cache"]
        == by_name["span_kernel"].read["v_cache"]
        == (150 + 70) * each
    )
    assert by_name["decode_kernel"].read["k_cache"] == sum(3 * row + 1 for row in range(5)) * each
    assert int(batch.kv_indptr[-1]) > 4 * (150 + 70)  # what would be read without sharing


# Mutations: each is one thing that could be wrong in the extend kernel, or in the loop that all
# share


MUTATIONS = {
    "causal off by one, too much": (
        "at[None, :] <= limit[:, None]",
        "at[None, :] <= limit[:, None] + 1",
    ),
    "causal off by one, too little": (
        "at[None, :] <= limit[:, None]",
        "at[None, :] < limit[:, None]",
    ),
    "not causal": ("inside[None, :] & (at[None, :] <= limit[:, None])", "inside[None, :]"),
    "the wrong KV head": (
        "HEAD_DIM) + kv_head * HEAD_DIM",
        "HEAD_DIM) + (KV_HEADS - 1 - kv_head) * HEAD_DIM",
    ),
    "query heads interleaved, not grouped": (
        "kv_head * GROUP + m % GROUP) * HEAD_DIM\n        within = real",
        "kv_head + m % GROUP * KV_HEADS) * HEAD_DIM\n        within = real",
    ),
    "slots past the end are read": (
        "slot = tl.load(slots + at, mask=inside, other=0)",
        "slot = tl.load(slots + at)",
    ),
    "keys past the end are read": (
        "mask=inside[None, :] & (d < HEAD_DIM)[:, None]",
        "mask=(d < HEAD_DIM)[:, None]",
    ),
    "values past the end are read": (
        "mask=inside[:, None] & (d < HEAD_DIM)[None, :]",
        "mask=(d < HEAD_DIM)[None, :]",
    ),
    "results are not rescaled": ("result * shrink[:, None]", "result"),
    "the sum is not rescaled": (
        "total = total * shrink + tl.sum(weights, 1)",
        "total = total + tl.sum(weights, 1)",
    ),
    "the greatest score is forgotten": (
        "highest = tl.maximum(top, tl.max(scores, 1))",
        "highest = tl.max(scores, 1)",
    ),
    "no scale": ("input_precision=PRECISION) * scale", "input_precision=PRECISION)"),
    "not divided by the sum": (
        "(result / total[:, None]).to(out.dtype.element_ty),\n"
        "            mask=within,\n        )\n\n\n@triton.jit(",
        "result.to(out.dtype.element_ty),\n            mask=within,\n        )\n\n\n@triton.jit(",
    ),
    "the prefix is left out": (
        "kv_head, 0, whole,",
        "kv_head, prefix // BLOCK_N * BLOCK_N, whole,",
    ),
    "positions are taken for slots": ("place = slot.to(tl.int64)", "place = at.to(tl.int64)"),
    "the prefix does not count in the limit": ("limit = prefix + tokens", "limit = tokens"),
    "the last block without a mask is one too late": (
        "whole = (prefix + token + 1) // BLOCK_N * BLOCK_N",
        "whole = (prefix + token + BLOCK_N) // BLOCK_N * BLOCK_N",
    ),
    "rows past the end of a tile are written": (
        "real = (m < TOKENS * GROUP) & (tokens < new)",
        "real = m < TOKENS * GROUP",
    ),
    "tokens of the next tile are written": (
        "real = (m < TOKENS * GROUP) & (tokens < new)",
        "real = tokens < new",
    ),
    "the wrong row": ("if begins <= tile:", "if begins < tile:"),
    "the end of the tile is one short": (
        "tl.minimum(token + TOKENS, new)",
        "tl.minimum(token + TOKENS, new) - 1",
    ),
}


def mutant(tmp_path: Path, old: str, new: str) -> ModuleType:
    source = Path(attention.__file__).read_text()
    assert source.count(old) == 1, f"{old!r} is in the source {source.count(old)} times"
    path = tmp_path / "mutant.py"
    path.write_text(source.replace(old, new))
    spec = importlib.util.spec_from_file_location("mutant", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def verdict(kernels: TritonKernels) -> str:
    """Runs the batch that finds all mutants, three query heads to a KV head: "right", or what is
    wrong."""
    heads, kv_heads, head_dim = shape = (6, 2, 16)
    with Monitor() as monitor, np.errstate(all="ignore"):  # mutants make NaN
        try:
            found, expected = run(kernels, make_batch(kernels, EXTEND), shape)
        except InterpreterError as error:
            if not isinstance(error.__cause__, AccessError) and "AccessError" not in str(error):
                raise  # the mutant does not even run
            return str(error)
        except AccessError as error:
            return str(error)
    if not torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-5):
        return "wrong numbers"
    if monitor.launches[0].read["k_cache"] != key_bytes(kernels, heads, kv_heads, head_dim):
        return "wrong traffic"
    return "right"


def key_bytes(kernels: TritonKernels, heads: int, kv_heads: int, head_dim: int) -> int:
    """What `EXTEND` must read: for each tile of queries and KV head all positions up to the tile's
    last, once."""
    tokens = backend.tiles.extend_tile(
        head_dim, heads // kv_heads, torch.float32, kernels.target
    ).block_m // (heads // kv_heads)
    ends = [
        prefix + min(start + tokens, new)
        for prefix, new in EXTEND
        for start in range(0, new, tokens)
    ]
    return sum(ends) * kv_heads * head_dim * 4


def test_the_kernel_itself_passes(poisoned: None) -> None:
    assert verdict(TritonKernels("cpu", torch.float32)) == "right"


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutations_are_caught(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poisoned: None
) -> None:
    monkeypatch.setattr(backend, "attention", mutant(tmp_path, *MUTATIONS[name]))
    assert verdict(TritonKernels("cpu", torch.float32)) != "right"


DECODE_MUTATIONS = {
    "a piece is one block too short": (
        "end = tl.minimum(start + blocks * BLOCK_N, context)",
        "end = tl.minimum(start + (blocks - 1) * BLOCK_N, context)",
    ),
    "the pieces overlap": (
        "start = first + piece * blocks * BLOCK_N",
        "start = first + piece * (blocks - 1) * BLOCK_N",
    ),
    "the shared positions are read twice": (
        "first = tl.load(rows_spans + row * 3 + 2)",
        "first = 0",
    ),
    "an empty piece has a weight": (
        "top + tl.log2(tl.maximum(total, 1e-30)), mask=m < GROUP",
        "tl.log2(total + 1.0), mask=m < GROUP",
    ),
    "what an empty piece holds is read": (
        "mask=held[:, None] & (d < HEAD_DIM)[None, :]",
        "mask=(p < count)[:, None] & (d < HEAD_DIM)[None, :]",
    ),
    "partial results are not rescaled": (
        "result = result * shrink + tl.sum(values * weights[:, None], 0)",
        "result = result + tl.sum(values * weights[:, None], 0)",
    ),
    "the sum of the weights is not rescaled": (
        "total = total * shrink + tl.sum(weights, 0)",
        "total = total + tl.sum(weights, 0)",
    ),
    "the results of spans are left out": (
        "count = splits + tl.load(rows_spans + row * 3 + 1)",
        "count = splits",
    ),
    "the piece of a span is ignored": (" + tl.load(unit + 5)", ""),
    "a span ends one late": ("end = tl.load(unit + 4)", "end = tl.load(unit + 4) + 1"),
    "a span is read from its own row's start": ("start = tl.load(unit + 3)", "start = 0"),
    "rows of the next unit are written": (
        "real = m // GROUP < count",
        "real = m // GROUP <= count",
    ),
}


def decode_verdict(kernels: TritonKernels) -> str:
    """As `verdict`, of decode rows: in pieces, of which some are empty, below spans of several
    pieces, and of several tiles."""
    shape = (6, 2, 16)
    several = kernels.rows_of_span_tile(*shape) + 2
    batches = (
        make_batch(kernels, DECODE),
        shared_batch(kernels, prefix=600),
        shared_batch(kernels, several, 40, 20),
    )
    for batch in batches:
        with Monitor(), np.errstate(all="ignore"):
            try:
                found, expected = run(kernels, batch, shape)
            except (InterpreterError, AccessError) as error:
                if "AccessError" not in f"{error!r}{error.__cause__!r}":
                    raise
                return str(error)
        if not torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-5):
            return "wrong numbers"
    return "right"


def test_the_decode_kernels_themselves_pass(
    poisoned: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend.tiles, "decode_splits", lambda *_: 20)
    assert decode_verdict(TritonKernels("cpu", torch.float32)) == "right"


@pytest.mark.parametrize("name", DECODE_MUTATIONS)
def test_mutations_of_decode_are_caught(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, poisoned: None
) -> None:
    monkeypatch.setattr(backend.tiles, "decode_splits", lambda *_: 20)
    monkeypatch.setattr(backend, "attention", mutant(tmp_path, *DECODE_MUTATIONS[name]))
    assert decode_verdict(TritonKernels("cpu", torch.float32)) != "right"


# The pieces of a context


@pytest.mark.parametrize("splits", [1, 2, 8])
def test_any_number_of_pieces_gives_the_same(
    splits: int, monkeypatch: pytest.MonkeyPatch, poisoned: None
) -> None:
    """More pieces than blocks too: some are empty."""
    monkeypatch.setattr(backend.tiles, "decode_splits", lambda *_: splits)
    kernels = TritonKernels("cpu", torch.float32)
    for batch in (make_batch(kernels, DECODE), shared_batch(kernels)):
        found, expected = run(kernels, batch, (4, 2, 32))
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_spans_with_gaps_and_extend_rows_are_read_by_the_rows_themselves(poisoned: None) -> None:
    kernels = TritonKernels("cpu", torch.float32)
    batch = shared_batch(kernels)
    kv = batch.kv_indptr.tolist()
    contexts = [batch.kv_indices[begin:end].tolist() for begin, end in pairwise(kv)]
    everybody = tuple(range(5))
    for shared in (
        ((10, 150, everybody),),
        ((0, 90, everybody), (100, 150, everybody)),
        ((0, 150, (2,)),),
    ):
        found, expected = run(kernels, batch_of(contexts, [1] * 5, shared), (4, 2, 32))
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
