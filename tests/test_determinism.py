"""deterministic=True, from outside: what a request computes is the same to the last bit, whatever
else is computed or cached.

Log-probabilities are compared as the floats that they are. Greedy and seeded: the draws of a seed
depend on the logits alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import torch

import asgl
from tiny import tiny_directory

Bits = list[Any]
TINY_STORY = "and the other thing on the other hand is the one in the house, "
STORY = (
    "Once upon a time there was a lighthouse keeper who collected words, and wrote each of them on "
    "a card. "
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(
        tiny_directory(
            tmp_path_factory.mktemp("tiny"), hidden_size=128, intermediate_size=192, head_dim=32
        )
    )


async def bits(s: asgl.PromptStream) -> Bits:
    """A greedy generation, a seeded one, and scores of options, each after the other; with all
    log-probabilities."""
    found: Bits = []
    for sampling in ({"temperature": 0}, {"temperature": 0.9, "top_p": 0.95, "seed": 7}):
        handle = s.gen(max_tokens=20, ignore_eos=True, logprobs=4, **sampling)
        await handle
        found.append(handle.logprobs)
    select = s.select(None, [" one of them", " one of these", " the other", " none"], method="sum")
    await select
    found.append(select.token_logprobs)
    return found


async def alone(rt: asgl.Runtime, prompt: str) -> list[Bits]:
    return [await bits(rt.prompt(prompt))]


async def warm(rt: asgl.Runtime, prompt: str) -> list[Bits]:
    await rt.prompt(prompt).extend("")
    assert rt.statistics().evictable > 0
    return [await bits(rt.prompt(prompt)), await bits(rt.prompt(prompt))]


async def batched(rt: asgl.Runtime, prompt: str) -> list[Bits]:
    noise = [
        rt.prompt(f"{number} {prompt[: 40 * number]}").gen(
            max_tokens=30 + number, ignore_eos=True, seed=number
        )
        for number in range(7)
    ]
    found = [await bits(rt.prompt(prompt))]
    await asyncio.gather(*noise)
    return found


async def forked(rt: asgl.Runtime, prompt: str) -> list[Bits]:
    s = rt.prompt(prompt)
    async with s.fork(5) as branches:
        tasks = [branch.start_soon(bits) for branch in branches]
    return [await task for task in tasks]


async def beside_a_long_prompt(rt: asgl.Runtime, prompt: str) -> list[Bits]:
    long = rt.prompt("0 " + prompt * 3)
    prefetch = long.extend("")
    found = [await bits(rt.prompt(prompt))]
    await prefetch
    return found


async def retracted(rt: asgl.Runtime, prompt: str) -> list[Bits]:
    rt._running.engine.scheduler.admission.reserve_share = (
        0.1  # as after a long time without a retraction
    )
    found = await asyncio.gather(
        *(bits(rt.prompt(prompt)) for _ in range(2)),
        *(
            rt.prompt(f"{number} {prompt[:90]}").gen(max_tokens=60, ignore_eos=True, seed=number)
            for number in range(12)
        ),
    )
    assert rt.statistics().retractions > 0
    return found[:2]


Circumstance = Callable[[asgl.Runtime, str], Awaitable[list[Bits]]]
CIRCUMSTANCES: list[tuple[Circumstance, dict[str, Any]]] = [
    (warm, {}),
    (batched, {}),
    (forked, {}),
    (alone, {"max_batch_tokens": 24}),
    (beside_a_long_prompt, {"max_batch_tokens": 40}),
]


async def same_bits(model: str, prompt: str, small: int, **options: Any) -> None:
    """small: a cache in which requests are retracted."""

    async def under(circumstance: Circumstance, **more: Any) -> list[Bits]:
        async with asgl.Runtime(
            model, deterministic=True, **{"kv_cache_tokens": 4000, **options, **more}
        ) as rt:
            return await circumstance(rt, prompt)

    (expected,) = await under(alone)
    assert len(expected[0]) == 20
    for circumstance, more in [*CIRCUMSTANCES, (retracted, {"kv_cache_tokens": small})]:
        for found in await under(circumstance, **more):
            assert found == expected, (circumstance.__name__, more)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {"kernels": "reference", "dtype": "float32"},
        {"kernels": "cpu", "weights": "auto"},
        {"kernels": "cpu", "weights": "int8"},
        {"kernels": "cpu", "weights": "int4"},
    ],
    ids=lambda options: "-".join(options.values()),
)
async def test_the_same_bits_whatever_else_is_computed(model, options, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr("asgl.kernels.cpu.kernels.cores", lambda: threads)
    await same_bits(model, TINY_STORY * 2, 330, **options)


@pytest.mark.model
@pytest.mark.timeout(300)
async def test_the_same_bits_on_the_real_model():
    await same_bits("smollm2-135m", STORY * 8, 420, kernels="cpu")


@pytest.mark.model
async def test_by_default_most_seeded_texts_are_as_when_drawn_alone():
    """Where they differ, it is from one token on. Of all tokens, far more than half come before."""
    length, seeds = 30, range(10)

    async def text(seed: int) -> list[int]:
        handle = rt.prompt(STORY).gen(
            max_tokens=length, ignore_eos=True, seed=seed, temperature=1.0, top_p=1.0
        )
        await handle
        return handle.token_ids

    async with asgl.Runtime("smollm2-135m", kernels="cpu", kv_cache_tokens=4000) as rt:
        alone = []
        for seed in seeds:
            await rt.flush_cache()
            alone.append(await text(seed))
        together = await asyncio.gather(*map(text, seeds))
    assert len({tuple(tokens) for tokens in alone}) == len(seeds)
    agree = 0
    for one, other in zip(alone, together, strict=True):
        pairs = zip(one, other, strict=True)
        agree += next((at for at, pair in enumerate(pairs) if pair[0] != pair[1]), length)
    assert agree > 0.5 * length * len(seeds)
