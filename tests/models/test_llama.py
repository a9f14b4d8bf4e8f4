"""The forward pass on tiny random models, against transformers with the same weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from llama_oracle import all_logprobs, logprobs, oracle
from steps import TINY, MemoryCheckpoint, Row, step

from asgl.execution.serial_runner import SerialRunner
from asgl.kernels.quantized import quantize
from asgl.kernels.reference import ReferenceKernels
from asgl.models.config import QKV, Rope
from asgl.models.transformer import Transformer

CONFIGS = {
    "tied": TINY,
    "untied": dataclasses.replace(TINY, tied_head=False),
    "one key head": dataclasses.replace(TINY, heads=8, kv_heads=1, head_dim=8, rope=Rope(1e4, 8)),
    "all key heads, wide": dataclasses.replace(
        TINY, heads=4, kv_heads=4, head_dim=32, rope=Rope(1e4, 32)
    ),
    "biases": dataclasses.replace(
        TINY, architecture="qwen2", biases=QKV, head_dim=16, rope=Rope(1e6, 16)
    ),
}
TOKENS = torch.randint(
    0, TINY.vocabulary, (120,), generator=torch.Generator().manual_seed(4)
).tolist()


@pytest.mark.parametrize("name", CONFIGS)
def test_agrees_with_transformers(name: str) -> None:
    checkpoint = MemoryCheckpoint(CONFIGS[name])
    runner = SerialRunner(checkpoint, ReferenceKernels(), 200)
    expected = logprobs(oracle(checkpoint), TOKENS)
    assert expected.amax(dim=1).mean() > -4  # a flat distribution would agree with anything
    torch.testing.assert_close(all_logprobs(runner, TOKENS), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("mixed", [False, True])
def test_quantized_tensors_are_stacked(mixed: bool) -> None:
    """Quantized parts of one format stay so; parts of different formats make a dense matrix of the
    same values."""
    checkpoint, plain = MemoryCheckpoint(), MemoryCheckpoint()
    for name in plain.tensors:
        if name.startswith("layers.") and not name.endswith("norm"):
            bits = 8 if mixed and name.endswith((".k", ".up")) else 4
            rounded: Any = quantize(plain.tensors[name], bits)
            checkpoint.tensors[name] = rounded
            plain.tensors[name] = rounded.dequantize(torch.float32)
    found, expected = (
        all_logprobs(SerialRunner(made, ReferenceKernels(), 200), TOKENS)
        for made in (checkpoint, plain)
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_only_tokens_asked_for_have_hidden_states() -> None:
    kernels = ReferenceKernels()
    runner = SerialRunner(MemoryCheckpoint(), kernels, 200)
    some = runner.run(
        step([Row(TOKENS, range(120), score=[(7, (1, 2)), (119, (3,)), (7, (1,))])])
    ).scores
    every = all_logprobs(runner, TOKENS)
    assert some[0] == pytest.approx(every[7, [1, 2]].tolist(), abs=1e-5)
    assert some[1] == pytest.approx(every[119, [3]].tolist(), abs=1e-5)
    assert some[2] == pytest.approx(every[7, [1]].tolist(), abs=1e-5)
    assert runner.run(step([Row(TOKENS, range(120))])).scores == ()


def test_the_model_keeps_copies() -> None:
    checkpoint = MemoryCheckpoint()
    runner = SerialRunner(checkpoint, ReferenceKernels(), 200)
    before = all_logprobs(runner, TOKENS)
    for tensor in checkpoint.tensors.values():
        tensor.fill_(torch.nan)
    assert torch.equal(all_logprobs(runner, TOKENS), before)


def test_parameters_are_counted_once() -> None:
    checkpoint = MemoryCheckpoint(CONFIGS["biases"])
    assert Transformer(checkpoint, ReferenceKernels(), 10).parameters == sum(
        t.numel() for t in checkpoint.tensors.values()
    )
