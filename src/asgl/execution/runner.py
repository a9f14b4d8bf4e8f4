"""The runner: one step of the model, from a plan to tokens. All of it is called on the device
thread only."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from asgl.errors import EngineClosedError
from asgl.execution.batch import lower
from asgl.execution.kv_pool import KVPool, default_capacity
from asgl.execution.masks import forbidden, split
from asgl.execution.sampler import sample, sample_among, score
from asgl.kernels.api import Kernels
from asgl.models.architectures import architecture
from asgl.models.checkpoint import Checkpoint
from asgl.models.llama import Llama
from asgl.plan import INT, SampledToken, SampleRow, ScoreRow, StepPlan, StepResult
from asgl.sampling import SamplingSpec
from asgl.types import ModelInfo

_HEAD_ROWS = 64
"""Logits of so many tokens are held at once."""


class Runner:
    """Owns the weights and the KV pool of a model. `capacity` counts tokens; None takes what the
    memory allows.

    Everything is copied from the checkpoint, which may be closed afterwards. `clock` gives seconds.
    Raises ConfigError if the pool does not fit, ModelError if the checkpoint is not what its config
    says.
    """

    steps_in_flight = 1

    def __init__(
        self,
        checkpoint: Checkpoint,
        kernels: Kernels,
        capacity: int | None = None,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        config = checkpoint.config
        if capacity is None:
            capacity = default_capacity(config, kernels.device, kernels.kv_dtype)
        self.capacity = capacity
        self._kernels = kernels
        self._clock = clock
        with torch.inference_mode():
            self._pool: KVPool | None = KVPool(config, capacity, kernels.device, kernels.kv_dtype)
            model = architecture(config.architecture).model
            self._model: Llama | None = model(checkpoint, kernels, capacity)
        self.info = self._describe(checkpoint, kernels, self._model)

    @staticmethod
    def _describe(checkpoint: Checkpoint, kernels: Kernels, model: Llama) -> ModelInfo:
        config = checkpoint.config
        return ModelInfo(
            name=checkpoint.name,
            architecture=config.architecture,
            parameters=model.parameters,
            context_length=config.context_length,
            vocabulary=config.vocabulary,
            dtype=str(kernels.kv_dtype).removeprefix("torch."),
            device=str(kernels.device),
            kernels=kernels.name,
            weights=kernels.weights,
            activations=kernels.activations,
        )

    @torch.inference_mode()
    def run(self, plan: StepPlan) -> StepResult:
        """Runs a step and waits for it. InternalError if the plan is not sound; EngineClosedError
        after `close`."""
        start = self._clock()
        if self._model is None or self._pool is None:
            raise EngineClosedError("the runner was closed")
        info = self.info
        batch = lower(
            plan,
            capacity=self.capacity,
            vocabulary=info.vocabulary,
            context=min(info.context_length, self.capacity),  # the rope table has no more
            device=self._kernels.device,
        )
        indices = [row.index for row in plan.samples] + [row.index for row in plan.scores]
        at = torch.tensor(indices, device=self._kernels.device) if indices else None
        hidden = self._model.forward(batch, self._pool.layers, at)
        samples: list[SampledToken] = []
        scores: list[tuple[float, ...]] = []
        if hidden is not None:
            samples, scores = self._outputs(self._model, hidden, plan)
        self._kernels.synchronize()
        return StepResult(tuple(samples), tuple(scores), self._clock() - start)

    def _outputs(
        self, model: Llama, hidden: Tensor, plan: StepPlan
    ) -> tuple[list[SampledToken], list[tuple[float, ...]]]:
        samples: list[SampledToken] = []
        scores: list[tuple[float, ...]] = []
        for begin in range(0, len(plan.samples), _HEAD_ROWS):
            rows = plan.samples[begin : begin + _HEAD_ROWS]
            samples.extend(self._sampled(model, hidden[begin : begin + len(rows)], rows))
        for begin in range(0, len(plan.scores), _HEAD_ROWS):
            asked = plan.scores[begin : begin + _HEAD_ROWS]
            first = len(plan.samples) + begin
            scores.extend(
                score(self._kernels, model.head(hidden[first : first + len(asked)]), asked)
            )
        return samples, scores

    def _sampled(
        self, model: Llama, hidden: Tensor, rows: Sequence[SampleRow]
    ) -> Sequence[SampledToken]:
        """A token for each row, of as few logits as will do."""
        decided, few, rest = split(rows)
        if len(rest) == len(rows):
            return sample(self._kernels, model.head(hidden), rows)
        found = {row: SampledToken(token) for row, token in decided}
        if few:
            asked = [rows[row] for row in few]
            barred = forbidden(asked, self.info.vocabulary)
            assert barred is not None
            tokens = np.flatnonzero(~barred.all(axis=0))
            logits = model.head_some(hidden[few], torch.from_numpy(tokens).to(hidden.device))
            if logits is None:
                rest = sorted([*few, *rest])
            else:
                found.update(
                    zip(
                        few, sample_among(self._kernels, logits, asked, tokens, barred), strict=True
                    )
                )
        if rest:
            found.update(
                zip(
                    rest,
                    sample(self._kernels, model.head(hidden[rest]), [rows[row] for row in rest]),
                    strict=True,
                )
            )
        return [found[row] for row in range(len(rows))]

    def warm_up(self) -> None:
        """Runs each kind of work once, so that the first request does not pay for it. Overwrites
        the pool: call it first."""
        new = min(2, self.capacity)
        tokens, rising = array(INT, [0] * new), array(INT, range(new))
        for spec in (SamplingSpec(temperature=0.0), SamplingSpec(logprobs=1)):
            self.run(
                StepPlan(
                    0,
                    0,
                    tokens,
                    rising,
                    rising,
                    array(INT, [0, new]),
                    array(INT, [0, new]),
                    rising,
                    samples=(SampleRow(new - 1, 0, spec, 0),),
                    scores=(ScoreRow(0, (0,)),),
                )
            )
            one = array(INT, [0])
            self.run(
                StepPlan(
                    0,
                    1,
                    one,
                    one,
                    one,
                    array(INT, [0, 1]),
                    array(INT, [0, 1]),
                    one,
                    samples=(SampleRow(0, 0, spec, 0),),
                )
            )

    @torch.inference_mode()
    def read_kv(self, slots: Sequence[int]) -> Tensor:
        """A copy of the keys and values of the slots: see `KVPool.read`. EngineClosedError after
        `close`."""
        return self._open_pool.read(slots)

    @torch.inference_mode()
    def write_kv(self, slots: Sequence[int], values: Tensor) -> None:
        """Sets the keys and values of the slots, and waits for that. EngineClosedError after
        `close`."""
        self._open_pool.write(slots, values)
        self._kernels.synchronize()

    @property
    def _open_pool(self) -> KVPool:
        if self._pool is None:
            raise EngineClosedError("the runner was closed")
        return self._pool

    def close(self) -> None:
        """Frees the weights and the pool. May be called again."""
        self._model = self._pool = None


def make_runner(checkpoint: Checkpoint, kernels: Kernels, capacity: int | None = None) -> Runner:
    """The runner for a back end's device: arguments and errors as of `Runner`, or of `CudaRunner`
    on a GPU."""
    if kernels.device.type == "cuda" and kernels.name == "triton":
        from asgl.execution.cuda_runner import (
            CudaRunner,
        )  # only here: on CPUs nobody should wait for its imports

        return CudaRunner(checkpoint, kernels, capacity)  # pyright: ignore[reportArgumentType]
    return Runner(checkpoint, kernels, capacity)
