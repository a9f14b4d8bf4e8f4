"""Batches, caches and ways to sample, for the tests of all back ends; and what attention is, in
float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from asgl.kernels.api import Batch, Kernels, Rotation, SamplingBatch

POOL = 1500
"""Slots of the caches."""
Span = tuple[int, int, tuple[int, ...]]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_batch(kernels: Kernels, rows: list[tuple[int, int]], seed: int = 0) -> Batch:
    """Scattered slots, the last of the pool among them; positions follow the context."""
    order = torch.randperm(POOL, generator=generator(seed)).tolist()
    order.remove(POOL - 1)
    order.insert(0, POOL - 1)
    contexts: list[list[int]] = []
    for prefix, new in rows:
        contexts.append(order[: prefix + new][::-1])
        order = order[prefix + new :]
    return batch_of(contexts, [new for _, new in rows], device=kernels.device)


def batch_of(
    contexts: Sequence[Sequence[int]],
    new: Sequence[int],
    shared: tuple[Span, ...] = (),
    *,
    device: torch.device | str = "cpu",
) -> Batch:
    """Rows with these slots, of which the last `new` are new tokens."""

    def ints(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    qo, kv = [0, *accumulate(new)], [0, *accumulate(map(len, contexts))]
    rows = list(zip(contexts, new, strict=True))
    return Batch(
        input_ids=ints([7] * qo[-1]),
        positions=ints([len(c) - n + i for c, n in rows for i in range(n)]),
        slots=ints([slot for c, n in rows for slot in c[len(c) - n :]]),
        qo_indptr=ints(qo),
        kv_indptr=ints(kv),
        kv_indices=ints([slot for context in contexts for slot in context]),
        decode_rows=next((i for i, n in enumerate(new) if n > 1), len(new)),
        max_kv=max(map(len, contexts)),
        shared=shared,
    )


def caches(
    kernels: Kernels, batch: Batch, kv_heads: int, head_dim: int, seed: int = 1
) -> tuple[Tensor, Tensor]:
    """Random where the batch reads what was there before; NaN in all other slots."""
    made = []
    before = torch.ones(POOL, dtype=torch.bool)
    before[batch.kv_indices.cpu().long()] = False
    before[batch.slots.cpu().long()] = True
    for which in range(2):
        cache = torch.randn(POOL, kv_heads, head_dim, generator=generator(seed + which))
        cache[before] = torch.nan
        made.append(cache.to(kernels.kv_dtype).to(kernels.device))
    return made[0], made[1]


def rope_table(kernels: Kernels, context: int, head_dim: int) -> Tensor:
    angles = torch.outer(
        torch.arange(context).double(),
        10_000 ** (-torch.arange(0, head_dim, 2).double() / head_dim),
    )
    return torch.cat((angles.cos(), angles.sin()), dim=1).float().to(kernels.device)


def activation(kernels: Kernels, x: Tensor) -> Tensor:
    """x in the dtype that `linear` takes."""
    d = x.shape[1]
    one = torch.ones(d, device=kernels.device)
    return x.to(kernels.device).to(
        kernels.add_rms_norm(torch.ones(1, d, device=kernels.device), None, one, 1e-5).dtype
    )


def random_qkv(kernels: Kernels, n: int, shape: tuple[int, int, int], seed: int = 3) -> Tensor:
    heads, kv_heads, head_dim = shape
    eye = kernels.pack_linear(torch.eye(32))
    dtype = kernels.linear(activation(kernels, torch.ones(1, 32)), eye).dtype
    width = (heads + 2 * kv_heads) * head_dim
    return torch.randn(n, width, generator=generator(seed)).to(dtype).to(kernels.device)


def attention_oracle(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, batch: Batch, scale: float
) -> Tensor:
    q, k_cache, v_cache = (t.detach().cpu().double() for t in (q, k_cache, v_cache))
    qo, kv, indices = (
        batch.qo_indptr.tolist(),
        batch.kv_indptr.tolist(),
        batch.kv_indices.cpu().long(),
    )
    n, heads, head_dim = q.shape
    out = torch.full((n, heads, head_dim), torch.nan, dtype=torch.float64)
    for row in range(batch.rows):
        new = qo[row + 1] - qo[row]
        for i in range(new):
            context = indices[kv[row] : kv[row + 1] - (new - 1 - i)]
            for h in range(heads):
                kv_head = h // (heads // k_cache.shape[1])
                weights = torch.softmax(
                    k_cache[context, kv_head] @ q[qo[row] + i, h] * scale, dim=0
                )
                out[qo[row] + i, h] = weights @ v_cache[context, kv_head]
    return out.view(n, heads * head_dim)


def how_to_sample(kernels: Kernels, m: int, **fields: object) -> SamplingBatch:
    def column(name: str, default: float, dtype: torch.dtype) -> Tensor:
        value = fields.get(name, default)
        values = value if isinstance(value, list) else [value] * m
        return torch.tensor(values, dtype=dtype, device=kernels.device)

    return SamplingBatch(
        temperature=column("temperature", 1.0, torch.float32),
        top_p=column("top_p", 1.0, torch.float32),
        top_k=column("top_k", 0, torch.int32),
        min_p=column("min_p", 0.0, torch.float32),
        key=column("key", 1, torch.int64),
        ids=fields.get("ids"),  # type: ignore[arg-type]
        edits=fields.get("edits"),  # type: ignore[arg-type]
        repetition=fields.get("repetition"),  # type: ignore[arg-type]
        all_greedy=bool((column("temperature", 1.0, torch.float32) == 0).all()),
        unfiltered=not {"top_p", "top_k", "min_p"} & fields.keys(),
    )


def rotate(
    kernels: Kernels, qkv: Tensor, batch: Batch, rope: Tensor, k_cache: Tensor, v_cache: Tensor
) -> Tensor:
    """`rotate_and_store` of whole heads, without norms."""
    rotation = Rotation(k_cache.shape[1], k_cache.shape[2], rope)
    return kernels.rotate_and_store(qkv, batch, rotation, k_cache, v_cache)


def arrival(token: int, key: int) -> float:
    """-log(1 - u) of a token under a key, as `asgl.kernels.noise` defines it, in Python's
    integers."""
    word = 2**32 - 1
    x = (token * 0x9E3779B9 + (key & word)) & word
    x = (x ^ x >> 16) * 0x21F0AAAD & word
    x = (x ^ x >> 15 ^ (key >> 32 & word)) * 0x735A2D97 & word
    x ^= x >> 15
    return -math.log1p(-((x >> 1) + 0.5) / 2**31)


def random_keys(count: int, seed: int) -> list[int]:
    """Keys of int64."""
    return torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator(seed)).tolist()
