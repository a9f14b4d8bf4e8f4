"""Steps on the device: plans go in, results come out, in order. A runner says how many it takes at
once.

    one (CPUs)    plan 1 | run 1 ............... commit 1 | plan 2 | run 2 ............... commit 2 | plan 3 ...

    two (GPUs)    plan 1 | launch 1 | plan 2 | launch 2 | collect 1 . commit 1 | plan 3 | launch 3 | collect 2 ...
    on the device             [--------- step 1 --------][--------- step 2 --------][--------- step 3 ---

With two, the device has its next step when one ends, and planning, committing and delivering cost
it nothing as long as together they take less than a step.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

from asgl.engine.device import DeviceThread
from asgl.plan import StepPlan, StepResult
from asgl.types import ModelInfo

if TYPE_CHECKING:
    from torch import Tensor


class Runner(Protocol):
    """What computes plans; see `asgl.execution.runner`."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def steps_in_flight(self) -> int:
        """How many steps it takes at once. More than one: it is a `RunnerAhead`."""
        ...

    def run(self, plan: StepPlan, /) -> StepResult: ...

    def read_kv(self, slots: Sequence[int], /) -> Tensor: ...

    def write_kv(self, slots: Sequence[int], values: Tensor, /) -> None: ...

    def close(self) -> None: ...


class RunnerAhead(Runner, Protocol):
    """One that takes a step while another is in flight: see `asgl.execution.cuda_runner`."""

    def launch(self, plan: StepPlan, /) -> None: ...

    def collect(self) -> StepResult: ...


class Launched(NamedTuple):
    """A plan that is on the device, or about to be."""

    plan: StepPlan
    plan_seconds: float


class Steps:
    """The steps in flight."""

    def __init__(self, runner: Runner, device: DeviceThread) -> None:
        self._runner = runner
        self._device = device
        self._ahead = cast(RunnerAhead, runner) if runner.steps_in_flight > 1 else None
        self._flight: deque[Launched] = deque()

    @property
    def in_flight(self) -> int:
        return len(self._flight)

    @property
    def full(self) -> bool:
        return len(self._flight) == self._runner.steps_in_flight

    async def launch(self, step: Launched) -> None:
        """Puts a step on the device. One that takes no second step runs it in `collect`, which
        saves a hand-off."""
        self._flight.append(step)  # first: who is cancelled here has launched it all the same
        if self._ahead is not None:
            await self._device.run(self._ahead.launch, step.plan)

    async def collect(self) -> tuple[Launched, StepResult]:
        """Waits for the oldest step in flight."""
        step = self._flight.popleft()
        if self._ahead is not None:
            return step, await self._device.run(self._ahead.collect)
        return step, await self._device.run(self._runner.run, step.plan)

    async def drain(self) -> None:
        """After a failure or a cancellation: waits until the device has done with what it was
        given, whatever comes of it. That there is nothing to collect of a step whose launch failed
        is one failure more."""
        while self._flight:
            self._flight.popleft()
            if self._ahead is not None:
                with suppress(Exception, asyncio.CancelledError):
                    await self._device.run(self._ahead.collect)
