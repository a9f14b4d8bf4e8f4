"""Gemma 3 270M Q4_K_M, a base model: windows, norms of 1 + w, a SentencePiece vocabulary."""

from __future__ import annotations

import pytest
import torch
from dequantized import logprobs, model
from fetched import GEMMA
from scored import errors, tokens

import asgl


@pytest.fixture(scope="module")
def expected() -> torch.Tensor:
    """The log-probabilities of transformers after each token of the text, in float32."""
    path = GEMMA.fetch()
    return logprobs(model(path), tokens(path))


@pytest.mark.parametrize(
    ("options", "mean", "most"),
    [
        ({"kernels": "reference", "dtype": "float32"}, 1e-4, 1e-3),
        ({}, 0.05, 0.5),
    ],
    ids=["reference", "default"],
)
async def test_log_probabilities(
    expected: torch.Tensor, options: dict[str, str], mean: float, most: float
) -> None:
    found = await errors(GEMMA.fetch(), expected, **options)
    assert found.mean() < mean
    assert found.max() < most


async def test_programs() -> None:
    """Select and forks; it has no template, so no roles."""
    async with asgl.Runtime(GEMMA.fetch(), kv_cache_tokens=8192) as rt:
        s = rt.prompt("The capital of Japan is the city of")
        assert await s.select("city", [" Paris", " Tokyo", " Rome", " Oslo"]) == " Tokyo"
        s = rt.prompt("Countries and their capitals.\n\nFrance: Paris\nPoland: Warsaw\n")
        async with s.fork(2) as branches:
            for branch, country in zip(branches, ("Italy", "Spain"), strict=True):
                branch += f"{country}:"
                branch.gen("capital", max_tokens=4, stop="\n", temperature=0)
        assert [text.strip() for text in branches.gather("capital")] == ["Rome", "Madrid"]
        with pytest.raises(asgl.ModelError, match="no chat template"):
            await rt.prompt().user("Hello")
