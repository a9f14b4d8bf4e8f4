"""Helpers for the CPU kernels' own tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from asgl.kernels.api import Batch
from asgl.kernels.cpu.kernels import CpuKernels

Span = tuple[int, int, tuple[int, ...]]


def ints(values: Sequence[int]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.int32)


def batch_of(
    contexts: Sequence[Sequence[int]], new: Sequence[int], shared: tuple[Span, ...] = ()
) -> Batch:
    """Rows with these slots, of which the last `new` are new tokens."""
    qo, kv = [0], [0]
    for context, count in zip(contexts, new, strict=True):
        qo.append(qo[-1] + count)
        kv.append(kv[-1] + len(context))
    positions = [len(c) - n + i for c, n in zip(contexts, new, strict=True) for i in range(n)]
    slots = [slot for c, n in zip(contexts, new, strict=True) for slot in c[len(c) - n :]]
    return Batch(
        input_ids=ints([0] * qo[-1]),
        positions=ints(positions),
        slots=ints(slots),
        qo_indptr=ints(qo),
        kv_indptr=ints(kv),
        kv_indices=ints([slot for context in contexts for slot in context]),
        decode_rows=0,
        max_kv=max(map(len, contexts)),
        shared=shared,
    )


@pytest.fixture(scope="session")
def make() -> Callable[..., CpuKernels]:
    """CpuKernels with these options, made once."""
    made: dict[tuple[tuple[str, object], ...], CpuKernels] = {}

    def kernels(**options: object) -> CpuKernels:
        key = tuple(sorted(options.items()))
        if key not in made:
            made[key] = CpuKernels(**options)  # type: ignore[arg-type]
        return made[key]

    return kernels
