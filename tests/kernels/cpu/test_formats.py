"""Every format of weights: its tiles are as small as a model file's, hold its very numbers, and are
multiplied as exactly as promised, for any number of rows, on this processor and on others that it
can stand in for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.kernels.cpu.formats import FORMATS, OTHERS, SIZES, check, quantized, rounding

from asgl.kernels.cpu.integers import arithmetic
from asgl.kernels.cpu.kernels import CpuKernels
from asgl.kernels.cpu.target import TARGET
from asgl.kernels.quantized import QuantizedTensor


@pytest.fixture(scope="module", params=["auto", "int8"])
def activations(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def kernels(make, activations: str) -> CpuKernels:
    return make(weights="auto", activations=activations)


@pytest.mark.parametrize("name", FORMATS)
def test_products_are_as_exact_as_promised(
    kernels: CpuKernels, activations: str, name: str
) -> None:
    check(kernels, name, byte_inputs=activations == "int8")


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_other_formats_too(kernels: CpuKernels, activations: str, name: str) -> None:
    check(kernels, name, byte_inputs=activations == "int8")


@pytest.mark.parametrize("name", FORMATS)
def test_tiles_hold_the_very_numbers(make, name: str) -> None:
    """Scales and offsets here are such that 16 bits hold them."""
    kernels = make(weights="auto")
    weight = quantized(name, 70, 288)
    found = kernels.embed(kernels.pack_embedding(weight), torch.arange(70, dtype=torch.int32))
    torch.testing.assert_close(found, weight.dequantize(torch.float32), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", FORMATS)
def test_scales_that_are_no_float16_are_off_by_its_rounding(make, name: str) -> None:
    kernels = make(weights="auto")
    weight = quantized(name, 40, 96, exact=False)
    found = kernels.embed(kernels.pack_embedding(weight), torch.arange(40, dtype=torch.int32))
    exact = weight.dequantize(torch.float64)
    origin = weight.offset if weight.offset is not None else torch.zeros_like(weight.scale)
    origin = origin.double().repeat_interleave(weight.group, 1)
    assert ((found - exact).abs() <= 2.0**-11 * ((exact - origin).abs() + origin.abs())).all()


@pytest.mark.parametrize(("name", "bits"), SIZES.items())
def test_tiles_are_as_small_as_files(make, name: str, bits: float) -> None:
    packed = make(weights="auto").pack_linear(quantized(name, 64, 512)).parts[0]
    if name in ("IQ4_NL", "MXFP4") and not TARGET.shuffle_words:
        bits = 8.5  # what levels are, where no instruction looks them up
    assert packed.memory.nbytes * 8 / (64 * 512) <= bits
    table = make(weights="auto").pack_embedding(quantized(name, 64, 512))
    assert table.memory.nbytes == packed.memory.nbytes


@pytest.mark.parametrize("name", FORMATS)
def test_zeros_are_zero_and_each_input_meets_its_weight(make, name: str) -> None:
    """An input of one alone gives the column of its weight: none is in another's place."""
    kernels, weight = make(weights="auto"), quantized(name, 70, 96)
    packed = kernels.pack_linear(weight)
    assert (kernels.linear(torch.zeros(3, 96), packed) == 0).all()
    found = kernels.linear(torch.eye(96), packed)
    dense = weight.dequantize(torch.float32)
    torch.testing.assert_close(found, dense.T, rtol=1e-5, atol=1e-5 * float(dense.abs().max()))


def _extreme(name: str, last: bool) -> QuantizedTensor:
    """All weights at one end of their range: sums of products come closest to the ends of an
    int32, or of an int16."""
    weight = quantized(name, 32, 64)
    weight.quants.fill_(2**weight.bits - 1 if last else 0)
    weight.scale.fill_(2.0**-3)
    return weight


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("value", [1.0, -1.0, 1e34, 1e-30])
def test_the_largest_products_do_not_overflow(kernels: CpuKernels, name: str, value: float) -> None:
    x = torch.full((13, 64), value)
    for last in (False, True):
        weight = _extreme(name, last)
        expected = x.double() @ weight.dequantize(torch.float64).T
        found = kernels.linear(x, kernels.pack_linear(weight)).double()
        torch.testing.assert_close(found, expected.float().double(), rtol=1e-4, atol=1e-28)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", FORMATS)
def test_what_is_not_finite_is_not_hidden(kernels: CpuKernels, name: str, bad: float) -> None:
    packed = kernels.pack_linear(quantized(name, 70, 96))
    for rows in (3, 13):
        x = torch.ones(rows, 96)
        x[1, 40] = bad
        found = kernels.linear(x, packed).clone()
        assert not found[1].isfinite().any()
        assert found[[0, 2]].isfinite().all()


def test_scales_of_any_size(make) -> None:
    """Powers of two that no float16 is are held exactly; what neither kind of 16 bits holds becomes
    dense."""
    kernels = make(weights="auto")
    mxfp4 = quantized("MXFP4", 64, 96)
    for exponent in (-60, 60):
        weight = QuantizedTensor(
            mxfp4.quants, mxfp4.scale * 2.0**exponent, None, 4, 32, 0, mxfp4.codebook
        )
        packed = kernels.pack_linear(weight)
        assert packed.parts[0].bits == (4 if TARGET.shuffle_words else 8)
        x = torch.randn(5, 96, generator=torch.Generator().manual_seed(1))
        expected = x.double() @ weight.dequantize(torch.float64).T
        found = kernels.linear(x, packed).double()
        assert ((found - expected).abs() <= rounding(x, weight, 32639)).all()
    large = quantized("Q4_1", 64, 96, exact=False)
    large = QuantizedTensor(large.quants, large.scale * 1e9, large.offset, 4, 32)
    assert kernels.pack_linear(large).parts[0].bits == 16


def test_who_rounds_no_input_does_not_say_so() -> None:
    """Keys and values that are the same to the bit are not refused for the name of what did not
    happen."""
    kernels = CpuKernels(activations="int8", threads=1)
    kernels.pack_linear(torch.zeros(32, 64))
    kernels.pack_head(quantized("Q4_0", 32, 64))
    assert kernels.activations == "auto"
    packed = kernels.pack_linear(quantized("Q4_0", 32, 64))
    rounds = arithmetic(packed.parts[0].tiling, byte_inputs=True) is not None
    assert kernels.activations == ("int8" if rounds else "auto")


def test_inputs_of_heads_are_not_rounded(make) -> None:
    plain, rounding = make(weights="auto"), make(weights="auto", activations="int8")
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(4))
    for name in ("Q4_0", "Q8_0"):
        weight = quantized(name, 32, 64)
        found = [
            kernels.head(x, kernels.pack_head(weight)).clone() for kernels in (plain, rounding)
        ]
        assert torch.equal(*found)


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_does_not_depend_on_its_neighbours(kernels: CpuKernels, name: str) -> None:
    """Nor on their number, in any bit."""
    x = torch.randn(70, 544, generator=torch.Generator().manual_seed(2))
    packed = kernels.pack_linear(quantized(name, 70, 544))
    together = kernels.linear(x, packed).clone()
    for first, last in ((0, 1), (1, 3), (3, 6), (6, 10), (10, 23), (23, 70)):
        assert torch.equal(kernels.linear(x[first:last], packed), together[first:last])


_AVX2 = "+ssse3,+avx,+avx2,+fma,+f16c,+bmi,+bmi2"
_AVX512 = _AVX2 + ",+avx512f,+avx512bw,+avx512dq,+avx512vl"
PROCESSORS = {
    "generic": ("generic", None),
    "haswell": ("haswell", _AVX2),
    "alderlake": ("alderlake", _AVX2 + ",+avxvnni"),
    "skylake": ("skylake-avx512", _AVX512),
    "cascadelake": ("cascadelake", _AVX512 + ",+avx512vnni"),
}
_NEEDS = {"haswell": "avx2", "alderlake": "avxvnni", "skylake": "avx512bw",
          "cascadelake": "avx512vnni"}  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("processor", PROCESSORS)
def test_the_same_on_other_processors(processor: str) -> None:
    """In a process whose kernels are compiled as if this were such a processor."""
    needed = _NEEDS.get(processor)
    if needed is not None and f"+{needed}" not in TARGET.features.split(","):
        pytest.skip(f"this processor has no {needed}")
    name, features = PROCESSORS[processor]
    environment = {**os.environ, "NUMBA_CPU_NAME": name, "OMP_NUM_THREADS": "1"}
    if features is not None:
        environment["NUMBA_CPU_FEATURES"] = features
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-n", "0", "-q",
         "-k", "not processors", "--timeout=800", __file__],
        env=environment,
        capture_output=True,
        text=True,
        timeout=880,
        cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-3000:]
