"""That each ablation lacks what it says, and nothing else."""

from __future__ import annotations

import pytest
from bench.ablations import VARIANTS, make_scheduler
from bench.client import Options
from bench.driver import execute
from bench.engine_asgl import AsglClient
from bench.workloads.base import Workload

import asgl
from asgl.scheduling.scheduler import Scheduler

HEAD = "A prefix that both prompts have in common, and that is long enough to be shared. "


async def figures(
    model, variant: str, run, items, *, concurrency: int = 1
) -> tuple[list[str], list[int]]:
    """What a program answers for each item, and how many tokens of each request's prompt were
    cached."""
    answers: dict[object, str] = {}

    async def program(client, item):
        answers[item] = await run(client, item)

    async with asgl.Runtime(
        model, kernels="reference", dtype="float32", kv_cache_tokens=5000
    ) as rt:
        client = AsglClient(rt, VARIANTS[variant])
        await execute(
            client,
            Workload("made up", "", list, program, 2),
            items,
            concurrency=concurrency,
            limit=60,
        )
        rt._running.engine.scheduler.kv_cache.check(())
        return [answers[item] for item in items], [
            usage.cached_tokens or 0 for usage in client.usages
        ]


async def one(client, item):
    return await client.prompt(HEAD + item).gen(Options(max_tokens=4, exact=True))


async def turns(client, item):
    s = client.prompt(HEAD + item)
    first = await s.gen(Options(max_tokens=4, exact=True))
    s.append(" and then")
    return first + await s.gen(Options(max_tokens=4, exact=True))


async def forked(client, item):
    s = client.prompt(HEAD + item)
    async with s.fork(2) as branches:
        for number, branch in enumerate(branches):
            branch.append(f" {number}:")
        texts = [await branch.gen(Options(max_tokens=3, exact=True)) for branch in branches]
    return "|".join(texts)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("run", [one, turns, forked])
async def test_answers_do_not_change(variant, run, model):
    expected, _ = await figures(model, "asgl", run, ["one", "two", "one more"], concurrency=3)
    got, _ = await figures(model, variant, run, ["one", "two", "one more"], concurrency=3)
    assert got == expected


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_the_device_takes_at_once_is_planned_at_once(variant):
    made = make_scheduler(VARIANTS[variant], Scheduler(capacity=100, steps_in_flight=2))
    assert (made.capacity, made.steps_in_flight) == (100, 2)


@pytest.mark.parametrize(
    ("variant", "prefixes", "conversations"),
    [
        ("asgl", True, True),
        ("asgl:no-cache", False, False),
        ("asgl:no-tree", False, True),
        ("asgl:fcfs", True, True),
    ],
)
async def test_what_is_reused(variant, prefixes, conversations, model):
    _, cached = await figures(model, variant, one, ["one", "two"])
    assert (cached[1] >= len(HEAD) // 2) == prefixes
    _, cached = await figures(model, variant, turns, ["one"])
    assert (cached[1] >= len(HEAD) // 2) == conversations


@pytest.mark.parametrize(("variant", "shared"), [("asgl", True), ("asgl:no-in-batch", False)])
async def test_a_prefix_that_comes_twice_at_once(variant, shared, model):
    _, cached = await figures(model, variant, one, ["one", "two"], concurrency=2)
    assert (cached[1] >= len(HEAD) // 2) == shared


async def test_one_generation_at_a_time(model):
    async def program(client, item):
        s = client.prompt(HEAD)
        async with s.fork(3) as branches:
            handles = [branch.gen(Options(max_tokens=3, exact=True)) for branch in branches]
            import asyncio

            return "".join(await asyncio.gather(*handles))

    most = {}
    for variant in ("asgl", "asgl:sequential"):
        running: list[int] = []

        class Watch:
            def event(self, event, running=running):
                if isinstance(event, asgl.trace.StepEvent):
                    running.append(event.running)

        async with asgl.Runtime(
            model, kernels="reference", dtype="float32", kv_cache_tokens=5000, tracers=[Watch()]
        ) as rt:
            client = AsglClient(rt, VARIANTS[variant])
            await execute(
                client, Workload("made up", "", list, program, 1), ["item"], concurrency=1, limit=60
            )
        most[variant] = max(running)
    assert most == {"asgl": 3, "asgl:sequential": 1}
