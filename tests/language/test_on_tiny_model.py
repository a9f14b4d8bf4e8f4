"""The language on the real engine with a tiny random model: sharing, cancellation and balanced
books."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import asgl
from tiny import tiny_directory

SEEDED = asgl.SamplingParams(seed=11, max_tokens=6, ignore_eos=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_directory(tmp_path_factory.mktemp("tiny"))


@asynccontextmanager
async def opened(model: Path) -> AsyncIterator[asgl.Runtime]:
    """A Runtime whose books must balance once nothing runs."""
    async with asgl.Runtime(
        model, kernels="reference", dtype="float32", kv_cache_tokens=3000, sampling=SEEDED
    ) as rt:
        yield rt
        await rt.prompt("x").gen(max_tokens=1)  # the step in which what was cancelled leaves
        seen = rt.statistics()
        assert seen.free + seen.evictable == seen.capacity
        assert seen.running == seen.waiting == 0


async def chat(rt: asgl.Runtime) -> str:
    """A program with most of the language in it; all that it says."""
    s = rt.prompt(name="chat")
    s.system("Be good.")
    s.user("Say a thing.")
    with s.role("assistant"):
        await s.gen("first")
    async with s.fork(3) as branches:
        for index, branch in enumerate(branches):
            branch.user(f"And {index}?")
            branch.assistant(asgl.gen("more"))
    s.join(branches)
    with s.role("assistant"):
        await s.select(
            "choice", ["yes", "no", "yes and no"], method="unconditional_likelihood_normalized"
        )
        values = await s.sample(n=2)
        other = rt.prompt("Quote: ")
        other += s.gen("last") + "."
    await other.sync()
    assert [said["role"] for said in s.messages()] == ["system", "user", "assistant"] + [
        "user",
        "assistant",
    ] * 3 + ["assistant"]
    assert other.text == f"Quote: {s['last']}."
    return s.text + repr(values)


async def test_a_program_can_be_reproduced(model: Path) -> None:
    async with opened(model) as rt:
        assert await chat(rt) == await chat(rt)


async def test_branches_compute_their_prefix_once(model: Path) -> None:
    async with opened(model) as rt:
        s = rt.prompt("word " * 50)
        length = len(s.token_ids)
        async with s.fork(8) as branches:
            handles = [branch.gen() for branch in branches]
        cached = sorted(handle.cached_tokens or 0 for handle in handles)
        assert cached[0] == 0
        assert cached[1:] == [length - 1] * 7
        assert len({handle.text for handle in handles}) > 1


@pytest.mark.parametrize("turns", [0, 1, 2, 5, 20, 60])
async def test_cancelled_at_any_time_the_books_balance(model: Path, turns: int) -> None:
    async with opened(model) as rt:
        task = asyncio.ensure_future(chat(rt))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_an_agent_shortens_after_a_context_length_error(model: Path) -> None:
    async with opened(model) as rt:
        s = rt.prompt("Start. ")
        mark = s.mark()
        s += "too long " * 300
        with pytest.raises(asgl.ContextLengthError):
            await s.gen()
        s.rewind(mark)
        assert len(await s.gen()) > 0
