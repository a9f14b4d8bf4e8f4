"""The contract tests say what sampling gives; these, that the short way and the long way give the
same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from asgl.kernels import ranking
from asgl.kernels.api import SamplingBatch


def how(m: int, seed: int) -> SamplingBatch:
    generator = torch.Generator().manual_seed(seed)

    def pick(values: list[float], dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor(values, dtype=dtype)[
            torch.randint(0, len(values), (m,), generator=generator)
        ]

    return SamplingBatch(
        temperature=pick([0.0, 0.2, 1.0, 3.0, 20.0], torch.float32),
        top_p=pick([1.0, 1.0, 0.95, 0.3], torch.float32),
        top_k=pick([0, 0, 1, 20, 1023, 1024, 1025, 3000], torch.int32),
        min_p=pick([0.0, 0.0, 1e-4, 0.2], torch.float32),
        key=torch.arange(m) * 0x1E3779B97F4A7C15,
    )


@pytest.mark.parametrize("ties", [False, True])
def test_candidates_give_what_the_whole_ranking_gives(
    monkeypatch: pytest.MonkeyPatch, ties: bool
) -> None:
    m, vocabulary = 300, 4000
    logits = 3 * torch.randn(m, vocabulary, generator=torch.Generator().manual_seed(1))
    if ties:
        logits = logits.round()
    batch = how(m, 2)
    short = ranking.sample(logits.clone(), batch)
    monkeypatch.setattr(ranking, "CANDIDATES", vocabulary)
    whole = ranking.sample(logits.clone(), batch)
    assert torch.equal(short, whole)


def test_most_rows_need_no_complete_ranking(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    sort = torch.Tensor.sort

    def counting(values: torch.Tensor, **options: Any) -> Any:
        lengths.extend([values.shape[1]] * len(values))
        return sort(values, **options)

    monkeypatch.setattr(torch.Tensor, "sort", counting)
    logits = 3 * torch.randn(100, 4000, generator=torch.Generator().manual_seed(1))
    off = torch.zeros(100)
    key = torch.arange(100) * 0x1E3779B97F4A7C15
    ranking.sample(
        logits.clone(), SamplingBatch(off + 1, off + 1, off.int(), off, key, unfiltered=True)
    )
    assert not lengths
    ranking.sample(logits, SamplingBatch(off + 1, off + 0.9, off.int() + 900, off + 1e-3, key))
    assert lengths
    assert lengths.count(4000) < 10
