"""Types of tensors against ggml: bytes by its C code, numbers by its Python package."""

from __future__ import annotations

import gguf
import libgguf
import numpy as np
import pytest
import torch

from asgl.kernels.quantized import QuantizedTensor
from asgl.models.gguf_blocks import TYPES, BlockType, type_name

ROWS, COLUMNS = 5, 1024
QUANTIZED = [number for number, block in TYPES.items() if isinstance(block, BlockType)]


def read(number: int, data: np.ndarray) -> QuantizedTensor:
    tensor = TYPES[number].read(memoryview(data.tobytes()), (ROWS, COLUMNS))
    assert isinstance(tensor, QuantizedTensor)
    return tensor


def by_ggml(data: np.ndarray, number: int) -> np.ndarray:
    with np.errstate(all="ignore"):
        return gguf.dequantize(data, gguf.GGMLQuantizationType(number))


def test_names_and_sizes_are_those_of_ggml() -> None:
    for number, block in TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert block.name == kind.name
        assert gguf.GGML_QUANT_SIZES[kind] == (block.elements, block.bytes)
    for kind in gguf.GGMLQuantizationType:
        assert type_name(kind.value) == kind.name
    assert type_name(1234) == "number 1234"


@pytest.mark.parametrize("number", QUANTIZED, ids=type_name)
def test_weights_that_ggml_quantized(number: int) -> None:
    weight = np.random.default_rng(number).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    data = libgguf.quantize_rows(weight, number)
    tensor = read(number, data)
    values = tensor.dequantize(torch.float32).numpy()
    np.testing.assert_array_equal(values, libgguf.dequantize_rows(data, number))
    np.testing.assert_array_equal(values, by_ggml(data, number))
    error = np.sqrt(np.mean((values - weight) ** 2))
    assert error < 2 / (1 << tensor.bits), "the numbers are not those of the matrix"


@pytest.mark.parametrize("number", QUANTIZED, ids=type_name)
def test_any_bytes(number: int) -> None:
    """All scales, minima and quants that there are, those that are infinite or NaN, too."""
    block = TYPES[number]
    size = COLUMNS // block.elements * block.bytes
    data = np.random.default_rng(number).integers(0, 256, (ROWS, size), dtype=np.uint8)
    tensor = read(number, data)
    assert int(tensor.quants.max()) == (1 << tensor.bits) - 1
    values, expected = tensor.dequantize(torch.float32).numpy(), by_ggml(data, number)
    np.testing.assert_array_equal(values, expected)
    assert tensor.is_finite() == bool(np.isfinite(expected).all())


@pytest.mark.parametrize("number", QUANTIZED, ids=type_name)
def test_matrices_larger_than_what_is_unpacked_at_once(number: int) -> None:
    block = TYPES[number]
    rows, columns = 1100, 256
    size = columns // block.elements * block.bytes
    data = np.random.default_rng(number).integers(0, 128, (rows, size), dtype=np.uint8)
    whole = block.read(memoryview(data.tobytes()), (rows, columns))
    last = block.read(memoryview(data[-3:].tobytes()), (3, columns))
    assert isinstance(whole, QuantizedTensor)
    assert isinstance(last, QuantizedTensor)
    assert torch.equal(whole.quants[-3:], last.quants)


def test_a_stack_of_matrices_is_one_of_all_their_rows() -> None:
    weight = np.random.default_rng(0).standard_normal((6, 256)).astype(np.float32)
    data = libgguf.quantize_rows(weight, 12)
    stack = TYPES[12].read(memoryview(data.tobytes()), (2, 3, 256))
    assert isinstance(stack, QuantizedTensor)
    assert stack.shape == (6, 256)
