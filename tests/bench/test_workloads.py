"""Every workload as a program: on a tiny random model with tiny counts, and over strings."""

from __future__ import annotations

import asyncio
import re

import pytest
from bench.ablations import VARIANTS
from bench.client import Completion, Options, StringClient, Unsupported, Usage
from bench.driver import execute, percentile
from bench.engine_asgl import AsglClient
from bench.workloads import WORKLOADS
from bench.workloads.base import Workload
from bench.workloads.long_prompts import FIELDS

import asgl
from bench import optimum

PROGRAMS = 2


class Echo:
    """A peer that answers with its options and the end of the prompt, after a turn of the loop."""

    def __init__(self) -> None:
        self.prompts: list[str] = []

    async def complete(self, prompt: str, options: Options) -> Completion:
        self.prompts.append(prompt)
        await asyncio.sleep(0)
        text = f"<{options.max_tokens}>"
        return Completion(text, Usage(len(prompt), 0, options.max_tokens, 0.5))

    async def score(self, prompt, choices):
        self.prompts.append(prompt)
        await asyncio.sleep(0)
        return [[-len(choice) / 2, -len(choice) / 2] for choice in choices], Usage(
            len(prompt), 0, 0, None
        )


def runtime(model, **options) -> asgl.Runtime:
    return asgl.Runtime(
        model, kernels="reference", dtype="float32", kv_cache_tokens=40_000, **options
    )


@pytest.mark.parametrize("name", WORKLOADS)
async def test_every_workload_runs_on_asgl(name, model):
    workload = WORKLOADS[name]
    items = workload.items(PROGRAMS)
    assert len(items) == PROGRAMS
    async with runtime(model) as rt:
        client = AsglClient(rt, VARIANTS["asgl"], "salt. ")
        run = await execute(client, workload, items, concurrency=2, limit=100)
        assert client.tickets
        assert all(
            rt.tokenizer.decode(ticket.request.prompt).startswith("salt. ")
            for ticket in client.tickets
        )
    assert len(run.latencies) == PROGRAMS
    assert not run.timed_out
    assert run.seconds >= max(run.latencies)
    assert len(run.right) in (0, PROGRAMS)
    done = optimum.work(ticket.sequence for ticket in client.tickets)
    assert done.prompt_tokens == sum(usage.prompt_tokens for usage in run.usages)
    assert done.generated_tokens == sum(usage.generated_tokens for usage in run.usages)
    computed = done.prompt_tokens - sum(usage.cached_tokens or 0 for usage in run.usages)
    assert 0 < done.computed_tokens <= computed  # nothing can be better than the optimum


@pytest.mark.parametrize("name", WORKLOADS)
async def test_every_workload_runs_over_strings(name):
    workload = WORKLOADS[name]
    peer = Echo()
    client = StringClient(peer, "salt. ")
    run = await execute(client, workload, workload.items(PROGRAMS), concurrency=2, limit=100)
    assert len(run.latencies) == PROGRAMS
    assert len(run.usages) == len(peer.prompts) > 0
    assert all(prompt.startswith("salt. ") for prompt in peer.prompts)


def test_items_are_the_same_every_time():
    for workload in WORKLOADS.values():
        assert list(workload.items(3)) == list(workload.items(3))


def test_items_share_prefixes():
    items = WORKLOADS["in-batch-prefix"].items(20)
    assert len(set(items)) == 20
    assert len({item.split("  ")[0][:14] for item in items}) == 4
    heads = {item.prompt.split("\n")[0] for item in WORKLOADS["few-shot-mcq"].items(40)}
    assert len(heads) == 4


async def test_forks_of_strings_go_on_from_the_same_text():
    peer = Echo()
    s = StringClient(peer).prompt("begin")
    async with s.fork(2) as (a, b):
        a.append(" a")
        await a.gen(Options(max_tokens=1))
        await b.gen(Options(max_tokens=2))
        await a.gen(Options(max_tokens=3))
    assert peer.prompts == ["begin a", "begin", "begin a<1>"]


async def test_select_over_strings_takes_the_likeliest_token_on_average():
    s = StringClient(Echo()).prompt("which?")
    assert await s.select(["long one", "one", "longer one"]) == 1
    assert s.text == "which?one"


def test_grades():
    reasoning = WORKLOADS["few-shot-gsm8k"]
    item = ("prompt", 1234)
    assert reasoning.grade(item, " It is so.\nThe answer is 1,234.\n") is True
    assert reasoning.grade(item, " The answer is 12.") is False
    assert reasoning.grade(item, " no idea") is False
    question = WORKLOADS["few-shot-mcq"].items(1)[0]
    assert WORKLOADS["few-shot-mcq"].grade(question, f" {'ABCD'[question.right]}") is True


def test_fields_are_json():
    assert re.fullmatch(
        FIELDS, '{"title": "King Lear", "place": "Dover", "year": 1606, "pages": 120, "old": true}'
    )
    assert not re.fullmatch(FIELDS, '{"title": "King Lear"}')


# --- the driver -----------------------------------------------------------------------------------


def workload_of(run) -> Workload:
    return Workload("made up", "", range, run, 4)


async def test_at_most_so_many_programs_run_at_once():
    running, most = 0, 0

    async def program(client, item):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    await execute(StringClient(Echo()), workload_of(program), range(9), concurrency=3, limit=10)
    assert most == 3


async def test_a_run_is_broken_off_at_its_limit():
    async def program(client, item):
        if item:
            await asyncio.Event().wait()

    run = await execute(
        StringClient(Echo()), workload_of(program), range(3), concurrency=1, limit=0.01
    )
    assert run.timed_out
    assert len(run.latencies) == 1


async def test_what_an_engine_cannot_do_is_raised_bare():
    async def program(client, item):
        raise Unsupported("no such call")

    with pytest.raises(Unsupported, match="no such call"):
        await execute(StringClient(Echo()), workload_of(program), range(3), concurrency=3, limit=10)


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([3, 1, 2], 0.5, 2),
        ([1, 2, 3, 4], 0.5, 2),
        ([1, 2], 0.99, 2),
        ([5], 0.5, 5),
        ([], 0.5, None),
        (range(1, 101), 0.99, 99),
    ],
)
def test_percentiles(values, share, expected):
    assert percentile(values, share) == expected
