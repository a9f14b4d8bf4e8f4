"""Masks in a step: only allowed tokens are sampled, and the same ones however few logits are
computed."""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import pytest
import torch
from steps import MemoryCheckpoint, Row, step

from asgl.errors import InternalError
from asgl.execution.masks import FEW, forbidden, split
from asgl.execution.serial_runner import SerialRunner
from asgl.kernels.api import PartialHead
from asgl.kernels.reference import ReferenceKernels
from asgl.plan import INT, SampleRow, StepPlan
from asgl.sampling import SamplingSpec

V = 211


def mask(tokens: Iterable[int]) -> bytes:
    return sum(1 << token for token in set(tokens)).to_bytes((V + 7) // 8, "little")


def row(allowed: Iterable[int] | None, **spec) -> SampleRow:
    return SampleRow(0, 0, SamplingSpec(**spec), 0, mask=None if allowed is None else mask(allowed))


class Whole(ReferenceKernels):
    """Always computes all logits."""

    def head_some(self, x, weight, token_ids):
        return None


class Watched(ReferenceKernels):
    """Counts the logits that it computes."""

    logits = 0

    def head(self, x, weight):
        found = super().head(x, weight)
        self.logits += found.numel()
        return found

    def head_some(self, x, weight, token_ids):
        found = super().head_some(x, weight, token_ids)
        self.logits += found.numel()
        return found


def test_rows_are_sorted_by_the_logits_they_need():
    rows = [
        row(None),
        row([7]),
        row([210]),
        row([1, 2]),
        row([5], logprobs=0),
        row(range(200)),
        row([1, 2], logprobs=3),
    ]
    found = split(rows)
    assert found.decided == [(1, 7), (2, 210)]
    assert found.few == [3, 5]
    assert found.rest == [0, 4, 6]
    wide = SampleRow(0, 0, SamplingSpec(), 0, mask=b"\xff" * (FEW // 8 + 1))
    assert split([wide]).rest == [0]


def test_forbidden_is_the_opposite_of_the_masks():
    found = forbidden([row([0, 9, 210]), row(None)], V)
    assert found.shape == (2, V)
    assert np.flatnonzero(~found[0]).tolist() == [0, 9, 210]
    assert not found[1].any()
    assert forbidden([row(None), row(None)], V) is None


def plan_of(rows: list[SampleRow]) -> StepPlan:
    plan = step(
        [
            Row(
                [3 + number, 5, 9],
                [number * 3, number * 3 + 1, number * 3 + 2],
                sample=sampled.spec,
            )
            for number, sampled in enumerate(rows)
        ]
    )
    samples = tuple(
        replace(
            made,
            draw=number,
            banned=given.banned,
            history=given.history,
            prompt_length=given.prompt_length,
            mask=given.mask,
        )
        for number, (made, given) in enumerate(zip(plan.samples, rows, strict=True))
    )
    return replace(plan, samples=samples)


def random_rows(seed: int, count: int, most: int) -> list[SampleRow]:
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        allowed = generator.sample(
            range(V), generator.choice([size for size in (1, 2, 3, 8, 20, 200) if size <= most])
        )
        spec = SamplingSpec(
            temperature=generator.choice([0.0, 0.7, 1.0, 2.0]),
            top_p=generator.choice([1.0, 0.8]),
            top_k=generator.choice([0, 2, 50]),
            min_p=generator.choice([0.0, 0.1]),
            seed=generator.randrange(2**32),
            logit_bias=tuple(
                (token, generator.uniform(-4, 4))
                for token in generator.sample([*range(V), *allowed], 5)
            ),
            presence_penalty=generator.choice([0.0, 2.0]),
            repetition_penalty=generator.choice([1.0, 1.5]),
            logprobs=generator.choice([None, None, None, 2]),
        )
        chosen = None if generator.random() < 0.2 else allowed
        banned = tuple(generator.sample(range(V), 3)) if chosen is None else ()
        history = array(INT, generator.sample([*range(V), *allowed], 30))
        rows.append(
            SampleRow(0, 0, spec, 0, banned, history, 10, None if chosen is None else mask(chosen))
        )
    return rows


@pytest.mark.parametrize("most", [8, 200])
@pytest.mark.parametrize("seed", range(8))
def test_the_same_tokens_from_the_allowed_logits_alone(seed, most):
    assert isinstance(ReferenceKernels(), PartialHead)
    rows = random_rows(seed, 8 if most < 20 else 24, most)
    some = SerialRunner(MemoryCheckpoint(), ReferenceKernels(), 100).run(plan_of(rows))
    whole = SerialRunner(MemoryCheckpoint(), Whole(), 100).run(plan_of(rows))
    assert [token.token_id for token in some.samples] == [token.token_id for token in whole.samples]
    for given, found, other in zip(rows, some.samples, whole.samples, strict=True):
        if given.mask is not None:
            assert given.mask[found.token_id // 8] >> found.token_id % 8 & 1
        assert (found.logprob is None) == (given.spec.logprobs is None)
        assert (
            found.logprob == pytest.approx(other.logprob)
            if found.logprob is not None
            else other.logprob is None
        )


def test_no_more_logits_than_needed():
    kernels = Watched()
    runner = SerialRunner(MemoryCheckpoint(), kernels, 100)
    runner.run(plan_of([row([7]), row([9])]))
    assert kernels.logits == 0
    found = runner.run(plan_of([row([7]), row([1, 2]), row([2, 3])]))
    assert kernels.logits == 2 * 3
    assert found.samples[0].token_id == 7
    assert found.samples[1].token_id in (1, 2)
    runner.run(plan_of([row(None), row([1, 2])]))
    assert kernels.logits == 6 + 2 + V


def test_logprobs_are_the_model_s_own_whatever_is_allowed():
    runner = SerialRunner(MemoryCheckpoint(), ReferenceKernels(), 100)
    free = runner.run(plan_of([row(None, logprobs=V)])).samples[0]
    bound = runner.run(plan_of([row([7], logprobs=2)])).samples[0]
    assert bound.token_id == 7
    assert bound.logprob == pytest.approx(dict(free.top)[7], abs=1e-5)
    assert [token for token, _ in bound.top] == [token for token, _ in free.top[:2]]
    assert [logprob for _, logprob in bound.top] == pytest.approx(
        [logprob for _, logprob in free.top[:2]], abs=1e-5
    )


@pytest.mark.parametrize("wrong", [b"", bytes((V + 7) // 8), b"\1" * (V // 8)])
def test_a_mask_that_allows_nothing_or_has_another_size_is_a_bug(wrong):
    runner = SerialRunner(MemoryCheckpoint(), ReferenceKernels(), 100)
    with pytest.raises(InternalError, match="mask"):
        runner.run(plan_of([SampleRow(0, 0, SamplingSpec(), 0, mask=wrong)]))


def test_head_some_gives_the_columns_of_head():
    generator = torch.Generator().manual_seed(1)
    weight, x = torch.randn(300, 40, generator=generator), torch.randn(5, 40, generator=generator)
    for kernels in (ReferenceKernels(), ReferenceKernels(dtype=torch.bfloat16)):
        packed = kernels.pack_head(weight)
        tokens = torch.tensor([0, 7, 8, 299])
        found = kernels.head_some(x.to(kernels.kv_dtype), packed, tokens)
        torch.testing.assert_close(
            found, kernels.head(x.to(kernels.kv_dtype), packed)[:, tokens], rtol=1e-5, atol=1e-5
        )
    exact = ReferenceKernels(deterministic=True)
    assert exact.head_some(x, exact.pack_head(weight), torch.tensor([1])) is None
