"""The runner as the engine sees it, and which one serves which device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from asgl.execution.serial_runner import SerialRunner
from asgl.kernels.api import Kernels
from asgl.models.checkpoint import Checkpoint
from asgl.plan import StepPlan, StepResult
from asgl.types import ModelInfo


class Runner(Protocol):
    """Computes steps of a model, from plans to tokens. Made and called on the device thread only;
    all but `close` raise EngineClosedError after it."""

    @property
    def info(self) -> ModelInfo:
        """What was loaded."""
        ...

    @property
    def capacity(self) -> int:
        """How many slots there are for keys and values."""
        ...

    @property
    def steps_in_flight(self) -> int:
        """How many steps may be launched and not collected."""
        ...

    def launch(self, plan: StepPlan, /) -> None:
        """Starts a step. InternalError if the plan is not sound: then it is not in flight."""
        ...

    def collect(self) -> StepResult:
        """Waits for the oldest step in flight, and takes what it gave."""
        ...

    def warm_up(self) -> None:
        """Runs each kind of work once, so that the first request does not pay for it. Overwrites
        the slots: to be called first."""
        ...

    def read_kv(self, slots: Sequence[int], /) -> Tensor:
        """A copy of the keys and values of the slots: see `KVPool.read`."""
        ...

    def write_kv(self, slots: Sequence[int], values: Tensor, /) -> None:
        """Sets the keys and values of the slots, and waits for that."""
        ...

    def close(self) -> None:
        """Frees the weights and the slots. May be called again."""
        ...


def make_runner(checkpoint: Checkpoint, kernels: Kernels, capacity: int | None = None) -> Runner:
    """The runner for a back end's device. capacity: slots of the KV cache; None takes what the
    memory allows. Errors as of `SerialRunner`, or of `CudaRunner` on a GPU."""
    if kernels.device.type == "cuda" and kernels.name == "triton":
        # only here: it imports triton, which takes a second that programs on CPUs need not wait
        from asgl.execution.cuda_runner import CudaRunner

        return CudaRunner(checkpoint, kernels, capacity)  # pyright: ignore[reportArgumentType]
    return SerialRunner(checkpoint, kernels, capacity)
