"""One request for which the model computes NaN or infinity: it ends with an error of its own, and
all others say what they say without it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import asgl
from tiny import tiny_directory

POISON = "q"
SOUND = ["the other thing on", "the", "and now something else", "the other thing, and then the"]
POISONED = ["q", "the other thing q", "the q thing on", "the other thing, and then q the"]
ALL = [prompt for pair in zip(POISONED, SOUND, strict=True) for prompt in pair]


@pytest.fixture(scope="module", params=[torch.nan, torch.inf], ids=["nan", "inf"])
def model(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A model whose embedding of the letter q is no number."""
    folder = tiny_directory(
        tmp_path_factory.mktemp("tiny"),
        tie_word_embeddings=False,
        head_dim=32,  # what the CPU kernels need
    )
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["model.embed_tokens.weight"][ord(POISON)] = request.param
    save_file(tensors, file)
    return folder


def opened(
    model: Path, kernels: str, max_batch_tokens: int | None = None, **options: Any
) -> asgl.Runtime:
    sampling = asgl.SamplingParams(
        max_tokens=6, ignore_eos=True, logit_bias={ord(POISON): -1e30}, **options
    )
    return asgl.Runtime(
        model,
        kernels=kernels,
        kv_cache_tokens=400,
        max_batch_tokens=max_batch_tokens,
        sampling=sampling,
    )


async def said(rt: asgl.Runtime, prompts: list[str], **options: Any) -> list[str | BaseException]:
    """What is generated after the prompts, all at once."""
    handles = [rt.prompt(prompt, name=prompt).gen(**options) for prompt in prompts]
    return await asyncio.gather(*handles, return_exceptions=True)


@pytest.mark.parametrize("kernels", ["reference", "cpu"])
@pytest.mark.parametrize(
    "how", [{"temperature": 0.0}, {"seed": 3}, {"seed": 3, "top_p": 0.9, "logprobs": 2}], ids=str
)
async def test_the_others_go_on(model: Path, kernels: str, how: dict[str, Any]) -> None:
    async with opened(model, kernels) as rt:
        expected = await said(rt, SOUND, **how)
    async with opened(model, kernels) as rt:
        for _ in range(2):  # cold, and with what is cached of it
            found = await said(rt, ALL, **how)
            assert found[1::2] == expected
            for error in found[::2]:
                assert isinstance(error, asgl.NumericalError), error
                assert "dtype='float32'" in str(error)
        assert rt.statistics().running == rt.statistics().waiting == 0


@pytest.mark.parametrize("kernels", ["reference", "cpu"])
async def test_constrained(model: Path, kernels: str) -> None:
    async with opened(model, kernels, temperature=0.0) as rt:
        expected = await said(rt, SOUND, regex="[a-f]{4}")
        found = await said(rt, ALL, regex="[a-f]{4}")
        assert found[1::2] == expected
        assert all(isinstance(error, asgl.NumericalError) for error in found[::2])


@pytest.mark.parametrize("kernels", ["reference", "cpu"])
async def test_scores(model: Path, kernels: str) -> None:
    options = ["on", "of the", "of them", "o"]
    async with opened(model, kernels) as rt:

        async def scores(prompts: list[str], options: list[str]) -> list[Any]:
            handles = [rt.prompt(prompt + ".").select("x", options) for prompt in prompts]
            chosen = await asyncio.gather(*handles, return_exceptions=True)
            return [
                handle.scores if isinstance(answer, str) else answer
                for handle, answer in zip(handles, chosen, strict=True)
            ]

        expected = await scores(SOUND, options)
        found = await scores(ALL, options)
        for one, other in zip(found[1::2], expected, strict=True):
            assert one == pytest.approx(other, abs=1e-4)
        assert all(isinstance(error, asgl.NumericalError) for error in found[::2])
        # poison in an option: what comes after it cannot be scored
        (error,) = await scores(["the"], ["on", "of q them"])
        assert isinstance(error, asgl.NumericalError)
        assert await scores(["the"], options) == [pytest.approx(expected[1], abs=1e-4)]


@pytest.mark.parametrize("kernels", ["reference", "cpu"])
async def test_what_is_repaired_is_computed_anew(model: Path, kernels: str) -> None:
    """Nothing of a poisoned request stays cached."""
    async with opened(model, kernels) as rt:
        (error,) = await said(rt, ["the other thing q on and on"])
        assert isinstance(error, asgl.NumericalError)
        assert rt.statistics().evictable == 0


@pytest.mark.parametrize("kernels", ["reference", "cpu"])
@pytest.mark.parametrize("batch", [None, 4], ids=["at once", "in parts"])
async def test_prefetch(model: Path, kernels: str, batch: int | None) -> None:
    async with opened(model, kernels, max_batch_tokens=batch) as rt:
        found = await asyncio.gather(
            *(rt.prompt().extend(prompt) for prompt in ALL), return_exceptions=True
        )
        assert found[1::2] == [None] * len(SOUND)
        assert all(isinstance(error, asgl.NumericalError) for error in found[::2])
        with pytest.raises(asgl.NumericalError):
            await rt.prompt(POISONED[1]).prefetch()
        await rt.prompt(SOUND[1]).prefetch()


async def test_a_stream_goes_on_after_the_failure(model: Path) -> None:
    async with opened(model, "reference", temperature=0.0) as rt:
        s = rt.prompt("the other thing")
        mark = s.mark()
        s += " q"
        with pytest.raises(asgl.NumericalError, match="NaN or infinity"):
            await s.gen()
        s.rewind(mark)
        assert await s.gen() == await rt.prompt("the other thing").gen()
