"""Graphs on the real engine with a tiny random model: the same as the programs, and what is
shared."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import asgl
from tiny import tiny_directory

GUIDE = (
    "The guide that all runs have in common is rather long, so that it pays to compute it once. "
)
ITEMS = ["one", "two and more", "three"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_directory(tmp_path_factory.mktemp("tiny"))


@asynccontextmanager
async def opened(model: Path, **options: float) -> AsyncIterator[asgl.Runtime]:
    """A Runtime whose books must balance once nothing runs."""
    sampling = asgl.SamplingParams(max_tokens=6, ignore_eos=True, **options)  # type: ignore[arg-type]
    async with asgl.Runtime(
        model, kernels="reference", dtype="float32", kv_cache_tokens=3000, sampling=sampling
    ) as rt:
        yield rt
        await rt.prompt("x").gen(max_tokens=1)  # the step in which what was cancelled leaves
        seen = rt.statistics()
        assert seen.free + seen.evictable == seen.capacity
        assert seen.running == seen.waiting == 0


@asgl.function
async def chat(s: asgl.PromptStream, topic: str) -> list[str]:
    s.system("Be good.")
    s.user(f"Say a thing of {topic}.")
    with s.role("assistant"):
        first = await s.gen("first")
    async with s.fork(3) as branches:
        for index, branch in enumerate(branches):
            branch.user(f"And {index}, after {first}?")
            branch.assistant(asgl.gen("more"))
    s.join(branches)
    with s.role("user"):
        await s.select("choice", ["yes", f"no {topic}", "yes and no"])
        other = s.copy()
        other += f"Quote {first}: "
        s += other.gen("last") + "."
        return [first, *branches.gather("more"), *await s.sample(n=2)]


@asgl.function
async def question(s: asgl.PromptStream, item: str) -> str:
    s += f"Item: {item}. "
    s += GUIDE
    s += "Answer:"
    return await s.gen("answer")


@pytest.mark.parametrize("options", [{"temperature": 0}, {"seed": 11}], ids=str)
async def test_a_graph_says_what_its_program_says(model: Path, options: dict[str, float]) -> None:
    async with opened(model, **options) as rt:
        graph = chat.graph(topic=asgl.arg)
        for topic in ("water", "é😀"):
            a, b = await chat(rt, topic), await graph(rt, topic)
            assert (a.text, a.token_ids, a.variables, a.messages(), a.returned) == (
                b.text,
                b.token_ids,
                b.variables,
                b.messages(),
                b.returned,
            )
        together = await graph.batch(rt, ITEMS)
        assert [s.text for s in together] == [s.text for s in await chat.batch(rt, ITEMS)]


async def test_the_prefix_is_computed_once_and_code_movement_makes_it_longer(model: Path) -> None:
    graph = question.graph(item=asgl.arg)
    async with opened(model, temperature=0) as rt:
        computed: list[int] = []
        for one in (graph, graph.reordered()):
            await rt.flush_cache()
            before = rt.statistics()
            streams = await one.batch(rt, ITEMS, concurrency=2)
            after = rt.statistics()
            prefix = len(rt.tokenizer.encode(one.prefix))
            prompts = [len(rt.tokenizer.encode(s.text.removesuffix(s.returned))) for s in streams]
            assert after.prompt_tokens - before.prompt_tokens == prefix + sum(prompts)
            # what runs say of their own may have a beginning in common too: "t" of "two", and
            # "three"
            cached = after.cached_tokens - before.cached_tokens
            assert cached >= len(ITEMS) * (prefix - 1)
            computed.append(prefix + sum(prompts) - cached)
        assert computed[0] - computed[1] > 1.9 * len(rt.tokenizer.encode(GUIDE)), (
            "one of three runs computes the guide"
        )


@pytest.mark.parametrize("turns", [0, 1, 3, 10, 40])
async def test_cancelled_at_any_time_the_books_balance(model: Path, turns: int) -> None:
    async with opened(model, seed=3) as rt:
        task = asyncio.ensure_future(chat.graph(topic=asgl.arg).batch(rt, ITEMS))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
