"""The runner that takes one step at a time, on any device that torch knows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from asgl.errors import InternalError
from asgl.execution.batch import lower
from asgl.execution.kv_pool import KVPool, default_capacity
from asgl.execution.loaded_model import LoadedModel, describe
from asgl.execution.masks import forbidden, split
from asgl.execution.sampler import HEAD_ROWS, sample, sample_among, score
from asgl.execution.warm_up import warm_up_plans
from asgl.kernels.api import Kernels
from asgl.models.architectures import architecture
from asgl.models.checkpoint import Checkpoint
from asgl.models.transformer import Transformer
from asgl.plan import SampledToken, SampleRow, StepPlan, StepResult


class SerialRunner:
    """A `Runner` that computes a step when it is launched. `run` is `launch` and `collect`.

    checkpoint: is copied, and may be closed afterwards. capacity: in tokens; None takes what the
    memory allows. clock: gives seconds. Raises ConfigError if the pool does not fit, ModelError if
    the checkpoint is not what its config says.
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
        self._result: StepResult | None = None
        with torch.inference_mode():
            pool = KVPool(config, capacity, kernels.device, kernels.kv_dtype)
            weights = architecture(config.architecture).model(checkpoint, kernels, capacity)
        self.model = LoadedModel(weights, pool)
        self.info = describe(checkpoint, kernels, weights)

    def run(self, plan: StepPlan) -> StepResult:
        """Runs a step and waits for it. Errors as of `launch`."""
        self.launch(plan)
        return self.collect()

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> None:
        """Runs a step. InternalError if the plan is not sound."""
        start = self._clock()
        weights, pool, device = self.model.weights, self.model.pool, self._kernels.device
        batch = lower(
            plan,
            capacity=self.capacity,
            vocabulary=self.info.vocabulary,
            # the rope table has no more
            context=min(self.info.context_length, self.capacity),
            device=device,
        )
        wanted = plan.wanted
        hidden = weights.forward(
            batch, pool.layers, torch.tensor(wanted, device=device) if wanted else None
        )
        samples: list[SampledToken | None] = []
        scores: list[tuple[float, ...] | None] = []
        if hidden is not None:
            for begin in range(0, len(plan.samples), HEAD_ROWS):
                rows = plan.samples[begin : begin + HEAD_ROWS]
                samples += self._sampled(weights, hidden[begin : begin + len(rows)], rows)
            for begin in range(0, len(plan.scores), HEAD_ROWS):
                asked = plan.scores[begin : begin + HEAD_ROWS]
                first = len(plan.samples) + begin
                logits = weights.head(hidden[first : first + len(asked)])
                scores += score(self._kernels, logits, asked)
        self._kernels.synchronize()
        self._result = StepResult(tuple(samples), tuple(scores), self._clock() - start)

    def collect(self) -> StepResult:
        """What the step gave that was launched."""
        result, self._result = self._result, None
        if result is None:
            raise InternalError("no step was launched")
        return result

    def _sampled(
        self, weights: Transformer, hidden: Tensor, rows: Sequence[SampleRow]
    ) -> Sequence[SampledToken | None]:
        """A token for each row, of as few logits as will do."""
        decided, few, rest = split(rows)
        if len(rest) == len(rows):
            return sample(self._kernels, weights.head(hidden), rows)
        found: dict[int, SampledToken | None] = {row: SampledToken(token) for row, token in decided}
        if few:
            asked = [rows[row] for row in few]
            barred = forbidden(asked, self.info.vocabulary)
            assert barred is not None
            tokens = np.flatnonzero(~barred.all(axis=0))
            logits = weights.head_some(hidden[few], torch.from_numpy(tokens).to(hidden.device))
            if logits is None:
                rest = sorted([*few, *rest])
            else:
                drawn = sample_among(self._kernels, logits, asked, tokens, barred)
                found.update(zip(few, drawn, strict=True))
        if rest:
            drawn = sample(self._kernels, weights.head(hidden[rest]), [rows[row] for row in rest])
            found.update(zip(rest, drawn, strict=True))
        return [found[row] for row in range(len(rows))]

    def warm_up(self) -> None:
        """Runs each kind of work once. Overwrites the pool."""
        for plan in warm_up_plans(self.capacity):
            self.run(plan)

    @torch.inference_mode()
    def read_kv(self, slots: Sequence[int]) -> Tensor:
        """A copy of the keys and values of the slots: see `KVPool.read`."""
        return self.model.pool.read(slots)

    @torch.inference_mode()
    def write_kv(self, slots: Sequence[int], values: Tensor) -> None:
        """Sets the keys and values of the slots, and waits for that."""
        self.model.pool.write(slots, values)
        self._kernels.synchronize()

    def close(self) -> None:
        """Frees the weights and the pool. May be called again."""
        self.model.close()
