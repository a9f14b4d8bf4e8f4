from __future__ import annotations

import pytest
import torch

from asgl.errors import ConfigError
from asgl.kernels import reference
from asgl.kernels.reference import ReferenceKernels, quantize


@pytest.mark.parametrize("bits", [4, 8])
def test_quantize_is_off_by_half_a_step_at_most(bits: int) -> None:
    weight = torch.randn(48, 96, generator=torch.Generator().manual_seed(1))
    weight[3, :32] = 0.25  # a group without a range
    rounded = quantize(weight, bits)
    assert (rounded.bits, rounded.group, rounded.shape) == (bits, 32, (48, 96))
    groups = weight.view(48, 3, 32)
    step = (groups.amax(dim=2) - groups.amin(dim=2)) / (2**bits - 1)
    error = (rounded.dequantize(torch.float32) - weight).abs().view(48, 3, 32)
    assert (error <= 0.5 * step.unsqueeze(2) + 1e-6).all()


def test_quantize_needs_whole_groups() -> None:
    with pytest.raises(ConfigError, match="no multiple of 32"):
        quantize(torch.zeros(4, 40), 4)


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


def test_without_onednn_it_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(weight: torch.Tensor) -> torch.Tensor:
        raise AttributeError("no such operator")

    x, weight = torch.randn(5, 64), torch.randn(32, 64)
    packed = ReferenceKernels()
    expected = packed.linear(x, packed.pack_linear(weight))
    monkeypatch.setattr(reference, "_pack", missing)
    plain = ReferenceKernels()
    torch.testing.assert_close(plain.linear(x, plain.pack_linear(weight)), expected)


def test_what_it_cannot_do() -> None:
    with pytest.raises(ConfigError, match="float64"):
        ReferenceKernels(dtype=torch.float64)
