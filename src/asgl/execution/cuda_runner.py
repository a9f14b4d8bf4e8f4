"""The runner on GPUs: a step's batch goes up in one copy, decode steps are replays of captured
graphs, and results come down in copies that are waited for once. The next step may be launched
before that: the tokens that it continues are on the device already.

A graph is captured for each *bucket* of decode rows, with and without shared spans. A step of fewer
rows is padded: padding rows have one token without a slot, so that its keys and values are written
nowhere, and read one scratch slot. All addresses of a graph are those of one buffer, which is
packed anew for every step.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from asgl.errors import ConfigError, EngineError
from asgl.execution.batch import lower
from asgl.execution.cuda_device import Buffer, CudaDevice, Landing
from asgl.execution.cuda_outputs import GraphKernels, Outputs
from asgl.execution.kv_pool import KVPool, slot_bytes
from asgl.execution.loaded_model import LoadedModel, describe
from asgl.execution.warm_up import gpu_warm_up_plans, warm_up_plans
from asgl.kernels.api import Batch
from asgl.kernels.triton.spans import ENTRY, ROW, UNIT, SpannedBatch, SpanPlan, Spans, plan_spans
from asgl.models.architectures import architecture
from asgl.models.checkpoint import Checkpoint
from asgl.models.transformer import Transformer
from asgl.plan import StepPlan, StepResult

BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64)
"""Decode rows of the captured graphs; steps of more rows are launched one kernel at a time."""
UNITS, ENTRIES, PARTIALS = 256, 512, 1024
"""Room in a graph for a step's spans; a step that needs more is launched one kernel at a time."""
_INDICES = 2**20
"""Slots of contexts that a graph has room for, over all rows."""
_RESERVE = 10
"""One in so many bytes is left to activations, graphs, and other processes,"""
_RESERVE_LEAST = 512 * 2**20
"""and at least so many."""
_LEAST_CAPACITY = 256


@dataclass(frozen=True, slots=True)
class _Flight:
    """A step that is on the stream."""

    outputs: Outputs
    landing: Landing
    began: float


@dataclass(frozen=True, slots=True)
class _Graph:
    replay: Callable[[], None]
    hidden: Tensor


class CudaRunner:
    """A `Runner` that takes a step while another is in flight. Everything is allocated and launched
    on a stream of its own. `run` is `launch` and `collect`.

    checkpoint: is copied, and may be closed afterwards. capacity: in tokens; None takes nine tenths
    of the memory that the weights leave, and less if that cannot be had. clock: gives seconds.
    buckets: numbers of decode rows for which a graph is captured. cuda: torch.cuda, or what a test
    puts in its place. ConfigError if a capacity does not fit; EngineError if a step runs out of
    memory, twice.
    """

    steps_in_flight = 2

    def __init__(
        self,
        checkpoint: Checkpoint,
        kernels: GraphKernels,
        capacity: int | None = None,
        *,
        clock: Callable[[], float] = time.perf_counter,
        buckets: Sequence[int] = BUCKETS,
        cuda: Any = torch.cuda,
    ) -> None:
        self._config = config = checkpoint.config
        self._kernels: GraphKernels = kernels
        self._clock = clock
        self._buckets = tuple(sorted(buckets))
        self.graphs: dict[tuple[int, bool], _Graph] = {}
        """Those captured so far, by bucket, and whether with shared spans."""
        self.device = CudaDevice(kernels.device, cuda)
        self._flights: deque[_Flight] = deque()
        self._last_sampled: Tensor | None = None
        """What the step launched last samples."""
        self._ended = 0.0
        with torch.inference_mode(), self.device.on_stream():
            try:
                each = slot_bytes(config, kernels.kv_dtype)
                positions = capacity or self.device.free_memory() // each
                model = architecture(config.architecture).model
                weights = model(checkpoint, kernels, positions)
                self.static = Buffer(self._static_bytes(), kernels.device)
            except cuda.OutOfMemoryError as error:
                raise ConfigError(
                    f"the weights of {checkpoint.name} do not fit {kernels.device}: {error}; use a "
                    "smaller model, or another device"
                ) from error
            pool = self._make_pool(capacity)
        self.model = LoadedModel(weights, pool)
        self.capacity = pool.capacity
        self.info = describe(checkpoint, kernels, weights)
        self._span_rows = kernels.rows_of_span_tile(config.heads, config.kv_heads, config.head_dim)

    def _make_pool(self, capacity: int | None) -> KVPool:
        """The pool after the weights, from the memory that is left: the next smaller one if the
        device refuses."""
        kernels, cuda = self._kernels, self.device.cuda
        room = self.device.free_memory()
        each = slot_bytes(self._config, kernels.kv_dtype)
        if capacity is not None:
            try:
                return KVPool(self._config, capacity, kernels.device, kernels.kv_dtype)
            except cuda.OutOfMemoryError as error:
                raise ConfigError(
                    f"a KV cache for {capacity} tokens takes {capacity * each / 2**30:.1f} GiB, "
                    f"and {kernels.device} refused it with {room / 2**30:.1f} GiB free; choose a "
                    "smaller kv_cache_tokens, or leave it out"
                ) from error
        wanted = (room - max(room // _RESERVE, _RESERVE_LEAST)) // each - 1
        while wanted >= _LEAST_CAPACITY:
            try:
                return KVPool(self._config, wanted, kernels.device, kernels.kv_dtype)
            except cuda.OutOfMemoryError:
                cuda.empty_cache()
                wanted = wanted * 3 // 4
        raise ConfigError(
            f"{kernels.device} has {room / 2**20:.0f} MiB free beside the weights: not enough for "
            f"a KV cache of {_LEAST_CAPACITY} tokens ({each} bytes each) and for the work of a "
            "step; end other processes on it, or use a smaller model"
        )

    @property
    def pinned(self) -> list[Tensor]:
        """The host memory that steps are packed in and read from, for checks."""
        return [*self.device.pinned, *self.static.hosts]

    # --- a step ---

    def run(self, plan: StepPlan) -> StepResult:
        """Runs a step and waits for it. Errors as of `launch`."""
        self.launch(plan)
        return self.collect()

    @torch.inference_mode()
    def launch(self, plan: StepPlan) -> None:
        """Puts a step on the stream; at most two that are not collected. If it raises, as it does
        (InternalError) for a plan that is not sound, the step is not in flight."""
        began = self._clock()
        weights = self.model.weights
        batch = lower(
            plan,
            capacity=self.capacity,
            vocabulary=self.info.vocabulary,
            context=min(self.info.context_length, self.capacity),  # the rope table has no more
            device=torch.device("cpu"),
        )
        self.device.begin_step()
        with self.device.on_stream():
            try:
                outputs = self._step_or_again(weights, plan, batch)
            except BaseException:
                self.device.drop_step()
                raise
            self._last_sampled = outputs.sampled if plan.samples else None
            self._flights.append(_Flight(outputs, self.device.end_step(), began))

    def collect(self) -> StepResult:
        """Waits for the oldest step in flight, and reads what it gave. Its seconds are those that
        no other step ran."""
        flight = self._flights.popleft()
        self.device.wait(flight.landing)
        samples, scores = flight.outputs.read()
        began, self._ended = max(flight.began, self._ended), self._clock()
        return StepResult(samples, scores, self._ended - began)

    def _step_or_again(self, weights: Transformer, plan: StepPlan, batch: Batch) -> Outputs:
        try:
            return self._step(weights, plan, batch)
        except self.device.cuda.OutOfMemoryError:
            # tried again below, where the exception no longer holds what the step had allocated
            pass
        return self._step_again(weights, plan, batch)

    def _step_again(self, weights: Transformer, plan: StepPlan, batch: Batch) -> Outputs:
        """Runs a step again that ran out of memory, with empty caches. It writes what it has
        written once more, and before the commit nobody has read that."""
        cuda = self.device.cuda
        self.device.finish()
        cuda.empty_cache()
        try:
            return self._step(weights, plan, batch)
        except cuda.OutOfMemoryError as error:
            raise EngineError(
                f"the GPU ran out of memory in a step of {plan.tokens} tokens, also after its "
                f"caches were freed; open the Runtime with fewer kv_cache_tokens (now "
                f"{self.capacity}) or a smaller max_batch_tokens"
            ) from error

    def _step(self, weights: Transformer, plan: StepPlan, batch: Batch) -> Outputs:
        outputs = Outputs(plan, self.device, self._kernels, self.info.vocabulary)
        spans = plan_spans(
            batch.shared,
            batch.decode_rows,
            self._config.kv_heads,
            self._span_rows,
            self._kernels.target.multiprocessors,
        )
        bucket = self._bucket(batch, spans)
        if bucket is not None and outputs.wanted:
            hidden = self._replay(bucket, batch, spans, outputs)
        else:
            hidden = self._launch(weights, batch, spans, outputs)
        if hidden is not None:
            outputs.compute(weights, hidden)
        return outputs

    def _launch(
        self, weights: Transformer, batch: Batch, spans: SpanPlan | None, outputs: Outputs
    ) -> Tensor | None:
        """Launches one kernel at a time. The rows of hidden states that are asked for."""
        tables = (
            []
            if spans is None
            else [torch.from_numpy(table) for table in (spans.units, spans.entries, spans.rows)]
        )
        sent = self.device.upload(
            [
                batch.input_ids,
                batch.positions,
                batch.slots,
                batch.qo_indptr,
                batch.kv_indptr,
                *tables,
                batch.kv_indices,
                *outputs.inputs,
            ]
        )
        count = 6 + len(tables)
        outputs.sent = sent[count:]
        outputs.continue_from(self._last_sampled, sent[0])
        partials = None if spans is None else spans.partials
        return weights.forward(
            _batch(sent[:count], batch.decode_rows, batch.max_kv, partials),
            self.model.pool.layers,
            outputs.at if outputs.wanted else None,
        )

    # --- graphs ---

    def _bucket(self, batch: Batch, spans: SpanPlan | None) -> int | None:
        """The bucket whose graph can run the batch; None if there is none."""
        place = bisect_left(self._buckets, batch.rows)
        if batch.decode_rows < batch.rows or place == len(self._buckets):
            return None
        if len(batch.kv_indices) + self._buckets[place] > self._indices:
            return None
        if spans is not None and (
            len(spans.units) > UNITS or len(spans.entries) > ENTRIES or spans.partials > PARTIALS
        ):
            return None
        return self._buckets[place]

    @property
    def _indices(self) -> int:
        return min(_INDICES, max(self._buckets, default=0) * (self._config.context_length + 1))

    def _static_bytes(self) -> int:
        """Of all that a graph reads, at the largest bucket."""
        most = max(self._buckets, default=0)
        return (
            4 * (5 * (most + 8) + ROW * (most + 4) + UNIT * UNITS + ENTRY * ENTRIES + self._indices)
            + 4096
        )

    def _packed(self, bucket: int, batch: Batch, spans: SpanPlan | None) -> list[Tensor]:
        """The batch, padded to the bucket: tensors whose places in the buffer depend on the bucket
        only."""
        missing = bucket - batch.rows

        def padded(tensor: Tensor, value: int) -> Tensor:
            return torch.cat((tensor, tensor.new_full((missing,), value)))

        def rising(indptr: Tensor) -> Tensor:
            return torch.cat((indptr, indptr[-1] + torch.arange(1, missing + 1, dtype=torch.int32)))

        tables: list[Tensor] = []
        if spans is not None:
            for table, rows in (
                (spans.units, UNITS),
                (spans.entries, ENTRIES),
                (spans.rows, bucket),
            ):
                whole = np.zeros((rows, table.shape[1]), np.int32)
                whole[: len(table)] = table
                tables.append(torch.from_numpy(whole))
        return [
            padded(batch.input_ids, 0),
            padded(batch.positions, 0),
            padded(batch.slots, -1),
            rising(batch.qo_indptr),
            rising(batch.kv_indptr),
            *tables,
            padded(batch.kv_indices, self.capacity),
        ]

    def _replay(
        self, bucket: int, batch: Batch, spans: SpanPlan | None, outputs: Outputs
    ) -> Tensor:
        """Runs the bucket's graph. The rows of hidden states that are asked for."""
        packed = self._packed(bucket, batch, spans)
        graph = self.graphs.get((bucket, spans is not None)) or self._capture(
            bucket, packed, spans is not None
        )
        sent = self.device.upload(packed, self.static)
        outputs.sent = self.device.upload(outputs.inputs)
        outputs.continue_from(self._last_sampled, sent[0])
        graph.replay()
        return graph.hidden[outputs.at]

    def _capture(self, bucket: int, packed: list[Tensor], spanned: bool) -> _Graph:
        """Runs the step once, which compiles its kernels, then captures it."""
        weights, layers = self.model.weights, self.model.pool.layers
        sent = self.device.upload(packed, self.static)
        batch = _batch(sent, bucket, self._config.context_length, PARTIALS if spanned else None)
        every = torch.arange(bucket, device=self.device.device)

        def launch() -> Tensor:
            hidden = weights.forward(batch, layers, every)
            assert hidden is not None
            return hidden

        launch()
        self.device.finish()
        graph, hidden = self.device.capture(launch)
        made = self.graphs[bucket, spanned] = _Graph(graph.replay, hidden)
        return made

    def warm_up(self) -> None:
        """Compiles the kernels, and captures the graph of each bucket. Overwrites the pool.
        ConfigError if the cache leaves no memory for that."""
        for plan in (
            *warm_up_plans(self.capacity),
            *gpu_warm_up_plans(self.capacity, self.info.vocabulary),
        ):
            self.run(plan)
        with torch.inference_mode(), self.device.on_stream():
            # the largest first: the others fit into its memory
            for bucket in reversed(self._buckets):
                one = torch.zeros(1, dtype=torch.int32)
                ends = torch.tensor([0, 1], dtype=torch.int32)
                alone = Batch(one, one, one, ends, ends, one, decode_rows=1, max_kv=1)
                if (bucket, False) in self.graphs:
                    continue
                try:
                    self._capture(bucket, self._packed(bucket, alone, None), spanned=False)
                except self.device.cuda.OutOfMemoryError as error:
                    raise ConfigError(
                        f"the GPU ran out of memory for the graph of {bucket} decode rows; open "
                        f"the Runtime with fewer kv_cache_tokens (now {self.capacity}), or end "
                        "other processes on it"
                    ) from error
            self.device.finish()

    @torch.inference_mode()
    def read_kv(self, slots: Sequence[int]) -> Tensor:
        """A copy of the keys and values of the slots: see `KVPool.read`."""
        with self.device.on_stream():
            return self.model.pool.read(slots)

    @torch.inference_mode()
    def write_kv(self, slots: Sequence[int], values: Tensor) -> None:
        """Sets the keys and values of the slots, and waits for that."""
        with self.device.on_stream():
            self.model.pool.write(slots, values)
            self._kernels.synchronize()

    def close(self) -> None:
        """Frees the weights, the pool and the graphs. May be called again."""
        if not self.model.closed:
            self.graphs.clear()
            self.model.close()
            self.device.cuda.empty_cache()


def _batch(sent: list[Tensor], decode_rows: int, max_kv: int, partials: int | None) -> SpannedBatch:
    """The batch of uploaded tensors: five, then the tables of spans unless `partials` is None, then
    the slots."""
    spans = None if partials is None else Spans(sent[5], sent[6], sent[7], partials)
    input_ids, positions, slots, qo_indptr, kv_indptr = sent[:5]
    return SpannedBatch(
        input_ids,
        positions,
        slots,
        qo_indptr,
        kv_indptr,
        sent[-1],
        decode_rows=decode_rows,
        max_kv=max_kv,
        spans=spans,
    )
