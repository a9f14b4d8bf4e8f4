"""The tiny model end to end: programs on a Runtime whose kernels run in the interpreter give what
the reference gives."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.kernels.triton.access import Monitor

import asgl
from tiny import tiny_directory

pytestmark = [pytest.mark.interpret, pytest.mark.timeout(600)]


async def answers(model: Path, kernels: str) -> tuple[list[str], list[float]]:
    """Texts and log-probabilities of a small program: greedy, sampled, forked (a shared prefix),
    and chosen."""
    async with asgl.Runtime(
        model, kernels=kernels, device="cpu", dtype="float32", kv_cache_tokens=400
    ) as rt:
        assert rt.model.kernels == kernels
        s = rt.prompt("The cat and the dog in the rain. " * 4)
        greedy = s.gen("greedy", max_tokens=6, temperature=0, logprobs=2)
        texts = [await greedy]
        assert greedy.logprobs is not None
        numbers = [token.logprob for token in greedy.logprobs]
        async with s.fork(3) as branches:
            for number, branch in enumerate(branches):
                branch += f" {number}:"
                branch.gen("text", max_tokens=4, temperature=0.7, top_p=0.9, seed=number)
        texts += [branch["text"] for branch in branches]
        chosen = s.select("choice", ["yes", "no", "maybe"])
        texts.append(await chosen)
        numbers += chosen.scores or []
        assert rt.statistics().cached_tokens > 100  # the forks read the prefix that was there
    return texts, numbers


async def test_the_runtime_gives_what_the_reference_gives(tmp_path: Path, monitor: Monitor) -> None:
    model = tiny_directory(tmp_path / "tiny")
    texts, numbers = await answers(model, "triton")
    expected_texts, expected_numbers = await answers(model, "reference")
    assert texts == expected_texts
    assert len(numbers) == 6 + 3
    assert numbers == pytest.approx(expected_numbers, abs=1e-4)
    assert {launch.kernel for launch in monitor.launches} >= {
        "extend_kernel",
        "decode_kernel",
        "span_kernel",
        "merge_kernel",
        "add_rms_norm_kernel",
        "rope_and_store_kernel",
        "silu_and_mul_kernel",
        "head_kernel",
        "sample_kernel",
    }


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")  # numpy's, of NaN
async def test_a_poisoned_request_leaves_the_others_as_they_are(tmp_path: Path) -> None:
    """Those as well that share a prefix with it, computed in the same step."""
    folder = tiny_directory(tmp_path / "tiny", tie_word_embeddings=False)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][ord("q")] = torch.nan
    save_file(tensors, folder / "model.safetensors")
    sound = ["the other thing and", "the other thing on"]

    async def said(*prompts: str) -> list[Any]:
        async with asgl.Runtime(
            folder, kernels="triton", device="cpu", dtype="float32", kv_cache_tokens=400
        ) as rt:
            options = {"max_tokens": 3, "temperature": 0, "logit_bias": {ord("q"): -1e30}}
            handles = [rt.prompt(prompt).gen(**options) for prompt in prompts]
            return await asyncio.gather(*handles, return_exceptions=True)

    expected = await said(*sound)
    error, *found = await said("the other thing q", *sound)
    assert isinstance(error, asgl.NumericalError)
    assert found == expected
