"""The pipeline of steps: plans go to the device, results come back, in order. A runner says how
many steps it takes at once.

    one (CPUs)     plan 1 | run 1 ........... commit 1 | plan 2 | run 2 ........... commit 2 | ...

    two (GPUs)     plan 1 | launch 1 | plan 2 | launch 2 | collect 1 . commit 1 | plan 3 | ...
    on the device           [------- step 1 -------][------- step 2 -------][------- step 3 ---

With two, the device has its next step when one ends, and planning, committing and delivering cost
it nothing as long as together they take less than a step.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from typing import NamedTuple

from asgl.engine.device import DeviceThread
from asgl.execution.runner import Runner
from asgl.plan import StepPlan, StepResult


class PlannedStep(NamedTuple):
    """A plan that is on the device, or about to be."""

    plan: StepPlan
    plan_seconds: float


class Pipeline:
    """The steps in flight. runner: computes them, on the thread `device`."""

    def __init__(self, runner: Runner, device: DeviceThread) -> None:
        self._runner = runner
        self._device = device
        self._ahead = runner.steps_in_flight > 1
        self._flight: deque[PlannedStep] = deque()

    @property
    def in_flight(self) -> int:
        return len(self._flight)

    @property
    def full(self) -> bool:
        return len(self._flight) == self._runner.steps_in_flight

    async def launch(self, step: PlannedStep) -> None:
        """Puts a step on the device. Where no second step can follow it is left to `collect`: that
        saves a hand-off between the threads, which costs a small step more than its planning."""
        self._flight.append(step)  # first: who is cancelled here has launched it all the same
        if self._ahead:
            await self._device.run(self._runner.launch, step.plan)

    async def collect(self) -> tuple[PlannedStep, StepResult]:
        """Waits for the oldest step in flight, and takes it out."""
        step = self._flight.popleft()
        if self._ahead:
            return step, await self._device.run(self._runner.collect)
        return step, await self._device.run(self._run, step.plan)

    def _run(self, plan: StepPlan) -> StepResult:
        self._runner.launch(plan)
        return self._runner.collect()

    async def drain(self) -> None:
        """Waits, after a failure or a cancellation, until the device has done with what it was
        given, whatever comes of it."""
        while self._flight:
            self._flight.popleft()
            if self._ahead:
                # a step whose launch failed has nothing to collect: one failure more, unheard
                with suppress(Exception, asyncio.CancelledError):
                    await self._device.run(self._runner.collect)
