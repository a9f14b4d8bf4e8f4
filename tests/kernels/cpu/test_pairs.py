"""Integer products: their extremes, what is no number, and that rows are alone."""

from __future__ import annotations

import pytest
import torch

from asgl.kernels.cpu.kernels import CpuKernels
from asgl.kernels.cpu.linear import BYTES, PAIRS
from asgl.kernels.quantized import QuantizedTensor

pytestmark = pytest.mark.skipif(
    not PAIRS, reason="this processor multiplies packed weights as bfloat16"
)


def extreme(bits: int, k: int) -> QuantizedTensor:
    """All weights as large as can be: sums of 32 products come closest to the ends of an int32."""
    quants = torch.full((32, k), 15 if bits == 4 else 255, dtype=torch.uint8)
    scale = torch.full((32, k // 32), 2.0**-3)
    offset = torch.zeros_like(scale) if bits == 4 else -128 * scale
    return QuantizedTensor(quants, scale, offset, 4 if bits == 4 else 8, 32)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("value", [1.0, -1.0, 1e34, 1e-30])
def test_the_largest_products_do_not_overflow(make, bits: int, value: float) -> None:
    kernels = make(weights="auto")
    weight = extreme(bits, 64)
    x = torch.full((3, 64), value)
    expected = x.double() @ weight.dequantize(torch.float64).T
    found = kernels.linear(x, kernels.pack_linear(weight)).double()
    torch.testing.assert_close(found, expected.float().double(), rtol=1e-4, atol=1e-28)


def test_inputs_of_zero_and_of_very_different_sizes(make) -> None:
    kernels = make(weights="auto")
    weight = extreme(4, 64)
    x = torch.zeros(2, 64)
    x[1, :32], x[1, 32:] = 1e4, 1e-4
    found = kernels.linear(x, kernels.pack_linear(weight)).double()
    assert (found[0] == 0).all()
    torch.testing.assert_close(
        found[1], (x[1].double() @ weight.dequantize(torch.float64).T), rtol=1e-6, atol=0.0
    )


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("bits", [4, 8])
def test_what_is_not_finite_is_not_hidden(make, bits: int, bad: float) -> None:
    kernels = make(weights="auto")
    packed = kernels.pack_linear(extreme(bits, 64))
    x = torch.ones(3, 64)
    x[1, 40] = bad
    found = kernels.linear(x, packed).clone()
    assert not found[1].isfinite().any()
    assert found[[0, 2]].isfinite().all()


@pytest.mark.parametrize("bits", [4, 8])
def test_a_row_does_not_depend_on_its_neighbours(make, bits: int) -> None:
    kernels = make(weights="auto")
    quants = torch.randint(
        0, 2**bits, (70, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(bits)
    )
    scale = torch.rand(70, 3, generator=torch.Generator().manual_seed(1)).half().float()
    packed = kernels.pack_linear(QuantizedTensor(quants, scale, -scale, 4 if bits == 4 else 8, 32))
    x = torch.randn(70, 96, generator=torch.Generator().manual_seed(2))
    together = kernels.linear(x, packed).clone()
    for first, last in ((0, 1), (1, 3), (3, 6), (6, 10), (10, 15), (15, 70)):
        assert torch.equal(kernels.linear(x[first:last], packed), together[first:last])


# --- inputs of 8 bits

bytes_only = pytest.mark.skipif(not BYTES, reason="this processor multiplies no bytes")


@bytes_only
def test_each_byte_meets_its_weight(make) -> None:
    """An input of one alone gives the column of its weight, exactly: none is in another's place."""
    quants = torch.randint(
        0, 16, (70, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(3)
    )
    weight = QuantizedTensor(quants, torch.full((70, 3), 0.5), torch.full((70, 3), -2.0), 4, 32)
    kernels = make(weights="auto", activations="int8")
    found = kernels.linear(torch.eye(96), kernels.pack_linear(weight))
    torch.testing.assert_close(found, weight.dequantize(torch.float32).T, rtol=1e-6, atol=1e-6)


@bytes_only
@pytest.mark.parametrize("value", [1.0, -1.0, 1e34, 1e-30])
def test_the_largest_sums_fit_sixteen_bits(make, value: float) -> None:
    kernels = make(weights="auto", activations="int8")
    weight, x = extreme(4, 64), torch.full((5, 64), value)
    expected = x.double() @ weight.dequantize(torch.float64).T
    found = kernels.linear(x, kernels.pack_linear(weight)).double()
    torch.testing.assert_close(found, expected.float().double(), rtol=1e-4, atol=1e-28)


@bytes_only
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 64, 130])
def test_inputs_are_rounded_to_eight_bits_and_nothing_else_is(make, rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    quants = torch.randint(0, 16, (100, 96), dtype=torch.uint8, generator=generator)
    scale = torch.rand(100, 3, generator=generator).half().float()
    weight = QuantizedTensor(quants, scale, (-7.5 * scale).half().float(), 4, 32)
    x = torch.randn(rows, 96, generator=generator)
    steps = x.view(rows, 3, 32).abs().amax(dim=2, keepdim=True) / 127
    rounded = ((x.view(rows, 3, 32) / steps).round() * steps).view(rows, 96)
    kernels = make(weights="auto", activations="int8")
    packed = kernels.pack_linear(weight)
    found = kernels.linear(x, packed).clone()
    torch.testing.assert_close(
        found.double(), rounded.double() @ weight.dequantize(torch.float64).T, rtol=1e-4, atol=1e-4
    )
    alone = torch.cat([kernels.linear(row[None], packed).clone() for row in x])
    assert torch.equal(alone, found)


@bytes_only
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_not_hidden_by_bytes(make, bad: float) -> None:
    kernels = make(weights="auto", activations="int8")
    x = torch.ones(3, 64)
    x[1, 40] = bad
    found = kernels.linear(x, kernels.pack_linear(extreme(4, 64))).clone()
    assert not found[1].isfinite().any()
    assert found[[0, 2]].isfinite().all()


@bytes_only
def test_who_rounds_no_input_does_not_say_so() -> None:
    """Keys and values that are the same to the bit are not refused for the name of what did not
    happen."""
    kernels = CpuKernels(activations="int8", threads=1)
    kernels.pack_linear(torch.zeros(32, 64))
    kernels.pack_linear(extreme(8, 64))
    kernels.pack_head(extreme(4, 64))
    assert kernels.activations == "auto"
    kernels.pack_linear(extreme(4, 64))
    assert kernels.activations == "int8"


def test_heads_and_other_formats_are_not_rounded(make) -> None:
    plain, rounding = make(weights="auto"), make(weights="auto", activations="int8")
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(4))
    for product, bits in (("head", 4), ("head", 8), ("linear", 8)):
        weight = extreme(bits, 64)
        results = [
            getattr(kernels, product)(x, getattr(kernels, f"pack_{product}")(weight)).clone()
            for kernels in (plain, rounding)
        ]
        assert torch.equal(*results)
