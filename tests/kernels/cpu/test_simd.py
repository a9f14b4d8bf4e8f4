"""Vectors: each operation that rounds or rearranges, against NumPy or torch."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from asgl.kernels.cpu import llvm, simd


@njit
def _exp(source, target, n):
    for i in range(0, n, simd.LANES):
        simd.store(target + i * 4, simd.exp(simd.load(source + i * 4)))


@njit
def _exp_scalars(source, target, n):
    for i in range(n):
        simd.set_f32(target + i * 4, simd.exp_scalar(simd.get_f32(source + i * 4)))


@njit
def _to_bf16(source, target, n):
    for i in range(0, n, simd.LANES):
        simd.store_bf16(target + i * 2, simd.load(source + i * 4))


@simd.operation(simd.f32x16, simd.i64)
def load_half(builder, address):
    """16 float16, as weights' scales are read."""
    return llvm.half_to_f32(builder, llvm.load(builder, address, llvm.HVEC, 2))


@njit
def _from_half(source, target, n):
    for i in range(0, n, simd.LANES):
        simd.store(target + i * 4, load_half(source + i * 2))


@njit
def _reductions(source, target):
    value = simd.load(source)
    simd.set_f32(target, simd.total(value))
    simd.set_f32(target + 4, simd.greatest(value))


@njit
def _keep_first(source, target, count):
    simd.store(target, simd.keep_first(simd.load(source), count, np.float32(-7)))


def test_exp_is_good_to_a_few_units_in_the_last_place() -> None:
    x = torch.linspace(-87.2, 87.9, 160_000)
    found = torch.empty_like(x)
    _exp(x.data_ptr(), found.data_ptr(), len(x))
    exact = torch.exp(x.double())
    assert ((found.double() - exact).abs() / exact).max() < 3e-7


def test_exp_at_its_ends() -> None:
    x = torch.tensor([-torch.inf, -1e30, -88.0, 0.0, 1e30, torch.nan] + [0.0] * 10)
    found = torch.empty_like(x)
    _exp(x.data_ptr(), found.data_ptr(), len(x))
    assert found[:4].tolist() == [0.0, 0.0, 0.0, 1.0]
    assert found[4].isfinite()
    assert found[5].isnan()


def test_a_scalar_exp_is_bit_for_bit_that_of_a_lane() -> None:
    x = torch.randn(256, generator=torch.Generator().manual_seed(0)) * 10
    lanes, scalars = torch.empty_like(x), torch.empty_like(x)
    _exp(x.data_ptr(), lanes.data_ptr(), len(x))
    _exp_scalars(x.data_ptr(), scalars.data_ptr(), len(x))
    assert torch.equal(lanes, scalars)


def test_bfloat16_rounds_to_nearest_even() -> None:
    ties = torch.tensor(
        [0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0x0, -0x80000000], dtype=torch.int32
    )
    x = torch.cat(
        [
            ties.view(torch.float32),
            torch.randn(1018, generator=torch.Generator().manual_seed(1)) * 100,
        ]
    )
    found = torch.empty(len(x), dtype=torch.bfloat16)
    _to_bf16(x.data_ptr(), found.data_ptr(), len(x))
    assert torch.equal(found.view(torch.int16), x.bfloat16().view(torch.int16))


def test_all_finite_halves() -> None:
    halves = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    halves = halves[halves.isfinite()]
    halves = torch.cat([halves, halves.new_zeros(-len(halves) % simd.LANES)])
    found = torch.empty(len(halves))
    _from_half(halves.data_ptr(), found.data_ptr(), len(halves))
    assert torch.equal(found, halves.float())


def test_reductions() -> None:
    x = torch.tensor([float(i) for i in range(16)])[
        torch.randperm(16, generator=torch.Generator().manual_seed(2))
    ]
    found = torch.empty(2)
    _reductions(x.data_ptr(), found.data_ptr())
    assert found.tolist() == [120.0, 15.0]


def test_keep_first_for_any_count() -> None:
    x: Tensor = torch.arange(16).float()
    for count in (-100, -1, 0, 1, 7, 15, 16, 17, 2**40):
        found = torch.empty(16)
        _keep_first(x.data_ptr(), found.data_ptr(), count)
        kept = max(0, min(count, 16))
        assert found.tolist() == x[:kept].tolist() + [-7.0] * (16 - kept)
