"""Runs a workload once on an engine, and says what happened."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

from bench.client import Client, Usage
from bench.workloads.base import Workload


@dataclass(slots=True)
class Run:
    """One run. Times in seconds; `latencies` has one for each program that ended, `right` a grade
    for each that has one."""

    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)
    usages: Sequence[Usage] = ()
    client_cpu_seconds: float = 0.0
    """Processor time of the client's thread: for asgl that of its event loop, with language and
    planning."""
    timed_out: bool = False

    @property
    def programs_per_second(self) -> float:
        return len(self.latencies) / self.seconds


async def execute(
    client: Client, workload: Workload, items: Sequence[Any], *, concurrency: int, limit: float
) -> Run:
    """Runs the program on all items, at most `concurrency` at once, for at most `limit` seconds.

    Raises what a program raises: Unsupported if the engine cannot do what the workload needs.
    """
    run = Run()
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            began = time.perf_counter()
            answer = await workload.run(client, item)
            run.latencies.append(time.perf_counter() - began)
            grade = workload.grade(item, answer)
            if grade is not None:
                run.right.append(grade)

    began, cpu = time.perf_counter(), time.thread_time()
    try:
        async with asyncio.timeout(limit), asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(items))):
                group.create_task(worker())
    except TimeoutError:
        run.timed_out = True
    except BaseExceptionGroup as errors:
        raise _first(errors) from errors
    run.seconds = time.perf_counter() - began
    run.client_cpu_seconds = time.thread_time() - cpu
    run.usages = getattr(client, "usages", ())
    return run


def _first(error: BaseException) -> BaseException:
    """What lies at the bottom of a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def percentile(values: Iterable[float], share: float) -> float | None:
    """The smallest value that at least that share of the values does not exceed; None if there are
    none."""
    ordered = sorted(values)
    return ordered[max(ceil(len(ordered) * share), 1) - 1] if ordered else None
