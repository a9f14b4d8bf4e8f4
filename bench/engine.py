"""What the engine itself costs, on the real model: overhead a step, a ticking task, a long prompt
beside running decodes, the upkeep of the radix tree, and what deterministic=True costs.

    python bench/engine.py [--kernels cpu|reference] [--only PART]

Run it on a quiet machine. The overhead is the share of wall time in which no step ran on the device
thread: planning, committing, delivering, the hand-off between threads, and the programs themselves.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Callable
from typing import Any

import asgl
from asgl.scheduling.radix_cache import RadixCache
from asgl.trace import StepEvent

_PAIRS = 16
TEXT = "the cat sat on the mat and looked at the moon while the rain came down. "


async def decode(rt: asgl.Runtime, streams: int, tokens: int) -> tuple[float, float, float]:
    """Tokens a second, milliseconds a step, and the share of overhead, while `streams` requests
    decode."""
    warm = [rt.prompt(f"{number} " + TEXT * 15) for number in range(streams)]
    for s in warm:
        await s.extend("")
    before, began = rt.statistics(), time.perf_counter()
    handles = [
        s.gen(max_tokens=tokens, ignore_eos=True, seed=number) for number, s in enumerate(warm)
    ]
    for handle in handles:
        await handle
    wall, after = time.perf_counter() - began, rt.statistics()
    run, steps = after.run_seconds - before.run_seconds, after.steps - before.steps
    return streams * tokens / wall, 1e3 * wall / steps, 1 - run / wall


async def overhead(rt: asgl.Runtime) -> None:
    print("overhead a step (median of 5)")
    for streams in (1, 8, 64):
        runs = [await decode(rt, streams, 64) for _ in range(5)]
        rate, step, share = (statistics.median(column) for column in zip(*runs, strict=True))
        print(
            f"  {streams:>3} running   {rate:>7.0f} tokens/s   {step:>6.2f} ms a step   overhead "
            f"{share:>6.1%}"
        )


async def ticking(rt: asgl.Runtime) -> None:
    """A single stream alone, and beside a task that wakes every millisecond; in turn."""

    async def tick() -> None:
        while True:  # noqa: ASYNC110  a ticking task is what is meant
            await asyncio.sleep(0.001)

    rates: dict[bool, list[float]] = {False: [], True: []}
    for number in range(2 * _PAIRS):
        ticks = number % 4 in (1, 2)  # alone, beside, beside, alone: what drifts falls on both
        task = asyncio.create_task(tick()) if ticks else None
        rates[ticks].append((await decode(rt, 1, 64))[0])
        if task is not None:
            task.cancel()
    a, b = statistics.median(rates[False]), statistics.median(rates[True])
    less = sorted(
        1 - beside / alone for alone, beside in zip(rates[False], rates[True], strict=True)
    )
    print(
        f"a single stream: {a:.0f} tokens/s alone, {b:.0f} beside a task that ticks every "
        f"millisecond; of {_PAIRS} pairs "
        f"{statistics.median(less):.1%} less (median; quartiles {less[_PAIRS // 4]:.1%} and "
        f"{less[3 * _PAIRS // 4]:.1%})"
    )


async def long_prompt(rt: asgl.Runtime) -> None:
    """Time between tokens of eight streams while a prompt of 6,000 tokens is computed beside
    them."""
    gaps: list[float] = []

    async def stream(number: int) -> None:
        last = None
        async for _ in rt.prompt(f"{number} " + TEXT).gen(
            max_tokens=200, ignore_eos=True, seed=number
        ):
            now = time.perf_counter()
            if last is not None and prefilling.is_set():
                gaps.append(now - last)
            last = now

    prefilling = asyncio.Event()
    streams = [asyncio.create_task(stream(number)) for number in range(8)]
    await asyncio.sleep(0.5)
    prefilling.set()
    s = rt.prompt("long " + TEXT * 375)
    began = time.perf_counter()
    await s.extend("")
    seconds = time.perf_counter() - began
    prefilling.clear()
    await asyncio.gather(*streams)
    gaps.sort()
    print(
        f"beside a prompt of {len(s.token_ids)} tokens ({seconds:.1f} s): time between tokens p50 "
        f"{1e3 * gaps[len(gaps) // 2]:.0f} ms, p99 {1e3 * gaps[int(0.99 * len(gaps))]:.0f} ms, "
        f"{len(gaps)} tokens"
    )


class Stopwatch:
    """Adds up the time spent in methods of a class."""

    def __init__(self, kind: type, names: list[str]) -> None:
        self.seconds = 0.0
        self._depth = 0
        for name in names:
            setattr(kind, name, self._timed(getattr(kind, name)))

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            began = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.perf_counter() - began

        return timed


class Steps:
    """A tracer that adds up the time of steps."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def event(self, event: object) -> None:
        if isinstance(event, StepEvent):
            self.seconds += event.run_seconds


async def upkeep(model: str, kernels: Any) -> None:
    """Tree of thought, few-shot and chat in one crowd; the share of run time in matching,
    inserting, locking, evicting."""
    watch, steps = (
        Stopwatch(RadixCache, ["match", "insert", "lock", "unlock", "evict", "watch", "unwatch"]),
        Steps(),
    )
    async with asgl.Runtime(model, kernels=kernels, kv_cache_tokens=12_000, tracers=[steps]) as rt:

        async def program(number: int) -> None:
            s = rt.prompt(TEXT * 30 + f"Question {number}: ")
            async with s.fork(3) as branches:
                for branch in branches:
                    branch += "Idea: "
                    branch.gen("idea", max_tokens=24, ignore_eos=True, seed=number)
            s.join(branches)
            await s.select("best", [" first", " second", " third"])
            await s.gen("answer", max_tokens=24, ignore_eos=True, seed=number)

        await asyncio.gather(*(program(number) for number in range(32)))
        seen = rt.statistics()
    print(
        f"upkeep of the radix tree: {watch.seconds / steps.seconds:.2%} of the time of steps "
        f"({1e3 * watch.seconds:.0f} ms of {steps.seconds:.1f} s; hit rate {seen.hit_rate:.1%}, "
        f"{seen.evicted_tokens} tokens evicted)"
    )


async def deterministic(model: str, kernels: Any) -> None:
    """With and without, in turn: decoding one and eight streams, and a prompt of about 1,500
    tokens."""
    seen: dict[bool, list[tuple[float, float, float]]] = {False: [], True: []}
    for number in range(6):
        fixed = number % 4 in (1, 2)
        async with asgl.Runtime(model, kernels=kernels, deterministic=fixed) as rt:
            await decode(rt, 8, 8)
            one, eight = (await decode(rt, 1, 64))[0], (await decode(rt, 8, 64))[0]
            s = rt.prompt("long " + TEXT * 90)
            began = time.perf_counter()
            await s.extend("")
            seen[fixed].append((one, eight, len(s.token_ids) / (time.perf_counter() - began)))
    print("deterministic=True: tokens/s (median of 3)")
    for part, name in enumerate(("decode, 1 running", "decode, 8 running", "prompt")):
        free, fixed = (
            statistics.median(rates[part] for rates in seen[mode]) for mode in (False, True)
        )
        print(
            f"  {name:<18} {fixed:>7.0f} with, {free:>7.0f} without ({1 - fixed / free:.1%} less)"
        )


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--kernels", default="auto")
    running = {"overhead": overhead, "ticking": ticking, "long-prompt": long_prompt}
    apart = {"upkeep": upkeep, "deterministic": deterministic}
    parser.add_argument("--only", choices=[*running, *apart])
    arguments = parser.parse_args()
    if arguments.only not in apart:
        async with asgl.Runtime(arguments.model, kernels=arguments.kernels) as rt:
            print(rt.model)
            await decode(rt, 8, 8)
            for name, part in running.items():
                if arguments.only in (None, name):
                    await part(rt)
    for name, measure in apart.items():
        if arguments.only in (None, name):
            await measure(arguments.model, arguments.kernels)


if __name__ == "__main__":
    asyncio.run(main())
