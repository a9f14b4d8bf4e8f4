"""Programs, batches and budgets on the real engine, with a tiny random model; Ctrl-C leaves nothing
running."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

import asgl
from asgl.types import EngineStatistics
from tiny import tiny_directory

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_directory(tmp_path_factory.mktemp("tiny"))


def runtime(model, **options) -> asgl.Runtime:
    sampling = asgl.SamplingParams(seed=7, max_tokens=12, ignore_eos=True)
    return asgl.Runtime(
        model,
        kernels="reference",
        dtype="float32",
        kv_cache_tokens=2000,
        sampling=sampling,
        **options,
    )


async def balanced(rt: asgl.Runtime) -> EngineStatistics:
    """The statistics once the step in flight, if there is one, is over."""
    with anyio.fail_after(30):
        while (seen := rt.statistics()).free + seen.evictable != seen.capacity:  # noqa: ASYNC110  nothing tells of a step's end
            await asyncio.sleep(0)
    assert seen.running == seen.waiting == 0
    return seen


@asgl.function
async def program(s: asgl.PromptStream, topic: str, length: int = 12) -> str:
    s += f"All about {topic}: "
    first = await s.gen("first", max_tokens=length)
    async with s.fork(2) as branches:
        for branch in branches:
            branch.gen("more", max_tokens=length)
    return first + "".join(branches.gather("more"))


async def test_a_batch_says_what_its_programs_would_say(model):
    topics = ["one", "two", "three", "two"]
    async with runtime(model) as rt:
        together = [s.returned for s in await program.batch(rt, topics, concurrency=3)]
        again = [s.returned for s in await program.batch(rt, topics, concurrency=1)]
        assert together == again
        assert together[1] != together[3], "each item has samples of its own"
        await balanced(rt)


async def test_a_failure_cancels_the_rest_in_the_engine_too(model):
    async with runtime(model) as rt:
        with pytest.raises(asgl.ContextLengthError) as caught:
            await program.batch(rt, ["one", "two", "long " * 5000, "three"])
        assert caught.value.__notes__[-1] == "in item 2 of program"
        seen = await balanced(rt)
        assert seen.cancelled > 0


async def test_a_batch_under_a_budget(model):
    async with runtime(model) as rt:
        with asgl.budget(tokens=60) as spending:
            outcomes = await program.batch(rt, ["one", "two", "three"], on_error="return")
        errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
        assert errors
        for error in errors:
            inner = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
            assert isinstance(inner, asgl.BudgetError)
        assert spending.spent == 60
        await balanced(rt)


async def test_leaving_as_completed_cancels_what_is_left(model):
    async with runtime(model) as rt:
        async with program.as_completed(
            rt, [("short", 1), ("long", 300), ("longer", 300)]
        ) as results:
            async for index, outcome in results:
                assert index == 0
                assert isinstance(outcome, asgl.ProgramStream)
                break
        assert (await balanced(rt)).cancelled >= 2


def test_ctrl_c_leaves_nothing_running(model, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(f"""
import asyncio, sys, threading
sys.path.insert(0, {str(TESTS)!r})
import asgl
from test_programs import balanced, program, runtime

class Started:
    def event(self, event):
        if type(event).__name__ == "StepEvent" and event.number == 3:
            print("started", flush=True)

async def main():
    async with runtime({str(model)!r}, tracers=[Started()]) as rt:
        try:
            await program.batch(rt, [(str(n), 400) for n in range(3)])
        finally:
            seen = await balanced(rt)
            print("cancelled", seen.cancelled, flush=True)

try:
    asyncio.run(main())
except KeyboardInterrupt:
    main = threading.main_thread()
    left = [thread.name for thread in threading.enumerate() if thread is not main]
    print("interrupted", left, flush=True)
""")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGINT)
        said, errors = process.communicate(timeout=60)
    assert "interrupted []" in said, errors
    assert "cancelled 3" in said


def test_a_second_ctrl_c_inside_asgl_ends_the_program_and_its_thread(model):
    done = subprocess.run(
        [sys.executable, TESTS / "support" / "interrupts.py", model],
        capture_output=True,
        text=True,
        timeout=110,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert not done.returncode, done.stderr[-6000:]
    functions = {line.split()[-1] for line in done.stdout.splitlines()}
    assert {"_wake", "_serve", "close", "__aexit__", "cancel"} <= functions
