from __future__ import annotations

import pytest
import torch

from asgl.errors import ConfigError
from asgl.kernels.quantized import quantize
from asgl.kernels.reference import ReferenceKernels


@pytest.mark.parametrize("bits", [4, 8])
def test_quantize_is_off_by_half_a_step_at_most(bits: int) -> None:
    weight = torch.randn(48, 96, generator=torch.Generator().manual_seed(1))
    weight[3, :32] = 0.25  # a group without a range
    rounded = quantize(weight, bits)
    assert (rounded.bits, rounded.group, rounded.shape) == (bits, 32, (48, 96))
    groups = weight.view(48, 3, 32)
    step = (groups.amax(dim=2) - groups.amin(dim=2)) / (2**bits - 1)
    error = (rounded.dequantize(torch.float32) - weight).abs().view(48, 3, 32)
    halves = 2.0**-11 * groups.abs().amax(dim=2) * 2  # scales and offsets are rounded to float16
    assert (error <= (0.5 * step + halves).unsqueeze(2) + 1e-6).all()


def test_quantize_needs_whole_groups() -> None:
    with pytest.raises(ConfigError, match="no multiple of 32"):
        quantize(torch.zeros(4, 40), 4)


def test_quantize_refuses_what_float16_cannot_hold() -> None:
    with pytest.raises(ConfigError, match="range of float16; use weights='dense'"):
        quantize(torch.full((4, 32), 1e6), 8)


def test_weights_are_rounded_to_the_format_once() -> None:
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(2))
    four, eight = (quantize(weight, bits) for bits in (4, 8))

    def through(weights: str, given: object) -> torch.Tensor:
        kernels = ReferenceKernels(weights=weights)  # type: ignore[arg-type]
        return kernels.linear(x, kernels.pack_linear(given))  # type: ignore[arg-type]

    exact_four, exact_eight = (x @ rounded.dequantize(torch.float32).T for rounded in (four, eight))
    for weights, given, expected in (
        ("int4", weight, exact_four),
        ("int8", weight, exact_eight),
        ("int4", four, exact_four),
        ("int8", four, exact_four),
        ("dense", four, exact_four),
        ("int8", eight, exact_eight),
    ):
        torch.testing.assert_close(through(weights, given), expected, rtol=1e-5, atol=1e-5)
    head = ReferenceKernels(weights="int4")
    torch.testing.assert_close(
        head.head(x, head.pack_head(weight)), x @ weight.T, rtol=1e-5, atol=1e-5
    )


def test_what_it_cannot_do() -> None:
    with pytest.raises(ConfigError, match="float64"):
        ReferenceKernels(dtype=torch.float64)
    with pytest.raises(ConfigError, match="deterministic on the CPU only"):
        ReferenceKernels("cuda", deterministic=True)


def test_deterministic_products_do_not_depend_on_the_batch() -> None:
    """Of 1536 inputs, libraries add up a lone row in another order."""
    kernels = ReferenceKernels(deterministic=True)
    weight = kernels.pack_linear(torch.randn(64, 1536, generator=torch.Generator().manual_seed(1)))
    x = torch.randn(70, 1536, generator=torch.Generator().manual_seed(2))
    together = kernels.linear(x, weight)
    for first, last in ((0, 1), (1, 3), (3, 40), (5, 6)):
        assert torch.equal(kernels.linear(x[first:last], weight), together[first:last])
