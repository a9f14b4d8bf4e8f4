"""Packed weights: whatever the format, the shape and the number of rows, a product is that of the
values they stand for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from asgl.errors import ConfigError
from asgl.kernels.quantized import QuantizedTensor, quantize


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quantized(n: int, k: int, bits: int, group: int = 32, seed: int = 0) -> QuantizedTensor:
    """With scales and offsets that float16 holds exactly, as in model files."""
    quants = torch.randint(0, 2**bits, (n, k), generator=generator(seed), dtype=torch.uint8)
    scale = (torch.rand(n, k // group, generator=generator(seed + 1)) / 2**bits).half().float()
    offset = (
        -scale * 2 ** (bits - 1)
        if bits == 8
        else (-torch.rand(n, k // group, generator=generator(seed + 2))).half().float()
    )
    return QuantizedTensor(quants, scale, offset, 4 if bits == 4 else 8, group)


def inputs(m: int, k: int) -> Tensor:
    """As bfloat16 holds them: dense weights are multiplied in that, where it can be."""
    return torch.randn(m, k, generator=generator(7)).bfloat16().float()


@pytest.mark.parametrize("n", [1, 15, 16, 17, 31, 33, 100])
@pytest.mark.parametrize("bits", [4, 8, 16])
def test_any_number_of_outputs(make, n: int, bits: int) -> None:
    kernels = make(weights="auto")
    weight = (
        quantized(n, 64, bits)
        if bits < 16
        else torch.randn(n, 64, generator=generator(3)).bfloat16()
    )
    dense = (
        weight.dequantize(torch.float64) if isinstance(weight, QuantizedTensor) else weight.double()
    )
    for m in (1, 40):
        x = inputs(m, 64)
        found = kernels.linear(x, kernels.pack_linear(weight))
        assert found.shape == (m, n)
        torch.testing.assert_close(found.double(), x.double() @ dense.T, rtol=0.01, atol=0.02)


def test_larger_groups_and_odd_ones(make) -> None:
    kernels = make(weights="auto")
    x = inputs(3, 192)
    for group, bits, held in ((64, 4, 4), (96, 8, 8), (48, 4, 4), (16, 8, 8), (24, 4, 16)):
        weight = quantized(64, 192, bits, group)
        packed = kernels.pack_linear(weight)
        assert packed.parts[0].bits == held
        expected = x.double() @ weight.dequantize(torch.float64).T
        torch.testing.assert_close(
            kernels.linear(x, packed).double(), expected, rtol=0.01, atol=0.02
        )


def test_scales_that_float16_cannot_hold_are_held_dense(make) -> None:
    weight = quantized(64, 64, 4)
    large = QuantizedTensor(weight.quants, weight.scale * 1e7, weight.offset, 4, 32)
    kernels = make(weights="auto")
    x = inputs(3, 64)
    packed = kernels.pack_linear(large)
    assert packed.parts[0].bits == 16
    expected = x.double() @ large.dequantize(torch.float64).T
    torch.testing.assert_close(kernels.linear(x, packed).double(), expected, rtol=0.02, atol=1e5)


def test_a_width_that_cannot_be_packed_says_what_to_do(make) -> None:
    for weight in (
        torch.zeros(64, 50),
        QuantizedTensor(torch.zeros(64, 50, dtype=torch.uint8), torch.ones(64, 2), None, 4, 25),
    ):
        with pytest.raises(ConfigError, match="multiple of 32"):
            make(weights="auto").pack_linear(weight)


@pytest.mark.parametrize(("bits", "tolerance"), [(4, 0.04), (8, 0.0025)])
def test_quantize_is_off_by_half_a_step(bits: int, tolerance: float) -> None:
    dense = torch.rand(64, 128, generator=generator(1)) - 0.3
    found = quantize(dense, bits).dequantize(torch.float32)
    assert (found - dense).abs().max() < tolerance


def test_quantize_holds_flat_and_empty_groups() -> None:
    dense = torch.cat([torch.zeros(1, 64), torch.full((1, 64), 0.25), torch.full((1, 64), -3.0)])
    torch.testing.assert_close(quantize(dense, 4).dequantize(torch.float32), dense)


@pytest.mark.parametrize(
    ("wanted", "given", "bits"),
    [
        ("auto", 4, 4),
        ("auto", 8, 8),
        ("auto", 16, 16),
        ("dense", 4, 16),
        ("dense", 16, 16),
        ("int8", 16, 8),
        ("int8", 4, 4),
        ("int4", 16, 4),
        ("int4", 8, 4),
    ],
)
def test_linear_layers_are_held_as_asked(make, wanted: str, given: int, bits: int) -> None:
    kernels = make(weights=wanted)
    weight = quantized(64, 64, given) if given < 16 else torch.randn(64, 64, generator=generator(2))
    assert kernels.pack_linear(weight).parts[0].bits == bits


@pytest.mark.parametrize(
    ("wanted", "given", "bits"),
    [
        ("auto", 8, 8),
        ("int4", 8, 8),
        ("int4", 16, 16),
        ("dense", 8, 16),
    ],
)
def test_heads_are_not_rounded(make, wanted: str, given: int, bits: int) -> None:
    kernels = make(weights=wanted)
    weight = quantized(64, 64, given) if given < 16 else torch.randn(64, 64, generator=generator(2))
    assert kernels.pack_head(weight).parts[0].bits == bits


@pytest.mark.parametrize("bits", [8, 16])
def test_a_tied_head_and_embedding_are_held_once(make, bits: int) -> None:
    kernels = make(weights="auto")
    weight = quantized(70, 64, 8) if bits == 8 else torch.randn(70, 64).bfloat16()
    table, head = kernels.pack_embedding(weight), kernels.pack_head(weight)
    assert table.memory.data_ptr() == head.parts[0].address
    other = quantized(70, 64, 8, seed=5) if bits == 8 else torch.randn(70, 64).bfloat16()
    assert kernels.pack_head(other).parts[0].address != head.parts[0].address
    ids = torch.tensor([0, 31, 32, 69], dtype=torch.int32)
    dense = weight.dequantize(torch.float32) if bits == 8 else weight.float()
    torch.testing.assert_close(kernels.embed(table, ids), dense[ids], rtol=1e-6, atol=1e-6)
